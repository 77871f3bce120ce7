"""The compiled decoding step against the whole forward pass, with float32 and int8 weights."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import RopeScaling
from llama import Llama
from mini_llama.inference import compiled_decoding
from mini_llama.inference.compiled_decoding import (
    CompiledDecoder,
    Step,
    cache_folder,
    fingerprint,
    package_path,
)
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.int8_blocks import Int8BlockLinear, Int8Blocks
from mini_llama.places import ROOT
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config
from tests.inference.test_decoding import frozen_tables, rounded

YARN = RopeScaling("yarn", 4.0, 4)
BIASES = {"attention_bias": True, "mlp_bias": True}
GREEDY = Sampler(temperature=0.0)
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


def make(norm: str = "rmsnorm", **changes) -> Llama:
    shape = {"attention": "causal", "n_layers": 1, "hidden_dim": 40} | changes
    return random_llama(tiny_config(norm=norm, **shape), seed=4)


@torch.inference_mode()
def decode_all(llama: Llama, tokens: torch.Tensor, precision: str) -> torch.Tensor:
    """Logits (1, T - 1, V): the first token by the forward pass, every other one on its own."""
    decoder = CompiledDecoder(llama, precision)
    cache = decoder.make_cache(1, tokens.shape[1])
    rounded(llama, precision)(tokens[:, :1], cache=cache)
    columns = [decoder(tokens[:, i : i + 1], cache) for i in range(1, tokens.shape[1])]
    assert cache.position == tokens.shape[1]
    return torch.stack(columns, dim=1)


def generate_compiled(llama: Llama, prompt: torch.Tensor, count: int) -> torch.Tensor:
    decoder = choose_decoder(llama, len(prompt), compiled=True)
    return generate(llama, prompt, count, GREEDY, decoder=decoder)


@needs_compiler
@pytest.mark.parametrize(
    ("norm", "precision", "shape"),
    [
        ("rmsnorm", "float32", {}),
        ("layernorm", "int8", {"n_kv_heads": 4, "head_dim": 12, "rope_scaling": YARN, **BIASES}),
    ],
)
def test_steps_equal_the_forward_pass(norm: str, precision: str, shape: dict):
    """Quantized weights as well: everything else is in float32, so the tolerance is float32's."""
    llama = make(norm, **shape)
    tokens = random_tokens(llama.config, 1, llama.config.max_seq_len)
    expected, _ = rounded(llama, precision)(tokens, targets=tokens)
    actual = decode_all(llama, tokens, precision)
    assert_relative(actual, expected[:, 1:].detach().numpy(), 1e-5)


@needs_compiler
def test_blocks_with_their_own_scales_and_rows_in_one_step():
    """Float32's tolerance: the same integers, with the sums in another order."""
    llama, generator = make(), torch.Generator().manual_seed(0)
    exact = rounded(llama, "int8")
    values = torch.randint(-128, 128, (32, 40), generator=generator, dtype=torch.int8)
    blocks = Int8Blocks(values, torch.rand(32, 5, generator=generator).half() / 100)
    minima = torch.rand(40, 4, generator=generator)
    shifted = Int8Blocks(values.view(40, 32) & 15, torch.full((40, 4), 0.01), -minima / 10, bits=4)
    for name, kept in (("w2", blocks), ("w1", shifted)):
        exact.layers[0].feed_forward.get_submodule(name).weight.data = kept.dequantize()
        llama.layers[0].feed_forward.set_submodule(name, Int8BlockLinear(kept))
    tokens = random_tokens(llama.config, 1, llama.config.max_seq_len)
    decoder = CompiledDecoder(llama, "int8")
    step = Step(llama, "int8")
    assert step.layers[0].down.weight.data_ptr() == values.data_ptr()
    cache = decoder.make_cache(1, tokens.shape[1])
    with torch.inference_mode():
        expected = exact(tokens, targets=tokens)[0]
        exact(tokens[:, :1], cache=cache)
        columns = [decoder(tokens[:, i : i + 1], cache) for i in range(1, tokens.shape[1])]
    assert_relative(torch.stack(columns, dim=1), expected[:, 1:].numpy(), 1e-5)
    paths = {package_path(step, llama.config, "int8")}
    llama.layers[0].feed_forward.w2 = Int8BlockLinear(Int8Blocks(values, blocks.scales[:, :1]))
    paths.add(package_path(Step(llama, "int8"), llama.config, "int8"))
    paths.add(package_path(Step(make(), "int8"), llama.config, "int8"))
    assert len(paths) == 3


