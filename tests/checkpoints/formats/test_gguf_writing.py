"""GGUF files that are written: read back, read by llama.cpp's own package, refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from config import RopeScaling
from llama import load_pretrained
from mini_llama.checkpoints.conversion import prepare
from mini_llama.checkpoints.formats.gguf_writing import encode
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.options import target_name
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.tokenization.find import find_tokenizer, load_tokenizer
from rope import attention_factor
from tests.gguf_files import smollm2, their_name
from tests.helpers import ROOT, assert_relative, random_llama, random_tokens, tiny_config

gguf = pytest.importorskip("gguf")
CAUSAL = {"norm": "rmsnorm", "attention": "causal"}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def convert(source: Path, destination: Path, kind: str | None = None, to: str = "gguf") -> list:
    plan = prepare(source, destination, target_name(to, kind))
    plan.write()
    return plan.notes


def save(path: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    llama = random_llama(tiny_config(**CAUSAL | {"hidden_dim": 96} | changes)).to(dtype)
    save_checkpoint(path, llama.config, llama.state_dict())
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", DTYPES)
def test_there_and_back_is_bit_for_bit(tmp_path, kind: str, tied: bool):
    source = save(tmp_path / "a.pt", DTYPES[kind], tie_word_embeddings=tied)
    convert(source, tmp_path / "b.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "c.pt", to="assignment")
    before, after = read_checkpoint(source), read_checkpoint(tmp_path / "c.pt")
    assert before.make_config() == after.make_config(multiple_of=8)
    for name, tensor in before.tensors.items():
        dtype = torch.float32 if tensor.ndim == 1 else DTYPES[kind]  # norms are always float32
        assert after.tensors[name].dtype == dtype
        assert torch.equal(after.tensors[name].to(DTYPES[kind]), tensor)


@pytest.mark.parametrize("kind", [*DTYPES, "q8_0"])
def test_the_package_reads_what_is_written(tmp_path, kind: str):
    """Names, shapes, types and numbers, by another reader."""
    source = save(tmp_path / "a.pt", tie_word_embeddings=False)
    notes = convert(source, tmp_path / "b.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    tensors = read_checkpoint(source).tensors
    assert found.keys() == {their_name(name) for name in tensors}
    bound = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.6 / 127}[kind]
    for name, tensor in tensors.items():
        theirs, expected = found[their_name(name)], tensor.numpy()
        is_norm = tensor.ndim == 1
        assert theirs.tensor_type.name == ("F32" if is_norm else kind.upper())
        assert list(theirs.shape) == list(reversed(expected.shape))
        actual = gguf.dequantize(theirs.data, theirs.tensor_type).reshape(expected.shape)
        largest = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
        limit = 0 if is_norm else bound * largest
        assert (np.abs(actual - expected).reshape(-1, 32) <= limit).all()
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert any("blocks of 32" in note for note in notes) == (kind == "q8_0")
    assert any("rounded to" in note for note in notes) == (kind in ("f16", "bf16"))


def test_rows_that_are_not_whole_blocks_are_float16(tmp_path):
    source = save(tmp_path / "a.pt", hidden_dim=88)
    notes = convert(source, tmp_path / "b.gguf", "q8_0")
    assert any("rows are not whole blocks of 32: 2 tensors" in note for note in notes)
    tensors = read_checkpoint(tmp_path / "b.gguf").tensors
    assert tensors["layers.0.feed_forward.w2.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0),
        RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
        RopeScaling("yarn", 4.0, 64),
        RopeScaling("yarn", 4.0, 64, attention_factor=1.3),
    ],
    ids=str,
)
def test_rope_scaling_comes_along(tmp_path, scaling: RopeScaling):
    changes = {"dim": 64, "n_heads": 2, "max_seq_len": 512, "rope_scaling": scaling}
    source = save(tmp_path / "a.pt", **changes)
    convert(source, tmp_path / "b.gguf")
    before, after = load_pretrained(source), load_pretrained(tmp_path / "b.gguf")
    found = after.config.rope_scaling
    assert attention_factor(found) == pytest.approx(attention_factor(scaling), rel=1e-6)
    assert dataclasses.replace(found, attention_factor=scaling.attention_factor) == scaling
    tokens = random_tokens(before.config, 1, 200)
    assert_relative(after(tokens, targets=tokens)[0], before(tokens, targets=tokens)[0], 1e-5)


def test_what_the_format_lacks_is_refused(tmp_path):
    dynamic = save(tmp_path / "a.pt", rope_scaling=RopeScaling("dynamic", 2.0, 8))
    with pytest.raises(ValueError, match="cannot have dynamic RoPE scaling"):
        convert(dynamic, tmp_path / "b.gguf")
    factors = {"short_factor": (1.0,) * 4, "long_factor": (2.0,) * 4}
    longrope = save(tmp_path / "a.pt", rope_scaling=RopeScaling("longrope", 2.0, 8, **factors))
    with pytest.raises(ValueError, match="cannot have longrope RoPE scaling"):
        convert(longrope, tmp_path / "b.gguf")
    for name, value in {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}.items():
        yarn = save(tmp_path / "a.pt", rope_scaling=RopeScaling("yarn", 2.0, 8, **{name: value}))
        with pytest.raises(ValueError, match=f"^{name} is {value}, and llama.cpp computes YaRN"):
            convert(yarn, tmp_path / "b.gguf")
    layernorm = save(tmp_path / "n.pt", norm="layernorm")
    with pytest.raises(ValueError, match="means RMSNorm"):
        convert(layernorm, tmp_path / "b.gguf")
    with pytest.raises(ValueError, match="--type f16 is not allowed: it is for --to gguf"):
        target_name("assignment", "f16")
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_numbers_that_a_type_lacks(value: float):
    tensor = torch.full((2, 32), value)
    if value == 1e6:
        with pytest.raises(ValueError, match="x has numbers too large for F16"):
            encode(tensor, "F16", "x")
    else:
        with pytest.raises(ValueError, match="x holds NaN or infinity"):
            encode(tensor, "Q8_0", "x")
    data, _ = encode(tensor, "F32", "x")
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), tensor.flatten())


def test_a_sentencepiece_model_comes_along(tmp_path):
    """And back to a folder that transformers loads, with the same ids."""
    convert(ROOT / "data" / "demo" / "demo.pt", tmp_path / "b.gguf", "bf16")
    assert find_tokenizer(tmp_path / "b.gguf") == tmp_path / "b.gguf"
    convert(tmp_path / "b.gguf", tmp_path / "folder", to="huggingface")
    text = "Once upon a time,  two cats\nsat — naïve! 12"
    own = load_tokenizer(ROOT / "data" / "demo" / "demo.model").encode(text, bos=True, eos=True)
    for path in (tmp_path / "b.gguf", tmp_path / "folder"):
        assert load_tokenizer(path).encode(text, bos=True, eos=True) == own
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert theirs(text)["input_ids"] == own[:-1]


def test_a_byte_level_tokenizer_and_its_template_come_along(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    llama = random_llama(tiny_config(**CAUSAL, vocab_size=300))
    folder = tmp_path / "folder"
    save_checkpoint(tmp_path / "a.pt", llama.config, llama.state_dict())
    convert(tmp_path / "a.pt", folder, to="huggingface")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, "th", "the"])}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    library.add_special_tokens(["<s>", "</s>"])
    cut = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    library.pre_tokenizer, library.decoder = cut, tokenizers.decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    described = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    described["chat_template"] = "{{ bos_token }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    convert(folder, tmp_path / "b.gguf")
    before, after = load_tokenizer(folder), load_tokenizer(tmp_path / "b.gguf")
    text = "the 2 cats'll — thé"
    assert after.encode(text, bos=True, eos=True) == before.encode(text, bos=True, eos=True)
    assert after.chat_template == before.chat_template == "{{ bos_token }}"
    assert (after.n_words, after.eos_ids) == (300, (1,))  # rows without a token are unused ones
    convert(tmp_path / "b.gguf", tmp_path / "again", to="huggingface")
    again = load_tokenizer(tmp_path / "again")
    assert again.encode(text, bos=True, eos=True) == before.encode(text, bos=True, eos=True)
    assert again.chat_template == "{{ bos_token }}"


def smollm2_in_transformers(path: Path):
    """The file's weights, dequantized by the package, in transformers' order of rows."""
    transformers = pytest.importorskip("transformers")
    shape = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    config = transformers.LlamaConfig(**shape, **heads, rms_norm_eps=1e-5, rope_theta=100000.0)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    state = {}
    for name, empty in model.state_dict().items():
        theirs = found.get(names.get_name(name, try_suffixes=(".weight",)))
        if theirs is None:  # the output layer is the embedding
            theirs = found["token_embd.weight"]
        values = gguf.dequantize(theirs.data, theirs.tensor_type).reshape(empty.shape)
        if "q_proj" in name or "k_proj" in name:
            values = values.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(empty.shape)
        state[name] = torch.from_numpy(values.copy())
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def test_smollm2_writes_what_transformers_writes():
    """Three prompts and two chats, greedily: each token is transformers' most probable one."""
    path = smollm2()
    ours, theirs, tokenizer = (
        load_pretrained(path),
        smollm2_in_transformers(path),
        (load_tokenizer(path)),
    )
    names = {tokenizer.library.id_to_token(i): i for i in tokenizer.control_ids}

    def turn(role: str, text: str) -> list[int]:
        inner = tokenizer.encode(f"{role}\n{text}", bos=False, eos=False)
        after = tokenizer.encode("\n", bos=False, eos=False)
        return [names["<|im_start|>"], *inner, names["<|im_end|>"], *after]

    start = [names["<|im_start|>"], *tokenizer.encode("assistant\n", bos=False, eos=False)]
    texts = ("The capital of France is", "Once upon a time", "def fibonacci(n):")
    prompts = [tokenizer.encode(text, bos=True, eos=False) for text in texts]
    prompts.append([*turn("user", "What is gravity?"), *start])
    prompts.append([*turn("system", "Be terse."), *turn("user", "Name 3 colours."), *start])
    for prompt in prompts:
        written = ours.generate(torch.tensor([prompt]), 8, temperature=0)
        with torch.inference_mode():
            best = theirs(written).logits.argmax(dim=-1)
        assert written[0, len(prompt) :].equal(best[0, len(prompt) - 1 : -1])
        assert "Paris" in tokenizer.decode(written[0].tolist()) or prompt != prompts[0]


