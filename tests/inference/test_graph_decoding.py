"""The step for CUDA graphs against the whole forward pass; what is recorded, without a GPU."""

import contextlib
import gc
import types
import weakref

import pytest
import torch
import torch.nn.functional as F

from llama import Llama
from mini_llama.inference import decoders, graph_decoding
from mini_llama.inference.generation import generate
from mini_llama.inference.graph_decoding import (
    GraphDecoder,
    attend_by_products,
    attend_by_sums,
    can_record,
)
from mini_llama.inference.sampling import Sampler
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

GREEDY = Sampler(temperature=0.0)
BLOCK = 8


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(graph_decoding, "BLOCK", BLOCK)


def make(norm: str = "rmsnorm", **changes) -> Llama:
    shape = {"attention": "causal", "n_kv_heads": 2, "max_seq_len": 24} | changes
    return random_llama(tiny_config(norm=norm, **shape)).eval()


def plain(run):
    """A recorder without a GPU: the step is computed again, from the same memory."""
    return run


class Recorder:
    """Counts recordings, and fails unless the result's memory is the same at each replay."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, run):
        self.count += 1
        result = run()

        def replay():
            result.copy_(run())
            return result

        return replay


@torch.inference_mode()
def decode_all(decoder: GraphDecoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V), one token at a time from an empty cache."""
    cache = decoder.make_cache(*tokens.shape)
    columns = [decoder(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])]
    assert cache.position == tokens.shape[1]
    return torch.stack(columns, dim=1)


