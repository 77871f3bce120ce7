"""What is counted against what is allocated, published sizes, and docs/big-models.md's figures."""

import re

import pytest
import torch

from config import DTYPES, PRESETS, LlamaConfig
from llama import load_pretrained
from mini_llama.checkpoints import memory as memory_plan
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.memory import FORMS, Form, converted_bytes, describe_fit, memory_facts
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import stored_tensors
from mini_llama.checkpoints.sizes import (
    count_parameters,
    is_quantized,
    kv_cache_bytes,
    weight_bytes,
)
from mini_llama.layers.int8_blocks import can_pack_blocks
from tests.gguf_files import write_gguf
from tests.helpers import ROOT, random_llama, random_tokens, tiny_config
from tests.layers.test_quantized_linear import needs_bitsandbytes
from utils import available_bytes

TRUE = {"norm": "rmsnorm", "attention": "causal"}
LLAMAS = {name: LlamaConfig(**PRESETS[f"llama2-{name.lower()}"]) for name in ("7B", "13B", "70B")}


def bytes_held(llama: torch.nn.Module) -> int:
    tensors = {id(t): t for t in [*llama.parameters(), *llama.buffers()]}.values()
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_counted_as_they_are_held(tmp_path, tied: bool, quantize, dtype: str):
    config = tiny_config(**TRUE, tie_word_embeddings=tied)
    save_checkpoint(tmp_path / "m.pt", config, random_llama(config).state_dict())
    loaded = load_pretrained(tmp_path / "m.pt", dtype=dtype, quantize=quantize)
    assert weight_bytes(config, dtype, quantize) == bytes_held(loaded)


@needs_bitsandbytes
def test_nf4_is_counted_as_it_is_held_but_for_its_scales(tmp_path):
    config = tiny_config(**TRUE, dim=128, n_heads=4, hidden_dim=256)
    save_checkpoint(tmp_path / "m.pt", config, random_llama(config).state_dict())
    loaded = load_pretrained(tmp_path / "m.pt", quantize="nf4")
    layers = sum(p.numel() for p in loaded.parameters() if p.dtype == torch.uint8)
    held = bytes_held(loaded)
    assert held < weight_bytes(config, "float32", "nf4") == held + 2 * layers // 32


def test_published_sizes():
    """Meta's 7B in half precision is a file of 13.5 GB, Hugging Face's page says; and half a
    megabyte of keys and values a token is known of it.
    """
    assert weight_bytes(LLAMAS["7B"], "float16") == 13_476_831_232
    assert kv_cache_bytes(LLAMAS["7B"], 1, "float16") == 2**19


def test_what_fits_and_what_does_not():
    assert describe_fit(LLAMAS["7B"], 11 * 10**9) == (
        "fits: --quantize int8 --dtype bfloat16, --quantize nf4, --quantize nf4 --dtype bfloat16; "
        "does not: float32 (31.25 GB of 11.00 GB free), --dtype bfloat16 (15.62 GB of 11.00 GB "
        "free), --quantize int8 (11.44 GB of 11.00 GB free)"
    )
    assert describe_fit(LLAMAS["70B"], 10**9).startswith("fits: nothing; does not: float32 (")
    assert "does not" not in describe_fit(LLAMAS["7B"], 10**12)
    assert describe_fit(LLAMAS["7B"], None).startswith("fits: unknown")


