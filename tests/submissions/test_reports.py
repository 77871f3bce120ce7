"""terminal.py, feedback.py, rubric.py, page.py: what is written of a class."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from mini_llama.assignment.agreement import Agreement
from mini_llama.assignment.reference_outputs import ReferenceOutputs
from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.examining import Examination, Verdict
from mini_llama.submissions.feedback import FeedbackFolder, feedback_page, file_names
from mini_llama.submissions.grading import Grade, Output, Points
from mini_llama.submissions.page import html_page
from mini_llama.submissions.report import checks_cell, csv_text, json_text
from mini_llama.submissions.rubric import award, read_rubric
from mini_llama.submissions.rules import GREEDY_TEXT, Expected
from mini_llama.submissions.student_code import Check
from mini_llama.submissions.terminal import Screen, screen_of_output, table
from mini_llama.submissions.untrusted_text import one_line, quoted
from mini_llama.tables import align, text_width
from tests.helpers import ROOT

KEY = AnswerKey(
    "mmia", Expected(), {name: [0, 1] for name in ("sst-dev", "sst-test", "cfimdb-dev")}
)
OUTPUTS = tuple(Output(file, "within", 0.411, 0.3) for file in KEY.expected.predictions)


def grade(name, **changes):
    return replace(Grade(name, 1_000_000, outputs=OUTPUTS), **changes)


# --- visible characters ---


@pytest.mark.parametrize(
    "name", ["Müller, Zoë", "李雷", "Łódź", "Nguyễn", "O'Brien", "Zoe\u0308", "김"]
)
def test_names_are_shown_as_they_are(name):
    assert one_line(name) == name
    assert table([grade(name)], KEY).splitlines()[2].startswith(name)


UNSEEN = "\x1b \x00 \x7f \x9b \u202e \u2066 \u200b \u200d \ufeff \u00ad \u3164 \u115f \u2800 \ufe0f"


@pytest.mark.parametrize(
    "char", [*UNSEEN.split(" "), "\n", "\u2028", "\u00a0", "\udcff", "\u034f", "\U000e0041"]
)
def test_what_cannot_be_seen_is_escaped(char):
    assert one_line(f"a{char}b") == f"a{ascii(char)[1:-1]}b"
    assert char not in quoted(f"a{char}b")


def test_marks_need_a_letter_and_are_few():
    assert one_line("\u0301a \u0301") == "\\u0301a \\u0301"
    assert one_line("a" + 9 * "\u0301") == "a" + 4 * "\u0301" + 5 * "\\u0301"


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("abc", 3),
        ("李雷", 4),
        ("Zoe\u0308", 3),
        ("ｆ", 2),
        ("한", 2),
        ("\u1112\u1161\u11ab", 2),
        ("é", 1),
    ],
)
def test_width_in_columns(text, width):
    assert text_width(text) == width
    first, second = align([[text, "1"], ["abcdef", "2"]])
    assert first == text + " " * (8 - width) + "1" and second == "abcdef  2"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("latin-1", "Müller \\u674e"), ("ascii", "M\\xfcller")]
)
def test_what_the_terminal_lacks_is_escaped_and_counted(encoding, shown):
    lines = table([grade("Müller 李"), grade("b")], KEY, Screen(None, encoding)).splitlines()
    assert lines[2].startswith(shown)
    assert lines[2].index(" ok") == lines[3].index(" ok")
    "\n".join(lines).encode(encoding)


# --- a narrow terminal ---

WRONG = Examination(
    (Verdict("rope", "wrong", False, False), Verdict("lora", "correct", True, True))
)
PASSED = tuple(Check(name, "pass", "") for name in ("rope_test", "sanity_check", "generate"))
CHECKS = (*PASSED, Check("optimizer_test", "fail", "largest error 1.0"))


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 120, 300])
def test_table_fits(columns):
    points = (Points("files all", 1.5, 2),)
    grades = [grade("李" * 30, checks=CHECKS, examination=WRONG, points=points), grade("b")]
    lines = table(grades, KEY, Screen(columns)).split("\n\n")[0].splitlines()
    assert len(lines) == 4  # two heads, and a line for each
    assert max(map(text_width, lines)) <= max(columns, 53)
    whole = table(grades, KEY).split("\n\n")[0].splitlines()
    if columns == 300:
        assert lines == whole
    assert (
        "3 of 4: optimizer" in whole[2] and "1 wrong: rope" in whole[2] and "1.5 of 2" in whole[2]
    )


def test_columns_left_out_are_named():
    text = table([grade("a")], KEY, Screen(80))
    assert "not shown in 80 columns: size, err, warn" in text
    assert all(text_width(line) <= 80 for line in text.splitlines())


def test_failed_checks_are_named():
    assert checks_cell(grade("a", checks=CHECKS)) == "3 of 4: optimizer"
    assert checks_cell(grade("a", checks=PASSED)) == "3 of 3"


# --- the page ---


def test_the_page_allows_its_own_script_only():
    text = html_page([grade("</script><script>alert(1)</script>")], KEY, "t")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1 and "alert" not in scripts[0]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert "http" not in scripts[0] and "innerHTML" not in scripts[0]


FAKE_PAGE = """
const rows = DATA.map((texts) => ({ cells: texts.map((t) => ({ textContent: t, colSpan: 1 })) }));
const heads = DATA[0].map(() => ({ attributes: {}, listeners: {},
  getAttribute(n) { return this.attributes[n] ?? null; },
  setAttribute(n, v) { this.attributes[n] = v; }, removeAttribute(n) { delete this.attributes[n]; },
  addEventListener(n, f) { this.listeners[n] = f; } }));
