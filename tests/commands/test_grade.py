"""grade.py: a class of planted faults, hostile zips among them, and the command line."""

import contextlib
import csv
import html.parser
import io
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import joblib
import pytest

import grade
from mini_llama.submissions import classes, finding
from mini_llama.submissions.answer_key import read_answer_key
from tests import planted
from tests.helpers import ROOT

GOLD = planted.make_gold()
STUDENTS = planted.make_class(GOLD, planted.reference_outputs(GOLD))
NAMES = {name: name.removesuffix(".zip") for name in STUDENTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("grading")
    planted.write_class(path, GOLD)
    return path


@pytest.fixture(scope="module")
def graded(folder):
    """What one command over the whole class gave: its status, the seconds of processor time that it
    took, as the machine may be busy, its output and three files.
    """
    files = [f"--{kind}={folder / kind}" for kind in ("csv", "json", "html")]
    command = [sys.executable, ROOT / "grade.py", folder / "class", "--jobs=2"]
    command += [f"--data={folder / 'data'}", f"--reference={folder / 'reference'}", *files]
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, cwd=folder)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return done.returncode, seconds, done.stdout, done.stderr, folder


@pytest.fixture(scope="module")
def found(graded):
    content = json.loads((graded[-1] / "json").read_text(encoding="ascii"))
    return {student["name"]: student for student in content["submissions"]}


def said_of(name: str, output: str) -> list[str]:
    """The lines that the terminal shows below a submission's name."""
    name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    blocks = [block.splitlines() for block in output.split("\n\n")[1:]]
    lines = next((block[1:] for block in blocks if block[0] == name), [])
    return [line.removeprefix("  ") for line in lines]


def test_class_is_graded_in_time(graded, found):
    status, seconds, out, err, _ = graded
    assert len(STUDENTS) >= 40
    assert len(found) == len(STUDENTS)
    assert status == 1  # some were refused
    assert seconds < 60
    assert err == b"skipped, neither zips nor folders: 'marks.txt'\n"
    counts = [sum(s.status == k for s in STUDENTS.values()) for k in ("ok", "errors", "refused")]
    last = "submissions: {}; without errors {}, with errors {}, refused {}"
    assert out.decode().splitlines()[-1] == last.format(len(STUDENTS), *counts)


@pytest.mark.parametrize("name", STUDENTS)
def test_planted_fault_is_found_and_nothing_else(name, graded, found):
    student = STUDENTS[name]
    row = found[planted_name(name)]
    assert row["status"] == student.status
    lines = said_of(NAMES[name], graded[2].decode())
    if student.status == "refused":
        assert len(lines) == 1
        assert not row["outputs"]
    else:
        verdicts = {output["file"]: output["verdict"] for output in row["outputs"]}
        usual = {f: "placeholder" if "cfimdb-test" in f else "within" for f in verdicts}
        assert len(verdicts) == 12
        assert verdicts == usual | dict(student.verdicts)
        agreements = {a["file"]: a["verdict"] for a in row["agreements"]}
        assert agreements == dict.fromkeys(agreements, "equal") | dict(student.agreements)
        n_errors = sum(problem["severity"] == "error" for problem in row["problems"])
        assert n_errors == (student.status == "errors")
    for part in student.says:
        assert any(part in line for line in lines), lines
    assert bool(lines) == bool(student.says or student.agreements), lines


def planted_name(name: str) -> str:
    """As the JSON file has it: control characters spelled out."""
    return NAMES[name].replace("\x1b", "\\x1b")


def test_figures_of_one_submission(found):
    """Accuracy and macro F1, counted by hand."""
    output = next(o for o in found["good0"]["outputs"] if o["file"] == planted.LORA)
    with zipfile.ZipFile(io.BytesIO(STUDENTS["good0.zip"].content)) as archive:
        guesses = [int(line[:1]) for line in archive.read(f"ab1/{planted.LORA}").splitlines()]
    gold = GOLD["sst-test"].labels
    pairs = list(zip(guesses, gold, strict=True))
    assert output["accuracy"] == sum(a == b for a, b in pairs) / 2210
    scores = []
    for label in range(5):
        hits = pairs.count((label, label))
        scores.append(2 * hits / (guesses.count(label) + gold.count(label)))
    assert output["macro_f1"] == pytest.approx(sum(scores) / 5, abs=1e-12)
    assert output["figure"] == 0.269


