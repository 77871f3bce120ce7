"""Which files of a class's download are whose, by the names that learning platforms give them.

Moodle       Full Name_123456_assignsubmission_file_/FILE, or without folders ..._file_FILE
Canvas       lastfirst_LATE_1234_56789_FILE
Gradescope   assignment_1234_export/submission_56789/FILE, names in submission_metadata.yml
Blackboard   Assignment_user_attempt_2026-01-31-23-59-59_FILE
Brightspace  1234-56789 - Full Name - Jan 31, 2026 1159 PM/FILE
"""

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mini_llama.submissions.requirements import REQUIRED_NAMES

METADATA = "submission_metadata.yml"
PATTERNS = {
    "Moodle": r"(?P<who>.+?)_(?P<id>[0-9]+)_assignsubmission_[a-z]+(_(?P<file>.*))?",
    "Blackboard": r".+_(?P<who>[^_]+)_attempt_(?P<time>[0-9]{4}(-[0-9]{2}){5})"
    r"(_(?P<file>.+)|\.txt)",
    "Brightspace": r"[0-9]+-[0-9]+ ?- (?P<who>.+?) ?- "
    r"(?P<time>\w+ [0-9]{1,2}, [0-9]{4} [0-9:]{3,5} ?[AP]M)( ?- (?P<file>.+))?",
    "Gradescope": r"submission_(?P<id>[0-9]+)",
    "Canvas": r"(?P<who>.+?)(_(?P<late>LATE))?_(?P<id>[0-9]+)_([0-9]+|text)(_(?P<file>.+)|\.html)",
}
# Their names say nothing else: one is enough. The others' could be a student's own.
UNMISTAKABLE = ("Moodle", "Blackboard", "Brightspace")
FOLDERS_ONLY = ("Gradescope",)
COPY = re.compile(r"(.+)-[0-9]+(\.[^.]+)")  # Canvas numbers a file that is handed in again


@dataclass
class Handin:
    """One student's files: `files` are the download's, each with its name in the submission."""

    who: str
    number: str = ""
    is_late: bool = False
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Download:
    """A class's submissions, and the files that are nobody's."""

    platform: str
    handins: Sequence[Handin]
    others: Sequence[str]


def recognize(names: Collection[str], metadata: str = "") -> Download | None:
    """Sort the files of a download; None if no platform gives such names.

    `names` are paths below the download's folder, `metadata` is Gradescope's file.
    """
    best: Download | None = None
    for platform, pattern in PATTERNS.items():
        download = _sort(platform, re.compile(pattern, re.DOTALL), names, metadata)
        if _is_likely(download) and (best is None or len(download.others) < len(best.others)):
            best = download
    return best


def is_handin(name: str) -> bool:
    """Whether a file or folder is named as one student's by a platform that cannot be mistaken."""
    return any(re.fullmatch(PATTERNS[p], name, re.DOTALL) for p in UNMISTAKABLE)


def _is_likely(download: Download) -> bool:
    if not download.handins:
        return False
    bases = {name.rpartition("/")[2] for name in download.others}
    if download.platform in UNMISTAKABLE:
        return True
    if download.platform == "Gradescope":
        return METADATA in bases or (len(download.handins) > 1 and not bases & REQUIRED_NAMES)
    return not any("/" in n or n.casefold().endswith((".zip", ".py")) for n in download.others)


def _sort(
    platform: str, pattern: re.Pattern[str], names: Collection[str], metadata: str
) -> Download:
    people = dict(_submitters(metadata))
    handins: dict[tuple[str, str], Handin] = {}
    attempts: dict[tuple[str, str], dict[str, list[tuple[str, str]]]] = defaultdict(dict)
    others = []
    for name in names:
        top, slash, rest = name.partition("/")
        match = pattern.fullmatch(top)
        if not match or (platform in FOLDERS_ONLY and not slash):
            others.append(name)
            continue
        parts = match.groupdict()
        number = parts.get("id") or ""
        who = parts.get("who") or people.get(top, top)
        handin = handins.setdefault((who, number), Handin(who, number))
        handin.is_late |= bool(parts.get("late"))
        new = rest or parts.get("file") or top
        attempts[who, number].setdefault(parts.get("time") or "", []).append((name, new))
    for key, handin in handins.items():
        handin.files = _plain_names(attempts[key][_last(attempts[key])])
    return Download(platform, list(handins.values()), others)


def _last(attempts: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The time of the last attempt; Blackboard's times sort as text, Brightspace's do not."""
    return max(attempts, key=_time_order)


MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def _time_order(time: str) -> tuple[object, ...]:
    match = re.fullmatch(r"(\w{3})\w* ([0-9]+), ([0-9]+) ([0-9]+):?([0-9]{2}) ?([AP]M)", time)
    if not match or match[1] not in MONTHS:
        return (0, time)
    month, day, year, hour, minute, half = match.groups()
    hours = int(hour) % 12 + 12 * (half == "PM")
    return (int(year), MONTHS.index(month), int(day), hours, int(minute))


def _plain_names(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The student's own names, without Canvas's number; a name that is taken gets the whole."""
    files: dict[str, str] = {}
    taken: set[str] = {new for _, new in pairs}
    for name, new in pairs:
        copy = COPY.fullmatch(new)
        if copy and copy[1] + copy[2] in REQUIRED_NAMES - taken:
            new = copy[1] + copy[2]
        files[name] = name if new in files.values() else new
    return files


def _submitters(metadata: str) -> Iterator[tuple[str, str]]:
    """Folder and names of each submission in Gradescope's file, YAML with the lines `submission_1:`
    and, indented, `- :name: NAME`.
    """
    folder = ""
    people: list[str] = []
    for line in [*metadata.splitlines(), "end:"]:
        if match := re.fullmatch(r"""["']?([\w-]+)["']?:\s*""", line):
            if folder and people:
                yield folder, " & ".join(people)
            folder, people = match[1], []
        elif match := re.fullmatch(r" {0,6}(?:- )? *:name: (.+)", line):
            people.append(_scalar(match[1].strip()))


def _scalar(text: str) -> str:
    """A YAML string without its quotes."""
    if text[:1] == text[-1:] == '"':
        with contextlib.suppress(ValueError):
            return str(json.loads(text))
    return text[1:-1].replace("''", "'") if text[:1] == text[-1:] == "'" else text
