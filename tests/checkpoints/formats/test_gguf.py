"""GGUF files: weights, configuration, parts, and what is refused."""

import copy
import dataclasses
import random
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from config import RopeScaling
from llama import load_pretrained
from mini_llama.checkpoints import loading
from mini_llama.checkpoints.formats.gguf import dequantize
from mini_llama.checkpoints.formats.gguf_config import find_llama3
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import describe_checkpoint
from mini_llama.gguf_file import TENSOR_TYPES, TensorInfo
from mini_llama.inference.compiled_decoding import Step
from mini_llama.inference.decoders import PlainDecoder
from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.int8_blocks import Int8BlockLinear, can_pack_blocks, describe_kept
from mini_llama.layers.quantized_linear import Int8Linear
from rope import attention_factor, inverse_frequencies
from tests.checkpoints.helpers import assert_same_model
from tests.gguf_files import set_up_llama, write_gguf
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

gguf = pytest.importorskip("gguf")
CAUSAL = {"norm": "rmsnorm", "attention": "causal"}


def make_llama(**changes: object):
    """Rows are whole blocks of 32."""
    return random_llama(tiny_config(**CAUSAL, hidden_dim=96, **changes))


def refusal(path: Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load_pretrained(path)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) in message
    return message


@pytest.mark.parametrize("tied", [True, False])
def test_float32_is_the_model_itself(tmp_path, tied: bool):
    llama = make_llama(tie_word_embeddings=tied)
    loaded = load_pretrained(write_gguf(tmp_path / "m.gguf", llama))
    assert_same_model(loaded, llama)
    # the file has float32's neighbour of 1e-5
    assert loaded.config == dataclasses.replace(llama.config, multiple_of=32)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_16_bits_stay_as_they_are(tmp_path, kind: str):
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[kind]
    llama = make_llama()
    tensors = read_checkpoint(write_gguf(tmp_path / "m.gguf", llama, kind)).tensors
    for name, tensor in llama.state_dict().items():
        if name in tensors:
            expected = tensor if tensor.ndim == 1 else tensor.to(dtype)
            assert torch.equal(tensors[name], expected) and tensors[name].dtype == expected.dtype


def by_hand(kind: str, block: np.ndarray) -> np.ndarray:
    """32 values of a block, as ggml's documentation has its layout."""
    scale = block[:2].view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return block[2:].view(np.int8) * scale
    nibbles = block[-16:]
    values = np.concatenate([nibbles & 15, nibbles >> 4]).astype(np.float32)
    if kind == "Q4_0":
        return (values - 8) * scale
    return values * scale + block[2:4].view(np.float16).astype(np.float32)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_weights_are_dequantized(tmp_path, kind: str):
    llama = make_llama()
    path = write_gguf(tmp_path / "m.gguf", llama, kind)
    checkpoint = read_checkpoint(path)
    assert "layers.1.feed_forward.w2.weight" in checkpoint.made and "norm.weight" not in (
        checkpoint.made
    )
    block = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    weights = llama.layers[1].attention.compute_key.weight.detach().numpy()
    data = gguf.quantize(weights, gguf.GGMLQuantizationType[kind]).reshape(-1, block)
    expected = np.stack([by_hand(kind, row) for row in data]).reshape(weights.shape)
    loaded = load_pretrained(path).layers[1].attention.compute_key.weight.detach().numpy()
    np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_int8_keeps_the_files_integers_and_scales(tmp_path, kind: str):
    """To the bit; logits are those of the dequantized weights, to float32's rounding (1e-5), and
    one token at a time in bfloat16 (0.03).
    """
    path = write_gguf(tmp_path / "m.gguf", make_llama(vocab_size=160), kind)
    exact, kept = load_pretrained(path), load_pretrained(path, quantize="int8")
    for name, module in exact.named_modules():
        if isinstance(module, torch.nn.Linear):
            layer = kept.get_submodule(name)
            assert isinstance(layer, Int8BlockLinear) == can_pack_blocks()
            if can_pack_blocks():
                assert layer.blocks.dequantize().equal(module.weight)
    if not can_pack_blocks():
        pytest.skip("this processor has no product of 4-bit blocks")
    tokens = random_tokens(exact.config, 1, 12)
    expected = exact(tokens, targets=tokens)[0]
    assert_relative(kept(tokens, targets=tokens)[0], expected.detach(), 1e-5)
    whole = exact.generate(tokens[:, :4], 8, temperature=0)
    assert Step(kept, "int8").output.weight.equal(kept.output.weight)
    decoder = FastDecoder(kept)
    cache = decoder.make_cache(1, 12)
    steps = [decoder(tokens[:, i : i + 1], cache) for i in range(12)]
    assert_relative(torch.stack(steps, dim=1), expected.detach(), 0.03)
    assert kept.output.packed is not None and kept.output.blocks.dequantize().equal(
        exact.output.weight
    )
    plain = load_pretrained(path, quantize="int8")
    decoder = PlainDecoder(plain)
    assert generate(plain, tokens[:, :4], 8, Sampler(0.0), decoder=decoder).equal(whole)
    report = describe_checkpoint(read_checkpoint(path))
    assert re.search(
        r"^--quantize int8 +keeps 15 of 15 matrices, integers and scales$", report, re.M
    )
    assert describe_kept(plain) == "15 of 15 matrices as in the file, integers and scales"


