"""A class of synthetic submissions, each with a planted fault, or none, and what grading must say.

python -m tests.planted FOLDER [DATA] writes the class, data (made up, unless DATA names real ones)
and reference outputs to FOLDER, to try grade.py by hand.
"""

import dataclasses
import io
import random
import shutil
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from config import FRANKENSTEIN, THRILLER
from tests.submissions.samples import (
    LINES,
    METHODS,
    OTHERS,
    SOURCES,
    SUFFIXES,
    WORDS,
    entry,
    patch_directory,
)

# written out from the courses' table, not taken from the module
FIGURES = {
    "mmia": {"sst-dev": 0.237, "sst-test": 0.250, "cfimdb-dev": 0.490, "cfimdb-test": 0.109},
    "fall2024": {"sst-dev": 0.213, "sst-test": 0.224, "cfimdb-dev": 0.498, "cfimdb-test": 0.109},
    "spring2026": {"sst-dev": 0.197, "sst-test": 0.176, "cfimdb-dev": 0.514, "cfimdb-test": 0.232},
}
TRAINED = {
    "finetuning": {"sst-dev": 0.411, "sst-test": 0.399, "cfimdb-dev": 0.833, "cfimdb-test": 0.473},
    "lora": {"sst-dev": 0.275, "sst-test": 0.269, "cfimdb-dev": 0.510, "cfimdb-test": 0.506},
}
TEXTS = {
    "mmia": f"{FRANKENSTEIN} the table and the dog and the big red ball in the park",
    "fall2024": f"{THRILLER} a very good boy who likes to play",
    "spring2026": f"{THRILLER} so happy that he can not stop",
}
TEMP_0, TEMP_1 = "generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"
SST = "sst-dev-finetuning-output.txt"
LORA = "sst-test-lora-output.txt"
PROMPT = "sst-dev-prompting-output.txt"
Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Gold:
    labels: list[int]
    sentences: list[str]


@dataclasses.dataclass(frozen=True)
class Student:
    """What is handed in (bytes of a zip, or files of a folder), and what grading must say of it.

    `verdicts` by file, where it is neither "within" nor "placeholder"; `agreements` where they are
    not "equal"; `says` are parts of the lines about it.
    """

    content: bytes | Files
    status: str = "ok"
    verdicts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    agreements: Mapping[str, str] = dataclasses.field(default_factory=dict)
    says: tuple[str, ...] = ()


def make_gold(seed: int = 0) -> dict[str, Gold]:
    """Made-up data with the real numbers of lines; the test labels of CFIMDB are placeholders."""
    rng = random.Random(seed)
    gold = {}
    for name, n in LINES.items():
        n_labels = len(WORDS[name.split("-")[0]])
        labels = [0 if name == "cfimdb-test" else rng.randrange(n_labels) for _ in range(n)]
        gold[name] = Gold(
            labels, [f"{name} film {i} , na\u00efve and <b>bold</b> ." for i in range(n)]
        )
    return gold


