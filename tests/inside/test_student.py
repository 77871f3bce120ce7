"""see.py --code: a student's model beside the formulas, as sanity_check.py --explain finds it."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

import see
from mini_llama.diagnosis.explanation import Explanation, Place
from mini_llama.inside.student import place_table
from tests.helpers import ROOT
from tests.inside.browser import open_page

SCALE = "(1.0 / math.sqrt(self.head_dim))"


def test_places_are_a_row_for_each_layer():
    places = [
        Place("weights", 0.0, None, ""),
        Place("layers.0.attention_norm", 1e-7, 1e-7, ""),
        Place("layers.0.attention.apply_rotary_emb", 1e-7, None, ""),
        Place("layers.0: residual (attention)", math.inf, math.nan, "its shape\u202e"),
        Place("layers.1.attention_norm", 0.5, 0.5, "later"),
        Place("forward", None, None, ""),
    ]
    table = place_table(Explanation(places, []))
    columns = ["attention_norm", "attention.apply_rotary_emb", "residual (attention)"]
    assert table["columns"] == columns
    assert [row["name"] for row in table["rows"]] == ["weights", "layers.0", "layers.1", "forward"]
    first = table["rows"][1]["cells"]["residual (attention)"]
    expected = {"alone": "∞", "fromStart": "∞", "problem": "its shape\\u202e", "isFirst": True}
    assert first == expected
    cells = [cell for row in table["rows"] for cell in row["cells"].values()]
    assert sum(cell["isFirst"] for cell in cells) == 1 and len(cells) == len(places)
    json.dumps(table, allow_nan=False)


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """A student's folder, whose scores lack their scale."""
    folder = tmp_path / "theirs"
    shutil.copytree(ROOT / "tests" / "student", folder)
    text = (folder / "llama.py").read_text(encoding="utf-8")
    assert SCALE in text
    (folder / "llama.py").write_text(text.replace(SCALE, "1.0"), encoding="utf-8")
    return folder


def test_a_mistake_is_named_and_framed(
    submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "page.html"
    arguments = ["--edition", "mmia", "--text", "A boy", "--max_new_tokens", "1"]
    see.main(["--code", str(submission), *arguments, "--out", str(out)])
    said = capsys.readouterr().out
    place = "layers.0.attention.compute_query_key_value_scores"
    assert f"First difference: {place}: its output differs" in said
    assert re.search(r"^Fix: .*sqrt", said, re.MULTILINE)
    text = out.read_text(encoding="utf-8")
    code = json.loads(re.search('id="data">(.*)</script>', text)[1])["code"]
    assert all(line in said for line in code["verdict"])
    dom, messages, requests = open_page(out, tmp_path)
    assert messages == [] and requests == []
    shown = dom.partition('id="page"')[2].partition("<script")[0]
    assert shown.count('class="first"') == 1 and "What layers.0.attention gives" in shown


def test_a_folder_without_code_is_one_line(tmp_path: Path):
    with pytest.raises(SystemExit) as refusal:
        see.main(["--code", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert re.fullmatch(r"see\.py: error: .* contains no Python files: .*", str(refusal.value))
