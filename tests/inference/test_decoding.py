"""The fast step against the whole forward pass, float64, and weights quantized by hand."""

import copy

import pytest
import torch

from config import NORMS, LlamaConfig, RopeScaling
from llama import Llama
from mini_llama.inference import decoding
from mini_llama.inference.decoders import PlainDecoder, choose_decoder
from mini_llama.inference.decoding import PRECISIONS, FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.kv_cache import KVCache
from mini_llama.layers.linear import can_sum_columns, quantize_rows
from mini_llama.layers.quantized_linear import Int8Linear
from rope import RotaryTables, config_tables
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

# How far logits may be from those of the same weights in float32, relative to the largest: float32
# adds in another order; bfloat16, which int8 weights are multiplied in as well, has 8 bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.03}
GREEDY = Sampler(temperature=0.0)


def make(norm: str = "rmsnorm", n_kv_heads: int = 2, **changes) -> Llama:
    shape = {"attention": "causal", "dim": 64, "hidden_dim": 88} | changes
    return random_llama(tiny_config(norm=norm, n_kv_heads=n_kv_heads, **shape)).eval()


def rounded(llama: Llama, precision: str) -> Llama:
    """A float32 model whose matrices have only values that the precision has."""
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


def frozen_tables(config: LlamaConfig, start: int, end: int, device: torch.device) -> RotaryTables:
    """rope.config_tables of a decoder whose position stays 0: a test must notice that."""
    cos, sin = config_tables(config, 0, 1, device)
    return cos.expand(end - start, -1), sin.expand(end - start, -1)


@torch.inference_mode()
def decode_all(llama: Llama, tokens: torch.Tensor, precision: str) -> torch.Tensor:
    """Logits (B, T, V), one token at a time from an empty cache."""
    decoder = FastDecoder(llama, len(tokens), precision)
    cache = decoder.make_cache(*tokens.shape)
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
def test_generation_after_a_prompt_and_past_the_context(
    precision: str, monkeypatch: pytest.MonkeyPatch
):
    """The decoder takes over what the forward pass has put into the cache, again and again."""
    llama = make(max_seq_len=16)
    prompt = random_tokens(llama.config, 2, 5)
    calls = []

    class Recorded(FastDecoder):
        def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
            calls.append(cache.position)
            return super().__call__(token, cache)

    decoder = Recorded(llama, 2, precision)
    tokens = generate(llama, prompt, 20, GREEDY, decoder=decoder)
    assert calls == list(range(5, 16))  # then the window slides, and is run as a whole
    chosen = choose_decoder(llama, 2, precision)
    assert torch.equal(tokens, generate(llama, prompt, 20, GREEDY, decoder=chosen))
    if precision == "float32":
        assert torch.equal(tokens, generate(llama, prompt, 20, GREEDY, use_cache=False))
    monkeypatch.setattr(decoding, "config_tables", frozen_tables)
    frozen = choose_decoder(llama, 2, precision)
    assert not torch.equal(tokens, generate(llama, prompt, 20, GREEDY, decoder=frozen))


LINEAR = RopeScaling("linear", 3.0)
DYNAMIC = RopeScaling("dynamic", 4.0, 8)
LLAMA3 = RopeScaling("llama3", 8.0, 8, 1.0, 4.0)
YARN = RopeScaling("yarn", 4.0, 8)
FACTORS = {"short_factor": (1.0, 1.5) * 4, "long_factor": (1.0, 3.0, 8.0, 20.0) * 2}
LONGROPE = RopeScaling("longrope", 4.0, 8, **FACTORS)
SCALINGS = [LINEAR, DYNAMIC, LLAMA3, YARN, LONGROPE]


@torch.inference_mode()
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_steps_with_scaled_rope(scaling: RopeScaling, precision: str):
    """The same as forward's own steps; past the original length (8) of dynamic NTK and LongRoPE
    these are not the whole forward pass, because cached keys stay as they were rotated.
    """
    llama = make(rope_scaling=scaling, max_seq_len=32)
    plain = make(max_seq_len=32)
    tokens = random_tokens(llama.config, 2, 30)
    exact = rounded(llama, precision)
    cache = KVCache(llama.config, 2, 30)
    steps = torch.stack([exact(tokens[:, i : i + 1], cache=cache)[0][:, 0] for i in range(30)], 1)
    actual = decode_all(llama, tokens, precision)
    assert_relative(actual, steps, TOLERANCE[precision])
    whole, _ = exact(tokens, targets=tokens)
    is_dynamic = scaling in (DYNAMIC, LONGROPE)
    same = 8 if is_dynamic else 30
    assert_relative(
        actual[:, :same], exact(tokens[:, :same], targets=tokens)[0], TOLERANCE[precision]
    )
    if is_dynamic:
        assert (steps[:, 8:] - whole[:, 8:]).abs().max() > 0.1
    assert (whole - plain(tokens, targets=tokens)[0]).abs().max() > 0.1


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_generation_with_scaled_rope_past_the_context(scaling: RopeScaling):
    """When the window slides it is run as a whole: the same with a cache and without."""
    llama = make(rope_scaling=scaling, max_seq_len=16)
    prompt = random_tokens(llama.config, 2, 5)
    cached = llama.generate(prompt, 30, 0.0)
    plain = PlainDecoder(llama)
    assert torch.equal(cached, generate(llama, prompt, 30, GREEDY, decoder=plain))
    whole = generate(llama, cached[:, :17], 18, GREEDY, use_cache=False)
    assert torch.equal(cached, whole)
    if scaling not in (DYNAMIC, LONGROPE):
        assert torch.equal(cached, generate(llama, prompt, 30, GREEDY, use_cache=False))


