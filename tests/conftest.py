"""Fixtures: the shared files where they are there, and tiny models, tokenizers and data."""

import dataclasses
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from checkpoint import save_checkpoint
from config import LlamaConfig
from llama import Llama

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
WORDS = "a dull film the plot is good bad great story and acting was not very slow but fun".split()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference files of ../shared, which this machine does not have")
    return SHARED


def tiny_config(**changes: object) -> LlamaConfig:
    """2 layers, width 32, 4 heads sharing 2 key/value heads."""
    config = LlamaConfig(
        vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=8, max_seq_len=16
    )
    return dataclasses.replace(config, **changes)


def random_llama(config: LlamaConfig, seed: int = 0) -> Llama:
    """A model whose every weight, norms and biases included, is random and matters."""
    generator = torch.Generator().manual_seed(seed)
    llama = Llama(config)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else noise * parameter.shape[-1] ** -0.5)
    return llama.eval()


def numpy_weights(llama: Llama) -> dict[str, np.ndarray]:
    """The model's tensors as the float64 oracle takes them."""
    return {k: v.detach().double().numpy() for k, v in llama.state_dict().items()}


def random_tokens(config: LlamaConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, config.vocab_size, shape, generator=generator)


def assert_relative(actual: torch.Tensor, expected: object, tolerance: float) -> None:
    """Every element within `tolerance` of the largest magnitude expected."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"largest error is {error:.2e} of the largest magnitude"


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """What a command did to SIGTERM ends with its test: pytest itself is to be stopped by it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model of 300 pieces with byte fallback, trained on a few words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = random.Random(0)
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """model.pt (RMSNorm, causal, recorded), its tokenizer model.model, and data of two labels:
    data/tiny-{train,dev,test}.txt and data/labels.json.
    """
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_config(vocab_size=300, max_seq_len=64, norm="rmsnorm", attention="causal")
    save_checkpoint(folder / "model.pt", config, random_llama(config).state_dict())
    (folder / "model.model").write_bytes(tokenizer_model.read_bytes())
    (folder / "data").mkdir()
    rng = random.Random(1)
    for split, count in (("train", 24), ("dev", 10), ("test", 10)):
        lines = []
        for i in range(count):
            words = rng.choices(WORDS, k=rng.randint(2, 12))
            lines.append(f"{i % 2} ||| {' '.join(words)} café {'good' if i % 2 else 'bad'} .\n")
        (folder / "data" / f"tiny-{split}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "data" / "labels.json").write_text('["bad", "good"]')
    return folder
