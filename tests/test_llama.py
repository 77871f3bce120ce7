"""The network against a float64 NumPy forward, transformers and torch.nn, whole tensors."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import llama as llama_module
from base_llama import shapes_only
from config import ATTENTIONS, EDITIONS, NORMS, LlamaConfig, RopeScaling
from llama import (
    Attention,
    FeedForward,
    LayerNorm,
    Llama,
    RMSNorm,
    attention_by_hand,
    is_better_by_hand,
    last_column,
    load_pretrained,
    padding_mask,
)
from mini_llama import eager
from mini_llama.eager import has_fused_norm, shares_heads
from mini_llama.layers.kv_cache import KVCache
from tests import oracle
from tests.helpers import (
    assert_relative,
    numpy_weights,
    random_llama,
    random_tokens,
    tiny_config,
)

ARITHMETICS = [(norm, attention) for norm in NORMS for attention in ATTENTIONS]


def oracle_forward(llama: Llama, tokens: torch.Tensor, lengths=None, record=None):
    config = llama.config
    return oracle.forward(
        numpy_weights(llama),
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        norm=config.norm,
        attention=config.attention,
        eps=config.layer_norm_eps,
        rope_theta=config.rope_theta,
        tokens=tokens.numpy(),
        lengths=None if lengths is None else lengths.numpy(),
        record=record,
    )


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("norm", "attention"), ARITHMETICS)
def test_forward_equals_float64(norm: str, attention: str, n_kv_heads: int):
    llama = random_llama(tiny_config(norm=norm, attention=attention, n_kv_heads=n_kv_heads))
    tokens = random_tokens(llama.config, 3, 11)
    logits, hidden_states = oracle_forward(llama, tokens)
    with torch.inference_mode():
        all_logits, h = llama(tokens, targets=tokens)
        last_logits, same_h = llama(tokens)
    assert_relative(h, hidden_states, 1e-5)
    assert_relative(all_logits, logits, 1e-5)
    assert_relative(last_logits, logits[:, -1:], 1e-5)
    assert torch.equal(h, same_h)


@pytest.mark.parametrize("edition", EDITIONS)
def test_sanity_ids_in_every_edition(edition: str):
    """The assignment's own token ids, on a small model with its vocabulary."""
    arithmetic = EDITIONS[edition].norm, EDITIONS[edition].attention
    config = tiny_config(vocab_size=32000, norm=arithmetic[0], attention=arithmetic[1])
    llama = random_llama(config)
    from sanity_check import TOKENS

    logits, hidden_states = oracle_forward(llama, TOKENS)
    with torch.inference_mode():
        actual_logits, actual_hidden = llama(TOKENS)
    assert actual_logits.shape == (2, 1, 32000)
    assert_relative(actual_hidden, hidden_states, 1e-5)
    assert_relative(actual_logits, logits[:, -1:], 1e-5)


@pytest.mark.parametrize(("norm", "attention"), ARITHMETICS)
def test_every_block_equals_float64(norm: str, attention: str):
    llama = random_llama(tiny_config(norm=norm, attention=attention))
    tokens = random_tokens(llama.config, 2, 9)
    expected: dict = {}
    oracle_forward(llama, tokens, record=expected)
    modules = dict(llama.named_modules())
    modules["embedding"] = modules["tok_embeddings"]
    actual = {}
    for name in expected:
        modules[name].register_forward_hook(
            lambda _module, _args, output, name=name: actual.__setitem__(name, output)
        )
    with torch.inference_mode():
        llama(tokens)
    assert set(actual) == set(expected) and len(expected) == 2 + 2 * 5
    for name in expected:
        assert_relative(actual[name], expected[name], 1e-5)


