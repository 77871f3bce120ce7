"""The cache where the system grants less than the whole window at once."""

import pytest
import torch

from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers import kv_cache
from mini_llama.layers.kv_cache import KVCache
from tests.helpers import random_llama, random_tokens, tiny_config


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that grants 20 positions, and caches that begin with 4."""
    allocate = KVCache._allocate

    def refuse(config, rows, length, *rest):
        if length > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return allocate(config, rows, length, *rest)

    monkeypatch.setattr(KVCache, "_allocate", staticmethod(refuse))
    monkeypatch.setattr(kv_cache, "FIRST_LENGTH", 4)


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("is_inference", [True, False])
def test_a_cache_grows_with_the_text(is_inference: bool):
    """Tokens, and keys and values, are those of a cache that is whole."""
    llama = random_llama(tiny_config(norm="rmsnorm", attention="causal", max_seq_len=50))
    prompt = random_tokens(llama.config, 2, 3)
    decoder = FastDecoder(llama, 2)
    whole = generate(llama, prompt, 44, Sampler(0.0), use_cache=False)
    assert torch.equal(generate(llama, prompt, 44, Sampler(0.0), decoder=decoder), whole)
    with torch.inference_mode(is_inference), torch.no_grad():
        cache, lengths = KVCache(llama.config, 2, 50), []
        for start in range(0, 47):
            llama(whole[:, start : start + 1], cache=cache)
            lengths.append(cache.capacity)
        exact = KVCache(llama.config, 2, 20)
        llama(whole[:, :20], cache=exact)
    assert sorted(set(lengths)) == [4, 8, 16, 32, 50] and cache.max_len == 50
    for actual, expected in ((cache.keys, exact.keys), (cache.values, exact.values)):
        torch.testing.assert_close(actual[:, :, :, :20], expected)
    assert cache.keys.is_inference() == is_inference


@pytest.mark.usefixtures("_few")
def test_what_is_within_the_bound_is_whole_and_what_exceeds_it_is_refused():
    config = tiny_config()
    assert KVCache(config, 1, 20).capacity == 20
    cache = KVCache(config, 1, 21)
    assert (cache.capacity, cache.max_len) == (4, 21)
    key = torch.zeros(1, 2, 22, 8)
    with pytest.raises(ValueError, match="22 positions do not fit a cache of 21"):
        cache.update(0, key, key)