const body = { rows, append(row) { rows.splice(rows.indexOf(row), 1); rows.push(row); } };
globalThis.document = { querySelectorAll: () => heads, querySelector: () => body };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_sorts():
    data = [["10 a", "0.411-", "ok"], ["9 b", "missing", "errors"], ["c", "1.000", "ok"]]
    text = html_page([grade("a")], KEY, "t")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    click = "console.log(JSON.stringify(rows.map((r) => r.cells[0].textContent)));"
    for place, times, expected in (
        (0, 1, "9 b,10 a,c"),
        (1, 1, "10 a,c,9 b"),
        (1, 2, "c,10 a,9 b"),
    ):
        clicks = f"heads[{place}].listeners.click();" * times
        code = f"const DATA = {json.dumps(data)};{FAKE_PAGE}(() => {{{script}}})();{clicks}{click}"
        done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
        assert json.loads(done.stdout) == expected.split(","), done.stderr


# --- feedback ---


def test_feedback_says_nothing_of_others(tmp_path):
    one = grade("Müller, Zoë", remarks=("mine",), shared=("the same as 'Ada Example'",))
    text = feedback_page(one, KEY)
    assert "<h1>Müller, Zoë</h1>" in text and "mine" in text and "0.411" in text
    assert "Ada" not in text and "script" not in text
    assert "Ada" in html_page([one, one], KEY, "t") and "Ada" in json_text([one], KEY)
    FeedbackFolder(tmp_path / "new" / "pages").write([one, grade("Ada Example")], KEY)
    pages = sorted(path.name for path in (tmp_path / "new" / "pages").iterdir())
    assert pages == ["Ada Example.html", "Müller, Zoë.html"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../etc/passwd", "passwd.html"),
        ("a\\b:c*d?e", "a_b_c_d_e.html"),
        ("CON", "_CON.html"),
        ("nul.txt", "_nul.txt.html"),
        (" .. ", "submission.html"),
        ("\x1b[31mred\u202e", "__31mred_.html"),
        ("李雷", "李雷.html"),
        ("<img src=x>", "_img src_x_.html"),
        ("\udcff", "_.html"),
        ("x" * 500, "x" * 150 + ".html"),
    ],
)
def test_file_names_are_safe(name, file):
    assert file_names([name]) == {name: file}


def test_file_names_differ_on_every_system():
    files = file_names(["Ada", "ada", "x/Ada", "ada (2)"])
    assert len({file.casefold() for file in files.values()}) == 4


def test_feedback_replaces_nothing_unasked(tmp_path):
    folder = FeedbackFolder(tmp_path)
    folder.check(["a"], [])
    (tmp_path / "a.html").write_text("mine")
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.html is there already: --overwrite replaces it"):
        folder.check(["a"], [])
    FeedbackFolder(tmp_path, overwrite=True).check(["a"], [])
    FeedbackFolder(tmp_path, overwrite=True).write([grade("a")], KEY)
    assert "0.411" in (tmp_path / "a.html").read_text()
    assert (tmp_path / "other.html").read_text() == "mine"
    with pytest.raises(ValueError, match="holds the submissions"):
        folder.check(["b"], [tmp_path])
    with pytest.raises(ValueError, match="is not a folder"):
        FeedbackFolder(tmp_path / "a.html").check(["b"], [])


# --- rubric ---

