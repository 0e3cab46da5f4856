"""A server for this machine alone: the loopback address, one secret word, and nothing for pages of others.

Addresses begin with a random word, because other users of a machine can reach its loopback address too. A request whose Host
is another name than that of this machine comes from a page that pretends to be here (DNS rebinding), and one with another
Origin from a page of somebody else; both are refused.
"""

import re
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, TypeVar

from diffuseg.errors import UserError

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Server = TypeVar("Server", bound=HTTPServer)


def secret_root() -> str:
    """What all addresses of a server begin with: "/", a random word, "/"."""
    return f"/{secrets.token_urlsafe(12)}/"


class LoopbackAnswers(BaseHTTPRequestHandler):
    """One request; a subclass has a `do_GET` or a `do_POST` for each of `methods`, and asks `is_foreign` first."""

    server_version, sys_version = "diffuseg", ""
    methods: tuple[str, ...] = ("GET",)
    headers_of_all = HEADERS

    def is_foreign(self) -> bool:
        """Whether the request came from elsewhere; it is then answered with 403."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or re.sub(r":[0-9]{1,5}$", "", hosts[0]) not in NAMES:
            self.say(HTTPStatus.FORBIDDEN, "this server answers to this machine alone")
            return True
        own = self.origins()
        if any(re.sub(r"^https?://|:[0-9]{1,5}$", "", origin) not in own for origin in self.headers.get_all("Origin") or []):
            self.say(HTTPStatus.FORBIDDEN, "this server answers to its own pages alone")
            return True
        return False

    def origins(self) -> tuple[str, ...]:
        """The origins that a request may come from."""
        return NAMES

    def refuse_method(self) -> None:
        """Say that the method of the request is none of `methods`."""
        self.say(HTTPStatus.METHOD_NOT_ALLOWED, f"only {' and '.join(self.methods)} is answered")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = refuse_method

    def say(self, status: HTTPStatus, text: str) -> None:
        """Answer in a sentence why there is nothing else."""
        self.close_connection = True  # a body that was sent along is not read
        self.send(status, "text/plain; charset=utf-8", text.encode())

    def send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        """Answer with a content of some type; of HEAD only its headers."""
        try:
            self.start(status, kind, len(content))
            if self.command != "HEAD":
                self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # the reader went elsewhere

    def start(self, status: HTTPStatus, kind: str, length: int) -> None:
        """Status and headers of an answer."""
        self.send_response(status)
        for name, value in (self.headers_of_all | {"Content-Type": kind, "Content-Length": str(length)}).items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(self.methods))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: names of cases do not belong into a terminal's history."""


def bind(kind: type[Server], port: int, answers: type[LoopbackAnswers]) -> Server:
    """A server that is bound but does not answer yet; port 0 takes a free one. Refuses a port that cannot be used."""
    try:
        return kind((ADDRESS, port), answers)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error})", do="Choose another --port, or leave it out") from None


def serve(server: HTTPServer, on_ready: Callable[[], None]) -> None:
    """Answer until interrupted, which is how it ends."""
    try:
        on_ready()
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