@pytest.mark.parametrize(("norm", "attention"), ARITHMETICS)
def test_mask_padding_equals_float64(norm: str, attention: str):
    llama = random_llama(tiny_config(norm=norm, attention=attention))
    tokens, lengths = random_tokens(llama.config, 3, 10), torch.tensor([10, 4, 1])
    logits, hidden_states = oracle_forward(llama, tokens, lengths)
    with torch.inference_mode():
        actual_logits, h = llama(tokens, lengths=lengths)
    rows = np.arange(3)
    assert_relative(actual_logits[:, 0], logits[rows, lengths.numpy() - 1], 1e-5)
    for row, length in enumerate(lengths):  # padding positions mean nothing
        assert_relative(h[row, :length], hidden_states[row, :length], 1e-5)


@pytest.mark.parametrize(("norm", "attention"), ARITHMETICS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([10, 4, 1])], ids=["all", "padded"])
def test_last_hidden_state_is_the_full_forwards(norm: str, attention: str, lengths):
    """Values and gradients of every parameter."""
    llama = random_llama(tiny_config(norm=norm, attention=attention))
    tokens = random_tokens(llama.config, 3, 10)
    weights = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for last in (
        llama.last_hidden_state(tokens, lengths),
        last_column(llama.hidden_states(tokens, lengths), lengths),
    ):
        llama.zero_grad()
        (last * weights).sum().backward()
        gradients = {n: p.grad.clone() for n, p in llama.named_parameters()}
        results.append((last.detach(), gradients))
    (fast, fast_gradients), (slow, slow_gradients) = results
    assert_relative(fast, slow, 1e-5)
    for name, gradient in slow_gradients.items():
        assert_relative(fast_gradients[name], gradient, 1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [None, torch.tensor([10, 4, 1])], ids=["all", "padded"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_forward_of_the_last_column_equals_float64(attention: str, lengths, n_kv_heads: int):
    llama = random_llama(tiny_config(attention=attention, n_kv_heads=n_kv_heads))
    tokens = random_tokens(llama.config, 3, 10)
    logits, hidden_states = oracle_forward(llama, tokens, lengths)
    at = np.arange(3), np.full(3, 9) if lengths is None else lengths.numpy() - 1
    actual_logits, h = llama(tokens, lengths=lengths, last_only=True)
    assert_relative(h, hidden_states[at][:, None], 1e-5)
    assert_relative(actual_logits, logits[at][:, None], 1e-5)
    if attention == "causal" and lengths is None:
        cache = KVCache(llama.config, 3, 10)
        llama(tokens[:, :6], cache=cache, last_only=True)
        actual_logits, _ = llama(tokens[:, 6:], cache=cache, last_only=True)
        assert_relative(actual_logits, logits[at][:, None], 1e-5)


@pytest.mark.parametrize(("norm", "attention"), ARITHMETICS)
def test_mask_padding_makes_rows_independent(norm: str, attention: str):
    llama = random_llama(tiny_config(norm=norm, attention=attention))
    tokens = random_tokens(llama.config, 1, 5)
    other = random_tokens(llama.config, 1, 12, seed=1)
    padded = torch.cat((tokens, torch.full((1, 7), 3)), dim=1)
    batch, lengths = torch.cat((padded, other)), torch.tensor([5, 12])
    with torch.inference_mode():
        alone, _ = llama(tokens)
        together, _ = llama(batch, lengths=lengths)
        contract, _ = llama(batch)
    assert_relative(together[:1], alone, 1e-5)
    assert (contract[:1] - alone).abs().max() > 1e-2, "the default reads padding, as it must"


HUGGING_FACE_PARTS = {
    "attention.compute_query": "self_attn.q_proj",
    "attention.compute_key": "self_attn.k_proj",
    "attention.compute_value": "self_attn.v_proj",
    "attention.compute_output": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
}


def huggingface_name(name: str) -> str:
    if name.startswith(("layers.", "norm.")):
        name = f"model.{name}"
    for ours, theirs in HUGGING_FACE_PARTS.items():
        name = name.replace(f"{ours}.weight", f"{theirs}.weight")
    return name


def huggingface_twin(llama: Llama):
    """transformers' LlamaForCausalLM with the same weights, its rows in split-halves order."""
    transformers = pytest.importorskip("transformers")
    import peers  # bench/peers.py, which needs transformers

    config = llama.config
    twin = transformers.LlamaForCausalLM(peers.transformers_config(config)).eval()
    state = {}
    for name, tensor in llama.state_dict().items():
        if name.endswith(("compute_query.weight", "compute_key.weight")):
            pairs = tensor.view(-1, config.head_dim // 2, 2, config.dim)
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        state[huggingface_name(name)] = tensor
    twin.load_state_dict(state)
    return twin


def assert_equals_transformers(llama: Llama, tokens: torch.Tensor, tolerance: float) -> None:
    twin = huggingface_twin(llama)
    with torch.inference_mode():
        logits, hidden_states = llama(tokens, targets=tokens)
        theirs = twin(tokens, output_hidden_states=True)
    assert_relative(logits, theirs.logits, tolerance)
    assert_relative(hidden_states, theirs.hidden_states[-1], tolerance)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_equals_transformers(n_kv_heads: int):
    config = tiny_config(norm="rmsnorm", attention="causal", n_kv_heads=n_kv_heads)
    llama = random_llama(config)
    assert_equals_transformers(llama, random_tokens(config, 2, 13), 1e-5)


def test_equals_transformers_at_the_42m_shape(shared, tmp_path):
    checkpoint = tmp_path / "stories42M.pt"
    tool = shared / "tools" / "make_stories42M_like.py"
    subprocess.run([sys.executable, tool, checkpoint], check=True)
    llama = load_pretrained(checkpoint, edition="llama2")
    assert_equals_transformers(llama, random_tokens(llama.config, 2, 64), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(LayerNorm, torch.nn.LayerNorm), (RMSNorm, torch.nn.RMSNorm)]
)
def test_norms_equal_torch(ours: type, theirs: type, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x = (5 + 3 * torch.randn(4, 7, 32, generator=generator)).to(dtype)
    a, b = ours(32, eps=1e-2), theirs(32, eps=1e-2)  # a large eps, so that its place shows
    for name, parameter in a.named_parameters():
        parameter.data = torch.randn(32, generator=generator)
        b.get_parameter(name).data = parameter.data.clone()
    expected = b(x.float())
    actual = a.to(dtype)(x)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(actual.float(), expected, atol=tolerance, rtol=tolerance)
    formula = a._norm(x.float()) * a.weight.float() + getattr(a, "bias", torch.zeros(32)).float()
    torch.testing.assert_close(actual.float(), formula, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_blockwise_attention_equals_the_formula(attention: str):
    layer = Attention(tiny_config(attention=attention))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 20, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 20, 8, generator=generator)
    causal = torch.ones(20, 20, dtype=torch.bool).tril() if attention == "causal" else None
    actual = layer.compute_query_key_value_scores(query, key, value)
    torch.testing.assert_close(actual, attention_by_hand(query, key, value, causal))
    expected = oracle.attend(
        *(t.double().numpy() for t in (query, key, value)),
        visible=None if causal is None else causal.numpy(),
    )
    assert_relative(actual, expected, 1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("is_padded", [False, True])
def test_bfloat16_training_by_hand_equals_float32(attention: str, is_padded: bool):
    """Values and gradients, to bfloat16's 8 bits; T > 1 and the one query of a last column."""
    layer = Attention(tiny_config(attention=attention))
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 20, 8), (2, 2, 20, 8), (2, 2, 20, 8)]
    exact = [torch.randn(s, generator=generator).bfloat16().float() for s in shapes]
    mask = padding_mask(torch.tensor([20, 9]), 20) if is_padded else None
    for first in (0, 19):
        results = {}
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [t.to(dtype, copy=True).requires_grad_() for t in exact]
            query = inputs[0][:, :, first:]
            assert is_better_by_hand(query) == (dtype == torch.bfloat16)
            layer.compute_query_key_value_scores(query, *inputs[1:], mask).square().sum().backward()
            results[dtype] = [t.grad.float() for t in inputs]
        for actual, expected in zip(*results.values(), strict=True):
            assert_relative(actual, expected.numpy(), 0.02)


def test_repeated_heads_are_the_course_calling_convention():
    layer = Attention(tiny_config())
    query = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    key, value = query[:, :2] + 1, query[:, :2] - 1
    repeated = (t.repeat_interleave(2, dim=1) for t in (key, value))
    actual = layer.compute_query_key_value_scores(query, *repeated)
    torch.testing.assert_close(actual, layer.compute_query_key_value_scores(query, key, value))


def test_attention_dropout_is_on_the_probabilities_while_training():
    layer = Attention(tiny_config(dropout=0.5, n_kv_heads=4))
    query = torch.zeros(1, 4, 1, 8)  # uniform probabilities over 16 positions
    value = torch.eye(16)[None, None, :, :8].expand(1, 4, 16, 8)
    key = torch.zeros(1, 4, 16, 8)
    torch.manual_seed(0)
    dropped = layer.train().compute_query_key_value_scores(query, key, value)
    # kept probabilities are 1/16 scaled by 1/(1 - 0.5), the others 0
    assert set(dropped.flatten().tolist()) == {0.0, 0.125}
    halves = (t.bfloat16().requires_grad_() for t in (query, key, value))
    by_hand = layer.compute_query_key_value_scores(*halves)
    assert set(by_hand.flatten().tolist()) == {0.0, 0.125}
    kept = layer.eval().compute_query_key_value_scores(query, key, value)
    torch.testing.assert_close(kept, torch.full((1, 4, 1, 8), 1 / 16))


def test_dropout_in_the_network():
    llama = random_llama(tiny_config(dropout=0.5))
    tokens = random_tokens(llama.config, 1, 8)
    evaluated = llama(tokens)[0]
    assert torch.equal(evaluated, llama(tokens)[0])
    llama.train()
    torch.manual_seed(0)
    first = llama(tokens)[0]
    assert not torch.equal(first, llama(tokens)[0])


def test_feed_forward_hidden_size():
    assert FeedForward(512, None, 32, 0.0).w1.weight.shape == (1376, 512)
    assert FeedForward(512, 100, 32, 0.0).w2.weight.shape == (512, 100)


def test_weights_from_scratch():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2000, dim=256, n_layers=3, n_heads=4, norm="layernorm")
    llama = Llama(config)
    residual = 0.02 / math.sqrt(2 * 3)
    for name, parameter in llama.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            expected = residual if name.endswith(("compute_output.weight", "w2.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < expected / 50
    assert llama.output.weight is llama.tok_embeddings.weight


def test_untied_output():
    llama = random_llama(tiny_config(tie_word_embeddings=False))
    assert llama.output.weight is not llama.tok_embeddings.weight
    tokens = random_tokens(llama.config, 1, 4)
    assert_relative(
        llama(tokens, targets=tokens)[0].detach(), oracle_forward(llama, tokens)[0], 1e-5
    )


def test_long_input_needs_no_square_matrix():
    """16,384 positions: one float32 T×T matrix a head would be 1 GiB, four heads 4 GiB."""
    code = (
        "import resource, torch\n"
        "from tests.helpers import tiny_config, random_llama, random_tokens\n"
        "llama = random_llama(tiny_config())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with torch.inference_mode(): llama(random_tokens(llama.config, 1, 16384))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    path = [p for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 300_000, "KiB"


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("dynamic", 2.0, 8),
        RopeScaling("llama3", 8.0, 8, 1.0, 4.0),
        RopeScaling("yarn", 2.0, 8),
        RopeScaling("longrope", 2.0, 8, short_factor=(1.0,) * 4, long_factor=(1.0, 2.0, 3.0, 4.0)),
    ],
    ids=lambda scaling: scaling.rope_type,
)
def test_scaled_rope_is_compiled_and_trained(scaling: RopeScaling):
    """In one graph a length, with the gradients of the uncompiled model."""
    biases = {"attention_bias": True, "mlp_bias": True}
    llama = random_llama(tiny_config(rope_scaling=scaling, **biases))
    compiled = torch.compile(llama, backend="eager", fullgraph=True)
    for length in (6, 8, 9, 12):
        tokens = random_tokens(llama.config, 2, length)
        gradients = []
        for model in (llama, compiled):
            llama.zero_grad()
            model(tokens, targets=tokens)[0].square().sum().backward()
            gradients.append(llama.layers[0].attention.compute_query.weight.grad.clone())
        assert_relative(*gradients, 1e-5)


def test_a_model_from_scratch_without_an_attention_warns():
    """In the default edition each position sees its successor, which it is trained to predict."""
    shape = dict(vocab_size=13, dim=16, n_layers=1, n_heads=2)
    with pytest.warns(
        UserWarning, match=r"reads its own answer; set attention=\"causal\""
    ) as found:
        llama = Llama(LlamaConfig(**shape))
    assert found[0].filename == __file__
    assert (llama.config.norm, llama.config.attention) == ("layernorm", "bidirectional")
    with warnings.catch_warnings(action="error"):
        for attention in ATTENTIONS:
            assert Llama(LlamaConfig(**shape, attention=attention)).config.attention == attention
        with shapes_only():  # a checkpoint is about to be loaded: its arithmetic is announced
            Llama(LlamaConfig(**shape))


def test_the_fused_norm_of_a_gpu_is_the_formula(monkeypatch: pytest.MonkeyPatch):
    norm = llama_module.RMSNorm(24)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(norm.weight, generator=generator)
    results = []
    for is_fused in (False, True):
        monkeypatch.setattr(llama_module, "has_fused_norm", lambda *_, fused=is_fused: fused)
        x = torch.linspace(-2, 3, 5 * 24).view(5, 24).requires_grad_()
        y = norm(x)
        gradients = torch.autograd.grad((y * y.detach().cos()).sum(), (x, norm.weight))
        results.append((y.detach(), *gradients))
    for actual, expected in zip(*results, strict=True):
        assert_relative(actual, expected, 1e-6)


def test_only_plain_float32_on_a_gpu_has_the_fused_norm(monkeypatch: pytest.MonkeyPatch):
    x = torch.ones(2)
    assert not has_fused_norm(x, x)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert has_fused_norm(x, x) and not has_fused_norm(x.bfloat16(), x)
    torch.func.jvp(lambda t: t if not has_fused_norm(t, t) else pytest.fail(), (x,), (x,))


def test_heads_are_shared_only_where_a_kernel_can(monkeypatch: pytest.MonkeyPatch):
    query = torch.ones(1, 4, 3, 8)
    mask = torch.ones(3, 3, dtype=torch.bool)
    assert shares_heads(query, mask)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    assert not shares_heads(query, None) and not shares_heads(query.bfloat16(), mask)
    assert shares_heads(query.bfloat16(), None)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_repeated_heads_attend_as_shared_ones(attention: str, monkeypatch: pytest.MonkeyPatch):
    model = random_llama(tiny_config(attention=attention, n_kv_heads=2))
    tokens, lengths = random_tokens(model.config, 3, 9), torch.tensor([9, 2, 5])
    shared, _ = model(tokens, lengths=lengths)
    monkeypatch.setattr(eager, "shares_heads", lambda *_: False)
    repeated, _ = model(tokens, lengths=lengths)
    assert_relative(repeated.detach(), shared.detach(), 1e-6)