TOML = """
[files]
"llama.py" = 1
all = 2
[accuracy]
sst-dev-prompting = 2.5
[checks]
optimizer_test = 10
generate = 4
"""
AS_JSON = {
    "files": {"llama.py": 1, "all": 2},
    "accuracy": {"sst-dev-prompting": 2.5},
    "checks": {"optimizer_test": 10, "generate": 4},
}


@pytest.mark.parametrize(("name", "text"), [("r.toml", TOML), ("r.json", json.dumps(AS_JSON))])
def test_points(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    rubric = read_rubric(tmp_path / name, KEY)
    assert rubric.needs == {"checks": "--run"}
    points = award(rubric, grade("a", checks=CHECKS, missing=("rope.py",)))
    assert [(p.awarded, p.possible) for p in points] == [
        (1, 1),
        (0, 2),
        (2.5, 2.5),
        (0, 10),
        (4, 4),
    ]
    assert not any(p.awarded for p in award(rubric, grade("a", refusal="x", checks=CHECKS)))
    one = grade("a", points=points)
    header, row = csv_text([one], KEY).splitlines()
    assert '"points","points possible","files llama.py (of 1)"' in header
    assert ",7.5,19.5,1,0,2.5,0,4," in row
    for page in (html_page([one], KEY, "t"), feedback_page(one, KEY), table([one], KEY)):
        assert "7.5 of 19.5" in page
    assert json.loads(json_text([one], KEY))["submissions"][0]["points"][2]["awarded"] == 2.5


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no section: it must have some of files, accuracy"),
        ("[acuracy]\nx = 1", "section 'acuracy' is not one of files, .*did you mean 'accuracy'"),
        ("[files]\nllama.py = 1", "llama holds a table: write a name .* in quotes, 'llama.py'"),
        ("[files]\n'lama.py' = 1", "'lama.py' is not one of .*did you mean 'llama.py'"),
        ("[accuracy]\ncfimdb-test-lora = 1", "'cfimdb-test-lora' is not one of"),
        ("[checks]\ngenerate = -1", r"generate = '-1': it must be a number from 0 to 1,000,000"),
        ("[checks]\ngenerate = nan", "generate = 'nan'"),
        ("[checks]\ngenerate = true", "generate = 'True'"),
        ("[checks]\ngenerate = 'x'", "generate = 'x'"),
        ("checks = 3", r"\[checks\] must hold lines NAME = POINTS"),
        ("[checks\n", "r.toml: "),
        ("[checks]\ngenerate = 1\ngenerate = 2", "r.toml: "),
        ("\udcff", "line 1: byte 0xff is not UTF-8"),
    ],
)
def test_what_is_no_rubric_is_one_line(text, part, tmp_path):
    (tmp_path / "r.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=part) as caught:
        read_rubric(tmp_path / "r.toml", KEY)
    assert "\n" not in str(caught.value)


def test_rubrics_in_json_are_strict(tmp_path):
    path = tmp_path / "r.json"
    for text, part in (
        ('{"checks": {"generate": 1, "generate": 2}}', "'generate' is there twice"),
        ("[1]", "not an object of sections"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=part):
            read_rubric(path, KEY)
    with pytest.raises(ValueError, match=r"neither \.toml nor \.json"):
        read_rubric(tmp_path / "r.yaml", KEY)


def test_the_documented_rubric_is_one(tmp_path):
    text = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    (tmp_path / "r.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    key = replace(KEY, references={"mmia": ReferenceOutputs({}, "text")})
    rubric = read_rubric(tmp_path / "r.toml", key)
    assert rubric.needs == {"checks": "--run", "diagnosis": "--diagnose"}
    agreement = Agreement(GREEDY_TEXT, "drift", "mmia", 0.5, (), "")
    one = grade("a", checks=PASSED, agreements=(agreement,), examination=WRONG)
    assert sum(p.awarded for p in award(rubric, one)) == 1 + 4 + 5 + 2.5 + 2 + 10 + 5


# --- the terminal ---


def test_a_terminal_has_a_width_and_a_pipe_has_none(monkeypatch):
    monkeypatch.delenv("LINES", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen_of_output().columns is None
    monkeypatch.setenv("COLUMNS", "72")
    assert screen_of_output().columns == 72
    monkeypatch.setenv("LINES", "24")  # as readline sets them for whatever a program starts
    assert screen_of_output().columns is None
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert screen_of_output().columns == 72
    monkeypatch.setenv("COLUMNS", "wide")
    assert screen_of_output().columns >= 20
