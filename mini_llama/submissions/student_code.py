"""Run submitted code, only on request, within limited_process.py's limits.

The checks run our copies of rope_test.py and optimizer_test.py and a forward pass on the student's
modules, using only names that all editions share. The student's process prints numbers, which are
compared here, out of its reach, with those of our modules. Starter files that a submission lacks
are added (given/), and modules that are not installed get stubs (missing_modules.py), which fail
only when used.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config import LlamaConfig
from mini_llama import bundled
from mini_llama.assignment.options import default_of
from mini_llama.bounds import check_usage
from mini_llama.places import ROOT
from mini_llama.submissions import missing_modules
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.given import GIVEN, given_files
from mini_llama.submissions.limited_process import Outcome, run_limited, unshare_command
from mini_llama.submissions.requirements import GENERATED_FILES
from mini_llama.submissions.rules import PROMPT_TEXTS, first_difference
from mini_llama.submissions.untrusted_text import one_line, quoted, shorten

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: a grade without --run starts at once

MODEL = default_of("pretrained_model_path")
TOKENIZER = "tokenizer.model"
GENERATED = ("low.txt", "high.txt")
WRONG_ARGUMENTS = 2  # argparse's exit status
# A tiny model in the assignment's format, to check the arithmetic.
TINY: dict[str, Any] = dict(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=4, multiple_of=32, max_seq_len=1024
)
# Multiplies the final norm's gain, so that in any arithmetic the bundled model's next token has a
# probability far above the editions' epsilon: without such a token, the course's epsilon sampling
# divides 0 by 0.
PEAK = 12.0
# Data that some programs read with every option.
DATASETS = {"sst": "demo", "cfimdb": "demo2"}
DATA_PARTS = ("train.txt", "dev.txt", "test.txt", "label-mapping.json")
GIBIBYTE = 1024**3
ATOL, RTOL = 1e-5, 1e-3  # the courses' for optimizer_test and sanity_check
CHECK_NAMES = ("rope_test", "optimizer_test", "sanity_check", "generate")
MARK = "numbers of the check: "

ANSWER = f"""
import json
def answer(tensors):
    print("\\n{MARK}" + json.dumps([t.detach().double().cpu().tolist() for t in tensors]))
"""
ROPE = ANSWER + "import rope_test; answer(rope_test.rotated_constants())"
OPTIMIZER = (
    ANSWER
    + """
from optimizer_test import CLIPPING, trained_weight
weights = [trained_weight(None)]
try:
    weights.append(trained_weight(CLIPPING["fall2025"]))
except TypeError:  # fall 2024's AdamW does not clip
    pass
answer(weights)
"""
)
SANITY = (
    ANSWER
    + f"""
import torch
from llama import load_pretrained
model = load_pretrained("{MODEL}").eval()
with torch.no_grad():
    answer(model(torch.tensor({{}}))[:2])
