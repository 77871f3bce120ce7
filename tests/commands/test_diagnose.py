"""diagnose.py names each planted mistake, in its component only, and reports other failures."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from config import EDITIONS
from diagnose import main
from mini_llama.diagnosis import diagnosis
from mini_llama.diagnosis.catalogue import Catalogue
from mini_llama.diagnosis.comparison import errors, read_arrays
from mini_llama.diagnosis.diagnosis import components_of
from mini_llama.diagnosis.findings import PASSES, Finding
from mini_llama.diagnosis.judging import judge
from mini_llama.diagnosis.mistakes.variants import VARIANTS
from tests.helpers import ROOT, refusal_of
from tests.plants import (
    PLANTS,
    REMARKED,
    STUDENT,
    STUDENT_PLANTS,
    Plant,
    apply_edits,
    diagnose_planted,
    grouped,
)

Findings = dict[str, Finding]


def by_component(findings: list[Finding]) -> Findings:
    return {finding.component: finding for finding in findings}


def wrong(findings: Findings) -> list[tuple]:
    return [(f.component, f.verdict, f.mistake) for f in findings.values() if not f.is_correct]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> list[tuple[Sequence[Plant], Findings]]:
    """The findings for every planted mistake, and for our unchanged modules. To save time, each
    copy has one mistake in every component; bench/confusion_table.py plants each of them alone.
    """
    by_id = {one.mistake.id: one for one in PLANTS}
    groups = [*grouped([*PLANTS, *STUDENT_PLANTS]), []]
    groups.append([by_id["lora: no scaling"], by_id["lora: W is not frozen"]])
    plantings = [(group, group[0].edition if group else "mmia") for group in groups]
    plantings += [((), "fall2024"), ((), "spring2026")]
    found = diagnose_planted(tmp_path_factory.mktemp("planted"), plantings)
    return [(plants, by_component(findings)) for plants, findings in found]


def findings_of(table) -> Iterator[tuple[Plant, Finding]]:
    """Each plant that is the only one in its component, with the finding."""
    for plants, findings in table:
        components = [one.mistake.component for one in plants]
        for one in plants:
            if components.count(one.mistake.component) == 1:
                yield one, findings[one.mistake.component]


def test_every_planted_mistake_is_named_and_nothing_else(table):
    misnamed = {}
    for plants, findings in table:
        names: dict[str, list] = {}  # empty if all are correct
        for mistake in (mistake for one in plants for mistake in one.mistakes):
            if mistake.name not in REMARKED:
                names.setdefault(mistake.component, []).append(mistake.name)
        expected = {(name, "; ".join(mistakes)) for name, mistakes in names.items()}
        if {(component, mistake) for component, _, mistake in wrong(findings)} != expected:
            misnamed[tuple(one.id for one in plants)] = wrong(findings)
    assert not misnamed
    assert len(list(findings_of(table))) == len(PLANTS) + len(STUDENT_PLANTS)


def test_what_the_assignment_leaves_open_is_a_remark(table):
    unsaid = [(one.mistake, f) for one, f in findings_of(table) if one.mistake.name in REMARKED]
    assert {mistake.name for mistake, _ in unsaid} == REMARKED
    for mistake, finding in unsaid:
        assert any(text.startswith(f"{mistake.name}: ") for text in finding.remarks), mistake.id


def test_the_verdict_says_if_the_course_s_own_test_passes(table):
    verdicts = {one.id: finding for one, finding in findings_of(table)}
    passing = verdicts["optimizer: correct_bias ignored; plain instead of efficient form"]
    assert passing.verdict == PASSES and passing.is_accepted and not passing.is_correct
    assert passing.detail == (
        "differs with a large eps, correct_bias=False: correct_bias ignored; plain instead of "
        "efficient form; right: plain, weight decay, clipping, clipping of short gradients"
    )
    assert verdicts["optimizer: decay by the corrected step size"].verdict == PASSES
    for failing in ("no bias correction", "decay without lr"):
        assert not verdicts[f"optimizer: {failing}"].is_accepted, failing


def test_two_mistakes_in_one_component_are_both_reported(table):
    (findings,) = (
        found for plants, found in table if [p.mistake.component for p in plants] == ["lora"] * 2
    )
    finding = findings["lora"]
    assert finding.mistake == "no scaling; W is not frozen"
    assert finding.remedy == (
        "Multiply the low-rank term by alpha / rank. "
        "Set requires_grad to False on all parameters of the original layer."
    )


def test_every_known_mistake_is_planted():
    """All that diagnose.py knows; sanity_check.py --explain has more."""
    planted = (mistake for one in (*PLANTS, *STUDENT_PLANTS) for mistake in one.mistakes)
    assert {mistake.id for mistake in planted} == VARIANTS.keys()


def test_another_editions_arithmetic_is_reported(table):
    findings = {one.id: finding for one, finding in findings_of(table)}
    causal = findings["attention: causal where the edition is not"]
    assert causal.editions == ("spring2026", "llama2")
    assert "correct for the editions spring2026, llama2" in str(causal)
    assert findings["attention: no scale"].editions == ()


def changed(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the student's folder with one edit."""
    shutil.copytree(STUDENT, folder)
    apply_edits(folder, (file, old, new))
    return folder


