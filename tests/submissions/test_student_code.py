"""student_code.py: correct, wrong and malicious submitted programs."""

import dataclasses
import json
from pathlib import Path

import pytest

from config import FRANKENSTEIN
from mini_llama.submissions import student_code
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.packing import collect_files
from mini_llama.submissions.student_code import Check, Limits, make_plan
from tests.helpers import ROOT
from tests.submissions.student_shapes import COURSES, NOT_INSTALLED, RUN_LLAMA, student_files

OURS = collect_files(ROOT, True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan("mmia", Limits(), tmp_path_factory.mktemp("plan"))


def submission(**changes: str) -> Submission:
    """Our own modules with some changes."""
    files = OURS | {f"{name}.py": text.encode() for name, text in changes.items()}
    return Submission("ab1", tuple(files), files, ())


def test_our_own_modules_pass(plan):
    assert student_code.run_checks(submission(), plan) == (
        Check("rope_test", "pass", "largest error 0.0e+00"),
        Check("optimizer_test", "pass", "with max_grad_norm: largest error 0.0e+00"),
        Check("sanity_check", "pass", "the arithmetic of mmia, fall2025"),
        Check("generate", "pass", "wrote two texts"),
    )


def requirements(edition: str, **changes: str | None) -> Submission:
    files = {k: text.encode() for k, text in student_files(edition, **changes).items()}
    return Submission("ab1", tuple(files), files, ())


def run_llama(prompt: str = FRANKENSTEIN) -> str:
    return RUN_LLAMA.replace("{prompt!r}", repr(prompt))


@pytest.mark.parametrize("edition", COURSES)
def test_correct_code_of_every_course_passes(plan, edition):
    """With unused imports in utils.py, and without the starter files."""
    given = dict.fromkeys(("base_llama", "config", "tokenizer", "utils"))
    changes = given if edition == "fall2024" else {}
    own = dataclasses.replace(plan, edition=edition)
    checks = student_code.run_checks(requirements(edition, **changes), own)
    assert [check.verdict for check in checks] == ["pass"] * 4, checks
    assert edition in checks[2].message


def test_generation_model_has_sharp_probabilities(plan):
    """The assignment's epsilon sampling never divides 0 by 0."""
    seeds = "for seed in range(7):\n        torch.manual_seed(seed)\n        generate_sentence"
    text = run_llama().replace(
        "    generate_sentence(args, prefix, args.generated_sentence_high",
        f"    {seeds}(args, prefix, args.generated_sentence_high",
    )
    check = student_code._check_generation(requirements("mmia", run_llama=text), plan)
    assert check == Check("generate", "pass", "wrote two texts")


def test_generation_starts_with_the_prompt(plan):
    text = run_llama("A text of my own, it is").replace("=75", "=2")
    check = student_code._check_generation(requirements("mmia", run_llama=text), plan)
    message = "a text starts with 'A text of my own, it', not with the assignment's prompt"
    assert check == Check("generate", "fail", message)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--pretrained-model-path", "--pretrained_model_path"),
        ("args.pretrained_model_path", "'stories42M.pt'"),
        ("    args = parser", "    open('data/sst-dev.txt').readline()\n    args = parser"),
        ("import argparse", "import os\nos.chdir(os.path.dirname(__file__))\nimport argparse"),
        ("import numpy as np", "import numpy as np\nimport wandb_of_no_one as wandb"),
        ('"--generated_sentence_low_temp_out"', '"--out"'),
        ("args.generated_sentence_low_temp_out", "low"),
    ],
)
def test_variants_of_run_llama(plan, old, new):
    text = run_llama().replace("=75", "=2")
    assert old in text
    changed = text.replace(old, new)
    if new == '"--out"':
        changed = changed.replace("args.generated_sentence_low_temp_out", "args.out")
    check = student_code._check_generation(requirements("mmia", run_llama=changed), plan)
    assert check == Check("generate", "pass", "wrote two texts")


def test_old_texts_do_not_pass_for_new_ones(plan):
    files = dict.fromkeys(student_code.GENERATED_FILES, FRANKENSTEIN.encode())
    files |= {"run_llama.py": b"pass"}
    check = student_code._check_generation(Submission("ab1", tuple(files), files, ()), plan)
    assert check.message == "succeeded, but did not write low.txt and high.txt"


@pytest.mark.parametrize("module", NOT_INSTALLED[:1])
def test_a_missing_module_that_is_used_is_named(plan, module):
    rope = f"import {module}\ndef apply_rotary_emb(q, k, *_):\n    return {module}.turn(q), k\n"
    check = student_code._check_rope(requirements("mmia", rope=rope), plan)
    assert check.verdict == "error"
    assert f"No module named '{module}' is installed here, and line 3 of rope.py" in check.message
    check = student_code._check_rope(requirements("mmia", rope=None), plan)
    assert "No module named 'rope'" in check.message


def test_another_arithmetic_is_named(plan):
    config = OURS["config.py"].decode().replace('EDITION = "mmia"', 'EDITION = "spring2026"')
    check = student_code._check_sanity(submission(config=config), plan)
    assert check.verdict == "fail"
    assert check.message == "the arithmetic of spring2026, not of mmia"


def test_optimizer_without_clipping(plan):
    """As in fall 2024."""
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
        ("print('hi'); import time; time.sleep(60)", "timeout", "stopped after 2 seconds: "),
        ("import sys; sys.exit('sorry')", "error", "exit status 1: sorry"),
        ("x = bytes(5 * 1024 ** 3)", "error", "exit status 1: MemoryError"),
        ("import os; os.kill(os.getpid(), 9)", "error", "exit status 137: it printed nothing"),
        ("pass", "fail", "succeeded, but did not write low.txt and high.txt"),
        ("open('low.txt', 'w').write('a')", "fail", "succeeded, but did not write high.txt"),
    ],
)
def test_generation(program, verdict, message, plan):
    short = dataclasses.replace(plan, limits=Limits(seconds=2))
    check = student_code._check_generation(submission(run_llama=program), short)
    assert (check.name, check.verdict) == ("generate", verdict)
    assert check.message.startswith(message)


def test_copy_is_temporary_and_complete(plan, tmp_path):
    """A program sees its own files, the model and no environment; its changes are discarded."""
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