"""
)

GENERATE = """
import os, runpy, sys
sys.argv = ["run_llama.py", *{}]
sys.path[0] = os.getcwd()  # as for a script
runpy.run_path(os.path.abspath("run_llama.py"), run_name="__main__")
"""

Arrays = Sequence["np.ndarray"]


@dataclass(frozen=True)
class Limits:
    """The limits of each check: seconds, and memory in GiB. Raises ValueError out of bounds."""

    seconds: float = 60.0
    memory: float = 4.0

    def __post_init__(self) -> None:
        seconds, memory = self.seconds, self.memory
        check_usage(f"--seconds {seconds}", 0 < seconds <= 86_400, "above 0 and at most 86400")
        check_usage(f"--memory {memory}", 0 < memory <= 1024, "above 0 and at most 1024 GiB")


@dataclass(frozen=True)
class RunPlan:
    """The inputs of all checks, and the expected arrays, computed with our modules.

    `model` is a checkpoint with random weights, for the sanity check on `tokens` (2, 8); `peaked`
    is one whose next-token probabilities are sharp, for generation. `weights` are without and with
    clipping, `embeddings` are by edition.
    """

    edition: str
    limits: Limits
    model: Path
    peaked: Path
    tokens: list[list[int]]
    rotated: Arrays
    weights: Arrays
    embeddings: Mapping[str, Arrays]


@dataclass(frozen=True)
class Check:
    """One check and its result, in one line."""

    name: str
    verdict: Literal["pass", "fail", "timeout", "error"]
    message: str


# --- expected results ---


def make_plan(edition: str, limits: Limits, folder: Path) -> RunPlan:
    """Write two small models to `folder`, compute the expected results, and print to standard error
    whether the code will have a network.
    """
    import optimizer_test
    import rope_test
    from config import EDITIONS
    from sanity_check import TOKENS

    network = "without network access"
    if not unshare_command():
        network = "WITH network access, which cannot be blocked here"
    print(f"running the submitted code {network}", file=sys.stderr)
    model, n_words = _write_tiny_model(folder)
    peaked = _write_peaked_model(folder)
    tokens = TOKENS % n_words
    clippings = (None, optimizer_test.CLIPPING["fall2025"])
    return RunPlan(
        edition,
        limits,
        model,
        peaked,
        tokens.tolist(),
        rotated=[tensor.numpy() for tensor in rope_test.rotated_constants()],
        weights=[optimizer_test.trained_weight(clipping).numpy() for clipping in clippings],
        embeddings={name: _embed(model, name, tokens) for name in EDITIONS},
    )


def _write_tiny_model(folder: Path) -> tuple[Path, int]:
    """A checkpoint in the assignment's format, which records no norm or attention; its gains and
    weights are random, and large enough to affect the outputs.
    """
    import torch

    from llama import Llama
    from tokenizer import Tokenizer

    n_words = Tokenizer(tokenizer_model=_tokenizer()).n_words
    args = TINY | {"vocab_size": n_words}
    generator = torch.Generator().manual_seed(0)
    state = {}
    config = LlamaConfig(**args, norm="rmsnorm", attention="causal")
    for name, tensor in Llama(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        state[name] = 1 + 0.3 * noise if tensor.dim() == 1 else noise * tensor.shape[-1] ** -0.5
    state["output.weight"] = state["tok_embeddings.weight"]
    path = folder / "random.pt"
    torch.save({"model": state, "model_args": args}, path)
    return path, n_words


def _write_peaked_model(folder: Path) -> Path:
    """The bundled model in the courses' format, with sharp next-token probabilities: float32, one
    key/value head per query head, and a hidden size derived from the width.
    """
    import torch

    from mini_llama.checkpoints.reading import read_checkpoint

    content = read_checkpoint(bundled.CHECKPOINT)
    config = content.make_config()
    copies = config.n_heads // config.n_kv_heads
    state = {name: tensor.float() for name, tensor in content.tensors.items()}
    for name, tensor in state.items():
        if name.endswith(("compute_key.weight", "compute_value.weight")):
            heads = tensor.unflatten(0, (config.n_kv_heads, config.head_dim))
            state[name] = heads.repeat_interleave(copies, 0).flatten(0, 1)
    state["norm.weight"] = state["norm.weight"] * PEAK
    state["output.weight"] = state["tok_embeddings.weight"]
    args = TINY | {name: getattr(config, name) for name in ("dim", "n_layers", "vocab_size")}
    args |= dict(n_heads=config.n_heads, n_kv_heads=config.n_heads)
    path = folder / "peaked.pt"
    torch.save({"model": state, "model_args": args}, path)
    return path


def _embed(model: Path, edition: str, tokens: object) -> Arrays:
    import torch

    from llama import load_pretrained

    with torch.inference_mode():
        return [tensor.numpy() for tensor in load_pretrained(model, edition=edition)(tokens)]


def _tokenizer() -> Path:
    return bundled.CHECKPOINT.with_suffix(".model")


# --- checks ---


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder; files that a program made unremovable are left behind."""
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def run_checks(submission: Submission, plan: RunPlan) -> tuple[Check, ...]:
    """Check RoPE, the optimizer, the model and generation, each in a temporary copy."""
    return (
        _check_rope(submission, plan),
        _check_optimizer(submission, plan),
        _check_sanity(submission, plan),
        _check_generation(submission, plan),
    )


def _check_rope(submission: Submission, plan: RunPlan) -> Check:
    found = _run_for_arrays("rope_test", ROPE, submission, plan)
    if isinstance(found, Check):
        return found
    return _compare("rope_test", found, plan.rotated, atol=1e-8, rtol=1e-5)


def _check_optimizer(submission: Submission, plan: RunPlan) -> Check:
    name = "optimizer_test"
    found = _run_for_arrays(name, OPTIMIZER, submission, plan)
    if isinstance(found, Check):
        return found
    plain = _compare(name, found[:1], plan.weights[:1])
    if plain.verdict != "pass":
        return plain
    if len(found) == 1:
        return Check(name, "pass", f"{plain.message}; AdamW takes no max_grad_norm")
    clipped = _compare(name, found[1:], plan.weights[1:])
    return Check(name, clipped.verdict, f"with max_grad_norm: {clipped.message}")


def _check_sanity(submission: Submission, plan: RunPlan) -> Check:
    """Compare the tiny model's embeddings with every edition's, at the courses' tolerance."""
    name = "sanity_check"
    found = _run_for_arrays(name, SANITY.format(plan.tokens), submission, plan)
    if isinstance(found, Check):
        return found
    checks = {e: _compare(name, found, arrays) for e, arrays in plan.embeddings.items()}
    matching = [edition for edition, check in checks.items() if check.verdict == "pass"]
    if plan.edition in matching:
        return Check(name, "pass", f"the arithmetic of {', '.join(matching)}")
    if matching:
        message = f"the arithmetic of {', '.join(matching)}, not of {plan.edition}"
        return Check(name, "fail", message)
    return Check(name, "fail", f"no edition's arithmetic; {checks[plan.edition].message}")


