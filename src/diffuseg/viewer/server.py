"""A server for one reader on this machine: the loopback address only, GET only, and nothing but what it knows by name.

An address is looked up in a table of what there is to show; it is never made into a path, so there is nothing outside of the
table that could be asked for. Who may ask says `diffuseg.loopback`. A browser is not started with the secret address, which
other users of the machine could list, but led to it. The pages may load from this server alone, which the browser enforces.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path

from diffuseg.atomic_io import nan_to_none
from diffuseg.errors import UserError
from diffuseg.loopback import ADDRESS, HEADERS, NAMES, LoopbackAnswers, bind, secret_root
from diffuseg.viewer.cases import Case
from diffuseg.viewer.page import page, script, text
from diffuseg.viewer.voxels import SERVED, encode

SCRIPT, JSON = "text/javascript; charset=utf-8", "application/json; charset=utf-8"
PAGES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
DOOR = """<!DOCTYPE html>
<meta charset="utf-8"><meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0; url={address}">
<title>diffuseg view</title><a href="{address}">diffuseg view</a>
"""


class Shown:
    """What there is to show, by address."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.root = secret_root()

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


class Answers(LoopbackAnswers):
    """One request, answered from what there is to show."""

    headers_of_all = HEADERS | PAGES
    shown: Shown

    def origins(self) -> tuple[str, ...]:
        """A page without an origin of its own may lead here: `doorway`."""
        return (*NAMES, "null") if self.headers.get("Sec-Fetch-Mode") == "navigate" else NAMES

    def do_GET(self) -> None:
        """The content of an address; 403 for another host or origin, 404 for what there is not, 422 for what cannot be read."""
        if self.is_foreign():
            return
        try:
            found = self.shown.answer(self.path)
        except UserError as fault:
            return self.say(HTTPStatus.UNPROCESSABLE_ENTITY, str(fault))
        if found is None:
            return self.say(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        self.send(HTTPStatus.OK, *found)


def open_server(cases: Sequence[Case], port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server that is bound but does not answer yet, and the address to open; port 0 takes a free one.

    Raises:
        UserError: The port is taken, or may not be used.
    """
    shown = Shown(cases)
    server = bind(ThreadingHTTPServer, port, type("AnswersOfThese", (Answers,), {"shown": shown}))
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