def test_int8_quantizes_what_the_file_has_otherwise(tmp_path, monkeypatch):
    """What is no such blocks, and where this processor has no product of them."""
    for kind, is_kept in (("F16", True), ("Q8_0", False)):
        path = write_gguf(tmp_path / f"{kind}.gguf", make_llama(), kind)
        monkeypatch.setattr(loading, "can_keep", lambda blocks, answer=is_kept: answer)
        layers = [load_pretrained(path, quantize="int8").output]
        assert [type(layer) for layer in layers] == [Int8Linear]


def test_every_type_that_the_package_dequantizes_is_read():
    generator = np.random.default_rng(0)
    known = {kind.name: kind for kind in gguf.GGMLQuantizationType}
    sizes = {name: tuple(gguf.GGML_QUANT_SIZES[kind]) for name, kind in known.items()}
    assert {t.name: (t.block, t.size) for t in TENSOR_TYPES.values()} == sizes
    assert {t.name: number for number, t in TENSOR_TYPES.items()} == {
        name: kind.value for name, kind in known.items()
    }
    read = 0
    for kind in TENSOR_TYPES.values():
        data = generator.integers(0, 256, (3, 2 * kind.size), dtype=np.uint8)
        info = TensorInfo((3, 2 * kind.block), kind, 0)
        if kind.name in ("F32", "F16"):  # these are mapped
            continue
        try:
            with np.errstate(all="ignore"):
                expected = gguf.dequantize(data, known[kind.name])
        except NotImplementedError:
            with pytest.raises(ValueError, match=f"does not read the type {kind.name}"):
                dequantize(torch.from_numpy(data), info)
            continue
        actual = dequantize(torch.from_numpy(data).flatten(), info).numpy()
        np.testing.assert_array_equal(actual, expected)
        read += 1
    assert read >= 20


def test_transformers_reads_the_same_model(tmp_path):
    """Its own reader of GGUF: rows, norms and configuration, by another hand."""
    transformers = pytest.importorskip("transformers")
    llama = make_llama(rope_theta=500.0, layer_norm_eps=1e-3)

    def set_tokenizer(writer) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"<{i}>" for i in range(96)])
        writer.add_token_scores([0.0] * 96)
        writer.add_token_types([2] + [1] * 95)

    path = write_gguf(tmp_path / "m.gguf", llama, "Q8_0", set=set_tokenizer)
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    tokens = random_tokens(llama.config, 2, 12)
    logits, _ = load_pretrained(path)(tokens, targets=tokens)
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
    assert_relative(logits.detach(), expected, 1e-5)