def _check_generation(submission: Submission, plan: RunPlan) -> Check:
    """Check that run_llama.py writes two texts that start with the assignment's prompt."""
    name = "generate"
    named = list(zip(GENERATED, GENERATED_FILES, strict=True))
    plain = ["--option", "generate"]
    options = [*plain, "--pretrained-model-path", MODEL]
    options += ["--generated_sentence_low_temp_out", GENERATED[0]]
    options += ["--generated_sentence_high_temp_out", GENERATED[1]]
    for arguments in (options, plain):
        with temporary_folder() as folder:
            outcome = _run(GENERATE.format(arguments), Path(folder), submission, plan, plan.peaked)
            texts = [_read_text(Path(folder), names) for names in named]
        if outcome.returncode != WRONG_ARGUMENTS:  # else its options differ: try its defaults
            break
    if fault := _fault(name, outcome, plan):
        return fault
    if absent := [file for file, text in zip(GENERATED, texts, strict=True) if not text]:
        return Check(name, "fail", f"succeeded, but did not write {' and '.join(absent)}")
    if others := [text for text in texts if not text.lstrip().startswith(PROMPT_TEXTS)]:
        text = others[0].lstrip()
        unlike = f"starts with {quoted(text[:20])}, not with the assignment's prompt"
        return Check(name, "fail", f"a text {first_difference(text, PROMPT_TEXTS) or unlike}")
    return Check(name, "pass", "wrote two texts")


def _read_text(folder: Path, names: Sequence[str]) -> str:
    """The beginning of the first of these files that exists, "" if none does."""
    for path in (folder / name for name in names):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                return file.read(1000).decode("utf-8", errors="replace")
    return ""


def _run_for_arrays(name: str, code: str, submission: Submission, plan: RunPlan) -> Arrays | Check:
    """The arrays that the student's process prints, or how it failed."""
    import numpy as np

    with temporary_folder() as folder:
        outcome = _run(code, Path(folder), submission, plan, plan.model)
    if fault := _fault(name, outcome, plan):
        return fault
    lines = outcome.stdout.decode("utf-8", errors="replace").splitlines()
    answers = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    try:
        return [np.array(numbers, dtype=np.float64) for numbers in json.loads(answers[-1])]
    except (IndexError, TypeError, ValueError, OverflowError, RecursionError):
        return Check(name, "error", f"ended without an answer: {last_line(outcome)}")


def _run(code: str, folder: Path, submission: Submission, plan: RunPlan, model: Path) -> Outcome:
    """Run `code` in `folder`, with copies of the student's and the assignment's files."""
    for name, content in _all_files(submission, model).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    stand_ins = Path(missing_modules.__file__).read_text(encoding="utf-8")
    command = [sys.executable, "-c", f"{stand_ins}\ninstall(os.getcwd())\n{code}"]
    return run_limited(command, folder, plan.limits.seconds, int(plan.limits.memory * GIBIBYTE))


def _all_files(submission: Submission, model: Path) -> dict[str, bytes]:
    """The submitted files and the assignment's, by name."""
    is_ours = any(name.startswith("mini_llama/") for name in submission.files)
    given = {name: (ROOT / name).read_bytes() for name in GIVEN if is_ours}
    given = given or given_files(submission.files)
    if "data" not in submission.files:
        given |= {
            f"data/{name}-{part}": (bundled.FOLDER / f"{source}-{part}").read_bytes()
            for name, source in DATASETS.items()
            for part in DATA_PARTS
        }
    requirements = {k: v for k, v in submission.files.items() if k not in GENERATED_FILES}
    tests = {name: ROOT / name for name in ("rope_test.py", "optimizer_test.py")}
    fixed = tests | {MODEL: model, TOKENIZER: _tokenizer()}
    return given | requirements | {name: path.read_bytes() for name, path in fixed.items()}


def _fault(name: str, outcome: Outcome, plan: RunPlan) -> Check | None:
    if outcome.timed_out:
        message = f"stopped after {plan.limits.seconds:g} seconds: {last_line(outcome)}"
        return Check(name, "timeout", message)
    if outcome.returncode != 0:
        message = f"exit status {outcome.returncode}: {last_line(outcome)}"
        return Check(name, "error", message)
    return None


def _compare(
    name: str, found: Arrays, expected: Arrays, atol: float = ATOL, rtol: float = RTOL
) -> Check:
    import numpy as np

    shapes = [[array.shape for array in arrays] for arrays in (found, expected)]
    if shapes[0] != shapes[1]:
        return Check(name, "fail", shorten(f"shapes {shapes[0]} where {shapes[1]} are expected"))
    largest = max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
    pairs = zip(found, expected, strict=True)
    is_close = all(np.allclose(a, b, rtol=rtol, atol=atol) for a, b in pairs)
    return Check(name, "pass" if is_close else "fail", f"largest error {largest:.1e}")


def last_line(outcome: Outcome) -> str:
    """The last line of its errors, or else of its output, safe to print."""
    for stream in (outcome.stderr, outcome.stdout):
        lines = stream[-10_000:].decode("utf-8", errors="replace").strip().splitlines()
        if lines:
            return one_line(shorten(lines[-1].strip(), 200))
    return "it printed nothing"