# --- untrusted names and texts ---


def test_terminal_gets_visible_characters(graded):
    out = graded[2].decode()
    assert out.replace("\n", "").isprintable()
    assert "\\x1b[31mred" in out
    assert "\n\u674e\u96f7 " in out


def test_csv_holds_no_formula(graded):
    text = (graded[-1] / "csv").read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(STUDENTS) + 1
    assert {len(row) for row in rows} == {len(rows[0])}
    for cell in (cell for row in rows for cell in row):
        assert not re.match(r"\s*[=+\-@\t\r]", cell), cell
    names = {row[0] for row in rows}
    assert {"'=1+cmd|' '!A0", "'@SUM(1)", "\u674e\u96f7", "<img src=x onerror=alert(1)>"} <= names
    by_name = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert by_name["below"]["sst-dev-finetuning verdict"] == "below"
    assert float(by_name["below"]["sst-dev-finetuning accuracy"]) == pytest.approx(0.35, abs=1e-3)
    assert by_name["locked"]["refusal"].endswith("make the zip without a password")


class Page(html.parser.HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links |= {value for name, value in attributes if name == "href"}
        self.ids |= {value for name, value in attributes if name == "id"}

    def handle_data(self, data):
        self.text += data


def test_page_is_whole_and_harmless(graded):
    text = (graded[-1] / "html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    tags = (
        "html head meta title style body h1 h2 p div table thead tbody tr th td a section ul li b"
    )
    assert page.tags <= {*tags.split(), "li", "b", "script"}
    attributes = "lang charset http-equiv content name class colspan href title id"
    assert page.attributes <= set(attributes.split())
    assert page.links <= {f"#{name}" for name in page.ids}  # nothing from elsewhere
    assert "url(" not in text
    assert "<img src=x onerror=alert(1)>" in page.text  # as text
    assert "'ab1/<b>.pyc'" in page.text
    assert "\x1b" not in text
    for name in ("below", "\u674e\u96f7", "strange"):
        assert name in page.text


# --- command line ---


def run(capsys, *arguments):
    try:
        status = grade.main([*map(str, arguments), "--jobs", "1"])
    except SystemExit as stop:
        if isinstance(stop.code, str):  # Python prints it and exits with 1
            print(stop.code, file=sys.stderr)
        status = 1 if isinstance(stop.code, str) else stop.code
    return status, *capsys.readouterr()


def test_one_submission(folder, capsys):
    data = f"--data={folder / 'data'}"
    for name in ("good0.zip", "folder", "nested"):
        status, out, err = run(capsys, folder / "class" / name, data)
        assert (status, err) == (0, "")
        assert "submissions: 1; without errors 1" in out
    assert run(capsys, folder / "class" / "range.zip", data)[0] == 0
    assert run(capsys, folder / "class" / "locked.zip", data)[0] == 1


def test_like_names_get_their_paths(folder, tmp_path):
    good = folder / "class" / "good0.zip"
    other = tmp_path / "good0.zip"
    other.write_bytes(good.read_bytes())
    assert list(finding.find_submissions([good, other, good])) == [str(good), str(other)]


def test_repository_is_one_submission(folder, tmp_path, capsys):
    """Code and outputs in folders of their own, and a README, which tells nothing."""
    for name, content in STUDENTS["folder"].content.items():
        part = "src" if name.endswith(".py") else "results" if name.endswith(".txt") else "."
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / name).write_bytes(content)
    status, out, err = run(capsys, tmp_path, f"--data={folder / 'data'}")
    assert (status, err) == (0, "")
    assert "submissions: 1; without errors 1" in out
    assert "misplaced files" in out
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "llama.py").write_text("")
    assert len(finding.find_submissions([tmp_path])) == 3


