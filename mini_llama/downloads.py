"""Fetches the files that third parties own: weights, tokenizer, data, the checks' references.

`FILES` says where each comes from and which SHA-256 it must have. This file knows nothing of what
is in them, with one exception: stories42M.pt has no published hash, so `checkpoint` builds it from
stories42M.bin, which has one. It imports torch only for that.

Exit codes: 0 every file is there; 1 a file is missing or differs; 2 wrong usage; 3 no network;
130 interrupted.
"""

import hashlib
import http.client
import os
import queue
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from mini_llama.checkpoints.reading import Checkpoint

HOSTS = {
    "huggingface": "https://huggingface.co",
    "github": "https://raw.githubusercontent.com",
    "cmu": "https://www.cs.cmu.edu",
}
TINYLLAMAS = "karpathy/tinyllamas/resolve/0bd21da7698eaf29a0d7de3992de8a46ef624add"
FALL2025 = "cmu-l3/anlp-fall2025-hw1/36578d4c79d791b06ccd0fc6d0ade3d937d5f450"
FALL2024 = "neubig/minllama-assignment/2951cddba218b7ddfe69295b77ad51a05107d384"
STORIES42M_BIN_SHA256 = "9f65a1000e17d0bc167dd6332e0ce5119a0222a3d920cead5bce413bfab2ee7b"
STORIES42M_ARGS = {
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "vocab_size": 32000,
    "max_seq_len": 1024,
}