def test_a_twentieth_is_left_for_the_rest():
    """Of 7B in float32: its numbers, and a whole context at 2 · 32 · 4096 numbers a token."""
    needed = 4 * 6_738_415_616 + 4096 * 4 * 2 * 32 * 4096
    assert describe_fit(LLAMAS["7B"], needed * 105 // 100).startswith("fits: float32, ")
    assert describe_fit(LLAMAS["7B"], needed * 105 // 100 - 1).startswith("fits: --dtype ")


@pytest.mark.skipif(not can_pack_blocks(), reason="no product of 4-bit blocks here")
def test_int8_blocks_of_a_file_are_counted_as_the_decoder_holds_them(tmp_path):
    """But for float16 scales, which might have been float32."""
    llama = random_llama(tiny_config(**TRUE, dim=64, hidden_dim=128, vocab_size=128))
    path = write_gguf(tmp_path / "m.gguf", llama, "Q8_0")
    checkpoint = read_checkpoint(path)
    loaded = load_pretrained(path, quantize="int8")
    tokens = random_tokens(llama.config, 1, 3)
    loaded.generate(tokens, 3, temperature=0)
    tensors = stored_tensors(checkpoint, llama.config)
    # Of what is made, the embedding, in float32 either way, is in neither sum.
    meta = {k: t.double() for k, t in tensors.meta.items() if is_quantized(k, "int8")}
    counted = converted_bytes(llama.config, meta, "float32", "int8", tensors.read_blocks)
    held = sum(buffer.nbytes for buffer in loaded.buffers())
    scales = sum(t.numel() for name, t in loaded.named_buffers() if name.endswith(".scales"))
    assert counted - 4 * 128 * 64 == held + 2 * scales
    assert converted_bytes(llama.config, meta, "float32", "int8") < counted


def test_a_mapped_model_needs_nothing(tmp_path):
    config = tiny_config(**TRUE)
    save_checkpoint(tmp_path / "m.pt", config, random_llama(config).state_dict())
    meta = stored_tensors(read_checkpoint(tmp_path / "m.pt"), config).meta
    largest = 4 * 96 * 32
    assert converted_bytes(config, meta, "float32") == 0
    assert converted_bytes(config, meta, "bfloat16") == weight_bytes(config, "bfloat16") + largest
    rounded = converted_bytes(config, meta, "float32", "int8")
    mapped = 4 * (96 * 32 + 5 * 32)  # embedding and norms
    assert rounded == weight_bytes(config, "float32", "int8") - mapped + largest


def test_refusals_name_what_fits(tmp_path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(**TRUE, dim=64, n_layers=8)
    halves = {name: t.bfloat16() for name, t in random_llama(config).state_dict().items()}
    save_checkpoint(tmp_path / "m.pt", config, halves)
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: 600_000)
    with pytest.raises(ValueError) as caught:
        load_pretrained(tmp_path / "m.pt")
    assert re.fullmatch(
        r".*m\.pt needs 0\.99 MB of memory as float32, and 0\.60 MB are free: it fits with "
        r"--dtype bfloat16, --quantize int8, .*",
        str(caught.value),
    )
    assert load_pretrained(tmp_path / "m.pt", dtype="bfloat16").dtype == torch.bfloat16
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: 10)
    with pytest.raises(ValueError, match=r"0\.00 MB are free: it fits with --dtype bfloat16$"):
        load_pretrained(tmp_path / "m.pt")  # which would stay mapped
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: None)
    load_pretrained(tmp_path / "m.pt")


def test_free_memory_is_this_machines():
    free = available_bytes()
    assert free is None or 2**20 < free < 2**50


# The document


def test_the_documents_figures_are_the_plans():
    """Every row of its tables that begins with a size, number by number."""
    text = (ROOT / "docs" / "big-models.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (7B|13B|70B) ", line)
    ]
    assert len(rows) == 9
    for name, *cells in rows[:3]:
        sizes = [weight_bytes(LLAMAS[name], *form) for form in FORMS]
        assert cells == [f"{size / 1e9:.2f}" for size in sizes]
    for name, *cells in rows[3:6]:
        config = LLAMAS[name]
        sizes = [kv_cache_bytes(config, n, d) for n in (1000, 4096) for d in DTYPES]
        assert cells == [f"{size / 1e9:.2f}" for size in sizes]
    for name, *cells in rows[6:]:
        config, forms = LLAMAS[name], [Form("bfloat16", q) for q in (None, "int8", "nf4")]
        bounds = [
            bandwidth * 1e9 / memory_plan.token_bytes(config, form, 1000)
            for bandwidth in (35, 100, 3350)
            for form in forms
        ]
        assert cells == [f"{bound:.1f}" for bound in bounds]


def test_a_token_reads_weights_and_cache_but_one_row_of_the_embedding():
    config = LLAMAS["7B"]
    embedding, row = 2 * 32000 * 4096, 2 * 4096
    cache = 1000 * 2**19
    expected = 2 * 6_738_415_616 - embedding + row + cache
    assert memory_plan.token_bytes(config, Form("bfloat16"), 1000) == expected


def test_facts_name_the_device():
    names = [name for name, _ in memory_facts(LLAMAS["7B"])]
    assert names == ["weights in memory", "key/value cache", "free on cpu"]


def test_training_a_model_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch):
    """On a CPU four numbers a parameter; elsewhere the weights alone are made here."""
    config = tiny_config(**TRUE)
    weights = 4 * count_parameters(config)
    for device, is_sharded, needed in (
        ("cpu", False, 4 * weights),
        ("cpu", True, weights),
        ("meta", False, weights),
    ):
        monkeypatch.setattr(memory_plan, "available_bytes", lambda n=needed: int(1.06 * n))
        memory_plan.require_training_memory(config, torch.device(device), is_sharded)
        monkeypatch.setattr(memory_plan, "available_bytes", lambda n=needed: n)
        with pytest.raises(ValueError, match=r"^a model of 26,272 parameters needs .* are free"):
            memory_plan.require_training_memory(config, torch.device(device), is_sharded)
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: None)
    memory_plan.require_training_memory(config, torch.device("cpu"))
