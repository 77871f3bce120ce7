"""Conversions: the same bits and the same logits in every format, and refusals of one line."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from config import PRESETS, LlamaConfig
from llama import load_pretrained
from mini_llama.checkpoints.conversion import parse_size, prepare
from mini_llama.checkpoints.formats.folder import save_folder
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.tensor_files import load_plain
from tests.checkpoints.formats.test_meta import write_meta
from tests.helpers import ROOT, assert_relative, random_llama, random_tokens, tiny_config
from tokenizer import Tokenizer

TRUE = {"norm": "rmsnorm", "attention": "causal"}
# contract.md: what llama2.c and its Python model write at temperature 0, from BOS alone.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)


def convert(source: Path, destination: Path, to: str, **options: str) -> Path:
    prepare(source, destination, to, **options).write()
    return destination


def save_tiny(path: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    config = tiny_config(**TRUE | changes)
    tensors = {k: t.to(dtype) for k, t in random_llama(config).state_dict().items()}
    save_checkpoint(path, config, tensors)
    return path


def bits(path: Path) -> dict[str, tuple]:
    """Every tensor's dtype, shape and bytes; the tied embedding once."""
    checkpoint = read_checkpoint(path)
    return {
        name: (
            tensor.dtype,
            tensor.shape,
            tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in checkpoint.tensors.items()
        if name != "output.weight" or not checkpoint.make_config().tie_word_embeddings
    }


# The same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_to_huggingface_and_back(tmp_path, dtype: torch.dtype, n_kv_heads: int, tied: bool):
    """Also in shards, and from there to a folder once more."""
    source = save_tiny(
        tmp_path / "a.pt", dtype, n_kv_heads=n_kv_heads, tie_word_embeddings=tied, rope_theta=1e5
    )
    folder = convert(source, tmp_path / "b", "huggingface", max_shard_size="9KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    whole = convert(folder, tmp_path / "c", "huggingface")
    assert (whole / "model.safetensors").exists()
    back = convert(whole, tmp_path / "d.pt", "assignment")
    assert bits(source) == bits(folder) == bits(whole) == bits(back)
    assert read_checkpoint(back).make_config() == read_checkpoint(source).make_config(
        multiple_of=32
    )


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_to_llama2c_and_back(tmp_path, n_kv_heads: int, tied: bool):
    source = save_tiny(tmp_path / "a.pt", n_kv_heads=n_kv_heads, tie_word_embeddings=tied)
    binary = convert(source, tmp_path / "b.bin", "llama2c")
    folder = convert(binary, tmp_path / "c", "huggingface")
    back = convert(folder, tmp_path / "d.pt", "assignment")
    assert bits(source) == bits(binary) == bits(folder) == bits(back)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_llama2c_widens_exactly(tmp_path, dtype: torch.dtype):
    source = save_tiny(tmp_path / "a.pt", dtype)
    plan = prepare(source, tmp_path / "b.bin", "llama2c")
    assert plan.notes == [f"{str(dtype)[6:]} weights are written exactly as float32"]
    plan.write()
    half, full = read_checkpoint(source).tensors, read_checkpoint(tmp_path / "b.bin").tensors
    for name, tensor in full.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor.to(dtype), half[name])


@pytest.mark.parametrize("tied", [True, False])
def test_to_8_bits_and_on(tmp_path, tied: bool):
    """Every weight within half a step of its group's scale, and what was rounded stays as it is."""
    source = save_tiny(tmp_path / "a.pt", tie_word_embeddings=tied, dim=64, hidden_dim=128)
    plan = prepare(source, tmp_path / "b.bin", "llama2c-q80")
    plan.write()
    assert plan.notes[-1].startswith("8 bits, in groups of 64: the largest error of a weight is ")
    exact, rounded = read_checkpoint(source).tensors, read_checkpoint(tmp_path / "b.bin").tensors
    largest = 0.0
    for name, tensor in rounded.items():
        error = (tensor - exact[name]).abs()
        if tensor.ndim == 1:
            assert error.max() == 0
            continue
        steps = exact[name].view(-1, 64).abs().amax(1, keepdim=True) / 127
        assert (error.view(-1, 64) <= steps * (0.5 + 2e-5)).all()
        largest = max(largest, error.max().item())
    assert f"is {largest:.3g}, or 0.5" in plan.notes[-1]
    folder = convert(tmp_path / "b.bin", tmp_path / "c", "huggingface")
    assert bits(folder) == bits(tmp_path / "b.bin")


@pytest.mark.parametrize("count", [1, 2])
def test_from_metas_shards(tmp_path, count: int):
    llama = random_llama(tiny_config(**TRUE, tie_word_embeddings=False))
    meta = write_meta(tmp_path / "meta", llama, count)
    folder = convert(meta, tmp_path / "a", "huggingface", max_shard_size="9KB")
    back = convert(folder, tmp_path / "b.pt", "assignment")
    assert bits(meta) == bits(folder) == bits(back)
    for name, tensor in read_checkpoint(back).tensors.items():
        assert torch.equal(tensor, llama.state_dict()[name])


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_the_assignments_file_keeps_what_is_recorded(tmp_path, norm: str):
    source = save_tiny(tmp_path / "a.pt", norm=norm, attention="bidirectional")
    copy = convert(source, tmp_path / "b.pt", "assignment")
    assert bits(source) == bits(copy)
    assert read_checkpoint(copy).recorded == {"norm": norm, "attention": "bidirectional"}
    own = tmp_path / "own"
    save_folder(own, read_checkpoint(source).make_config(), dict(read_checkpoint(source).tensors))
    assert bits(convert(own, tmp_path / "c.pt", "assignment")) == bits(source)


def test_the_assignments_file_is_a_plain_torch_zip(tmp_path):
    """Whole for other readers of zip, mapped without copies, tied tensors stored once."""
    source = save_tiny(tmp_path / "a.pt")
    path = convert(source, tmp_path / "b.pt", "assignment")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "model_args"}
    model = content["model"]
    assert model["output.weight"].data_ptr() == model["tok_embeddings.weight"].data_ptr()
    assert path.stat().st_size < 1.1 * source.stat().st_size
    pointers = [tensor.data_ptr() for tensor in load_plain(path)["model"].values()]
    assert all(pointer % 64 == 0 for pointer in pointers)


