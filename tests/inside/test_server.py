"""server.py: whoever does not come from the page is refused; what is asked is bounded."""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_llama.inside import page
from mini_llama.inside.server import ADDRESS, MAX_REQUEST_BYTES, Server
from tests.helpers import ROOT
from tests.inside.browser import open_page

JSON = {"Content-Type": "application/json"}


def answer(question):
    if "bad" in question:
        raise ValueError("--bad is not allowed:\nit must be\u202e left out")
    if "broken" in question:
        raise KeyError("it broke")
    return {"asked": question}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(0, "<p>the page</p>", "default-src 'none'", answer)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(
    server: Server, method: str, path: str, headers: dict | None = None, body: str | None = None
):
    connection = http.client.HTTPConnection(ADDRESS, server.server_port, timeout=120)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read().decode(), response.headers


def test_the_page_and_its_questions_are_answered(server: Server):
    status, body, headers = ask(server, "GET", f"/{server.token}/")
    assert (status, body) == (200, "<p>the page</p>")
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
    question = {"text": "</script>\u202e\x00"}
    path, body = f"/{server.token}/look", json.dumps(question)
    own = {"Origin": f"http://{ADDRESS}:{server.server_port}", "Sec-Fetch-Site": "same-origin"}
    status, body, _ = ask(server, "POST", path, JSON | own, body)
    assert (status, json.loads(body)) == (200, {"asked": question})


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Host": "evil.example"}, "the Host is another"),
        ({"Host": "127.0.0.1"}, "the Host is another"),
        ({"Host": ""}, "the Host is another"),
        ({"Origin": "http://evil.example"}, "the origin is another"),
        ({"Origin": "null"}, "the origin is another"),
        ({"Origin": "https://127.0.0.1"}, "the origin is another"),
        ({"Sec-Fetch-Site": "cross-site"}, "another site asks"),
        ({"Sec-Fetch-Site": "same-site"}, "another site asks"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_others_are_refused(server: Server, method: str, headers: dict, reason: str):
    path = f"/{server.token}/" + ("look" if method == "POST" else "")
    status, body, _ = ask(server, method, path, JSON | headers, "{}" if method == "POST" else None)
    assert (status, json.loads(body)) == (403, {"error": reason})


@pytest.mark.parametrize(
    "path", ["/", "/x/", "/{token}x/", "/x{token}/", "//{token}", "/%C3%A9/", "*"]
)
def test_without_the_token_nothing_is_there(server: Server, path: str):
    path = path.format(token=server.token)
    status, body, _ = ask(server, "GET", path)
    assert status in (403, 404) and "the page</p>" not in body


@pytest.mark.parametrize("path", ["/{token}/../x", "/{token}/look", "/{token}/etc/passwd"])
def test_there_is_only_the_page(server: Server, path: str):
    assert ask(server, "GET", path.format(token=server.token))[0] == 404


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, "{}", 415),
        ({}, "{}", 415),
        (JSON, "[]", 400),
        (JSON, "{", 400),
        (JSON, "[" * 9000, 400),
        (JSON | {"Content-Length": str(MAX_REQUEST_BYTES + 1)}, "{}", 413),
        (JSON | {"Content-Length": "9" * 400}, "{}", 413),
        (JSON | {"Content-Length": "-1"}, "{}", 411),
        (JSON | {"Content-Length": "²"}, "{}", 411),
        (JSON, '{"bad": 1}', 400),
        (JSON, '{"broken": 1}', 500),
    ],
)
def test_what_is_no_question_is_refused(server: Server, headers: dict, body: str, status: int):
    headers = {name: value.encode() for name, value in headers.items()}
    found, content, _ = ask(server, "POST", f"/{server.token}/look", headers, body)
    assert found == status
    error = json.loads(content)["error"]
    assert error and error.isprintable()


def test_only_this_machine_is_listened_to(server: Server):
    assert server.server_address[0] == "127.0.0.1"
    other = Server(0, "", "", answer)
    other.server_close()
    assert len(server.token) >= 32 and other.token != server.token


def test_a_connection_that_says_nothing_keeps_nobody_waiting(server: Server):
    with socket.create_connection((ADDRESS, server.server_port)):
        assert ask(server, "GET", f"/{server.token}/")[0] == 200


def test_a_taken_port_is_one_line(server: Server):
    with pytest.raises(OSError, match=r"^--port \d+ cannot be used \(.*\): give another, or 0"):
        Server(server.server_port, "", "", answer)


SUBMIT = """
document.getElementById("text").value = "One red fox";
document.querySelector("form").requestSubmit();
"""


def test_see_serves_a_page_that_can_ask_for_more(tmp_path: Path):
    """The command itself, and its page in a browser, which types a text."""
    code = "from mini_llama.inside import page; own = page.bundle()\n"
    code += f"page.bundle = lambda: own + {SUBMIT!r}\n"
    code += "import see; see.main(['--serve', '--max_new_tokens', '1'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = re.search(r"open (http://127\.0\.0\.1:\d+/\S+/) ", process.stdout.readline())[1]
        dom, messages, requests = open_page(url, tmp_path)
        assert messages == []
        origin = re.match(r"http://[\d.:]+/", url)[0]
        assert requests and all(address.startswith(origin) for address in requests)
        shown = dom.partition('id="page"')[2].partition("<script")[0]
        assert re.search(r"▁red</bdi>", shown) and not re.search(r"▁upon</bdi>", shown)
    finally:
        process.terminate()
        process.wait(120)


def test_the_policy_of_a_live_page_lets_it_ask_its_server():
    assert "connect-src 'self'" in page.policy_of_ours(is_live=True)
    assert "connect-src" not in page.policy_of_ours()
