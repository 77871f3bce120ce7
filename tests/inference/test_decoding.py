"""The decoding step against the whole forward pass, float64, and weights rounded by hand."""

import copy

import pytest
import torch

from config import NORMS, RopeScaling
from llama import Llama
from mini_llama.inference import generation
from mini_llama.inference.decoding import PRECISIONS, Decoder
from mini_llama.layers.kv_cache import KVCache
from mini_llama.layers.linear import quantize_rows
from mini_llama.layers.quantized_linear import Int8Linear
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

# How far logits may be from those of the same weights in float32, relative to the largest: float32
# adds in another order; bfloat16, which int8 weights are multiplied in as well, has 8 bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.03}


def make(norm: str = "rmsnorm", n_kv_heads: int = 2, **changes) -> Llama:
    shape = {"attention": "causal", "dim": 64, "hidden_dim": 88} | changes
    return random_llama(tiny_config(norm=norm, n_kv_heads=n_kv_heads, **shape)).eval()


def rounded(llama: Llama, precision: str) -> Llama:
    """A float32 model whose matrices have the values that the precision can hold."""
    llama = copy.deepcopy(llama)
    with torch.no_grad():
        for layer in llama.modules():
            if isinstance(layer, torch.nn.Linear):
                weight = layer.weight.detach().clone()
                if precision == "int8":
                    step = weight.abs().amax(1, keepdim=True) / 127
                    weight = torch.round(weight / step) * step
                elif precision == "bfloat16":
                    weight = weight.bfloat16().float()
                layer.weight = torch.nn.Parameter(weight)  # the tied embedding stays exact
    return llama


@torch.inference_mode()
def decode_all(llama: Llama, tokens: torch.Tensor, precision: str) -> torch.Tensor:
    """Logits (B, T, V), every token read on its own."""
    config = llama.config
    decoder = Decoder(llama, len(tokens), precision)
    cache = KVCache(
        config.n_layers, len(tokens), config.n_kv_heads, tokens.shape[1], config.head_dim
    )
    columns = [decoder(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])]
    assert cache.position == tokens.shape[1]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rows", "n_kv_heads"), [(1, 2), (3, 1), (2, 4)])
def test_steps_equal_the_forward_pass(precision: str, norm: str, rows: int, n_kv_heads: int):
    llama = make(norm, n_kv_heads)
    tokens = random_tokens(llama.config, rows, 12)
    expected, _ = rounded(llama, precision)(tokens, targets=tokens)
    actual = decode_all(llama, tokens, precision)
    assert actual.dtype == torch.float32
    assert_relative(actual, expected.detach().numpy(), TOLERANCE[precision])


