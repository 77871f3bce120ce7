"""Find the submission in a zip or folder: some students submit an extra folder, or a repository."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from mini_llama.submissions.requirements import ADDITION_MODELS, REQUIRED_NAMES


@dataclass(frozen=True)
class Layout:
    """`root` is the folder that the submission is in, "" for the top.

    `paths` are the submission's files by their names below `root`. Required files found elsewhere
    are included under their plain names, and their paths are in `misplaced`. `duplicates` are other
    top folders that hold code as well.
    """

    root: str
    paths: dict[str, str]
    misplaced: tuple[str, ...]
    duplicates: tuple[str, ...]

    @property
    def top(self) -> str:
        return self.root.partition("/")[0]


def find_layout(paths: Collection[str]) -> Layout:
    """Take the folder with the most required code, the outermost if there is a tie; without any,
    the top folder with the most files.
    """
    root = _root(paths)
    prefix = f"{root}/" if root else ""
    found = {path.removeprefix(prefix): path for path in paths if path.startswith(prefix)}
    has_models = any(name.startswith(f"{ADDITION_MODELS}/") for name in found)
    misplaced, duplicates = [], []
    for path in sorted(paths, key=lambda path: (path.count("/"), path)):
        name = _submission_name(path)
        if name is None or (has_models and "/" in name) or found.get(name) == path:
            continue
        if name not in found:
            found[name] = path
            misplaced.append(path)
        elif name.endswith(".py") and not path.startswith(prefix):
            duplicates.append(_top(path))
    others = dict.fromkeys(top for top in duplicates if top != _top(prefix))
    return Layout(root, found, tuple(misplaced), tuple(others))


def _root(paths: Collection[str]) -> str:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for folder, _, name in (path.rpartition("/") for path in paths):
        if name in REQUIRED_NAMES:
            counts[folder][0] -= name.endswith(".py")  # code first: outputs are often elsewhere
            counts[folder][1] -= 1
    if counts:
        return min(counts, key=lambda folder: (*counts[folder], folder.count("/"), folder))
    tops = Counter(map(_top, paths))
    return tops.most_common(1)[0][0] if tops else ""


def _submission_name(path: str) -> str | None:
    """The name that a file should have in a submission, None if it is not required."""
    parts = path.split("/")
    if ADDITION_MODELS in parts[:-1]:
        return "/".join(parts[parts.index(ADDITION_MODELS) :])
    return parts[-1] if parts[-1] in REQUIRED_NAMES else None


def _top(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""
