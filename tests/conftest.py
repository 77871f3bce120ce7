"""Fixtures: the shared files where they are there, and tiny models, tokenizers and data."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from tests.helpers import SHARED, WORDS, random_llama, tiny_config


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference files of ../shared, which this machine does not have")
    return SHARED


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
