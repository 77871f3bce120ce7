"""Which tokens end a text, as transformers has it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_llama.tokenization.stop_ids import stop_ids

TOKENIZER = SimpleNamespace(eos_ids=(7,))


def write(folder: Path, config: object, generation: object = None) -> Path:
    for name, value in (("config", config), ("generation_config", generation)):
        content = {} if value is None else {"eos_token_id": value}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ([1, 2], [1, 2], (1, 2)),
        (1, [1, 2], (1, 2)),
        (1, None, (1,)),
        (None, 3, (3,)),
        (None, None, (7,)),
        ([], None, (7,)),
    ],
)
def test_generation_config_then_config_then_the_tokenizer(tmp_path, config, generation, expected):
    folder = write(tmp_path, config, generation)
    assert stop_ids(folder, TOKENIZER) == expected
    assert stop_ids(folder / "model.safetensors", TOKENIZER) == expected
    assert stop_ids(folder / "other.pt", TOKENIZER) == (7,)


def test_two_files_that_disagree(tmp_path, capsys):
    assert stop_ids(write(tmp_path, 4, 5), TOKENIZER) == (5,)
    assert "[4] in config.json and [5] in generation_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["</s>", -1, [2, None], True])
def test_what_is_no_id(tmp_path, value: object):
    with pytest.raises(ValueError, match="is no token id"):
        stop_ids(write(tmp_path, value), TOKENIZER)


def test_none_without_eos(tmp_path):
    assert stop_ids(tmp_path / "m.pt", SimpleNamespace(eos_ids=())) == ()