SCALINGS = [
    RopeScaling("linear", 2.5),
    RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
    RopeScaling("llama3", 32.0, 100, 0.5, 3.0),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scaling(tmp_path, scaling: RopeScaling):
    """Llama 3's rule is in the file as each pair's factor, without its parameters."""
    llama = make_llama(
        dim=128, n_heads=4, max_seq_len=4096, rope_theta=5000.0, rope_scaling=scaling
    )
    plain = inverse_frequencies(32, 1, 5000.0)
    scaled = inverse_frequencies(32, 1, 5000.0, scaling=scaling)
    extra = {}

    def set_linear(writer) -> None:
        if scaling.rope_type == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(scaling.factor)

    if scaling.rope_type == "llama3":
        extra["rope_freqs.weight"] = (plain / scaled).numpy()
    loaded = load_pretrained(write_gguf(tmp_path / "m.gguf", llama, set=set_linear, extra=extra))
    found = inverse_frequencies(32, 1, 5000.0, scaling=loaded.config.rope_scaling)
    torch.testing.assert_close(found, scaled, rtol=2e-4, atol=0)
    assert loaded.config.rope_scaling.rope_type == scaling.rope_type
    if scaling.low_freq_factor == 1.0 or scaling.rope_type == "linear":
        assert loaded.config.rope_scaling == scaling


@pytest.mark.parametrize("attention", [None, 1.0, 1.25])
@pytest.mark.parametrize("original", [None, 64])
def test_yarn(tmp_path, attention: float | None, original: int | None):
    """llama.cpp multiplies YaRN's own factor of attention, 0.1 ln 4 + 1, by the file's."""

    def set_yarn(writer) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_yarn_beta_fast(32.0)
        if attention is not None:
            writer.add_rope_scaling_attn_factors(attention)
        if original is not None:
            writer.add_rope_scaling_orig_ctx_len(original)

    llama = make_llama(dim=128, n_heads=4, max_seq_len=256)
    found = load_pretrained(write_gguf(tmp_path / "m.gguf", llama, set=set_yarn)).config
    scaling = RopeScaling("yarn", 4.0, original or 256)
    assert dataclasses.replace(found.rope_scaling, attention_factor=None) == scaling
    assert attention_factor(found.rope_scaling) == pytest.approx(1.1386294 * (attention or 1))


def test_factors_of_no_rule_are_none():
    assert find_llama3(np.array([1.0, 3.0, 2.0, 8.0]), 1e4, 4096) is None
    assert find_llama3(np.ones(4), 1e4, 4096) is None


def test_parts_are_one_model(tmp_path):
    llama = make_llama()
    write_gguf(tmp_path / "m.gguf", llama, parts=8)
    paths = sorted(tmp_path.glob("m-*.gguf"))
    assert len(paths) == 3
    assert_same_model(load_pretrained(paths[0]), llama)
    assert "in 3 parts" in describe_checkpoint(read_checkpoint(paths[0]))
    assert f"is part 2 of 3 of a model: give the first, {paths[0].name}" in refusal(paths[1])
    paths[1].rename(tmp_path / "away.gguf")
    assert f"{paths[1].name}, part 2 of 3, is not there" in refusal(paths[0])
    (tmp_path / "away.gguf").rename(paths[1])
    paths[2].write_bytes(paths[1].read_bytes())
    assert "says that it is part 2 of 3" in refusal(paths[0])
    paths[0].rename(tmp_path / "first.gguf")
    assert "rename it to NAME-00001-of-00003.gguf" in refusal(tmp_path / "first.gguf")


def set_value(method: str, value: object):
    return lambda writer: getattr(writer, method)(value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"architecture": "qwen2"}, "of the architecture 'qwen2'; only 'llama'"),
        ({"architecture": "gemma3"}, "of the architecture 'gemma3'"),
        ({"set": set_value("add_expert_count", 8)}, "llama.expert_count is 8"),
        ({"set": set_value("add_type", "adapter")}, "of the type 'adapter', not a model"),
        ({"set": set_value("add_key_length", 16)}, "dimension_count is 8, and only 16"),
        (
            {"set": set_value("add_rope_scaling_type", gguf.RopeScalingType.LONGROPE)},
            "RoPE scaling is of the type 'longrope'",
        ),
        (
            {"set": set_value("add_rope_scaling_yarn_beta_fast", 16.0)},
            "yarn_beta_fast is 16.0",
        ),
        ({"set": set_value("add_rope_scaling_yarn_log_mul", 0.5)}, "yarn_log_multiplier is 0.5"),
        ({"set": set_value("add_rope_scaling_attn_factors", 1.5)}, "attn_factor is 1.5, and only"),
        ({"without": ["blk.1.attn_q.weight"]}, "missing layers.1.attention.compute_query"),
        ({"without": ["token_embd.weight"]}, "missing tok_embeddings.weight"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "missing layers.1.attention"),
        ({"extra": {"output.bias": np.ones(96, np.float32)}}, "it holds 'output.bias'"),
        ({"extra": {"rope_freqs.weight": np.ones(3, np.float32)}}, "is not 4 factors"),
        ({"extra": {"output.weight": np.ones((96, 16), np.float32)}}, "wrong shape output.weight"),
        ({"extra": {"output.weight": np.ones((96, 32), np.int8)}}, "the type I8"),
    ],
)
def test_what_is_no_llama_is_refused(tmp_path, changes: dict, part: str):
    assert part in refusal(write_gguf(tmp_path / "m.gguf", make_llama(), **changes))