def check_nothing_else_is_imported(package: Path) -> None:
    """The compiler, 1.5 seconds of imports, stays out of a process that has a package."""
    program = (
        "import sys; from pathlib import Path; "
        "from mini_llama.inference.compiled_decoding import load_function; "
        "assert load_function(Path(sys.argv[1])).get_constant_fqns(); "
        "sys.exit('torch._inductor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, package], check=True, timeout=120, cwd=ROOT)


@needs_compiler
def test_generation_past_the_context_and_from_a_damaged_cache(
    cache_home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    llama = make()
    prompt = random_tokens(llama.config, 1, 5)
    expected = generate(llama, prompt, 30, GREEDY, use_cache=False)
    assert torch.equal(generate_compiled(llama, prompt, 30), expected)
    capsys.readouterr()
    with monkeypatch.context() as changed:
        changed.setattr(compiled_decoding, "config_tables", frozen_tables)
        assert not torch.equal(generate_compiled(llama, prompt, 30), expected)
    assert torch.equal(generate_compiled(llama, prompt, 30), expected)
    assert capsys.readouterr().err == ""  # compiled once
    package = package_path(Step(llama, "float32"), llama.config, "float32")
    check_nothing_else_is_imported(package)
    whole = package.read_bytes()
    package.write_bytes(whole[:1000])
    monkeypatch.setattr(
        compiled_decoding, "compile_step", lambda *arguments: arguments[-1].write_bytes(whole)
    )
    assert torch.equal(generate_compiled(llama, prompt, 30), expected)
    assert "compiling the decoding step" in capsys.readouterr().err
    assert not list(package.parent.glob(".compiling-*"))


def test_shared_weights_have_a_function_of_their_own():
    """The compiler makes one constant of them, which a model without would lack."""
    llama = make(n_layers=2)
    path = package_path(Step(llama, "float32"), llama.config, "float32")
    llama.layers[1].feed_forward.w1.weight = llama.layers[0].feed_forward.w1.weight
    assert package_path(Step(llama, "float32"), llama.config, "float32") != path


def test_quantized_layers_stay_quantized(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(compiled_decoding, "load_or_compile", lambda *a: asked.append(a[-1]))
    llama = make()
    llama.quantization = "int8"
    with pytest.raises(AttributeError):  # there is no function
        CompiledDecoder(llama, "float32")
    assert asked == ["int8"]


def test_several_sequences_take_the_plain_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_decoding, "load_or_compile", None)
    llama = make()
    prompt = random_tokens(llama.config, 2, 5)
    assert torch.equal(generate_compiled(llama, prompt, 6), llama.generate(prompt, 6, 0.0))


def test_without_a_compiler_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Not monkeypatch: it ends by deleting the option, which is then gone for the whole process.
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    message = r"C.. compiler such as g..: install one, or leave"
    with without, pytest.raises(ValueError, match=message) as error:
        CompiledDecoder(make(n_layers=1))
    assert "\n" not in str(error.value)
    assert list((tmp_path / "mini-llama").iterdir()) == []


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(ValueError, match="--edition llama2"):
        CompiledDecoder(make(attention="bidirectional"))
    with pytest.raises(ValueError, match="for CPU and CUDA, not meta"):
        CompiledDecoder(make().to("meta"))
    with pytest.raises(ValueError, match="a context of 2 is not allowed with --compile"):
        CompiledDecoder(make(max_seq_len=2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    cache_folder().chmod(0o777)
    with pytest.raises(ValueError, match="others can write to: chmod 700"):
        cache_folder()


def test_fingerprints_differ_with_what_matters(monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(attention="causal")
    prints = {
        fingerprint(config, "float32"),
        fingerprint(config, "int8"),
        fingerprint(tiny_config(attention="causal", rope_theta=5e5), "int8"),
    }
    prints.add(fingerprint(config, "int8", shared=[["norm.weight", "layers.0.ffn_norm.weight"]]))
    prints.add(fingerprint(config, "int8", dtype=torch.bfloat16))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    prints.add(fingerprint(config, "int8"))
    torch.set_num_threads(threads)
    with monkeypatch.context() as changed:
        changed.setattr(compiled_decoding, "STEP_VERSION", compiled_decoding.STEP_VERSION + 1)
        prints.add(fingerprint(config, "int8"))
    assert len(prints) == 7
    assert fingerprint(config, "float32") in prints
