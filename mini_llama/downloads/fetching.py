"""One file over HTTP: resumed after a cut connection, checked by its SHA-256, in place whole or not
at all; and whether there is a network.
"""

import argparse
import hashlib
import http.client
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

CHUNK_BYTES = 1 << 16
BUSY_STATUSES = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Policy:
    """How patient to be: seconds without data, tries for each source, seconds between tries."""

    timeout: float = 30.0
    attempts: int = 4
    pause: float = 1.0


def seconds(text: str) -> float:
    """A time that a user gives. Raises argparse.ArgumentTypeError."""
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 3600")
    return value


class DownloadError(Exception):
    """A file could not be had; the message is one line with the URL or the path and a remedy."""


class UnreachableError(DownloadError):
    """The host itself does not answer: other files need not be asked for there."""


class _CutError(Exception):
    """A try failed in a way that another try may mend; the message is the reason."""


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