@pytest.mark.parametrize("columns", [8, 30, 33, 64, 100])
@pytest.mark.parametrize("out", [1, 5, 64])
def test_int8_products_of_any_shape(columns: int, out: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, columns, generator=generator).bfloat16()
    weight = torch.randn(out, columns, generator=generator)
    quantized, scales = quantize_rows(weight)
    expected = x.double() @ (quantized.double() * scales[:, None].double()).T
    assert_relative(Int8Linear(weight)(x), expected, 0.01)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_generation_behind_a_prompt_and_past_the_context(precision: str):
    """The decoder takes over what the forward pass has put into the cache, again and again."""
    llama = make(max_seq_len=16)
    prompt = random_tokens(llama.config, 2, 5)
    calls = []
    decoder = Decoder(llama, 2, precision)

    def decode(token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        calls.append(cache.position)
        return decoder(token, cache)

    sampler = generation.Sampler(0.0)
    tokens = generation.generate(llama, prompt, 20, sampler, decode=decode)
    assert calls == list(range(5, 16))  # then the window slides, and is read as a whole
    assert torch.equal(tokens, llama.generate(prompt, 20, 0.0, precision=precision))
    if precision == "float32":
        assert torch.equal(tokens, llama.generate(prompt, 20, 0.0, use_cache=False))


LINEAR = RopeScaling("linear", 3.0)
DYNAMIC = RopeScaling("dynamic", 4.0, 8)
LLAMA3 = RopeScaling("llama3", 8.0, 8, 1.0, 4.0)


@torch.inference_mode()
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scaling", [LINEAR, DYNAMIC, LLAMA3], ids=str)
def test_steps_with_scaled_rope(scaling: RopeScaling, precision: str):
    """The same as forward's own steps; past a dynamic rule's original length (8) these are not
    the whole forward pass, because cached keys stay as they were rotated.
    """
    llama = make(rope_scaling=scaling, max_seq_len=32)
    plain = make(max_seq_len=32)
    tokens = random_tokens(llama.config, 2, 30)
    exact = rounded(llama, precision)
    cache = KVCache(llama.config.n_layers, 2, 2, 30, llama.config.head_dim)
    steps = torch.stack([exact(tokens[:, i : i + 1], cache=cache)[0][:, 0] for i in range(30)], 1)
    actual = decode_all(llama, tokens, precision)
    assert_relative(actual, steps, TOLERANCE[precision])
    whole, _ = exact(tokens, targets=tokens)
    same = 8 if scaling is DYNAMIC else 30
    assert_relative(
        actual[:, :same], exact(tokens[:, :same], targets=tokens)[0], TOLERANCE[precision]
    )
    if scaling is DYNAMIC:
        assert (steps[:, 8:] - whole[:, 8:]).abs().max() > 0.1
    assert (whole - plain(tokens, targets=tokens)[0]).abs().max() > 0.1


@pytest.mark.parametrize("scaling", [LINEAR, DYNAMIC, LLAMA3], ids=str)
def test_generation_with_scaled_rope_past_the_context(scaling: RopeScaling):
    """Where the window slides it is read as a whole: the same with a cache and without."""
    llama = make(rope_scaling=scaling, max_seq_len=16)
    prompt = random_tokens(llama.config, 2, 5)
    cached = llama.generate(prompt, 30, 0.0)
    sampler = generation.Sampler(0.0)
    assert torch.equal(cached, generation.generate(llama, prompt, 30, sampler))  # forward's steps
    whole = llama.generate(cached[:, :17], 18, 0.0, use_cache=False)
    assert torch.equal(cached, whole)
    if scaling is not DYNAMIC:
        assert torch.equal(cached, llama.generate(prompt, 30, 0.0, use_cache=False))


def test_float32_weights_of_one_row_are_not_copied():
    llama = make()
    decoder = Decoder(llama)
    tokens = random_tokens(llama.config, 1, 4)
    before = decode_all(llama, tokens, "float32")
    with torch.no_grad():
        llama.layers[0].feed_forward.w2.weight.zero_()
    cache = KVCache(llama.config.n_layers, 1, 2, 4, llama.config.head_dim)
    with torch.inference_mode():
        after = torch.stack([decoder(tokens[:, i : i + 1], cache) for i in range(4)], dim=1)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, decode_all(llama, tokens, "float32"))


def test_quantized_rows_are_the_nearest():
    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    quantized, scales = quantize_rows(weight)
    assert quantized.dtype == torch.int8 and int(quantized.abs().max()) == 127
    error = (quantized * scales[:, None] - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 + 1e-7).all()


def test_refusals():
    with pytest.raises(ValueError, match="--edition llama2"):
        Decoder(make(attention="bidirectional"), precision="int8")
    with pytest.raises(ValueError, match="'int4' is none of float32, bfloat16, int8"):
        Decoder(make(), precision="int4")
    with pytest.raises(ValueError, match="for the CPU"):
        Decoder(make().to("meta"), precision="int8")


def test_dropout_and_training_mode_do_not_reach_the_step():
    llama = make(dropout=0.5).train()
    prompt = random_tokens(llama.config, 1, 5)
    tokens = llama.generate(prompt, 6, 0.0)
    assert llama.training
    assert torch.equal(tokens, llama.eval().generate(prompt, 6, 0.0, use_cache=False))