def test_llama_cpp_writes_the_same_text(tmp_path):
    """Where LLAMA_CPP_PYTHON names a Python with the package llama-cpp-python, which takes minutes
    to build.
    """
    python = os.environ.get("LLAMA_CPP_PYTHON")
    if python is None:
        pytest.skip("LLAMA_CPP_PYTHON does not name a Python that has llama-cpp-python")
    prompt = "Once upon a time, there was a"
    convert(ROOT / "data" / "demo" / "demo.pt", tmp_path / "b.gguf")
    program = (
        "import json, sys, llama_cpp\n"
        "llama = llama_cpp.Llama(sys.argv[1], n_ctx=256, verbose=False)\n"
        "ids = llama.tokenize(sys.argv[2].encode(), add_bos=True)\n"
        "made = llama.generate(ids, temp=0.0, top_k=1)\n"
        "print(json.dumps([*ids, *(next(made) for _ in range(30))]))\n"
    )
    command = [python, "-c", program, tmp_path / "b.gguf", prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tokenizer = load_tokenizer(tmp_path / "b.gguf")
    ids = torch.tensor([tokenizer.encode(prompt, bos=True, eos=False)])
    ours = load_pretrained(tmp_path / "b.gguf").generate(ids, 30, temperature=0)
    assert ours[0].tolist() == json.loads(done.stdout)


PROGRAM = """
import json, sys, llama_cpp, numpy
llama = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_batch=256, logits_all=True, verbose=False)
ids = json.loads(sys.argv[2])
llama.eval(ids)
numpy.save(sys.argv[3], numpy.array(llama.scores[: len(ids)]))
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 48},
        {"head_dim": 16, "attention_bias": True},
        {"mlp_bias": True},
        {"head_dim": 48, "attention_bias": True, "mlp_bias": True},
        {"rope_scaling": RopeScaling("yarn", 4.0, 64)},
        {"rope_scaling": RopeScaling("yarn", 4.0, 64, attention_factor=1.5), "head_dim": 48},
    ],
    ids=str,
)
def test_llama_cpp_computes_the_same_logits(tmp_path, changes: dict):
    """Where LLAMA_CPP_PYTHON is set; its keys and values are float16, hence the tolerance."""
    python = os.environ.get("LLAMA_CPP_PYTHON")
    if python is None:
        pytest.skip("LLAMA_CPP_PYTHON does not name a Python that has llama-cpp-python")
    demo = ROOT / "data" / "demo"
    rows = load_pretrained(demo / "demo.pt").config.vocab_size
    shape = {"vocab_size": rows, "dim": 128, "hidden_dim": 256, "max_seq_len": 256}
    source = save(tmp_path / "a.pt", **shape | changes)
    (tmp_path / "a.model").write_bytes((demo / "demo.model").read_bytes())
    convert(source, tmp_path / "b.gguf")
    llama = load_pretrained(source)
    tokens = random_tokens(llama.config, 1, 200)
    words = [tmp_path / "b.gguf", json.dumps(tokens[0].tolist()), tmp_path / "logits.npy"]
    subprocess.run([python, "-c", PROGRAM, *words], check=True, capture_output=True)
    theirs = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    with torch.inference_mode():
        assert_relative(theirs, llama(tokens, targets=tokens)[0][0], 5e-3)


def test_the_command(tmp_path):
    command = [sys.executable, ROOT / "checkpoint.py"]
    path = tmp_path / "b.gguf"
    words = ["convert", ROOT / "data" / "demo" / "demo.pt", path, "--to", "gguf"]
    done = subprocess.run([*command, *words, "--type", "q8_0"], capture_output=True, text=True)
    assert done.stdout.endswith(f"wrote {path}\n") and not done.returncode
    shown = subprocess.run([*command, "info", path], capture_output=True, text=True).stdout
    assert "GGUF file, version 3" in shown and " Q8_0 (" in shown
    assert "tokenizer.ggml.model" in shown