def whole(llama: Llama, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return llama(tokens, targets=tokens)[0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_equal_the_forward_pass(norm: str, rows: int, compiled: bool, monkeypatch):
    if compiled:
        if rows > 1:
            pytest.skip("the compiled step is for one row")
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)  # its arithmetic alone
    llama = make(norm)
    tokens = random_tokens(llama.config, rows, 24)
    decoder = GraphDecoder(llama, rows, compiled=compiled, recorder=Recorder())
    assert_relative(decode_all(decoder, tokens), whole(llama, tokens), 1e-5)


def test_logits_of_biases_and_wide_heads_equal_the_forward_pass():
    llama = make(attention_bias=True, mlp_bias=True, head_dim=16, n_kv_heads=1)
    tokens = random_tokens(llama.config, 2, 20)
    assert_relative(
        decode_all(GraphDecoder(llama, 2, recorder=plain), tokens), whole(llama, tokens), 1e-5
    )


@pytest.mark.parametrize("precision, tolerance", [("bfloat16", 0.03), ("int8", 0.03)])
def test_other_precisions_are_near(precision: str, tolerance: float, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    llama = make(dim=64, hidden_dim=88)
    tokens = random_tokens(llama.config, 1, 12)
    decoder = GraphDecoder(llama, 1, precision, compiled=True, recorder=plain)
    assert_relative(decode_all(decoder, tokens), whole(llama, tokens), tolerance)


@pytest.mark.parametrize("attend", [attend_by_sums, attend_by_products])
def test_attention_is_pytorchs(attend):
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 3, length, 8) for length in (4, 24, 24))
    keys, values = keys[:, :, :16], values[:, :, :16]  # of a longer cache
    mask = torch.zeros(1, 16).masked_fill(torch.arange(16) > 9, -torch.inf)
    inputs = (t.double() for t in (query, keys, values, mask))
    expected = F.scaled_dot_product_attention(*inputs)
    assert_relative(attend(query, keys, values, mask), expected.float(), 1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_greedy_texts_equal_the_plain_decoders_beyond_the_context(rows: int):
    llama = make()
    prompt = random_tokens(llama.config, rows, 5)
    decoder = GraphDecoder(llama, rows, recorder=Recorder())
    expected = generate(llama, prompt, 40, GREEDY, use_cache=False)
    assert torch.equal(generate(llama, prompt, 40, GREEDY, decoder=decoder), expected)


def test_a_step_is_recorded_once_for_each_block_and_again_only_for_other_memory():
    llama, recorder = make(), Recorder()
    decoder = GraphDecoder(llama, recorder=recorder)
    tokens = random_tokens(llama.config, 1, 20)
    decode_all(decoder, tokens)
    assert recorder.count == 3  # 20 positions in blocks of 8
    gc.collect()
    other = random_tokens(llama.config, 1, 17)  # it finds the first one's memory free
    assert_relative(decode_all(decoder, other), whole(llama, other), 1e-5)
    assert recorder.count == 3
    first, second = decoder.make_cache(1, 20), decoder.make_cache(1, 20)
    assert first.keys.data_ptr() != second.keys.data_ptr()
    for number in range(6):  # two texts in turns
        for cache, text in ((first, tokens), (second, other)):
            logits = decoder(text[:, number : number + 1], cache)
            assert_relative(logits, whole(llama, text)[:, number], 1e-5)
    assert recorder.count == 4


def test_a_full_cache_is_an_error():
    llama = make()
    decoder = GraphDecoder(llama, recorder=plain)
    cache = decoder.make_cache(1, 2)
    for _ in range(2):
        decoder(torch.tensor([[3]]), cache)
    with pytest.raises(ValueError, match="3 positions do not fit a cache of 2"):
        decoder(torch.tensor([[3]]), cache)


class FakeGraph:
    """torch.cuda's names that a recording uses: what is run is kept, and run again."""

    runs = 0

    def replay(self) -> None:
        FakeGraph.runs += 1


def test_a_recorded_step_keeps_what_its_graph_reads(monkeypatch):
    def nothing(*arguments, **options):
        return contextlib.nullcontext()

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "graph", nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    table, result = torch.ones(3), torch.zeros(3)
    recorded = graph_decoding.Recorded(lambda table=table: result.copy_(table))
    alive = weakref.ref(table)
    del table
    gc.collect()
    assert alive() is not None  # a graph would read what is there instead
    assert torch.equal(recorded(), torch.ones(3)) and FakeGraph.runs == 1


class OnCuda:
    """A model that says it is on a GPU."""

    def __init__(self, **changes) -> None:
        self.config = tiny_config(**{"attention": "causal"} | changes)
        self.quantization: str | None = None
        self.dtype = torch.float32
        self.device = torch.device("cuda")


@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_has_graphs_and_other_devices_have_none(compiled: bool, monkeypatch):
    made = []
    monkeypatch.setattr(decoders, "GraphDecoder", lambda *a, **options: made.append((a, options)))
    llama = OnCuda()
    assert can_record(llama)
    decoders.choose_decoder(llama, 1, compiled=compiled)
    assert made == [((llama, 1, "float32"), {"compiled": True} if compiled else {})]
    for name in ("cpu", "mps"):
        llama.device = torch.device(name)
        assert not can_record(llama)
    assert not can_record(OnCuda(attention="bidirectional"))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_recorded_step_has_the_logits_of_the_cpus_forward_pass(
    precision: str, compiled: bool, monkeypatch, tmp_path
):
    if precision == "int8" and not compiled:
        pytest.skip("int8 weights need the compiled step")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    llama = make(dim=64, hidden_dim=88)
    tokens = random_tokens(llama.config, 1, 22)
    expected = whole(llama, tokens)
    decoder = GraphDecoder(llama.cuda(), 1, precision, compiled)
    found = decode_all(decoder, tokens.cuda()).cpu()
    assert_relative(found, expected, 1e-4 if precision == "float32" else 0.03)


@needs_cuda
@pytest.mark.parametrize("rows, n_kv_heads", [(1, 2), (3, 2), (2, 4)])
def test_recorded_greedy_texts_equal_the_cpus_beyond_the_context(rows: int, n_kv_heads: int):
    llama = make(n_kv_heads=n_kv_heads)
    prompt = random_tokens(llama.config, rows, 5)
    expected = generate(llama, prompt, 40, GREEDY)
    llama.cuda()
    decoder = decoders.choose_decoder(llama, rows)
    assert isinstance(decoder, GraphDecoder)
    for _ in range(2):  # the second text finds the first one's memory, and its recorded steps
        found = generate(llama, prompt.cuda(), 40, GREEDY, decoder=decoder)
        assert torch.equal(found.cpu(), expected)
