"""A server for one reader on this machine: the loopback address only, GET only, and nothing but what it knows by name.

An address is looked up in a table of what there is to show; it is never made into a path, so there is nothing outside of the
table that could be asked for. The addresses begin with a random word, because other users of a machine can reach its
loopback address too; a browser is not started with them, which these could list, but led to them. A request whose Host is
another name than that of this machine comes from a page that pretends to be here (DNS rebinding), and is refused. The pages
may load from this server alone, which the browser enforces.
"""

import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from diffuseg.atomic_io import nan_to_none
from diffuseg.errors import UserError
from diffuseg.viewer.cases import Case
from diffuseg.viewer.page import page, script, text
from diffuseg.viewer.voxels import SERVED, encode

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
SCRIPT, JSON = "text/javascript; charset=utf-8", "application/json; charset=utf-8"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
DOOR = """<!DOCTYPE html>
<meta charset="utf-8"><meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0; url={address}">
<title>diffuseg view</title><a href="{address}">diffuseg view</a>
"""


class Shown:
    """What there is to show, by address."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.root = f"/{secrets.token_urlsafe(12)}/"

    def answer(self, address: str) -> tuple[str, bytes] | None:
        """Type and content of what is at an address as it was asked for, undecoded; None where there is nothing.

        Raises:
            UserError: A layer cannot be read.
        """
        if not address.startswith(self.root):
            return None
        name = address.removeprefix(self.root)
        if name == "":
            return "text/html; charset=utf-8", page().encode()
        if name == "style.css":
            return "text/css; charset=utf-8", text("style.css").encode()
        if name == "cases.json":
            return JSON, json.dumps(nan_to_none([case.describe() for case in self.cases])).encode()
        if match := re.fullmatch(r"([a-z]{1,20})\.js", name):
            found = script(match[1])
            return None if found is None else (SCRIPT, found.encode())
        if match := re.fullmatch(r"case/([0-9]{1,9})/([a-z0-9]{1,20})", name):
            return self._layer(int(match[1]), match[2])
        return None

    def _layer(self, number: int, key: str) -> tuple[str, bytes] | None:
        case = self.cases[number] if number < len(self.cases) else None
        layer = next((layer for layer in case.layers if layer.key == key), None) if case else None
        return ("application/octet-stream", encode(case, layer, SERVED)) if case and layer else None


class Answers(BaseHTTPRequestHandler):
    """One request, answered from what there is to show."""

    server_version, sys_version = "diffuseg", ""
    shown: Shown

    def do_GET(self) -> None:
        """The content of an address; 403 for another host or origin, 404 for what there is not, 422 for what cannot be read."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or re.sub(r":[0-9]{1,5}$", "", hosts[0]) not in NAMES:
            return self._say(HTTPStatus.FORBIDDEN, "this server answers to this machine alone")
        known = {*NAMES, "null"} if self.headers.get("Sec-Fetch-Mode") == "navigate" else NAMES  # null: from `doorway`
        if any(re.sub(r"^https?://|:[0-9]{1,5}$", "", origin) not in known for origin in self.headers.get_all("Origin") or []):
            return self._say(HTTPStatus.FORBIDDEN, "this server answers to its own pages alone")
        try:
            found = self.shown.answer(self.path)
        except UserError as fault:
            return self._say(HTTPStatus.UNPROCESSABLE_ENTITY, str(fault))
        if found is None:
            return self._say(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        self._send(HTTPStatus.OK, *found)

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _say(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # a body that was sent along is not read
        self._send(status, "text/plain; charset=utf-8", text.encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            if status == HTTPStatus.METHOD_NOT_ALLOWED:
                self.send_header("Allow", "GET")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # the reader went elsewhere

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: names of cases do not belong into a terminal's history."""


def open_server(cases: Sequence[Case], port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server that is bound but does not answer yet, and the address to open; port 0 takes a free one.

    Raises:
        UserError: The port is taken, or may not be used.
    """
    shown = Shown(cases)
    answers = type("AnswersOfThese", (Answers,), {"shown": shown})
    try:
        server = ThreadingHTTPServer((ADDRESS, port), answers)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error})", do="Choose another --port, or leave it out") from None
    server.daemon_threads = True
    return server, f"http://{ADDRESS}:{server.server_address[1]}{shown.root}"


@contextmanager
def doorway(address: str) -> Iterator[str]:
    """The address of a file that leads a browser to `address`, for this user alone; it is there until the block ends.

    What a browser is started with stands among its arguments, which all users of a machine can list; the random word in
    `address` is not for them.

    Raises:
        UserError: No temporary file can be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="diffuseg-")  # made with mode 0700
        door = Path(folder.name) / "view.html"
        door.write_text(DOOR.format(address=address), encoding="utf-8")
    except OSError as error:
        what = f"no temporary file can be written ({error.strerror or error})"
        raise UserError(what, do="Say --no-browser, and open the address yourself") from None
    with folder:
        yield door.as_uri()


def serve(server: ThreadingHTTPServer, on_ready: Callable[[], None]) -> None:
    """Answer until interrupted, which is how it ends."""
    try:
        on_ready()
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
