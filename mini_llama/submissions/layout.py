"""Where in a zip or a folder a submission is: people hand in a folder too much, or a repository."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from mini_llama.submissions.handed_in import ADDITION_MODELS, ASKED_FOR


@dataclass(frozen=True)
class Layout:
    """`root` is the folder that the submission is in, "" for the outermost.

    `paths` are the submission's files by their names below `root`. Files that are asked for and
    stand elsewhere are among them by their own name as well; `moved` has their paths. `doubled` are
    the other outermost folders that hold such files too.
    """

    root: str
    paths: dict[str, str]
    moved: tuple[str, ...]
    doubled: tuple[str, ...]

    @property
    def top(self) -> str:
        return self.root.partition("/")[0]


def find_layout(paths: Collection[str]) -> Layout:
    """The folder with the most code that is asked for, the outermost of several such; without
    any, the outermost folder with the most files.
    """
    root = _root(paths)
    prefix = f"{root}/" if root else ""
    found = {path.removeprefix(prefix): path for path in paths if path.startswith(prefix)}
    has_models = any(name.startswith(f"{ADDITION_MODELS}/") for name in found)
    moved, doubled = [], []
    for path in sorted(paths, key=lambda path: (path.count("/"), path)):
        name = _own_name(path)
        if name is None or (has_models and "/" in name) or found.get(name) == path:
            continue
        if name not in found:
            found[name] = path
            moved.append(path)
        elif name.endswith(".py") and not path.startswith(prefix):
            doubled.append(_top(path))
    others = dict.fromkeys(top for top in doubled if top != _top(prefix))
    return Layout(root, found, tuple(moved), tuple(others))


def _root(paths: Collection[str]) -> str:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for folder, _, name in (path.rpartition("/") for path in paths):
        if name in ASKED_FOR:
            counts[folder][0] -= name.endswith(".py")  # code first: outputs often are elsewhere
            counts[folder][1] -= 1
    if counts:
        return min(counts, key=lambda folder: (*counts[folder], folder.count("/"), folder))
    tops = Counter(map(_top, paths))
    return tops.most_common(1)[0][0] if tops else ""


def _own_name(path: str) -> str | None:
    """What a file is called where it belongs, None for one that is not asked for."""
    parts = path.split("/")
    if ADDITION_MODELS in parts[:-1]:
        return "/".join(parts[parts.index(ADDITION_MODELS) :])
    return parts[-1] if parts[-1] in ASKED_FOR else None


def _top(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""
