"""download.py against an HTTP server on this machine that misbehaves as real ones do.

No test needs a network. Where a test waits, it waits for something that never happens or already
has, so that no result depends on the machine's speed.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import download
from mini_llama.downloads.fetching import (
    DownloadError,
    Policy,
    UnreachableError,
    fetch,
    why_no_network,
)
from mini_llama.downloads.files import FILES, HOSTS, RemoteFile, Source
from mini_llama.downloads.placing import Downloader
from tests.helpers import ROOT, SHARED, refusal_of

QUICK = Policy(timeout=20.0, attempts=4, pause=0.0)
BODY = bytes(range(256)) * 1024  # 256 KiB: several chunks
TINY_ARGS = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 11}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """What the server has and how it misbehaves; `requests` records what it was asked."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)  # path -> status instead of the file
    cuts: list[int] = field(default_factory=list)  # next GETs end after so many body bytes
    resets: bool = False  # cut with a reset instead of a plain end
    knows_ranges: bool = True
    shift: int = 0  # bytes by which ranges are answered wrongly
    stalls: threading.Event | None = None  # GETs wait for it
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def hosts(self) -> dict[str, str]:
        return dict.fromkeys(HOSTS, self.base)

    def url(self, path: str) -> str:
        return f"{self.base}/{path}"

    def gets(self) -> list[tuple[str, str | None]]:
        return [(path, asked) for method, path, asked in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        if self.site.stalls is not None:
            self.site.stalls.wait(60)
        self._answer(is_head=False)

    def _answer(self, is_head: bool) -> None:
        path, asked = self.path.removeprefix("/"), self.headers["Range"]
        self.site.requests.append((self.command, path, asked))
        body = self.site.files.get(path)
        if path in self.site.statuses or body is None:
            return self.send_error(self.site.statuses.get(path, 404))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not self.site.knows_ranges:
            start = 0
        if start and start >= len(body):
            return self.send_error(416)
        if start:
            start += self.site.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if not is_head:
            self._send(body[start:])

    def _send(self, body: bytes) -> None:
        if not self.site.cuts:
            self.wfile.write(body)
            return
        self.wfile.write(body[: self.site.cuts.pop(0)])
        self.wfile.flush()
        if self.site.resets:
            # Linger of 0 s makes close() send a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(files={"f.bin": BODY})
    handler = type("BoundHandler", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *args: None  # a client that hangs up is no news
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    if site.stalls is not None:
        site.stalls.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed_base() -> Iterator[str]:
    """A port that is taken but not listened on: every connection is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


# --- fetch ----------------------------------------------------------------------------------------


def test_fetch_writes_the_whole_file_and_makes_its_folder(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "data" / "f.bin"
    fetch(site.url("f.bin"), target, sha256(BODY), QUICK)
    assert target.read_bytes() == BODY
    assert names_in(tmp_path) == {"data/f.bin"}
    assert site.gets() == [("f.bin", None)]


@pytest.mark.parametrize("resets", [False, True])
def test_cut_connections_are_resumed_where_they_broke(
    site: Site, tmp_path: Path, resets: bool
) -> None:
    site.cuts, site.resets = [100_000, 70_000], resets
    target = tmp_path / "f.bin"
    fetch(site.url("f.bin"), target, sha256(BODY), QUICK)
    assert target.read_bytes() == BODY
    starts = [int(asked[6:-1]) if asked else 0 for _, asked in site.gets()]
    assert len(starts) == 3 and starts == sorted(starts)
    if not resets:  # a reset may take the last bytes with it
        assert starts == [0, 100_000, 170_000]


def test_a_connection_that_is_always_cut_ends_in_one_line_and_keeps_the_part(
    site: Site, tmp_path: Path
) -> None:
    site.cuts = [1000] * 100
    with pytest.raises(DownloadError) as caught:
        fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    message = only_line(str(caught.value))
    assert site.url("f.bin") in message and "run download.py again" in message
    assert "cut after 4000 of 262144 bytes" in message and "4 tries" in message
    assert (tmp_path / "f.bin.part").read_bytes() == BODY[:4000]
    assert names_in(tmp_path) == {"f.bin.part"}


def test_the_next_run_resumes_what_the_last_one_left(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.bin.part").write_bytes(BODY[:5000])
    fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    assert site.gets() == [("f.bin", "bytes=5000-")]
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert names_in(tmp_path) == {"f.bin"}


def test_a_server_that_ignores_ranges_sends_the_file_again(site: Site, tmp_path: Path) -> None:
    site.knows_ranges = False
    site.cuts = [100_000]
    (tmp_path / "f.bin.part").write_bytes(BODY[:5000])
    fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    assert [asked for _, asked in site.gets()] == ["bytes=5000-", "bytes=100000-"]
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_a_server_that_sends_another_range_is_not_believed(site: Site, tmp_path: Path) -> None:
    site.shift = -1
    (tmp_path / "f.bin.part").write_bytes(BODY[:5000])
    fetch(site.url("f.bin"), tmp_path / "f.bin", None, QUICK)
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_a_complete_part_is_only_renamed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.bin.part").write_bytes(BODY)
    fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    assert site.requests == []
    assert names_in(tmp_path) == {"f.bin"}


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize(
    "left", [BODY + b"more", b"x" * len(BODY), b"x" * 5000], ids=["longer", "as long", "other"]
)
def test_a_part_of_another_file_is_replaced(
    site: Site, tmp_path: Path, left: bytes, knows_ranges: bool
) -> None:
    site.knows_ranges = knows_ranges
    (tmp_path / "f.bin.part").write_bytes(left)
    fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert names_in(tmp_path) == {"f.bin"}


def test_a_wrong_hash_is_named_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    expected = sha256(b"another")
    with pytest.raises(DownloadError) as caught:
        fetch(site.url("f.bin"), tmp_path / "f.bin", expected, QUICK)
    message = only_line(str(caught.value))
    assert "f.bin" in message and expected in message and sha256(BODY) in message
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("status", [404, 403, 416])
def test_a_refusal_is_not_repeated(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses["f.bin"] = status
    with pytest.raises(DownloadError, match=f"HTTP {status}") as caught:
        fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    message = only_line(str(caught.value))
    assert site.url("f.bin") in message and "by hand" in message
    assert len(site.requests) == 1
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses["f.bin"] = status
    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    assert len(site.requests) == QUICK.attempts


def test_a_server_that_never_replies_times_out(site: Site, tmp_path: Path) -> None:
    site.stalls = threading.Event()
    with pytest.raises(DownloadError, match=r"timed out.*2 tries.*after the 0 bytes.*--timeout"):
        fetch(site.url("f.bin"), tmp_path / "f.bin", None, Policy(0.05, 2, 0.0))
    assert names_in(tmp_path) == set()


def test_a_host_that_answered_before_is_tried_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try is cut, the second finds nobody, the third gets the rest."""
    site.cuts = [100_000]
    answer, tries = urllib.request.urlopen, itertools.count(1)

    def open_url(*args: object, **options: object) -> object:
        if next(tries) == 2:
            raise urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))
        return answer(*args, **options)

    monkeypatch.setattr(urllib.request, "urlopen", open_url)
    fetch(site.url("f.bin"), tmp_path / "f.bin", sha256(BODY), QUICK)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert [asked for _, asked in site.gets()] == [None, "bytes=100000-"] and next(tries) == 4