SCORES = "weights = torch.matmul(query, key.transpose(2, 3)) * (1.0 / math.sqrt(self.head_dim))"
DRAW = "torch.multinomial(kept, num_samples=1)"
GUMBEL = "(kept / torch.empty_like(kept).exponential_()).argmax(-1, keepdim=True)"
SORTED = "kept.topk(8)[1].gather(1, torch.multinomial(kept.topk(8)[0], 1))"
BROKEN = {
    "exception": ("llama.py", SCORES, "weights = torch.matmul(query, key)"),
    "unwritten": ("rope.py", "    return turn(query), turn(key)", "    raise NotImplementedError"),
    "nan": ("llama.py", "torch.sqrt(var + self.eps)", "torch.sqrt(-var - self.eps)"),
    "shape": ("rope.py", "return turn(query), turn", "return turn(query)[:, 1:], turn"),
    "loop": ("llama.py", "        gate = self.w1(x)", "        while True: gate = self.w1(x)"),
    "no class": ("optimizer.py", "class AdamW(", "class AdamV("),
    "no method": ("llama.py", "def compute_query_key_value_scores", "def compute_scores"),
    "no tensor": ("llama.py", "        x = x + self.attention(self", "        return None, (self"),
    "exit": ("classifier.py", "import torch\n", "import sys\nsys.exit(0)\n"),
    "death": ("lora.py", "import torch\n", "import os\nos._exit(0)\n"),
    "syntax": ("optimizer.py", "import math\n", "import math (\n"),
    "drift": ("rope.py", "position[:, None] * f", "(1 + 3e-7) * position[:, None] * f"),
    "unknown": ("llama.py", "(1.0 / math.sqrt(self.head_dim))", "(0.9 / self.head_dim)"),
    "wide": ("llama.py", "4 * dim / 3) /", "4 * dim) /"),
    "gumbel": ("llama.py", DRAW, GUMBEL),
    "method": ("llama.py", DRAW, "kept.multinomial(1)"),
    "sorted": ("llama.py", DRAW, SORTED),
    "constructor": ("llama.py", "self.copies = self.n_heads //", "self.copies = self.n_head //"),
    "plain sampling": ("llama.py", "epsilon=0.05):", "top_k=None):\n        epsilon = 0.0"),
    "no file": ("classifier.py", "", ""),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> dict[str, Findings]:
    folder = tmp_path_factory.mktemp("broken")
    folders = [changed(folder / name, *edit) for name, edit in BROKEN.items() if edit[1]]
    folders.append(Path(shutil.copytree(STUDENT, folder / "no file")))
    (folder / "no file" / "classifier.py").unlink()
    found = diagnosis.diagnose(folders, seconds=4.0)
    return {name: by_component(findings) for name, findings in zip(BROKEN, found, strict=True)}


def test_a_student_s_own_solution_is_correct(broken):
    assert [f.verdict for f in broken["no file"].values()][:-1] == ["correct"] * 8


@pytest.mark.parametrize(
    ("name", "component", "report"),
    [
        (
            "exception",
            "attention",
            "attention     exception: RuntimeError: Expected size for first two dimensions of "
            "batch2 tensor to be: [8, 8] but got: [8, 5].\n"
            "              at llama.py:43: weights = torch.matmul(query, key)",
        ),
        (
            "unwritten",
            "rope",
            "rope          not written yet: it raises NotImplementedError\n"
            "              at rope.py:20: raise NotImplementedError",
        ),
        ("nan", "norm", "norm          NaN: attention_norm: 320 of 320 values"),
        (
            "loop",
            "feed_forward",
            "feed_forward  endless loop: killed after 4.0 seconds",
        ),
        ("no class", "optimizer", "optimizer     missing: AdamW in optimizer.py"),
        (
            "no method",
            "attention",
            "attention     missing: compute_query_key_value_scores in class Attention",
        ),
        ("no tensor", "layer", "layer         wrong result: forward: got tuple, not a tensor"),
        (
            "exit",
            "classifier",
            "classifier    exception: SystemExit: 0 (log-probabilities, an id of 0 within the row, "
            "ids of 0 at its end, dropout); right: logits, logits with targets, hidden states\n"
            "              at classifier.py:2: sys.exit(0)",
        ),
        ("death", "lora", "lora          its process died: exit status 0"),
        ("no file", "classifier", "classifier    missing: classifier.py"),
    ],
)
def test_other_failures_are_reported(broken, name: str, component: str, report: str):
    findings = broken[name]
    assert str(findings[component]) == report
    assert [f[0] for f in wrong(findings)] == [component]


def test_syntax_errors_have_their_line(broken):
    finding = broken["syntax"]["optimizer"]
    assert finding.verdict == "exception" and finding.detail.startswith("SyntaxError")
    assert finding.where == "optimizer.py:1: import math ("


def test_wrong_shapes_show_both(broken):
    finding = broken["shape"]["rope"]
    assert finding.verdict == "wrong shape"
    expected = "query, even features: got (2, 149, 2, 4), expected (2, 150, 2, 4); right: key, even"
    assert finding.detail.startswith(expected)
    assert [f[0] for f in wrong(broken["shape"])] == ["rope"]


def test_errors_are_reported_by_output(broken):
    assert str(broken["wide"]["feed_forward"]).startswith(
        "feed_forward  wrong: no known mistake; shapes: got 256 32 32 256 256 32, "
        "expected 88 32 32 88 88 32; forward: largest error 1.2 of the largest value"
    )


def test_the_sampling_of_another_edition_is_reported(broken):
    finding = broken["plain sampling"]["generate"]
    assert (finding.mistake, finding.editions) == ("no filter", ("fall2024", "llama2"))


def test_an_exception_of_several_components_is_shown_once(broken):
    findings = broken["constructor"]
    shown = {name: (f.verdict, f.detail) for name, f in findings.items() if not f.is_correct}
    assert shown.pop("norm")[0] == "exception"
    assert findings["norm"].where.startswith("llama.py:32: self.copies = self.n_head //")
    assert shown.pop("classifier")[1].endswith(
        "ids of 0 at its end, share of zeros in training, share of zeros in evaluation, "
        "equal rows in training"
    )
    examined = {"attention", "feed_forward", "layer", "generate"}
    assert shown == dict.fromkeys(examined, ("not examined", "same exception as norm"))


def test_drift_is_correct_and_measured(broken):
    finding = broken["drift"]["rope"]
    assert finding.is_correct and not wrong(broken["drift"])
    assert 5e-6 < finding.error < 1e-4
    assert "correct within float drift: largest error" in str(finding)


def test_an_unknown_mistake_has_its_size_and_neighbours(broken):
    finding = broken["unknown"]["attention"]
    assert finding.mistake is None and 1e-2 < finding.error < 1
    assert finding.detail.startswith("no known mistake; scores: largest error 0.")
    assert "; nearest: scaled by d, 0." in finding.detail


def test_another_way_of_drawing_is_judged_by_its_frequencies(broken):
    assert not wrong(broken["gumbel"])


@pytest.mark.parametrize("name", ["method", "sorted"])
def test_tokens_may_be_drawn_by_a_method_and_in_any_order(broken, name: str):
    assert not wrong(broken[name])


HOSTILE = """
import os, signal, sys
print("rope", flush=True)
for fd in range(3, 50):
    try: os.write(fd, b'["0", "rope", {"values": 1}]\\nnonsense\\n{"missing": "everything"}\\n')
    except OSError: pass
os.kill(os.getppid(), signal.SIGKILL)
"""


def test_hostile_code_affects_only_its_own_report(tmp_path):
    folder = Path(shutil.copytree(STUDENT, tmp_path / "me"))
    (folder / "lora.py").write_text(HOSTILE)
    (folder / "linked.py").symlink_to("/etc/passwd")
    findings, *others = diagnosis.diagnose([folder, STUDENT, STUDENT])
    assert [f.verdict for f in findings[:6]] == ["correct"] * 6
    assert not any(f.is_correct for f in findings[6:])
    assert all(f.is_correct for found in others for f in found) and len(others) == 2


def test_malformed_lines_are_ignored():
    lines = [b"{", b"3", b'["0", "rope"]', b'["7", "rope", {}]', b'["0", "rop", {}]', b"[" * 10**6]
    lines += [b'["x", "rope", {}]', b'["0", ["rope"], {}]', b'["0", "norm", {"missing": "x"}]']
    answers = diagnosis.parse_answers(b"\n".join(lines), ["0"])
    assert answers == {"0": {"norm": {"missing": "x"}}}


def test_command_line(tmp_path, capsys):
    report = tmp_path / "report.json"
    folder = changed(tmp_path / "me", "rope.py", "theta ** (-torch", "theta ** (-0.9 * torch")
    (folder / "__pycache__").mkdir()
    assert main([str(folder), "--json", str(report)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("rope          wrong: no known mistake")
    assert printed.endswith("8 of 9 components are correct (edition mmia)\n")
    read = json.loads(report.read_text())
    assert (read["folder"], read["edition"], read["correct"]) == (str(folder), "mmia", False)
    assert list(read["components"]) == list(components_of("mmia"))
    assert read["components"]["rope"]["verdict"] == "wrong"
    assert read["components"]["norm"]["verdict"] == "correct"
    assert list(folder.rglob("*.pyc")) == [], "the student's folder is unchanged"


@pytest.mark.parametrize(
    ("status", "arguments", "message"),
    [
        (1, ["nowhere"], "nowhere is not a folder: give the folder that contains llama.py"),
        (1, [str(ROOT / "docs")], "contains no Python files: give the folder that contains"),
        (2, [str(STUDENT), "--edition", "fall1999"], "invalid choice: 'fall1999'"),
        (2, [str(STUDENT), "--seconds", "0"], "--seconds 0.0 is not allowed: it must be above 0"),
        (2, [str(STUDENT), "--jobs", "0"], "--jobs 0 is not allowed: it must be from 1 to 1024"),
        (1, [str(STUDENT), "--json", str(ROOT)], "is a directory; give a file name"),
        (1, [str(STUDENT), "--json", "nowhere/a.json"], "folder nowhere does not exist; create it"),
    ],
)
def test_wrong_usage_and_files(status, arguments, message, monkeypatch):
    """Detected before anything is run; status 2 is for usage alone."""
    monkeypatch.setattr(diagnosis, "run_limited", None)
    found, error = refusal_of(main, arguments)
    assert found == status and message in error


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"values": {}},
        {"values": {"query": 3}},
        {"values": {"query": {"shape": [2, 2], "numbers": [1.0]}}},
        {"values": {"query": {"shape": [10**9, 10**9], "numbers": []}}},
        {"values": {"query": {"shape": [1], "numbers": ["x"]}}},
        {"values": {"query": {"shape": [1], "numbers": [10**400]}}},
    ],
)
def test_answers_that_cannot_be_read(given):
    assert read_arrays(given) is None
    catalogues = {("rope", e): Catalogue("rope", e) for e in EDITIONS}
    finding = judge("rope", given, "mmia", catalogues)
    assert str(finding) == "rope          no answer: the output of its process cannot be read"


def test_errors_are_shares_of_the_largest_value():
    expected = {"a": np.array([1.0, -4.0]), "b": np.array([np.nan, 0.0])}
    same = {"a": np.array([1.0, -4.0]), "b": np.array([np.nan, 0.0])}
    assert errors(same, expected) == {"a": 0.0, "b": 0.0}
    other = {"a": np.array([1.4, -4.0]), "b": np.array([0.0, 0.0]), "c": np.zeros(1)}
    assert errors(other, expected) == {"a": pytest.approx(0.1), "b": np.inf, "c": np.inf}
