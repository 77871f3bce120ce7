"""The documents are true: commands print what is shown, links lead somewhere, names exist.

A `console` block shows commands ("$ ", continued by "> ") with their output, a `bash` block
commands alone, a `python` block a program. All are run, in the document's order, in a clone that
has the bundled model and none of the real files. A block that needs more than that has the comment
<!-- not run: REASON --> before it; then its flags are compared with those that --help lists.

In shown output … stands for any text, white space is not compared, and numbers may differ a little.
"""

import ast
import functools
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.test_style import COMMANDS

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUN, SHOWN = ("bash", "console", "python"), ("text", "mermaid", "toml")
FENCE = re.compile(r"(?:<!-- not run: (.+) -->\n)?^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
NUMBER = re.compile(r"\d+\.\d+(?:e[-+]\d+)?")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SCRIPTS = [f"{name}.py" for name in (*COMMANDS, "run_llama", "tokenizer", "sanity_check")]
SCRIPTS += ["addition_data_generation.py", "setup.sh"]
PYTHONS = ("python", ".venv/bin/python")
FIRST_PAGE = 8192  # bytes


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run, None if it is."""

    document: Path
    language: str
    reason: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}: {self.reason}"

    def commands(self) -> list[tuple[str, str]]:
        """Each command with the output that is shown below it."""
        if self.language == "python":
            return [(f"python -c {shlex.quote(self.text)}", "")]
        if self.language == "bash":
            return [(self.text, "…")]
        first, *parts = re.split(r"^\$ (.*(?:\n> .*)*)\n", self.text, flags=re.MULTILINE)
        assert not first, f"{self.document.name}: a console block begins with a command"
        commands = [part.replace("\n> ", "\n") for part in parts[::2]]
        return list(zip(commands, parts[1::2], strict=True))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[Block]:
    return [Block(path, match[2], match[1], match[3]) for match in FENCE.finditer(read(path))]


BLOCKS = {path: blocks(path) for path in DOCUMENTS}
NOT_RUN = [block for found in BLOCKS.values() for block in found if block.reason]


# Commands that are run


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the project's files, the bundled model and data, and none of the real ones."""
    names = [path.name for path in ROOT.glob("*.py")]
    for name in (*names, "mini_llama", "tests", "bench", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(ROOT / "data" / "demo")
    return tmp_path


def output(command: str, folder: Path, must_succeed: bool) -> str:
    """Standard output and standard error together, in the order in which they were written."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0 or not must_succeed, f"{command}\n{done.stdout}"
    return done.stdout


def is_near(actual: str, shown: str) -> bool:
    """Numbers with an exponent are float errors, others accuracies and the like."""
    absolute = 1e-5 if "e" in shown else 1e-2
    return math.isclose(float(actual), float(shown), rel_tol=0.02, abs_tol=absolute)


def is_as_shown(actual: str, shown: str) -> bool:
    shown, actual = " ".join(shown.split()), " ".join(actual.split())
    pieces = re.split(rf"(…|{NUMBER.pattern})", shown)
    kinds = {"…": ".*?"}
    patterns = [
        kinds.get(p) or (f"({NUMBER.pattern})" if NUMBER.fullmatch(p) else re.escape(p))
        for p in pieces
    ]
    match = re.fullmatch("".join(patterns).replace(r"\ .*?\ ", "(?: .*?)? "), actual)
    numbers = [piece for piece in pieces if NUMBER.fullmatch(piece)]
    return match is not None and all(map(is_near, match.groups(), numbers))


@pytest.mark.parametrize(
    ("actual", "shown", "expected"),
    [
        ("a\nb  c", "a b\nc\n", True),
        ("a b", "a c", False),
        ("a b c d", "a … d", True),
        ("a d", "a … d", True),
        ("a b c", "a … d", False),
        ("acc :: 0.775", "acc :: 0.774", True),
        ("acc :: 0.800", "acc :: 0.774", False),
        ("error 2.1e-06", "error 1.1e-06", True),
        ("error 2.1e-03", "error 1.1e-06", False),
        ("", "", True),
        ("Traceback", "", False),
    ],
)
def test_what_counts_as_shown(actual: str, shown: str, expected: bool):
    assert is_as_shown(actual, shown) is expected


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_print_what_is_shown(path: Path, clone: Path):
    run = [block for block in BLOCKS[path] if block.language in RUN and not block.reason]
    for block in run:
        for command, shown in block.commands():
            actual = output(command, clone, must_succeed=block.language != "console")
            assert is_as_shown(actual, shown), f"{command}\n{actual}"
    left_out = [block.reason for block in BLOCKS[path] if block.reason]
    print(f"{path.name}: {len(run)} blocks run, {len(left_out)} not: {'; '.join(left_out)}")


def test_blocks_are_run_or_say_why_not():
    languages = {block.language for found in BLOCKS.values() for block in found}
    assert languages <= {*RUN, *SHOWN}
    assert all(block.language in RUN for block in NOT_RUN)
    for path in DOCUMENTS:
        rest = FENCE.sub("", read(path))
        assert "```" not in rest, f"{path.name}: a block is not closed"
        is_astray = re.search("^<!-- not run", rest, re.MULTILINE)
        assert not is_astray, f"{path.name}: the comment stands before no block"
        hidden = re.search(r"^(?: {4}|\t)\S*(?:python|bash|torchrun|\$) .*", rest, re.MULTILINE)
        assert not hidden, f"{path.name}: in no fenced block, {hidden and hidden[0]}"


# Commands that are only read


@functools.cache
def usage(*command: str) -> str:
    runner = "bash" if command[0].endswith(".sh") else sys.executable
    done = subprocess.run(
        [runner, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr}"
    return done.stdout


def flags_of(words: list[str]) -> tuple[list[str], list[str]]:
    """The flags that a command gives, and those that its program has."""
    program = words[:1]
    subcommands = re.search(r"\{?([\w,]+)\}? \.\.\.\n", usage(*program))
    if subcommands and words[1:] and words[1] in subcommands[1].split(","):
        program = words[:2]
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return given, FLAG.findall(usage(*program))


def programs(text: str) -> Iterator[list[str]]:
    """The project's own commands in a piece of shell, each from its script on."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line):
            words = shlex.split(command, comments=True)
            scripts = [i for i, word in enumerate(words) if re.search(r"\w\.(py|sh)$", word)]
            if scripts and words[0] in (*PYTHONS, "bash", "torchrun"):
                yield words[scripts[0] :]


def check_flags(text: str) -> None:
    for words in programs(text):
        assert (ROOT / words[0]).is_file(), f"no such file: {words[0]}"
        if any(word.startswith("--") for word in words):
            given, known = flags_of(words)
            assert set(given) <= set(known), f"{words[0]} does not know {set(given) - set(known)}"


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_flags_of_commands_that_are_not_run(block: Block):
    assert block.language == "bash", f"{block}: output that no test has seen"
    check_flags(block.text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_flags_in_the_text(path: Path):
    """In commands within a line, and flags by themselves, which some command must have."""
    text = FENCE.sub("", read(path))
    texts = [read_help(script) for script in SCRIPTS]
    texts += [read(script) for script in (ROOT / "bench").glob("*.py")]
    known = {flag for some in texts for flag in FLAG.findall(some)}
    for code in CODE.findall(text):
        if code.split()[0] in (*PYTHONS, "bash"):
            check_flags(code.replace("[", "").replace("]", ""))
        given = {flag.rstrip("-") for flag in FLAG.findall(code)}
        assert given <= known, f"{path.name}: nothing knows {given - known}"


def read_help(script: str) -> str:
    """--help of a command and of its subcommands."""
    text = usage(script)
    found = re.search(r"\{?([\w,]+)\}? \.\.\.\n", text)
    return text + "".join(usage(script, sub) for sub in found[1].split(",")) if found else text


# Names and links


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    for link in LINK.findall(FENCE.sub("", read(path))):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_names_of_files_are_those_of_files(path: Path):
    names = re.findall(r"`([\w./-]+\.(?:py|sh|toml|md))`", read(path))
    names += re.findall(r"`((?:mini_llama|tests|bench|docs|data/demo)/[\w./-]*)`", read(path))
    for name in names:
        assert (ROOT / name).exists() or (path.parent / name).exists(), f"{path.name}: {name}"


def test_the_picture_names_files():
    names = re.findall(r'class="f"[^>]*>([^<]+)<', read(ROOT / "docs" / "model.svg"))
    assert len(names) >= 6
    for name in names:
        assert (ROOT / name).is_file(), name


def test_the_drawing_of_the_house_names_folders():
    text = read(ROOT / "structure.md")
    drawn = set(re.findall(r"── (\w+)/ ", text))
    folders = {path.parent for path in (ROOT / "mini_llama").rglob("__init__.py")}
    assert drawn == {path.name for path in folders - {ROOT / "mini_llama"}}
    top = text.partition("```text\n")[2].partition("\nmini_llama/")[0]
    assert set(re.findall(r"\w+\.py", top)) == {path.name for path in ROOT.glob("*.py")}


def defined(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(read(path)).body:
        names |= {getattr(node, "name", "")}
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_formulas_stand_where_structure_says():
    rows = re.findall(
        r"^\|[^|]+\| \[[\w.]+\]\(([\w/.]+\.py)\) \|(.*)\|$", read(ROOT / "structure.md"), re.M
    )
    assert len(rows) >= 30
    for file, names in rows:
        missing = set(re.findall(r"`(\w+)`", names)) - defined(ROOT / file)
        assert not missing, f"structure.md: {file} does not define {missing}"


@pytest.mark.parametrize("document", ["README.md", "structure.md"])
def test_from_the_readme_to_a_formula_in_two_links(document: str):
    """README.md → structure.md → the file."""
    links = [link.partition("#")[0] for link in LINK.findall(read(ROOT / document))]
    assert {"README.md": "structure.md", "structure.md": "rope.py"}[document] in links


# The first page


def test_the_readme_is_a_first_page():
    assert len(read(ROOT / "README.md").encode()) <= FIRST_PAGE


def test_readme_commands_are_what_ci_runs():
    command = "bash setup.sh --dev && .venv/bin/python -m pytest"
    assert command in read(ROOT / "README.md")
    assert command in read(ROOT / ".ci" / "run")


def test_every_document_is_reached_from_the_readme():
    reached, new = set(), [ROOT / "README.md"]
    while new:
        path = new.pop()
        reached.add(path)
        links = [link.partition("#")[0] for link in LINK.findall(read(path))]
        found = {(path.parent / link).resolve() for link in links if link.endswith(".md")}
        new += found - reached - set(new)
    assert reached == set(DOCUMENTS)