def test_a_refused_connection_is_an_unreachable_host(closed_base: str, tmp_path: Path) -> None:
    host = closed_base.removeprefix("http://")
    with pytest.raises(UnreachableError, match=f"{host} does not answer .*refused"):
        fetch(f"{closed_base}/f.bin", tmp_path / "f.bin", None, QUICK)
    assert names_in(tmp_path) == set()


# --- The command line -----------------------------------------------------------------------------


def small_files(site: Site) -> tuple[RemoteFile, ...]:
    contents = {"a.model": b"tokens" * 999, "data/b.txt": b"0 ||| a film\n", "c.npy": b"\x93NUMPY"}
    site.files |= {f"repo/{name}": content for name, content in contents.items()}
    hosts = itertools.cycle(("huggingface", "github"))
    return tuple(
        RemoteFile(name, (Source(next(hosts), f"repo/{name}", sha256(content)),))
        for name, content in contents.items()
    )


def run_main(files: tuple[RemoteFile, ...], hosts: dict[str, str], *argv: object) -> int:
    return download.main([str(word) for word in argv], files=files, hosts=hosts, pause=0.0)


def test_everything_is_downloaded_once(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(site)
    assert run_main(files, site.hosts, "--folder", tmp_path) == 0
    assert names_in(tmp_path) == {"a.model", "data/b.txt", "c.npy"}
    for file in files:
        assert (tmp_path / file.name).read_bytes() == site.files[f"repo/{file.name}"]
    assert capsys.readouterr().out.endswith("all 3 files are there\n")

    site.requests.clear()
    assert run_main(files, site.hosts, "--folder", tmp_path) == 0
    assert site.requests == []
    assert capsys.readouterr() == ("all 3 files are there\n", "")


def test_only_takes_the_named_files(site: Site, tmp_path: Path) -> None:
    files = small_files(site)
    assert run_main(files, site.hosts, "--folder", tmp_path, "--only", "c.npy", "a.model") == 0
    assert names_in(tmp_path) == {"a.model", "c.npy"}


def test_an_unknown_name_is_wrong_usage(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_main(small_files(site), site.hosts, "--folder", tmp_path, "--only", "d.txt")
    assert caught.value.code == 2
    assert "'d.txt'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_an_impossible_timeout_is_wrong_usage(value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        download.main(["--list", "--timeout", value])
    assert caught.value.code == 2


def test_a_file_that_differs_is_kept_until_force(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(site)
    (tmp_path / "a.model").write_bytes(b"mine")
    assert run_main(files, site.hosts, "--folder", tmp_path) == 1
    message = only_line(capsys.readouterr().err)
    assert "a.model" in message and sha256(b"mine") in message and "--force" in message
    assert (tmp_path / "a.model").read_bytes() == b"mine"
    assert names_in(tmp_path) == {"a.model", "data/b.txt", "c.npy"}

    assert run_main(files, site.hosts, "--folder", tmp_path, "--force") == 0
    assert (tmp_path / "a.model").read_bytes() == site.files["repo/a.model"]


def test_force_without_success_keeps_the_old_file(site: Site, tmp_path: Path) -> None:
    files = small_files(site)
    (tmp_path / "a.model").write_bytes(b"mine")
    site.files["repo/a.model"] = b"changed at its source"
    assert run_main(files, site.hosts, "--folder", tmp_path, "--force") == 1
    assert (tmp_path / "a.model").read_bytes() == b"mine"


def test_one_failure_is_one_line_and_does_not_stop_the_others(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(site)
    del site.files["repo/a.model"]
    assert run_main(files, site.hosts, "--folder", tmp_path) == 1
    message = only_line(capsys.readouterr().err)
    assert "a.model: " in message and site.url("repo/a.model") in message and "404" in message
    assert names_in(tmp_path) == {"data/b.txt", "c.npy"}


def test_a_second_source_helps_out(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tuple(Source("github", path, sha256(BODY)) for path in ("gone.bin", "f.bin"))
    files = (RemoteFile("f.bin", sources),)
    assert run_main(files, site.hosts, "--folder", tmp_path) == 0
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert f"from {site.url('f.bin')} (because {site.url('gone.bin')}: HTTP 404" in (
        capsys.readouterr().out
    )


def test_no_network_is_one_line_and_exit_code_1(
    site: Site, closed_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(site)
    hosts = dict.fromkeys(HOSTS, closed_base)
    assert run_main(files, hosts, "--folder", tmp_path) == 1
    message = only_line(capsys.readouterr().err)
    assert "no network" in message and "run download.py or setup.sh again" in message
    assert all(file.name in message for file in files)
    assert run_main(files, hosts, "--folder", tmp_path, "--offline-ok") == 0
    assert only_line(capsys.readouterr().err) == message
    assert names_in(tmp_path) == set()


def test_no_network_is_needed_when_nothing_is_missing(
    site: Site, closed_base: str, tmp_path: Path
) -> None:
    files = small_files(site)
    assert run_main(files, site.hosts, "--folder", tmp_path) == 0
    assert run_main(files, dict.fromkeys(HOSTS, closed_base), "--folder", tmp_path) == 0


def test_one_dead_host_is_no_missing_network(
    site: Site, closed_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(site)  # a.model and c.npy from huggingface, b.txt from github
    hosts = site.hosts | {"huggingface": closed_base}
    assert run_main(files, hosts, "--folder", tmp_path) == 1
    message = only_line(capsys.readouterr().err)
    assert "does not answer" in message and "still to download: a.model, c.npy" in message
    assert names_in(tmp_path) == {"data/b.txt"}


def test_a_dead_host_is_not_asked_again(site: Site, closed_base: str, tmp_path: Path) -> None:
    hosts = site.hosts | {"huggingface": closed_base}
    downloader = Downloader(tmp_path, hosts, QUICK)
    first, _, third = small_files(site)
    with pytest.raises(UnreachableError):
        downloader.obtain(first)
    hosts["huggingface"] = site.base  # from now on it would answer
    with pytest.raises(UnreachableError):
        downloader.obtain(third)
    assert site.requests == []


def test_the_network_is_sought_at_two_hosts_even_for_one_file(
    site: Site, closed_base: str, tmp_path: Path
) -> None:
    files = small_files(site)
    hosts = site.hosts | {"github": closed_base}
    # data/b.txt comes from github alone; that huggingface answers makes it a dead host.
    assert run_main(files, hosts, "--folder", tmp_path, "--only", "data/b.txt") == 1


def test_a_silent_network_is_given_up_in_time(site: Site) -> None:
    silent = socket.socket()
    with silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken, no request is ever answered
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        reason = why_no_network([url, url], 0.05)
        assert reason is not None and "127.0.0.1" in reason
        # A host that answers decides, however long the other one is silent.
        assert why_no_network([url, site.base], 30.0) is None


def test_a_host_that_never_ends_its_reply_is_given_up_too() -> None:
    done = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # the client may hang up
            connection.sendall(b"HTTP/1.1 200 OK\r\nName: ")
            while not done.wait(0.01):  # each byte comes within the socket's own timeout
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        try:
            assert why_no_network([url], 0.3) is not None
        finally:
            done.set()
            thread.join()


def test_a_folder_that_cannot_be_is_one_line(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["--folder", str(tmp_path / "file")]
    main = functools.partial(download.main, files=small_files(site), hosts=site.hosts)
    status, line = refusal_of(main, words)
    assert status == 1 and str(tmp_path / "file") in line and "permissions" in line


def test_list_tells_there_missing_and_differs_without_a_network(
    site: Site, closed_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_files(site)
    (tmp_path / "a.model").write_bytes(site.files["repo/a.model"])
    (tmp_path / "c.npy").write_bytes(b"mine")
    hosts = dict.fromkeys(HOSTS, closed_base)
    assert run_main(files, hosts, "--folder", tmp_path, "--list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["there", "a.model"],
        ["missing", "data/b.txt"],
        ["differs", "c.npy"],
    ]
    assert all(row[2].startswith(closed_base) for row in rows)


def run_program(folder: Path, base: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """download.py as a process of its own, with `base` for every host."""
    code = (
        "import sys, download; from mini_llama.downloads.files import HOSTS\n"
        "hosts = dict.fromkeys(HOSTS, sys.argv[1])\n"
        "sys.exit(download.main(sys.argv[2:], pause=0.0, hosts=hosts))"
    )
    command = [sys.executable, "-c", code, base, "--folder", str(folder), *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_program_needs_no_network_for_its_list(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "download.py"), "--list", "--folder", str(tmp_path)]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert len(listed.stdout.splitlines()) == len(FILES) == 15
    assert "https://raw.githubusercontent.com/cmu-l3/anlp-fall2025-hw1/" in listed.stdout


def test_the_program_without_network(closed_base: str, tmp_path: Path) -> None:
    ran = run_program(tmp_path, closed_base)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "stories42M.pt" in only_line(ran.stderr)


def test_the_real_table_against_the_real_files(site: Site, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which holds the real files")
    originals = {
        "sanity_check.data": "sanity_check-fall2025.data",
        "optimizer_test.npy": "optimizer_test-fall2025.npy",
    }
    names = [file.name for file in FILES if file.model_args is None]
    for file in FILES:
        if file.name in names:
            folder = SHARED if file.name.startswith("data/") else SHARED / "reference"
            content = (folder / originals.get(file.name, file.name)).read_bytes()
            site.files[file.sources[0].path] = content
    ran = run_program(tmp_path, site.base, "--only", *names)
    assert (ran.returncode, ran.stderr) == (0, "")  # no progress where there is no terminal
    assert names_in(tmp_path) == set(names)


# --- Checkpoints ----------------------------------------------------------------------------------


def tiny_binary(hidden_dim: int = 32, max_seq_len: int = 16) -> bytes:
    """A llama2.c .bin file, version 0, of TINY_ARGS, with random weights."""
    dim, layers, heads, kv_heads, vocab = TINY_ARGS.values()
    kv_dim = dim // heads * kv_heads
    per_layer = 2 * dim + 2 * dim * dim + 2 * dim * kv_dim + 3 * dim * hidden_dim
    tables = max_seq_len * (dim // heads)
    count = vocab * dim + layers * per_layer + dim + tables
    weights = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    header = struct.pack("<7i", dim, hidden_dim, layers, heads, kv_heads, vocab, max_seq_len)
    return header + weights.tobytes()


@pytest.fixture
def checkpoint_files(site: Site) -> tuple[RemoteFile, ...]:
    binary = tiny_binary()
    site.files["hub/tiny.bin"] = binary
    sources = (Source("huggingface", "hub/tiny.bin", sha256(binary)), Source("cmu", "tiny.pt"))
    return (RemoteFile("tiny.pt", sources, TINY_ARGS),)


def test_a_checkpoint_is_built_from_the_binary(
    site: Site, tmp_path: Path, checkpoint_files: tuple[RemoteFile, ...]
) -> None:
    import torch

    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path) == 0
    assert names_in(tmp_path) == {"tiny.pt"}
    content = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert content["model_args"].items() >= TINY_ARGS.items()
    model = content["model"]
    weights = np.frombuffer(site.files["hub/tiny.bin"], dtype=np.float32, offset=28)
    embedding = torch.from_numpy(weights[: 11 * 8].copy()).view(11, 8)
    assert torch.equal(model["tok_embeddings.weight"], embedding)
    assert torch.equal(model["output.weight"], embedding)
    # Nothing but the tensors themselves: no whole mapping, no RoPE tables.
    stored = sum(t.untyped_storage().nbytes() for t in model.values())
    assert stored == 4 * sum(t.numel() for t in model.values())
    assert stored == len(site.files["hub/tiny.bin"]) - 28 + 4 * 11 * 8 - 4 * 16 * 4

    site.requests.clear()
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path) == 0
    assert site.requests == []


def test_force_rebuilds_a_checkpoint_that_looks_right(
    site: Site, tmp_path: Path, checkpoint_files: tuple[RemoteFile, ...]
) -> None:
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path) == 0
    site.requests.clear()
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path, "--force") == 0
    assert site.gets() == [("hub/tiny.bin", None)]


def test_a_binary_of_the_users_is_used_and_stays(
    site: Site, tmp_path: Path, checkpoint_files: tuple[RemoteFile, ...]
) -> None:
    (tmp_path / "tiny.bin").write_bytes(site.files["hub/tiny.bin"])
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path) == 0
    assert site.gets() == []
    assert names_in(tmp_path) == {"tiny.bin", "tiny.pt"}


def test_another_binary_of_the_users_is_not_touched(
    site: Site, tmp_path: Path, checkpoint_files: tuple[RemoteFile, ...]
) -> None:
    (tmp_path / "tiny.bin").write_bytes(b"mine")
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path) == 0
    assert (tmp_path / "tiny.bin").read_bytes() == b"mine"
    assert names_in(tmp_path) == {"tiny.bin", "tiny.pt"}


def test_the_hosted_checkpoint_is_the_fallback(
    site: Site,
    tmp_path: Path,
    checkpoint_files: tuple[RemoteFile, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path / "first") == 0
    built = (tmp_path / "first" / "tiny.pt").read_bytes()
    site.files["tiny.pt"] = built
    site.files["hub/tiny.bin"] += b"!"  # wrong hash from now on
    capsys.readouterr()
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path / "second") == 0
    assert (tmp_path / "second" / "tiny.pt").read_bytes() == built
    assert names_in(tmp_path / "second") == {"tiny.pt"}
    assert "wrong SHA-256" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["other shape", "truncated", "a web page"])
def test_a_hosted_checkpoint_that_is_not_the_model_is_refused(
    site: Site,
    tmp_path: Path,
    checkpoint_files: tuple[RemoteFile, ...],
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path / "first") == 0
    built = (tmp_path / "first" / "tiny.pt").read_bytes()
    contents = {"truncated": built[: len(built) // 2], "a web page": b"<!doctype html>"}
    site.files["tiny.pt"] = contents.get(damage, built)
    del site.files["hub/tiny.bin"]
    args = TINY_ARGS | {"n_heads": 4} if damage == "other shape" else TINY_ARGS
    files = (RemoteFile("tiny.pt", checkpoint_files[0].sources, args),)
    capsys.readouterr()
    assert run_main(files, site.hosts, "--folder", tmp_path / "second") == 1
    message = only_line(capsys.readouterr().err)
    assert "tiny.pt" in message and "HTTP 404" in message
    assert damage != "other shape" or "n_heads=2 instead of 4" in message
    assert names_in(tmp_path / "second") == set()


def test_an_existing_checkpoint_of_another_shape_is_kept_until_force(
    site: Site,
    tmp_path: Path,
    checkpoint_files: tuple[RemoteFile, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "tiny.pt"
    target.write_bytes(b"PK, or so it says")
    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path) == 1
    message = only_line(capsys.readouterr().err)
    assert "tiny.pt is there, but" in message and "--force" in message
    assert target.read_bytes() == b"PK, or so it says"
    assert site.requests == []

    assert run_main(checkpoint_files, site.hosts, "--folder", tmp_path, "--force") == 0
    assert target.stat().st_size > 1000