def test_a_vocabulary_alone_is_no_model(tmp_path):
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    set_up_llama(writer, make_llama())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "holds no tensors, only a tokenizer" in refusal(path)


def test_info_shows_types_and_metadata(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf", make_llama(), "Q4_0", set=set_value("add_name", "A\nName")
    )
    lines = describe_checkpoint(read_checkpoint(path)).splitlines()
    rows = {line.split("  ")[0]: line.rpartition("  ")[2].strip() for line in lines}
    assert rows["format"] == "GGUF file, version 3"
    assert rows["general.name"] == "A Name" and rows["llama.block_count"] == "2"
    assert rows["tensors"].startswith("15 Q4_0 (")


def damage(data: bytes, generator: random.Random) -> bytes:
    """Cut, overwritten or with absurd numbers, most often in the header."""
    end = generator.choice([64, 400, 2000, len(data)])
    place, changed = generator.randrange(end), bytearray(data)
    kind = generator.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        changed[place : place + 8] = generator.choice(
            [b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f"]
        )
    elif kind == 2:
        changed[place] = generator.randrange(256)
    else:
        del changed[place : place + generator.randrange(1, 40)]
    return bytes(changed)


def test_100_damaged_files_are_refused_in_a_line_or_read(tmp_path):
    """Each is one line, or what changed is a weight or of no account; memory stays bounded."""

    def set_tokenizer(writer) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([f"t{i}" for i in range(96)])
        writer.add_token_types([1] * 96)
        writer.add_token_merges([])

    data = write_gguf(tmp_path / "m.gguf", make_llama(), "Q8_0", set=set_tokenizer).read_bytes()
    generator, refused = random.Random(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(100):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(damage(data, generator))
        try:
            load_pretrained(path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
        path.unlink()
    assert refused > 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_changed_file_is_read_again(tmp_path):
    first, second = make_llama(), copy.deepcopy(make_llama())
    with torch.no_grad():
        second.norm.weight.add_(1)
    path = write_gguf(tmp_path / "m.gguf", first)
    load_pretrained(path)
    write_gguf(tmp_path / "n.gguf", second).replace(path)
    assert_same_model(load_pretrained(path), second)