OK, FAILED, NO_NETWORK, INTERRUPTED = 0, 1, 3, 130
PROBE_SECONDS = 8.0  # for all hosts together: continuous integration waits for it
CHUNK_BYTES = 1 << 16
BUSY_STATUSES = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Source:
    """One place of a file: a key of `HOSTS`, the path there, its SHA-256 if one is published."""

    host: str
    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A file and its sources, tried in turn.

    `model_args` marks a checkpoint: it has no hash of its own, and is right if it can be read and
    has these values. It is built from a source whose path ends in .bin.
    """

    name: str
    sources: tuple[Source, ...]
    model_args: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Policy:
    """How patient to be: seconds without data, tries for each source, seconds between tries."""

    timeout: float = 30.0
    attempts: int = 4
    pause: float = 1.0


# In the format of sha256sum -c.
GITHUB_SHA256SUMS = """\
9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347  tokenizer.model
94f5f19530f4bdffe7502d44004f3ac6334cf0f97059c82e1705196fea027a44  sanity_check.data
34f7c763a3bb025940029bd970594e985bf69b7ed6e693a8f5cccbef0cee55b0  sanity_check-fall2024.data
57b5f9defc9489955829a935d972b85a5fa69f482c7aabdd496e24ffc1b082ee  rotary_embedding_actual.data
5e66b55c2c6784e120e422e40bc2cd27ffdd00ac3fd9515035d846ddea1cb118  optimizer_test.npy
77b817e0dce16a9bc8d3a6bcb88035db68f7d783dc8a565737581fadd05db815  optimizer_test-fall2024.npy
7aeac81f2a387f2ce7fab98ed8f40ef85cc9c8ad11bcbb63b122e95665cb1f35  data/sst-train.txt
11963c76cd073e68006da0390620aadf5a4b8f775e2f900e92a50b3002e39b9b  data/sst-dev.txt
bdcc8352d37bdc82113e4a4dd887b824144201539d5a1e49be566232d306a4ba  data/sst-test.txt
831e6914e25d9b9eb56ff9095b3f035bdaf1b9568d385a70ef481c82af0382b3  data/sst-label-mapping.json
278e200499d1d68a1a9d80e3947a2203cc97130632d8a53f2b9c11de9cb6c699  data/cfimdb-train.txt
b38f0c095c4624e85927116728140e96d0221969b34146f65eae5b5bb24752b8  data/cfimdb-dev.txt
8ad2f6da7bfb0e8fc36cf89eda47c574cc9c35d6347e665f31bc904d9ecfe0a7  data/cfimdb-test.txt
afeac43f5a5fe8758469078418519df4c8503c2e30e2fcf6c61464fce3d44a36  data/cfimdb-label-mapping.json
"""
# Where a file is not at FALL2025 under its own name, or not only there.
GITHUB_PATHS = {
    "sanity_check-fall2024.data": (f"{FALL2024}/sanity_check.data",),
    "optimizer_test-fall2024.npy": (f"{FALL2024}/optimizer_test.npy",),
    "rotary_embedding_actual.data": (
        f"{FALL2025}/rotary_embedding_actual.data",
        f"{FALL2024}/rotary_embedding_actual.data",
    ),
}


def _from_github(line: str) -> RemoteFile:
    sha256, name = line.split()
    paths = GITHUB_PATHS.get(name, (f"{FALL2025}/{name}",))
    return RemoteFile(name, tuple(Source("github", path, sha256) for path in paths))


FILES = (
    RemoteFile(
        "stories42M.pt",
        (
            Source("huggingface", f"{TINYLLAMAS}/stories42M.bin", STORIES42M_BIN_SHA256),
            Source("cmu", "~vijayv/stories42M.pt"),
        ),
        STORIES42M_ARGS,
    ),
    *map(_from_github, GITHUB_SHA256SUMS.splitlines()),
)


class DownloadError(Exception):
    """A file could not be had; the message is one line with the URL or the path and a remedy."""


class UnreachableError(DownloadError):
    """The host itself does not answer: other files need not be asked for there."""


class _CutError(Exception):
    """A try failed in a way that another try may mend; the message is the reason."""


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- One file over HTTP ---------------------------------------------------------------------------


def fetch(url: str, target: Path, sha256: str | None, policy: Policy | None = None) -> None:
    """Download `url` to `target` by way of `target`.part, which a later call resumes.

    `target` appears whole and, if `sha256` is given, with that hash, or not at all. Raises
    DownloadError, and OSError if the folder cannot be written.
    """
    policy = policy or Policy()
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    is_resumed = part.exists()
    if not is_resumed or sha256 is None or sha256_of(part) != sha256:
        _fill(url, part, policy)
        if is_resumed and sha256 is not None and sha256_of(part) != sha256:
            # What an earlier run left need not be the beginning of this file.
            part.unlink()
            _fill(url, part, policy)
    if sha256 is not None and (actual := sha256_of(part)) != sha256:
        part.unlink()
        raise DownloadError(
            f"{target.name}: wrong SHA-256: expected {sha256}, got {actual}, from {url}; the "
            "download was removed: run download.py again, and if this stays, the source changed"
        )
    os.replace(part, target)


def _fill(url: str, part: Path, policy: Policy) -> None:
    """Complete `part`, in several tries if need be."""
    reason = ""
    for attempt in range(policy.attempts):
        if attempt:
            time.sleep(policy.pause)
        try:
            return _transfer(url, part, policy.timeout)
        except UnreachableError as error:
            if not attempt:  # a host that answered before is worth another try
                raise
            reason = str(error)
        except _CutError as error:
            reason = str(error)
    kept = part.stat().st_size if part.exists() else 0
    raise DownloadError(
        f"{url}: {reason}, in each of {policy.attempts} tries; run download.py again "
        f"(it resumes after the {kept} bytes that are here) or with a longer --timeout"
    )


def _transfer(url: str, part: Path, timeout: float) -> None:
    """One request for what `part` lacks. Raises _CutError if it ended early."""
    offset = part.stat().st_size if part.exists() else 0
    with _open(url, part, offset, timeout) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            offset = 0  # the server ignores ranges and sends the whole file
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink()
            raise _CutError("the server sent another range than asked for")
        total = None if response.length is None else offset + response.length
        with (
            open(part, "ab" if offset else "wb") as file,
            tqdm(
                desc=part.name.removesuffix(".part"),
                total=total,
                initial=offset,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None,
            ) as bar,
        ):
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _CutError(f"the connection was cut after {size} of {total} bytes")


def _open(url: str, part: Path, offset: int, timeout: float) -> http.client.HTTPResponse:
    """Ask for the bytes from `offset` on; sort the ways to fail into the exceptions above."""
    try:
        return urllib.request.urlopen(_request(url, offset), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            part.unlink()  # complete with a wrong hash, or longer than the file
            raise _CutError("the server refused the range (HTTP 416)") from None
        if error.code in BUSY_STATUSES:
            raise _CutError(f"the server is busy (HTTP {error.code})") from None
        raise DownloadError(
            f"{url}: HTTP {error.code} {error.reason}; open it in a browser: if it is there, "
            "try again later, else put the file in place by hand"
        ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{url}: {_plain(error)}; install this Python's root certificates, "
                "or name your own in the environment variable SSL_CERT_FILE"
            ) from None
        raise UnreachableError(f"{_host(url)} does not answer ({_plain(error)})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the server did not reply ({_plain(error)})") from None


def _read(response: http.client.HTTPResponse) -> bytes:
    # Apart from the writing, because both raise OSError and only this one is worth another try.
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection was cut ({_plain(error)})") from None


def _request(url: str, offset: int = 0, method: str = "GET") -> urllib.request.Request:
    headers = {"User-Agent": "mini-llama"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    return urllib.request.Request(url, headers=headers, method=method)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _plain(error: Exception) -> str:
    """The innermost reason, on one line."""
    reason = getattr(error, "reason", error)
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(str(text).split())


# --- Is there a network at all? -------------------------------------------------------------------


def why_no_network(urls: Iterable[str], seconds: float) -> str | None:
    """None as soon as one of `urls` answers, whatever it says; else the reasons, within `seconds`.

    All are asked at once, in threads, because neither name resolution nor a host with many
    addresses keeps to a socket's timeout.
    """
    urls = list(urls)
    answers: queue.Queue[str | None] = queue.Queue()
    for url in urls:
        threading.Thread(target=_probe, args=(url, seconds, answers), daemon=True).start()
    deadline = time.monotonic() + seconds
    reasons = []
    for _ in urls:
        try:
            reason = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            reason = f"no answer within {seconds:g} s"
        if reason is None:
            return None
        reasons.append(reason)
    hosts = " and ".join(dict.fromkeys(_host(url) for url in urls))
    return f"{hosts}: {', '.join(dict.fromkeys(reasons))}"


def _probe(url: str, seconds: float, answers: "queue.Queue[str | None]") -> None:
    try:
        urllib.request.urlopen(_request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError as error:
        error.close()
        answers.put(None)
    except (OSError, http.client.HTTPException) as error:
        is_answer = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
        answers.put(None if is_answer else _plain(error))
    else:
        answers.put(None)


# --- Files in their places ------------------------------------------------------------------------


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
    _checkpoint_module().save_checkpoint(target, source.model_args, tensors)
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
        from mini_llama.checkpoints import (
            reading as checkpoint,  # not at the top: it imports torch, which most runs do without
        )
    except ImportError as error:
        raise DownloadError(
            f"checkpoints need a package: {error}; run pip install -r requirements.txt"
        ) from None
    return checkpoint


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
        failures, has_answer = [], False
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


# --- Command line ---------------------------------------------------------------------------------


def download_all(
    files: Sequence[RemoteFile], downloader: Downloader, known: Sequence[RemoteFile] = FILES
) -> int:
    """Get what is missing of `files`; returns the exit code. Failures are one line each on stderr.

    `known` names further hosts, asked only whether there is a network. Raises OSError.
    """
    wanted, is_failed = _choose(files, downloader)
    if wanted:
        urls = _probe_urls((*wanted, *known), downloader)
        reason = why_no_network(urls, min(PROBE_SECONDS, downloader.policy.timeout))
        if reason is not None:
            names = ", ".join(file.name for file in wanted)
            _complain(
                f"no network ({reason}); still to download: {names}: "
                "run download.py or setup.sh again when there is one"
            )
            return NO_NETWORK
    unreachable: dict[str, list[str]] = {}
    for file in wanted:
        try:
            print(f"{file.name}: downloaded from {downloader.obtain(file)}", flush=True)
        except UnreachableError as error:
            unreachable.setdefault(str(error), []).append(file.name)
        except DownloadError as error:
            _complain(str(error))
            is_failed = True
    for reason, names in unreachable.items():
        _complain(f"{reason}; still to download: {', '.join(names)}: run download.py again later")
    if is_failed or unreachable:
        return FAILED
    print(f"all {len(files)} files are there")
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
                _complain(
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


def _complain(line: str) -> None:
    print(f"download.py: {line}", file=sys.stderr, flush=True)


def _list(files: Sequence[RemoteFile], downloader: Downloader) -> None:
    for file in files:
        target = downloader.folder / file.name
        state = "missing"
        if target.exists():
            state = "differs" if find_problem(file, target) else "there"
        print(f"{state:7} {file.name:30} {downloader.url(file.sources[0])}")