def test_bundled_data_stands_in(tmp_path, monkeypatch, capsys):
    """Without real data the demo's outputs are graded, which have no figure."""
    monkeypatch.setattr("mini_llama.submissions.answer_key.DATA", tmp_path / "data")
    text = (ROOT / "data" / "demo" / "demo-dev.txt").read_bytes()
    (tmp_path / "demo-dev-lora-output.txt").write_bytes(text)
    (tmp_path / "generated-sentence-temp-0.txt").write_text("Once upon a time, there was a cat")
    status, out, err = run(capsys, tmp_path)
    assert status == 0
    assert "using the bundled data" in err
    assert "1.000?" in out
    assert "must start with" not in out


@pytest.mark.parametrize(
    ("arguments", "expected", "part"),
    [
        ([], 2, "required: PATH"),
        (["one", "--seconds", "0"], 2, "--seconds 0.0 is not allowed: it must be above 0"),
        (["one", "--memory", "nan"], 2, "--memory nan is not allowed"),
        (["one", "--csv", "a", "--json", "a"], 2, "a is the output a as well"),
        (["one", "--csv", "one"], 2, "one is the input one as well"),
        (["one", "--edition", "fall2020"], 2, "invalid choice"),
        (["one", "--feedbak", "a"], 2, "did you mean --feedback?"),
        (["none.zip"], 1, "none.zip does not exist"),
        (["empty"], 1, "'empty': no zip and no folder to grade"),
        (["one", "--data", "empty"], 1, "empty holds none of sst-dev.txt, "),
        (["one", "--data", "bad"], 1, "sst-dev.txt line 2: label '5' is not one of 0, 1, 2, 3, 4"),
        (["one", "--reference", "none"], 1, "--reference none is not a folder"),
        (["one", "--reference", "empty"], 1, "--reference empty holds neither generated-sentence"),
        (["one", "--html", "none/a"], 1, "folder none does not exist"),
        (["one", "--csv", "bad/sst-dev.txt"], 1, "is there already: --overwrite replaces it"),
    ],
)
def test_wrong_arguments_and_files(arguments, expected, part, tmp_path, monkeypatch, capsys):
    """Exit status 2 for wrong options only, 1 for everything else."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "bad", "one"):
        Path(name).mkdir()
    Path("bad/sst-dev.txt").write_text("0 ||| a\n5 ||| b\n")
    Path("one/llama.py").write_text("")
    status, out, err = run(capsys, *arguments)
    assert status == expected
    assert part in err
    assert err.rstrip("\n").splitlines()[-1].startswith("grade.py: error: ")
    assert out == ""


def test_class_goes_on_whatever_one_brings_about(folder, monkeypatch, capsys):
    def fail(*_):
        raise RecursionError("of this one\x1b[31m")

    monkeypatch.setattr("mini_llama.submissions.grading.check_submission", fail)
    status, out, _ = run(capsys, folder / "class" / "good0.zip", f"--data={folder / 'data'}")
    assert status == 1
    assert "refused: cannot be graded: RecursionError: of this one\\x1b[31m" in out


def test_process_that_ends_is_one_row(folder):
    """What an interpreter's own fault would do; the others are graded all the same."""

    class Deadly(type(Path())):
        def is_dir(self):
            os._exit(3)

    answer_key = read_answer_key("mmia", folder / "data", None)
    submissions = {"a": folder / "class" / "good0.zip", "b": Deadly("b")}
    grades = classes.grade_class(submissions, answer_key, jobs=2)
    assert [(g.name, g.status) for g in grades] == [("a", "ok"), ("b", "refused")]
    assert grades[1].refusal == "cannot be graded: it crashed the process that read it"