def read_gold(folder: Path) -> dict[str, Gold]:
    gold = {}
    for name in LINES:
        lines = (folder / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        pairs = [line.split(" ||| ", 1) for line in lines]
        gold[name] = Gold([int(label) for label, _ in pairs], [text.strip() for _, text in pairs])
    return gold


def guesses(name: str, gold: Gold, accuracy: float, rng: random.Random) -> list[int]:
    """Labels of which a share of `accuracy`, to the nearest line, is right."""
    n, n_labels = len(gold.labels), len(WORDS[name.split("-")[0]])
    wrong = set(rng.sample(range(n), n - round(accuracy * n)))
    return [
        (label + rng.randrange(1, n_labels)) % n_labels if i in wrong else label
        for i, label in enumerate(gold.labels)
    ]


def output(file: str, gold: Mapping[str, Gold], labels: list[int]) -> bytes:
    name, method = file.removesuffix("-output.txt").rsplit("-", 1)
    suffix = SUFFIXES[name.split("-")[0]] if method == "prompting" else ""
    pairs = zip(labels, gold[name].sentences, strict=True)
    return "".join(f"{label} ||| {text}{suffix}\n" for label, text in pairs).encode()


def reference_outputs(gold: Mapping[str, Gold]) -> dict[str, Files]:
    """The prompting outputs and the text at temperature 0 of three editions."""
    references = {}
    for seed, (edition, figures) in enumerate(FIGURES.items()):
        rng = random.Random(seed)
        files = {TEMP_0: TEXTS[edition].encode()}
        for name, figure in figures.items():
            file = f"{name}-prompting-output.txt"
            files[file] = output(file, gold, guesses(name, gold[name], figure, rng))
        references[edition] = files
    return references


def good_files(gold: Mapping[str, Gold], reference: Files, seed: int) -> Files:
    rng = random.Random(f"student {seed}")
    files = {name: f"import torch  # {name}\n".encode() for name in SOURCES}
    files |= {name: f"# {name}\n".encode() for name in OTHERS}
    files |= {**reference, TEMP_1: f"{FRANKENSTEIN} {seed} sweets".encode()}
    for method in METHODS[1:]:
        for name, figure in TRAINED[method].items():
            file = f"{name}-{method}-output.txt"
            files[file] = output(file, gold, guesses(name, gold[name], figure, rng))
    return files


def zipped(files: Mapping[str, bytes], *more: tuple[object, bytes], top: str = "ab1/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in (*((top + k, v) for k, v in files.items()), *more):
            archive.writestr(name, content)
    return buffer.getvalue()


def edit_line(content: bytes, number: int, edit: Callable[[bytes], bytes]) -> bytes:
    lines = content.split(b"\n")
    lines[number - 1] = edit(lines[number - 1])
    return b"\n".join(lines)


def flip(content: bytes, lines: range) -> bytes:
    for number in lines:
        content = edit_line(content, number, lambda line: b"%d" % (line[:1] == b"0") + line[1:])
    return content


def make_class(gold: Mapping[str, Gold], references: Mapping[str, Files]) -> dict[str, Student]:
    """Every submission by its name in the class's folder; names of zips end in .zip."""
    seeds = iter(range(1000))

    def fresh(**changes: bytes | None) -> Files:
        return good_files(gold, references["mmia"], next(seeds))

    def changed(file: str, edit: Callable[[bytes], bytes]) -> bytes:
        files = fresh()
        return zipped(files | {file: edit(files[file])})

    return (
        harmless_students(fresh, changed)
        | faulty_students(gold, changed)
        | incomplete_students(fresh)
        | scored_students(gold, fresh)
        | compared_students(references, fresh, changed)
        | hostile_students(fresh)
    )


def harmless_students(fresh: Callable, changed: Callable) -> dict[str, Student]:
    bom = lambda content: b"\xef\xbb\xbf" + content  # noqa: E731
    students = {f"good{i}.zip": Student(zipped(fresh())) for i in range(5)}
    students |= {
        "folder": Student(fresh()),
        "nested": Student({f"ab1/{name}": content for name, content in fresh().items()}),
        "crlf.zip": Student(changed(SST, lambda content: content.replace(b"\n", b"\r\n"))),
        "bom.zip": Student(changed(SST, bom), says=(f"warning: {SST}: starts with a byte order",)),
        "end.zip": Student(
            changed(SST, lambda content: content + b"\n\n"),
            says=("ends with empty lines (2), which are ignored",),
        ),
        "=1+cmd|' '!A0.zip": Student(zipped(fresh())),
        "@SUM(1).zip": Student(zipped(fresh())),
        "<img src=x onerror=alert(1)>.zip": Student(
            zipped(fresh(), ("ab1/<b>.pyc", b"x")),
            says=("should not be submitted, leave out: 'ab1/<b>.pyc'",),
        ),
        "\x1b[31mred\x1b[0m.zip": Student(zipped(fresh())),
        "\u674e\u96f7.zip": Student(zipped(fresh())),
        "macos.zip": Student(zipped(fresh(), ("__MACOSX/ab1/._a", b"x")), says=("macOS files",)),
        "two tops.zip": Student(
            zipped(fresh(), ("other/a.txt", b"x")), says=("exactly one top folder",)
        ),
    }
    return students


def faulty_students(gold: Mapping[str, Gold], changed: Callable) -> dict[str, Student]:
    def faulty(edit: Callable[[bytes], bytes], *says: str, file: str = SST) -> Student:
        return Student(
            changed(file, edit), "errors", {file: "faulty"}, says=(f"error: {file}: ", *says)
        )

    def label(text: bytes) -> Callable[[bytes], bytes]:
        return lambda content: edit_line(content, 12, lambda line: text + line[1:])

    def swap(content: bytes) -> bytes:
        lines = content.split(b"\n")
        lines[30], lines[40] = lines[40], lines[30]
        return b"\n".join(lines)

    shorter = lambda content: content[: content.rindex(b"\n", 0, -1) + 1]  # noqa: E731
    stale = output("sst-test-finetuning-output.txt", gold, gold["sst-test"].labels)
    return {
        "latin1.zip": faulty(
            lambda content: edit_line(content, 9, lambda line: line + b"\xe9"), "line 9: byte 0xe9"
        ),
        "utf16.zip": faulty(lambda c: c.decode().encode("utf-16"), "line 1: byte 0xff"),
        "range.zip": faulty(label(b"7"), "line 12: label '7' is not one of 0, 1, 2, 3, 4"),
        "negative.zip": faulty(label(b"-1"), "line 12: label '-1'"),
        "nan.zip": faulty(label(b"nan"), "line 12: label 'nan'"),
        "float.zip": faulty(label(b"2.0"), "line 12: label '2.0'"),
        "order.zip": Student(
            changed(SST, swap),
            "errors",
            says=(f"error: {SST}: line 31 (and 1 more of", "in another order, so it is scored"),
        ),
        "stale.zip": faulty(lambda _: stale, "has 2210 lines, sst-dev.txt has 1101"),
        "short.zip": faulty(shorter, "has 2209 lines, sst-test.txt has 2210", file=LORA),
        "nothing.zip": faulty(lambda _: b"", "is empty", file=LORA),
        "unprompted.zip": faulty(
            lambda c: c.replace(SUFFIXES["sst"].encode(), b""), "and the prompt", file=PROMPT
        ),
    }


def incomplete_students(fresh: Callable) -> dict[str, Student]:
    missing = fresh()
    for file in (SST, LORA, TEMP_1, "rope.py"):
        del missing[file]
    files = fresh()
    return {
        "missing.zip": Student(
            zipped(missing),
            "errors",
            {SST: "missing", LORA: "missing"},
            says=("4 of 30 required files are missing",),
        ),
        "story.zip": Student(
            zipped(files | {TEMP_0: b"Once upon a time"}),
            "errors",
            agreements={TEMP_0: "differs"},
            says=("it must start with the prompt", "the first 0 of 13 words"),
        ),
        "syntax.zip": Student(
            zipped(fresh() | {"llama.py": b"def f(:\n"}),
            "errors",
            says=("llama.py: does not parse",),
        ),
        "checkpoint.zip": Student(
            zipped(fresh() | {"finetune-5-2e-05.pt": b"x"}), "errors", says=("checkpoints are not",)
        ),
    }


def scored_students(gold: Mapping[str, Gold], fresh: Callable) -> dict[str, Student]:
    def scored(accuracy: float) -> bytes:
        labels = guesses("sst-dev", gold["sst-dev"], accuracy, random.Random(accuracy))
        return zipped(fresh() | {SST: output(SST, gold, labels)})

    one_class = Student(
        zipped(fresh() | {SST: output(SST, gold, [3] * LINES["sst-dev"])}),
        verdicts={SST: "below"},
        says=("only one class is predicted, 3 on all 1101 lines",),
    )
    theirs = {SST: fresh()[SST]}
    equal = "in 1 file (sst-dev-finetuning): independent runs differ in 83 to 391 of 1,101 lines"
    return {
        "below.zip": Student(scored(0.35), verdicts={SST: "below"}),
        "above.zip": Student(scored(0.47), verdicts={SST: "above"}),
        "edge.zip": Student(scored(0.3615)),
        "oneclass.zip": one_class,
        "oneclass2.zip": one_class,  # equal to the other, and no remark
        "twin1.zip": Student(zipped(fresh() | theirs), says=(f"predictions as 'twin2' {equal}",)),
        "twin2.zip": Student(zipped(fresh() | theirs), says=(f"predictions as 'twin1' {equal}",)),
    }


def compared_students(
    references: Mapping[str, Files], fresh: Callable, changed: Callable
) -> dict[str, Student]:
    prompts = [name for name in references["fall2024"] if name != TEMP_0]
    strange = fresh()
    for i, name in enumerate(prompts):
        strange[name] = flip(strange[name], range(20 + i, 110))
    parted = TEXTS["mmia"].replace("red ball", "blue ball").encode()
    return {
        "drift.zip": Student(
            changed(PROMPT, lambda content: flip(content, range(7, 10))),
            agreements={PROMPT: "drift"},
            says=("3 of 1101 lines differ from mmia (0.3%, first in line 7, 8, 9): float drift",),
        ),
        "fall2024.zip": Student(
            zipped(fresh() | references["fall2024"]),
            agreements=dict.fromkeys(references["fall2024"], "differs"),
            says=(
                "a different arithmetic; it looks like fall2024 (0 differ)",
                "it is the text of fall2024",
                "starts with the prompt of fall2025, fall2024, spring2025, spring2026, not mmia",
            ),
        ),
        "strange.zip": Student(
            zipped(strange),
            agreements=dict.fromkeys(prompts, "differs"),
            says=("like none of the references (nearest is mmia",),
        ),
        "parted.zip": Student(
            zipped(fresh() | {TEMP_0: parted}),
            agreements={TEMP_0: "differs"},
            says=("the first 8 of 13 words after the prompt equal those of mmia",),
        ),
    }


def hostile_students(fresh: Callable) -> dict[str, Student]:
    def refused(content: bytes, says: str) -> Student:
        return Student(content, "refused", says=(says,))

    files = fresh()
    good = zipped(files)
    link = entry("ab1/link", stat.S_IFLNK | 0o777)
    target = good.index(b"PK\x03\x04", 4)
    return {
        "traversal.zip": refused(zipped(files, ("ab1/../../x", b"x")), "'..' part"),
        "absolute.zip": refused(zipped(files, ("/etc/x", b"x")), "absolute"),
        "link.zip": refused(zipped(files, (link, b"/etc/passwd")), "symbolic link"),
        "bomb.zip": refused(zipped(files, ("ab1/b", bytes(9_000_000))), "more than 100 times"),
        "bigger.zip": refused(zipped(files, ("ab1/b", bytes(40_000_000))), "more than 100 times"),
        "liar.zip": refused(
            patch_directory(zipped(files, ("ab1/b", bytes(90_000))), "ab1/b", 24, 10, "<I"), "CRC"
        ),
        "locked.zip": refused(patch_directory(good, f"ab1/{SST}", 8, 1, "<H"), "encrypted"),
        "overlap.zip": refused(patch_directory(good, f"ab1/{SST}", 42, target, "<I"), "overlap"),
        "twice.zip": refused(zipped(files, (f"ab1/{SST}", b"x")), "more than once"),
        "both.zip": refused(zipped(files, (f"ab1/{SST}/x", b"x")), "both a file and a folder"),
        "undecodable.zip": refused(
            zipped(files, ("ab1/nnnn", b"x")).replace(b"ab1/nnnn", b"ab1/\xff\xfe\xff\xfe"), "UTF-8"
        ),
        "million.zip": refused(
            b"PK\x01\x02".join([bytes(42)] * 200_000) + good[-22:], "more than 1000 entries"
        ),
        "large.zip": refused(bytes(10 * 1024**2 + 1), "is not a zip file"),
        "hello.zip": refused(b"hello", "is not a zip file"),
        "cut.zip": refused(good[: len(good) // 2], "is not a zip file"),
        "vacant.zip": refused(b"PK\x05\x06" + bytes(18), "holds no usable file"),
        "hollow": Student({}, "refused", says=("holds no files",)),
    }


def write_class(folder: Path, gold: Mapping[str, Gold]) -> dict[str, Student]:
    """Write `folder`/class, /data and /reference; the students by name."""
    references = reference_outputs(gold)
    students = make_class(gold, references)
    write_data(folder / "data", gold)
    for edition, files in references.items():
        write_files(folder / "reference" / edition, files)
    write_students(folder / "class", students)
    (folder / "class" / "marks.txt").write_text("not a submission")
    return students


def write_data(folder: Path, gold: Mapping[str, Gold]) -> None:
    for name, g in gold.items():
        pairs = zip(g.labels, g.sentences, strict=True)
        lines = "".join(f"{label} ||| {text}\n" for label, text in pairs)
        write_files(folder, {f"{name}.txt": lines.encode()})


def write_students(folder: Path, students: Mapping[str, Student]) -> None:
    for name, student in students.items():
        if isinstance(student.content, bytes):
            write_files(folder, {name: student.content})
        else:
            write_files(folder / name, student.content)


def write_files(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target / "class", ignore_errors=True)
    found = read_gold(Path(sys.argv[2])) if len(sys.argv) > 2 else make_gold()
    print(f"{len(write_class(target, found))} submissions in {target / 'class'}")
