"""Submissions in the form of every edition but the default, in the shapes in which people hand in.

python -m tests.planted_editions FOLDER writes a class for each edition, data and references.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from config import THRILLER
from tests import planted
from tests.planted import PROMPT, SST, TEMP_0, TEMP_1, Files, Gold, Student, zipped
from tests.submissions.samples import SUFFIXES

# written out from the courses' READMEs, not taken from the module
NOT_ASKED = {
    "fall2024": ("lora.py", "checklist.md", "-lora-"),
    "spring2025": ("lora.py", "checklist.md", "-lora-"),
    "fall2025": (),
    "spring2026": ("lora.py", "-lora-", "-finetuning-"),
}
N_REQUIRED = {"fall2024": 24, "spring2025": 24, "fall2025": 30, "spring2026": 24}
LIKE = {
    "fall2024": "fall2024",
    "spring2025": "fall2024",
    "fall2025": "mmia",
    "spring2026": "spring2026",
}
UTILS = """from tqdm.auto import tqdm
import requests, importlib_metadata, sentencepiece, sklearn
from filelock import FileLock
import torch
"""
# What lies in a course's own folder beside what it asks for.
COURSE = {
    name: name.encode()
    for name in (
        "rope_test.py optimizer_test.py optimizer_test.npy rotary_embedding_actual.data "
        "prepare_submit.py tokenizer.model data/sst-dev.txt data/cfimdb-label-mapping.json "
        ".gitignore mini_llama.jpeg run.sh wget-log notebook.ipynb"
    ).split()
}
MODELS = "addition_models"


def references_of(references: Mapping[str, Files]) -> dict[str, Files]:
    """Outputs of every edition; fall 2025's are the default edition's but for the text."""
    found = {edition: dict(references[like]) for edition, like in LIKE.items()}
    found["fall2025"][TEMP_0] = f"{THRILLER} a dog and a ball".encode()
    return found


def experiment(name: str, accuracy: float) -> Files:
    """Of a model with 25,200 parameters, which answers as many of the test's lines right."""
    shape = {"vocab_size": 13, "dim": 16, "n_layers": 6, "n_heads": 4, "n_kv_heads": 4}
    shape |= {"multiple_of": 32, "hidden_dim": None}
    training = {"capacity": 10**9, "n_epochs": 10, "train_samples": 662}
    results = {"num_params": 25200, "accuracy": accuracy}
    questions = [(1000 + i % 9000, 5000 + i // 9000) for i in range(10_000)]
    wrong = 10_000 - round(10_000 * accuracy)
    records = {
        "experiment_summary": {"model_config": shape, "train_config": training, **results},
        "predictions": [f"{a}+{b}={a + b + (i < wrong)}" for i, (a, b) in enumerate(questions)],
        "model_config": shape,
        "training_config": training,
    }
    files = {f"{file}.json": json.dumps(content).encode() for file, content in records.items()}
    files |= {"loss_curve.png": b"png", "train.log": b"Epoch 01", "best_model.pth": b"weights"}
    return {f"{MODELS}/{name}/{file}": content for file, content in files.items()}


def good_files(edition: str, gold: Mapping[str, Gold], reference: Files, seed: int) -> Files:
    files = planted.good_files(gold, reference, seed)
    files = {k: v for k, v in files.items() if not any(p in k for p in NOT_ASKED[edition])}
    files |= {"utils.py": UTILS.encode(), TEMP_1: f"{THRILLER} {seed}".encode()}
    if edition == "spring2026":
        for name in ("data_generation", "lib", "run"):
            files[f"addition_{name}.py"] = b"import torch, matplotlib.pyplot\n"
        accuracies = (0.5, 0.99, 1.0, 1.0, 1.0)
        for i, accuracy in enumerate(accuracies, 1):
            files |= experiment(f"ablation_{i}", accuracy)
        files |= experiment("best_model", 1.0)
    return files


def below(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def reprompted(content: bytes, before: str, after: str) -> bytes:
    """A prompting file of SST as another prompt gives it; both may have lines of their own."""
    lines = content.decode().removesuffix("\n").split("\n")
    pairs = [line.removesuffix(SUFFIXES["sst"]).split(" ||| ", 1) for line in lines]
    return "".join(f"{label} ||| {before}{text}{after}\n" for label, text in pairs).encode()


Make = Callable[[], Files]
Named = Iterator[tuple[str, Student]]


def make_class(edition: str, gold: Mapping[str, Gold], reference: Files) -> dict[str, Student]:
    """The edition's submissions by name; every edition has the first ones, and some of its own."""
    seeds = iter(range(100))

    def fresh() -> Files:
        return good_files(edition, gold, reference, next(seeds))

    students = dict(correct_students(fresh)) | dict(laid_out(fresh)) | dict(faulty(edition, fresh))
    own = {"fall2024": prompted, "spring2025": cluttered, "fall2025": with_extras}
    students |= dict(own.get(edition, with_additions)(fresh))
    return students


def correct_students(fresh: Make) -> Named:
    yield "good.zip", Student(zipped(fresh()))
    yield "course.zip", Student(zipped(fresh() | COURSE))
    yield "folder", Student(fresh() | COURSE)
    crlf = {k: v.replace(b"\n", b"\r\n") if k.endswith(".txt") else v for k, v in fresh().items()}
    yield "crlf.zip", Student(zipped(crlf))


def laid_out(fresh: Make) -> Named:
    deeper = "they belong directly in the top folder"
    yield "twice.zip", Student(zipped(below("ab1", fresh())), says=("'ab1/ab1': ", deeper))
    repository = below("src", fresh()) | {"README.md": b"x", "notes/a.md": b"x"}
    yield "repository.zip", Student(zipped(repository, top="repo-main/"), says=(deeper,))
    beside = zipped(
        fresh(), ("README.md", b"x"), ("ab1/.DS_Store", b"x"), ("__MACOSX/ab1/._x", b"x")
    )
    yield "beside.zip", Student(beside, says=("exactly one top folder", "macOS files"))
    yield "flat.zip", Student(zipped(fresh(), top=""), "errors", says=("files in no folder",))


def faulty(edition: str, fresh: Make) -> Named:
    n = N_REQUIRED[edition]
    missing = fresh()
    del missing["rope.py"], missing[TEMP_1]
    says = f"2 of {n} required files are missing: rope.py, {TEMP_1}; the commands of"
    yield "missing.zip", Student(zipped(missing), "errors", says=(says,))
    foreign = fresh() | {"classifier.py": b"import transformers, torch\n"}
    what = "nor installed for the assignment: 'transformers'"
    yield "foreign.zip", Student(zipped(foreign), says=(what,))


def prompted(fresh: Make) -> Named:
    """Fall 2024's own: prompts of the students."""
    cases = {
        "lines": ("", "\nIs this movie awful, bad, average, good or excellent?\nIt is "),
        "before": ("Review: ", " Sentiment: "),
        "question": ("", " Is the movie good, bad or average? It is "),
        "crlf": ("Read this.\r\n", "\r\nAnswer: "),
    }
    for name, prompt in cases.items():
        files = fresh()
        files[PROMPT] = reprompted(files[PROMPT], *prompt)
        says = f"warning: {PROMPT}: uses a different prompt"
        yield f"prompt {name}.zip", Student(zipped(files), says=(says,))
    files = fresh()
    broken = reprompted(files[PROMPT], *cases["lines"])
    files[PROMPT] = planted.edit_line(broken, 34, lambda line: line.replace(b"film", b"play"))
    yield (
        "prompt broken.zip",
        Student(
            zipped(files),
            "errors",
            {PROMPT: "faulty"},
            says=(f"error: {PROMPT}: a different prompt, ", "and line 34: sentence differs"),
        ),
    )


def cluttered(fresh: Make) -> Named:
    """Spring 2025's own: what nobody should hand in, in amounts that nobody should read."""
    git = {f".git/objects/{i}": b"x" for i in range(1200)}
    yield "git.zip", Student(zipped(fresh() | git), says=("leave out: 'ab1/.git/ (1200 files)'",))
    caches = {"__pycache__/llama.cpython-311.pyc": b"x", "old.zip": b"x", "model.pyc": b"x"}
    caches |= {"env/pyvenv.cfg": b"x", "env/lib/torch/a.py": b"x", ".venv/bin/python": b"x"}
    says = ("'ab1/__pycache__/'", "'ab1/env/ (2 files)'", "'ab1/old.zip'", "'ab1/.venv/'")
    yield "caches.zip", Student(zipped(fresh() | caches), says=says)
    yield "folder with caches", Student(fresh() | caches)
    weights = fresh() | {"finetune-5-2e-05.pt": weights_like(12)}
    says = ("at most 10,485,760 (10 MB)", "checkpoints are not submitted", "it was not read")
    yield "weights.zip", Student(zipped(weights), "errors", says=says)
    yield (
        "large.zip",
        Student(
            zipped(fresh() | {"video.mp4": weights_like(9), "report.pdf": weights_like(3)}),
            "errors",
            says=("at most 10,485,760 (10 MB)",),
        ),
    )
    both = zipped(fresh(), ("cd2/llama.py", b"x"), ("cd2/rope.py", b"x"))
    yield "two.zip", Student(both, "errors", says=("it holds: 'ab1/', 'cd2/'",))
    outputs = {f"out/{k}" if "-output" in k else k: v for k, v in fresh().items()}
    yield "outputs.zip", Student(zipped(outputs), says=("misplaced files", "'ab1/out/cfimdb-dev"))
    files = fresh()
    files[SST] = files[SST].replace(b"\n", b"\r")
    yield "cr.zip", Student(zipped(files))
    files = fresh()
    files[TEMP_0] = b"\xef\xbb\xbf" + files[TEMP_0]
    says = (f"warning: {TEMP_0}: starts with a byte order mark",)
    yield "bom.zip", Student(zipped(files), says=says)


def weights_like(megabytes: int) -> bytes:
    """Bytes that do not get smaller in a zip."""
    return planted.random.Random(megabytes).randbytes(megabytes * 1024 * 1024)


def with_extras(fresh: Make) -> Named:
    """Fall 2025's own: what may be added."""
    advanced = {f"{name}-advanced-output.txt": b"0 ||| x\n" for name in ("sst-dev", "sst-test")}
    more = {"feedback.txt": b"good", "ab1-report.pdf": b"%PDF", "advanced.py": b"import torch\n"}
    yield "advanced.zip", Student(zipped(fresh() | advanced | more))


def with_additions(fresh: Make) -> Named:
    """Spring 2026's own: experiments."""

    def without(*parts: str) -> Files:
        return {k: v for k, v in fresh().items() if not any(part in k for part in parts)}

    def faulty(files: Files, *says: str) -> Student:
        return Student(zipped(files), "errors", says=says)

    yield "none.zip", faulty(without(MODELS), "addition_models/: holds no experiments: 5 ablations")
    few = without("ablation_4", "ablation_5")
    yield "few.zip", faulty(few, "addition_models/: holds 3 ablations, at least 5 are required")
    yield "no best.zip", faulty(without("best_model/"), "addition_models/: holds no best_model")
    bare = without("ablation_2/loss_curve", "best_model/train.log")
    bare_says = ("no plot (.png, ", "in 'ablation_2'", "no log (", "in 'best_model'")
    yield "bare.zip", Student(zipped(bare), says=bare_says)
    perfect = fresh() | experiment("ablation_1", 1.0)
    yield "perfect.zip", Student(zipped(perfect), says=("1 ablation is below 100%, at least 2",))
    lie = fresh() | {
        f"{MODELS}/ablation_1/predictions.json": experiment("a", 1.0)[
            f"{MODELS}/a/predictions.json"
        ]
    }
    yield "lie.zip", faulty(lie, "claims accuracy 0.5000, predictions.json has 1.0000: test again")
    other = {k.replace("ablation_", "ablations/ablation_dim"): v for k, v in fresh().items()}
    yield "other names.zip", Student(zipped(other))
    large = fresh() | {f"{MODELS}/best_model/epoch_1.pth": weights_like(9), "a": weights_like(5)}
    yield "allowed.zip", Student(zipped(large))
    larger = large | {"b": weights_like(2)}
    yield "larger.zip", faulty(larger, "at most 15,728,640 (15 MB)")
    weights = fresh() | {"stories42M.pt": b"x"}
    yield "weights.zip", faulty(weights, "checkpoints are not submitted", "remove 'stories42M.pt'")


def write_classes(folder: Path, gold: Mapping[str, Gold]) -> dict[str, dict[str, Student]]:
    """Write `folder`/class-EDITION, /data and /reference; the students by edition and name."""
    references = references_of(planted.reference_outputs(gold))
    planted.write_data(folder / "data", gold)
    classes = {edition: make_class(edition, gold, r) for edition, r in references.items()}
    for edition, students in classes.items():
        planted.write_files(folder / "reference" / edition, references[edition])
        planted.write_students(folder / f"class-{edition}", students)
    return classes


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for edition, students in write_classes(target, planted.make_gold()).items():
        print(f"{len(students)} submissions in {target / f'class-{edition}'}")
