"""Every decoder, the uncached path and the oracle give the same tokens, also past the context."""

import pytest
import torch

from config import ATTENTIONS, NORMS
from mini_llama.inference import decoding
from mini_llama.inference.decoders import PlainDecoder
from mini_llama.inference.generation import generate, stream
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.kv_cache import KVCache
from tests import oracle
from tests.helpers import numpy_weights, random_llama, random_tokens, tiny_config
from tests.inference.test_decoding import frozen_tables

GREEDY = Sampler(temperature=0.0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_greedy_equals_float64_past_the_context(
    norm: str, attention: str, monkeypatch: pytest.MonkeyPatch
):
    """6 prompt tokens, 30 new ones, a context of 16: the window slides for most of them."""
    llama = random_llama(tiny_config(norm=norm, attention=attention), seed=2)
    config = llama.config
    prompt = random_tokens(config, 2, 6)
    expected = oracle.greedy(
        numpy_weights(llama),
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        norm=norm,
        attention=attention,
        eps=config.layer_norm_eps,
        rope_theta=config.rope_theta,
        tokens=prompt.numpy(),
        max_new_tokens=30,
        max_seq_len=config.max_seq_len,
    )
    for how in ({}, {"decoder": PlainDecoder(llama)}, {"use_cache": False}):
        assert generate(llama, prompt, 30, GREEDY, **how).tolist() == expected.tolist()
    assert len(set(expected.flatten().tolist())) > 5, "the model repeats one token: no test"
    monkeypatch.setattr(decoding, "config_tables", frozen_tables)
    is_same = generate(llama, prompt, 30, GREEDY).tolist() == expected.tolist()
    assert is_same == (attention == "bidirectional"), "positions make no difference: no test"


@pytest.mark.parametrize("prompt_length", [1, 15, 16, 17, 40])
def test_cached_equals_uncached_when_sampling(prompt_length: int):
    llama = random_llama(tiny_config(attention="causal", norm="rmsnorm"))
    prompt = random_tokens(llama.config, 3, prompt_length)

    def run(**how: object) -> list:
        sampler = Sampler(0.9, 0.01, 0.95, torch.Generator().manual_seed(7))
        return generate(llama, prompt, 20, sampler, **how).tolist()

    assert run() == run(decoder=PlainDecoder(llama)) == run(use_cache=False)


def test_cached_logits_equal_a_full_forward():
    """Prefill in two parts and one token at a time: each gives the full forward's logits."""
    llama = random_llama(tiny_config(attention="causal", norm="rmsnorm"))
    tokens = random_tokens(llama.config, 2, 12)
    with torch.inference_mode():
        full, _ = llama(tokens, targets=tokens)
        cache = KVCache(llama.config, 2, 12)
        parts = [
            llama(tokens[:, a:b], targets=tokens, cache=cache)[0]
            for a, b in ((0, 5), (5, 9), (9, 10), (10, 11), (11, 12))
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-5)


def test_decoding_reads_one_token_at_a_time():
    llama = random_llama(tiny_config(attention="causal"))
    lengths = []
    llama.tok_embeddings.register_forward_hook(
        lambda _m, args, _o: lengths.append(args[0].shape[1])
    )
    llama.generate(random_tokens(llama.config, 1, 5), 4, temperature=0.0)
    assert lengths == [5, 1, 1, 1]


def test_stop_id():
    llama = random_llama(tiny_config(attention="causal", norm="rmsnorm"))
    prompt = random_tokens(llama.config, 2, 3)
    free = generate(llama, prompt, 12, GREEDY)
    stop = free[0, 5].item()  # row 0 stops at its third new token, if not before
    stopped = generate(llama, prompt, 12, GREEDY, stop_id=stop)
    for row in range(2):
        new = free[row, 3:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        kept = stopped[row, 3:].tolist()
        assert kept == (new[:end] + [stop] * 12)[: len(kept)]
    ends = [row.index(stop) + 1 if stop in row else 12 for row in free[:, 3:].tolist()]
    assert stopped.shape[1] == 3 + max(ends), "it ends once every row has stopped"


def test_generate_is_without_dropout_and_restores_the_mode():
    llama = random_llama(tiny_config(dropout=0.9, attention="causal"))
    prompt = random_tokens(llama.config, 1, 4)
    expected = llama.generate(prompt, 6, temperature=0.0)
    llama.train()
    assert torch.equal(llama.generate(prompt, 6, temperature=0.0), expected)
    assert llama.training


def test_default_sampling_is_the_default_editions():
    llama = random_llama(tiny_config())
    prompt = random_tokens(llama.config, 1, 4)

    def run(**options: float) -> list:
        generator = torch.Generator().manual_seed(3)
        return llama.generate(prompt, 20, generator=generator, **options).tolist()

    assert run() == run(temperature=1.0, epsilon=0.05, top_p=1.0)
    assert run() != run(epsilon=0.0)


def test_stream_yields_the_tokens_of_generate():
    llama = random_llama(tiny_config(attention="causal"))
    prompt = random_tokens(llama.config, 2, 4)
    pieces = list(stream(llama, prompt, 5, GREEDY))
    assert [p.shape for p in pieces] == [(2, 1)] * 5
    assert torch.equal(torch.cat([prompt, *pieces], dim=1), generate(llama, prompt, 5, GREEDY))


@pytest.mark.parametrize("shape", [(1, 0), (3,)])
def test_empty_prompt_is_refused(shape: tuple):
    llama = random_llama(tiny_config())
    with pytest.raises(ValueError, match="prompt has shape"):
        llama.generate(torch.zeros(shape, dtype=torch.long), 3)


def test_cache_is_refused_where_it_is_not_exact():
    llama = random_llama(tiny_config(attention="bidirectional"))
    cache = KVCache(llama.config, 1, 8)
    with pytest.raises(ValueError, match="exact only for causal"):
        llama(random_tokens(llama.config, 1, 3), cache=cache)


def test_cache_overflow_is_refused():
    llama = random_llama(tiny_config(attention="causal"))
    with pytest.raises(ValueError, match="9 positions do not fit a cache of 8"):
        llama(random_tokens(llama.config, 1, 9), cache=KVCache(llama.config, 1, 8))


CONTRACT_TEXT = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, \
"I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K.pt", "stories260K-cmu.pt"])
def test_stories260k_writes_llama2c_text(shared, name: str, use_cache: bool):
    from llama import load_pretrained
    from tokenizer import Tokenizer

    tokenizer = Tokenizer(tokenizer_model=shared / "checkpoints" / "tok512.model")
    llama = load_pretrained(shared / "checkpoints" / name, edition="llama2")
    tokens = generate(llama, torch.tensor([[tokenizer.bos_id]]), 200, GREEDY, use_cache=use_cache)
    assert tokenizer.decode(tokens[0].tolist()) == CONTRACT_TEXT


def test_a_cache_that_holds_the_beginning_is_read_on():
    llama = random_llama(tiny_config(attention="causal"))
    tokens = random_tokens(llama.config, 1, 9)
    cache = KVCache(llama.config, 1, 16)
    list(stream(llama, tokens[:, :6], 2, GREEDY, cache=cache))
    assert cache.position == 7
    cache.rewind(4)
    new = list(stream(llama, tokens, 5, GREEDY, cache=cache))
    expected = generate(llama, tokens, 5, GREEDY, use_cache=False)
    assert torch.cat((tokens, *new), dim=1).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="14 is not one of the 13 positions held"):
        cache.rewind(14)
    with pytest.raises(ValueError, match="9 tokens cannot go on from 13 in a cache"):
        next(stream(llama, tokens, 5, GREEDY, cache=cache))
