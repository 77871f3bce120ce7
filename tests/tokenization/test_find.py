"""Which tokenizer is found for a checkpoint, and of which format a file is."""

from pathlib import Path

import pytest

from mini_llama.tokenization.find import check_vocabulary, find_tokenizer, load_tokenizer
from mini_llama.tokenization.llama2c import Llama2cTokenizer
from mini_llama.tokenization.tiktoken import TiktokenTokenizer
from tokenizer import Tokenizer


def test_find_tokenizer(tmp_path):
    checkpoint = tmp_path / "m.pt"
    assert str(find_tokenizer(checkpoint)) == "tokenizer.model"
    (tmp_path / "tok512.model").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "tok512.model"
    (tmp_path / "other.model").touch()
    assert str(find_tokenizer(checkpoint)) == "tokenizer.model"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.model").touch()
    assert find_tokenizer(tmp_path / "folder") == tmp_path / "folder" / "inside.model"
    (tmp_path / "m.model").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "m.model"
    assert str(find_tokenizer(checkpoint, "mine.model")) == "mine.model"


def test_find_tokenizer_bin(tmp_path, shared):
    checkpoint = tmp_path / "m.bin"
    checkpoint.write_bytes((shared / "checkpoints" / "stories260K.bin").read_bytes())
    assert str(find_tokenizer(checkpoint)) == "tokenizer.model"
    (tmp_path / "any.bin").write_bytes((shared / "checkpoints" / "tok512.bin").read_bytes())
    assert find_tokenizer(checkpoint) == tmp_path / "any.bin"
    (tmp_path / "tokenizer.bin").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "tokenizer.bin"
    (tmp_path / "one.model").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "one.model"


def test_load_tokenizer_goes_by_content(tmp_path, shared, ranks, tokenizer_model):
    (tmp_path / "x.model").write_bytes((shared / "checkpoints" / "tok512.bin").read_bytes())
    assert isinstance(load_tokenizer(tmp_path / "x.model"), Llama2cTokenizer)
    (tmp_path / "x.bin").write_bytes(tokenizer_model.read_bytes())
    assert isinstance(load_tokenizer(tmp_path / "x.bin"), Tokenizer)
    with pytest.raises(ValueError, match=r"has tiktoken's ranks: give tiktoken:.*tiktoken if"):
        load_tokenizer(tmp_path / "tiny.tiktoken")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is not a file; give one with --tokenizer"):
        load_tokenizer(tmp_path / "empty")


def test_load_tokenizer_chooses_by_prefix(ranks, tokenizer_model):
    assert isinstance(load_tokenizer(ranks), TiktokenTokenizer)
    assert isinstance(load_tokenizer(Path(ranks)), TiktokenTokenizer)
    for name in (tokenizer_model, str(tokenizer_model)):
        tokenizer = load_tokenizer(name, 2)
        assert isinstance(tokenizer, Tokenizer) and tokenizer.max_len == 2
    check_vocabulary(load_tokenizer(ranks), 262, "m.pt")
    with pytest.raises(ValueError, match=r"tiny\.tiktoken has 262 pieces, but m\.pt"):
        check_vocabulary(load_tokenizer(ranks), 300, "m.pt")


def test_check_vocabulary(tokenizer_model):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    check_vocabulary(tokenizer, 300, "m.pt")
    with pytest.raises(ValueError, match=r"has 300 pieces, but m\.pt was trained with 512"):
        check_vocabulary(tokenizer, 512, "m.pt")


def test_only_what_fits_is_chosen_beside_a_checkpoint(tmp_path, shared, tokenizer_model):
    """A tokenizer of another size is not the checkpoint's; of several the one that fits is."""
    checkpoint, asked = tmp_path / "m.pt", []

    def size() -> int:
        asked.append(512)
        return 512

    assert str(find_tokenizer(checkpoint, vocab_size=size)) == "tokenizer.model" and not asked
    other, own = tmp_path / "a.model", tmp_path / "tok512.model"
    other.write_bytes(tokenizer_model.read_bytes())
    assert find_tokenizer(checkpoint, vocab_size=lambda: 32000) == other  # named by its error
    own.write_bytes((shared / "checkpoints" / "tok512.model").read_bytes())
    assert find_tokenizer(checkpoint, vocab_size=size) == own
    own.rename(tmp_path / "tokenizer.bin")
    assert find_tokenizer(checkpoint, vocab_size=size) == tmp_path / "tokenizer.bin"


def test_a_checkpoint_behind_a_link(tmp_path, shared):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "m.pt").touch()
    (tmp_path / "far" / "m.model").touch()
    (tmp_path / "near.pt").symlink_to(tmp_path / "far" / "m.pt")
    assert find_tokenizer(tmp_path / "near.pt") == tmp_path / "far" / "m.model"
