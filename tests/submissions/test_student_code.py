"""student_code.py: what becomes of submitted programs, good, wrong and hostile."""

import dataclasses
import json
from pathlib import Path

import pytest

from mini_llama.submissions import student_code
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.packing import collect_files
from mini_llama.submissions.student_code import Check, Limits, make_plan
from tests.helpers import ROOT

OURS = collect_files(ROOT, True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan("mmia", Limits(), tmp_path_factory.mktemp("plan"))


def submission(**changes: str) -> Submission:
    """Our own modules, some of them changed."""
    files = OURS | {f"{name}.py": text.encode() for name, text in changes.items()}
    return Submission("ab1", tuple(files), files, ())


def test_our_own_modules_pass(plan):
    assert student_code.run_checks(submission(), plan) == (
        Check("rope_test", "pass", "largest error 0.0e+00"),
        Check("optimizer_test", "pass", "with max_grad_norm: largest error 0.0e+00"),
        Check("sanity_check", "pass", "the arithmetic of mmia, fall2025"),
        Check("generate", "pass", "wrote two texts"),
    )


def test_another_arithmetic_is_named(plan):
    config = OURS["config.py"].decode().replace('EDITION = "mmia"', 'EDITION = "spring2026"')
    check = student_code._check_sanity(submission(config=config), plan)
    assert check.verdict == "fail"
    assert check.message == "the arithmetic of spring2026, not of mmia"


def test_optimizer_without_clipping(plan):
    """As fall 2024 has it."""
    plain = OURS["optimizer.py"].decode() + (
        "\nBase = AdamW\nclass AdamW(Base):\n"
        "  def __init__(self, params, lr, weight_decay, correct_bias):\n"
        "    super().__init__(params, lr=lr, weight_decay=weight_decay)\n"
    )
    check = student_code._check_optimizer(submission(optimizer=plain), plan)
    assert check.verdict == "pass"
    assert check.message == "largest error 0.0e+00; AdamW takes no max_grad_norm"
    ignored = plain.replace("correct_bias)", "correct_bias, max_grad_norm=None)")
    check = student_code._check_optimizer(submission(optimizer=ignored), plan)
    assert check.verdict == "fail"
    assert check.message.startswith("with max_grad_norm: largest error")


@pytest.mark.parametrize(
    ("rope", "verdict", "part"),
    [
        ("def apply_rotary_emb(q, k, *_): return q, k", "fail", "largest error"),
        ("def apply_rotary_emb(q, k, *_): return q[0], k", "fail", "shapes [(2, 2, 4), (1, 2"),
        ("def apply_rotary_emb(q, k, *_): return q / 0, k", "fail", "largest error"),
        ("raise ValueError('\\x1b[31mno')", "error", "exit status 1: ValueError: \\x1b[31mno"),
        ("import sys; print('passed!'); sys.exit(0)", "error", "without an answer: passed!"),
        ("import os; print('numbers of the check: [[', flush=True); os._exit(0)", "error", "witho"),
    ],
)
def test_rope(rope, verdict, part, plan):
    check = student_code._check_rope(submission(rope=rope), plan)
    assert check.verdict == verdict
    assert part in check.message
    assert check.message.isascii()
    assert check.message.isprintable()


@pytest.mark.parametrize(
    ("program", "verdict", "message"),
    [
        ("print('hi'); import time; time.sleep(60)", "timeout", "was ended after 2 seconds: "),
        ("import sys; sys.exit('sorry')", "error", "exit status 1: sorry"),
        ("x = bytes(5 * 1024 ** 3)", "error", "exit status 1: MemoryError"),
        ("import os; os.kill(os.getpid(), 9)", "error", "exit status 137: it said nothing"),
        ("pass", "fail", "ended well, but did not write low.txt and high.txt"),
        ("open('low.txt', 'w').write('a')", "fail", "ended well, but did not write high.txt"),
    ],
)
def test_generation(program, verdict, message, plan):
    short = dataclasses.replace(plan, limits=Limits(seconds=2))
    check = student_code._check_generation(submission(run_llama=program), short)
    assert (check.name, check.verdict) == ("generate", verdict)
    assert check.message.startswith(message)


def test_copy_is_temporary_and_complete(plan, tmp_path):
    """A program sees its own files, the model and no environment; what it changes is gone."""
    trace = tmp_path / "trace.json"
    program = (
        "import json, os, sys\n"
        f"json.dump([os.getcwd(), sorted(os.listdir()), dict(os.environ), sys.argv[1:]], "
        f"open({str(trace)!r}, 'w'))\n"
    )
    assert student_code._check_generation(submission(run_llama=program), plan).verdict == "fail"
    folder, names, environment, arguments = json.loads(trace.read_text())
    assert {"llama.py", "stories42M.pt", "tokenizer.model", "rope_test.py"} <= set(names)
    assert environment["HOME"] == environment["TMPDIR"] == folder
    assert "PATH" not in environment
    assert arguments[:2] == ["--option", "generate"]
    assert not Path(folder).exists()
