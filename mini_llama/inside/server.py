"""The page, live, on this machine's loopback interface alone.

Whoever asks must know the random token in the address. A page of another site that the user's
browser has open is refused by the Host header (a name that was made to lead here), by Origin and
by Sec-Fetch-Site, and cannot read an answer in any case.
"""

import hmac
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Lock
from typing import Any

from mini_llama.command_line import describe, is_out_of_memory, visible

ADDRESS = "127.0.0.1"
MAX_REQUEST_BYTES = 2**16
SECONDS = 20  # for a request to arrive
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Plain data of a question → plain data of the answer; ValueError for what the user can mend.
Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Server(ThreadingHTTPServer):
    """Serves one page, and answers its questions one at a time.

    Raises OSError, in one line, where the port is taken.
    """

    daemon_threads = True

    def __init__(self, port: int, page: str, policy: str, answer: Answer) -> None:
        self.page, self.policy, self.answer = page, policy, answer
        self.token = secrets.token_urlsafe(24)
        self.lock = Lock()
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                f"--port {port} cannot be used ({reason}): give another, or 0 for any free one"
            ) from None

    def server_bind(self) -> None:
        """Without http.server's search for the machine's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news; anything else is a line."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            print(visible(f"see.py: {type(error).__name__}: {error}"), file=sys.stderr)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(f"{name}:{self.server_port}" for name in (ADDRESS, "localhost"))

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """GET /TOKEN/ is the page, POST /TOKEN/look a question."""

    server: Server
    timeout = SECONDS

    def do_GET(self) -> None:
        if self._is_refused():
            return
        if self._path() != "":
            self._refuse(HTTPStatus.NOT_FOUND, "there is only the page here")
            return
        self._send(HTTPStatus.OK, self.server.page.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if self._is_refused():
            return
        if self._path() != "look":
            self._refuse(HTTPStatus.NOT_FOUND, "there is only the page here")
            return
        if (question := self._question()) is None:
            return
        try:
            with self.server.lock:
                answer = self.server.answer(question)
        except (ValueError, OSError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, visible(describe(error)))
        except Exception as error:
            is_full = is_out_of_memory(error)
            reason = "out of memory: give a shorter text" if is_full else visible(describe(error))
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
        else:
            self._send_json(HTTPStatus.OK, answer)

    def _is_refused(self) -> bool:
        """Whether the request was refused: another Host, origin or token than ours."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site")
        token = self.path.partition("?")[0].strip("/").partition("/")[0]
        given, own = token.encode(errors="replace"), self.server.token.encode()
        if host not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "the Host is another")
        elif origin is not None and origin != f"http://{host}":
            self._refuse(HTTPStatus.FORBIDDEN, "the origin is another")
        elif site not in (None, "none", "same-origin"):
            self._refuse(HTTPStatus.FORBIDDEN, "another site asks")
        elif not hmac.compare_digest(given, own):
            self._refuse(
                HTTPStatus.FORBIDDEN, "the token is wrong: use the address that was printed"
            )
        else:
            return False
        return True

    def _path(self) -> str | None:
        """What follows /TOKEN/."""
        path = self.path.partition("?")[0]
        start = f"/{self.server.token}/"
        return path.removeprefix(start) if path.startswith(start) else None

    def _question(self) -> Mapping[str, Any] | None:
        """The JSON object of a request; None if it was refused."""
        kind = self.headers.get_content_type()
        if kind != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is application/json")
            return None
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "a question has a Content-Length")
            return None
        if len(length) > 9 or int(length) > MAX_REQUEST_BYTES:
            most = f"a question has at most {MAX_REQUEST_BYTES} bytes"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, most)
            return None
        try:
            question = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            question = None
        if not isinstance(question, dict):
            self._refuse(HTTPStatus.BAD_REQUEST, "a question is a JSON object")
            return None
        return question

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send_json(status, {"error": reason})

    def _send_json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        policy = f"{self.server.policy}; frame-ancestors 'none'"
        own = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in (HEADERS | own | {"Content-Security-Policy": policy}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "see.py"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news."""


def serve(server: Server) -> None:
    """Until Ctrl-C."""
    print(f"open {server.url} (only this machine can; Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("see.py: ended", file=sys.stderr)
    finally:
        server.server_close()