def test_an_unrecorded_arithmetic_stays_unrecorded_unless_it_is_given(shared, tmp_path):
    source = shared / "checkpoints" / "stories260K-cmu.pt"
    plan = prepare(source, tmp_path / "a.pt", "assignment")
    assert "does not record its norm and attention" in plan.notes[0]
    plan.write()
    assert read_checkpoint(tmp_path / "a.pt").recorded == {}
    convert(source, tmp_path / "b.pt", "assignment", edition="llama2")
    assert read_checkpoint(tmp_path / "b.pt").recorded == TRUE
    plan = prepare(source, tmp_path / "c", "huggingface")
    assert "taken for a true Llama (RMSNorm, causal attention)" in plan.notes[0]
    assert prepare(source, tmp_path / "c", "huggingface", edition="llama2").notes == []


@pytest.mark.parametrize("name", ["stories260K.pt", "stories260K.bin", "stories260K-cmu.pt"])
def test_a_real_model_writes_the_same_story_in_every_format(shared, tmp_path, name: str):
    source, tokenizer_model = shared / "checkpoints" / name, shared / "checkpoints" / "tok512.model"
    folder = convert(source, tmp_path / "a", "huggingface", max_shard_size="300KB")
    back = convert(folder, tmp_path / "b.pt", "assignment")
    binary = convert(back, tmp_path / "c.bin", "llama2c")
    assert binary.read_bytes() == (shared / "checkpoints" / "stories260K.bin").read_bytes()
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    for path in (folder, back, binary):
        llama = load_pretrained(path, "llama2")
        tokens = llama.generate(torch.tensor([[tokenizer.bos_id]]), 200, 0.0)[0].tolist()
        assert tokenizer.decode(tokens).strip() == STORY


# What transformers makes of it


