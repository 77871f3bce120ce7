"""Does the test suite notice each known mistake (tests/plants.py) in our own modules?

    python bench/mutation_check.py [COMPONENT ...]

Each is planted into a copy of the repository, where the component's tests are run up to the first
failure; where they all pass, so is the whole suite. Exit status 1 if any mistake survives. The
tests of the diagnosis itself do not count.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.plants import PLANTS, Plant, apply_edits

TESTS = {
    "rope": ["tests/test_rope.py"],
    "norm": ["tests/test_llama.py"],
    "attention": ["tests/test_llama.py"],
    "feed_forward": ["tests/test_llama.py"],
    "layer": ["tests/test_llama.py"],
    "generate": ["tests/inference/test_sampling.py", "tests/inference/test_generation.py"],
    "lora": ["tests/test_lora.py"],
    "optimizer": ["tests/test_optimizer.py"],
    "classifier": ["tests/test_classifier.py", "tests/test_llama.py"],
}
UNCOUNTED = ["tests/diagnosis", "tests/commands/test_diagnose.py", "tests/test_style.py"]


def first_failure(folder: Path, *tests: str) -> str | None:
    """Run pytest there; the line of the first failure, None if there is none."""
    ignored = [f"--ignore={path}" for path in UNCOUNTED]
    command = [sys.executable, "-m", "pytest", "-x", "-q", *ignored, *tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 0:
        return None
    return failed[0].split(" - ")[0] if failed else f"pytest ended with {done.returncode}"


def survives(original: Path, scratch: Path, one: Plant) -> bool:
    folder = Path(shutil.copytree(original, scratch / "planted"))
    try:
        apply_edits(folder, *one.edits)
        tests = TESTS[one.mistake.component]
        failure = first_failure(folder, *tests) or first_failure(folder)
    finally:
        shutil.rmtree(folder)
    component, name = one.mistake.component, one.mistake.name
    print(f"{component:<13} {name:<40} {failure or 'SURVIVES'}", flush=True)
    return failure is None


def main() -> None:
    components = sys.argv[1:] or list(TESTS)
    if unknown := ", ".join(set(components) - TESTS.keys()):
        sys.exit(f"no component {unknown}: choose of {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory() as scratch:
        ignored = shutil.ignore_patterns(".*", "__pycache__", "work")
        original = Path(shutil.copytree(ROOT, Path(scratch) / "original", ignore=ignored))
        chosen = [one for one in PLANTS if one.mistake.component in components]
        survivors = [one for one in chosen if survives(original, Path(scratch), one)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} planted mistakes fail a test")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