def test_backend_can_be_plugged_in(folder):
    answer_key = read_answer_key("mmia", folder / "data", None)
    submissions = {"a": folder / "class" / "good0.zip", "b": folder / "class" / "hello.zip"}
    with joblib.parallel_config(backend="threading", n_jobs=2):
        grades = classes.grade_class(submissions, answer_key)
    assert [(g.name, g.status) for g in grades] == [("a", "ok"), ("b", "refused")]


def test_download_with_diagnosis_points_and_feedback(folder, tmp_path, capsys):
    """One student's rope is wrong; the other's modules are right."""
    modules = {path.name: path.read_bytes() for path in (ROOT / "tests" / "student").glob("*.py")}
    wrong = modules | {"rope.py": modules["rope.py"].replace(b"cos", b"sin")}
    content = {"Zo\u00eb_1": zipped(modules), "\u674e \u96f7_2": zipped(wrong)}
    files = {f"{who}_assignsubmission_file_/hw.zip": data for who, data in content.items()}
    (tmp_path / "class.zip").write_bytes(zipped(files))
    (tmp_path / "points.toml").write_text("[diagnosis]\nrope = 5\nlora = 1.5\n[files]\nall = 2\n")
    arguments = [tmp_path / "class.zip", f"--data={folder / 'data'}", "--diagnose"]
    arguments += ["--rubric", tmp_path / "points.toml"]
    pages = tmp_path / "pages"
    status, out, _ = run(capsys, *arguments, "--feedback", pages, "--csv", tmp_path / "csv")
    assert status == 0
    rows = {line.split("  ")[0]: line for line in out.split("\n\n")[0].splitlines()[2:]}
    assert rows["Zo\u00eb"].endswith("all right  6.5 of 8.5")
    assert rows["\u674e \u96f7"].endswith("1 wrong: rope  1.5 of 8.5")
    assert "  wrong: rope: " in out
    assert sorted(path.name for path in pages.iterdir()) == ["Zo\u00eb.html", "\u674e \u96f7.html"]
    assert "wrong" in (pages / "\u674e \u96f7.html").read_text(encoding="utf-8")
    assert (tmp_path / "csv").read_bytes().startswith(b"\xef\xbb\xbf")
    status, _, err = run(capsys, *arguments, "--feedback", pages)
    assert status == 1
    assert "is there already: --overwrite replaces it" in err
    arguments.remove("--diagnose")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "[diagnosis] needs --diagnose" in err


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_table_of_a_terminal_fits_it(folder):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, ROOT / "grade.py", folder / "class" / "\u674e\u96f7.zip", "--jobs=1"]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"COLUMNS": "", "LINES": "", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [*command, f"--data={folder / 'data'}"], stdout=theirs, env=environment, check=False
    )
    os.close(theirs)
    with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:
        out = terminal.read(10_000).decode()
    assert done.returncode == 0
    head = out.split("\r\n\r\n")[0].splitlines()
    assert len(head) == 3
    assert max(map(len, head)) <= 80
    assert head[2].startswith("\u674e\u96f7 ")


def test_help_tells_the_limits(capsys):
    _, out, _ = run(capsys, "--help")
    assert "This is not a sandbox" in out
    assert "no network" in out


def test_grading_needs_no_torch(folder):
    code = "import sys, grade; grade.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    arguments = [folder / "class" / "good0.zip", f"--data={folder / 'data'}", "--jobs=1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["grade", "prepare_submit", "reproduce"])
def test_help_needs_neither_torch_nor_templates(command):
    code = f"import sys, {command}\ntry: {command}.main(['--help'])\n"
    code += "except SystemExit: sys.exit(len({'torch', 'jinja2', 'sklearn'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.stdout.startswith(b"usage: ")
    assert (done.returncode, done.stderr) == (0, b"")


def test_pipe_is_refused(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.zip")
    status, out, _ = run(capsys, tmp_path / "pipe.zip", f"--data={folder / 'data'}")
    assert status == 1
    assert "is not a file" in out