def test_float32_weights_of_one_row_are_copied_where_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
):
    """Without a copy, a change of the model is seen."""
    llama, tokens = make(), random_tokens(make().config, 1, 4)

    @torch.inference_mode()
    def decode(decoder: FastDecoder) -> torch.Tensor:
        cache = decoder.make_cache(1, 4)
        return torch.stack([decoder(tokens[:, i : i + 1], cache) for i in range(4)], dim=1)

    copying, sparing = FastDecoder(llama), FastDecoder(llama)
    before = decode(copying)
    monkeypatch.setattr(decoding, "available_bytes", lambda device: 1000)
    torch.testing.assert_close(decode(sparing), before)
    with torch.no_grad():
        llama.layers[0].feed_forward.w2.weight.zero_()
    after = decode(sparing)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, decode_all(llama, tokens, "float32"))
    if can_sum_columns(llama.device):
        assert torch.equal(decode(copying), before)


def test_weights_are_converted_when_the_first_token_comes(monkeypatch: pytest.MonkeyPatch):
    """Not before the prompt is run, and once."""
    made = []

    def note(*arguments: object) -> None:
        made.append(arguments)
        return real(*arguments)

    real = decoding.NetworkStep
    monkeypatch.setattr(decoding, "NetworkStep", note)
    llama = make()
    decoder = FastDecoder(llama, precision="bfloat16")
    prompt = random_tokens(llama.config, 1, 5)
    generate(llama, prompt, 1, GREEDY, decoder=decoder)
    assert not made
    generate(llama, prompt, 9, GREEDY, decoder=decoder)
    assert made == [(llama, 1, "bfloat16")]


def test_the_choice_of_the_decoder():
    llama = make()
    assert isinstance(choose_decoder(llama), FastDecoder)
    for plain in (make(attention="bidirectional"), make().double(), make().half()):
        assert isinstance(choose_decoder(plain), PlainDecoder)
    cache = choose_decoder(llama.bfloat16(), 3).make_cache(3, 7)
    assert cache.keys.shape == (2, 3, 2, 7, 16) and cache.keys.dtype == torch.bfloat16
    for precision in ("float16", "int4"):
        with pytest.raises(ValueError, match=f"'{precision}' is none of float32, bfloat16, int8"):
            choose_decoder(llama, precision=precision)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_norm_of_one_row(scale: float):
    """Against float64, at float32's rounding; more rows and LayerNorm are the model's own."""
    llama = make()
    norm, config = llama.layers[0].attention_norm, llama.config
    x = scale * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    expected = x.double() / (x.double().square().mean() + config.layer_norm_eps).sqrt()
    one_row = decoding.make_norm(norm, 1, config)
    assert one_row is not norm and decoding.make_norm(norm, 2, config) is norm
    assert_relative(one_row(x), expected * norm.weight.double(), 1e-6)
    other = make("layernorm")
    assert decoding.make_norm(other.norm, 1, other.config) is other.norm


def test_a_full_cache_is_not_extended():
    cache = KVCache(make().config, 1, 2)
    cache.advance(2)
    with pytest.raises(ValueError, match="3 positions do not fit a cache of 2"):
        cache.extended()


def test_quantized_rows_are_the_nearest():
    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    quantized, scales = quantize_rows(weight)
    assert quantized.dtype == torch.int8 and int(quantized.abs().max()) == 127
    error = (quantized * scales[:, None] - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 + 1e-7).all()


def test_refusals():
    with pytest.raises(ValueError, match="--edition llama2"):
        FastDecoder(make(attention="bidirectional"), precision="int8")
    with pytest.raises(ValueError, match="'int4' is none of float32, bfloat16, int8"):
        FastDecoder(make(), precision="int4")
    with pytest.raises(ValueError, match="for the CPU"):
        FastDecoder(make().to("meta"), precision="int8")


def test_dropout_and_training_mode_do_not_reach_the_step():
    llama = make(dropout=0.5).train()
    prompt = random_tokens(llama.config, 1, 5)
    tokens = llama.generate(prompt, 6, 0.0)
    assert llama.training
    assert torch.equal(tokens, generate(llama.eval(), prompt, 6, GREEDY, use_cache=False))