@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_our_folders(tmp_path, shard_size: str, tied: bool):
    transformers = pytest.importorskip("transformers")
    source = save_tiny(
        tmp_path / "a.pt", tie_word_embeddings=tied, rope_theta=1e5, layer_norm_eps=1e-3
    )
    folder = convert(source, tmp_path / "b", "huggingface", max_shard_size=shard_size)
    model, report = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    llama = load_pretrained(source)
    tokens = random_tokens(llama.config, 2, 13)
    with torch.inference_mode():
        logits, _ = llama(tokens, targets=tokens)
        assert_relative(logits, model(tokens).logits.double(), 1e-5)
    model.save_pretrained(tmp_path / "c")
    assert bits(convert(tmp_path / "c", tmp_path / "d.pt", "assignment")) == bits(source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transformers_sees_the_dtype_and_the_tokens(tmp_path, dtype: torch.dtype):
    transformers = pytest.importorskip("transformers")
    folder = convert(save_tiny(tmp_path / "a.pt", dtype), tmp_path / "b", "huggingface")
    assert transformers.AutoModelForCausalLM.from_pretrained(folder).dtype == dtype
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"eos_token_id": 7}))
    again = convert(folder, tmp_path / "c", "huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(again)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 7


def test_the_tokenizer_goes_along(tiny_folder: Path, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = convert(tiny_folder / "model.pt", tmp_path / "a", "huggingface")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer(tokenizer_model=tiny_folder / "model.model")
    for text in ("the film is good", "café, not very slow"):
        assert theirs(text)["input_ids"] == ours.encode(text, bos=True, eos=False)
    again = convert(folder, tmp_path / "b", "huggingface")
    for file in ("tokenizer.model", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_a_tokenizer_of_another_size_stays_behind(tokenizer_model: Path, tmp_path):
    source = save_tiny(tmp_path / "a.pt")
    shutil.copyfile(tokenizer_model, tmp_path / "a.model")
    plan = prepare(source, tmp_path / "b", "huggingface")
    plan.write()
    assert plan.notes == [f"no tokenizer of this model is beside {source}: none was copied"]
    assert not list((tmp_path / "b").glob("tokenizer*"))


def test_the_true_shape_of_smollm2(tmp_path):
    """transformers' own model of SmolLM2-135M's published shape, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(shape).eval()
    model.save_pretrained(tmp_path, max_shard_size="200MB")
    llama = load_pretrained(tmp_path)
    assert sum(p.numel() for p in llama.parameters()) == 134_515_008
    preset = LlamaConfig(**PRESETS["smollm2-135m"])
    assert llama.config == preset
    prompt = random_tokens(llama.config, 1, 8)
    with torch.inference_mode():
        ours, _ = llama(prompt, targets=prompt)
        assert_relative(ours, model(prompt).logits, 1e-4)
        theirs = model.generate(
            prompt, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert torch.equal(llama.generate(prompt, 64, 0.0), theirs)


# Memory, disk, and what is left when something fails


DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.mark.parametrize("to", ["assignment", "huggingface", "llama2c"])
def test_a_disk_without_room_is_refused_before_writing(tmp_path, monkeypatch, to: str):
    source = save_tiny(tmp_path / "a.pt")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 0, 10**6))
    with pytest.raises(ValueError, match=r"has 1 MB free, .*b needs 10 MB; free some, or"):
        prepare(source, tmp_path / "b", to)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("to", ["assignment", "huggingface", "llama2c"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143), OSError(28, "No space")])
def test_an_interruption_leaves_nothing(tmp_path, to: str, error: BaseException):
    source = save_tiny(tmp_path / "a.pt")
    before = bits(source)
    plan = prepare(source, tmp_path / "b", to, max_shard_size="9KB")
    if to != "huggingface":
        plan.destination.write_bytes(b"old")
    left, read = {path.name for path in tmp_path.iterdir()}, []

    def stop_in_the_middle(count: int) -> None:
        read.append(count)
        if len(read) == 9:
            raise error

    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        plan.write(stop_in_the_middle)
    assert {path.name for path in tmp_path.iterdir()} == left and bits(source) == before
    if to != "huggingface":
        assert plan.destination.read_bytes() == b"old"


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on a file's size stands for the disk's end."""
    source = save_tiny(tmp_path / "a.pt")
    code = (
        "import resource, signal, sys\nfrom checkpoint import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "for to in ('assignment', 'huggingface', 'llama2c'):\n"
        f"    try: main(['convert', {str(source)!r}, {str(tmp_path / 'b')!r}, '--to', to])\n"
        "    except SystemExit as error: print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and not done.stderr
    for line in lines:
        assert line.startswith(f"checkpoint.py: error: {tmp_path}")
        assert "too large" in line or "disk full" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


# Refusals


def refusal(source: Path, destination: Path, to: str, **options: str) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        convert(source, destination, to, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("to", ["huggingface", "llama2c"])
def test_another_arithmetic_is_refused(tmp_path, to: str):
    layer = save_tiny(tmp_path / "layer.pt", norm="layernorm")
    bidirectional = save_tiny(tmp_path / "bi.pt", attention="bidirectional")
    destination = tmp_path / "b"
    for source in (layer, bidirectional):
        message = refusal(source, destination, to)
        assert f"{to} means RMSNorm and causal attention: convert it --to assignment" in message
    assert "LayerNorm biases that are not 0" in refusal(layer, destination, to, edition="llama2")
    assert "use --norm layernorm" in refusal(layer, destination, "assignment", norm="rmsnorm")
    true = save_tiny(tmp_path / "true.pt")
    assert "bidirectional attention (explicit" in refusal(
        true, destination, to, attention="bidirectional"
    )
    assert not destination.exists()


@pytest.mark.parametrize("changes", [{"rope_theta": 1e5}, {"layer_norm_eps": 1e-6}])
def test_llama2c_cannot_record_these(tmp_path, changes: dict):
    source = save_tiny(tmp_path / "a.pt", **changes)
    assert next(iter(changes)) in refusal(source, tmp_path / "b.bin", "llama2c")
    assert not (tmp_path / "b.bin").exists()


def test_destinations_that_are_refused(tmp_path):
    source = save_tiny(tmp_path / "a.pt")
    folder = convert(source, tmp_path / "b", "huggingface")
    before = bits(folder)
    assert "is the source as well" in refusal(source, source, "assignment")
    assert "is the source as well" in refusal(folder, folder, "huggingface")
    assert "is the source as well" in refusal(
        folder / "model.safetensors", folder / ".." / "b", "huggingface"
    )
    for inside, to in ((folder / "new.pt", "assignment"), (folder / "new", "huggingface")):
        assert f"lies in the source folder {folder}" in refusal(folder, inside, to)
    assert "folder with files in it" in refusal(source, folder, "huggingface")
    assert "is a directory" in refusal(source, folder, "llama2c")
    assert "is not a folder" in refusal(folder, source, "huggingface")
    assert "does not exist; create it" in refusal(source, tmp_path / "no" / "b", "huggingface")
    assert bits(folder) == before
    (tmp_path / "empty").mkdir()
    assert bits(convert(source, tmp_path / "empty", "huggingface")) == before


def test_a_classifier_is_refused(tmp_path):
    source = tmp_path / "a.pt"
    config = tiny_config(**TRUE)
    save_checkpoint(source, config, random_llama(config).state_dict(), classifier={})
    assert "is a trained classifier" in refusal(source, tmp_path / "b", "huggingface")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "'gpt2' model"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures is ['MistralForCausalLM']"),
        ({"architectures": "Llama"}, "architectures is 'Llama'"),
        ({"num_hidden_layers": 3}, "missing layers.2."),
        ({"num_hidden_layers": 10**9}, "too few for 1000000000 layers"),
        ({"intermediate_size": 99}, "wrong shape"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
    ],
)
def test_folders_that_contradict_themselves(tmp_path, values: dict, part: str):
    folder = convert(save_tiny(tmp_path / "a.pt"), tmp_path / "b", "huggingface")
    change(folder / "config.json", **values)
    assert part in refusal(folder, tmp_path / "c.pt", "assignment")


def test_shards_that_are_wrong(tmp_path):
    source = save_tiny(tmp_path / "a.pt")
    folder = convert(source, tmp_path / "b", "huggingface", max_shard_size="9KB")
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    content = first.read_bytes()

    def refused() -> str:
        return refusal(folder, tmp_path / "c.pt", "assignment")

    first.write_bytes(content[:-5])
    assert f"{first} is damaged" in refused()
    first.write_bytes(content + bytes(5))
    assert f"{first} is damaged" in refused()
    first.write_bytes((2**60).to_bytes(8, "little") + content[8:])
    assert f"{first} is damaged" in refused()
    first.write_bytes(second.read_bytes())
    assert str(first) in refused()
    first.unlink()
    assert f"{first.name}, which is not there" in refused()


@pytest.mark.parametrize("text", ["", "5", "GB", "-5GB", "0MB", "5 XB", "1e3MB", "5GB5"])
def test_sizes_that_are_none(text: str):
    with pytest.raises(ValueError, match="give a size such as 500MB or 5GB"):
        parse_size(text)


def test_sizes():
    sizes = [parse_size(text) for text in ("5GB", "500MB", "1.5kb", "7 B")]
    assert sizes == [5 * 10**9, 5 * 10**8, 1500, 7]


def test_what_belongs_to_generation_goes_along(tmp_path, shared):
    """All of generation_config.json, every EOS, the chat template, a tokenizer behind a link."""
    llama = random_llama(tiny_config(vocab_size=512, norm="rmsnorm", attention="causal"))
    save_checkpoint(tmp_path / "a.pt", llama.config, llama.state_dict())
    prepare(tmp_path / "a.pt", tmp_path / "hf", "huggingface").write()
    kept = {"eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9, "max_length": 64}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(kept))
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"eos_token_id": [2, 5]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    tokenizer = tmp_path / "hf" / "tokenizer.model"
    tokenizer.symlink_to(shared / "checkpoints" / "tok512.model")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    plan = prepare(tmp_path / "hf", tmp_path / "out", "huggingface")
    plan.write()
    assert plan.notes == []
    out = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert json.loads(out["generation_config.json"].read_text()) == kept
    assert json.loads(out["config.json"].read_text())["eos_token_id"] == [2, 5]
    assert out["chat_template.jinja"].read_text() == "{{ messages }}"
    named = json.loads(out["tokenizer_config.json"].read_text())
    assert named["chat_template"] == "{{ messages }}"
    assert named["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert out["tokenizer.model"].read_bytes() == tokenizer.read_bytes()
    assert not out["tokenizer.model"].is_symlink() and "tokenizer.json" in out
