"""A model that stays loaded and answers on this machine: an image in, what `predict` writes about it out.

GET  <address>                           which model it is
POST <address>/predict?name=scan.nii.gz  one image, which is the body
POST <address>/predict?path=a.nii.gz     an image or a folder in the folder that was named at the start; several paths: several

The answer is a zip. A fault is {"error": "..."} with a status from 400 on, and then there is no result. One request is answered
at a time, while others wait.
"""

import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import HTTPServer
from pathlib import Path, PureWindowsPath
from typing import IO
from urllib.parse import parse_qs

from diffuseg.data import io
from diffuseg.errors import UserError
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.model import NOTICE, Model
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.loopback import ADDRESS, LoopbackAnswers, bind, secret_root

LARGEST = 8 * 2**30  # bytes of a body
PART = 2**20  # of these are in memory at a time
JSON, ZIP = "application/json; charset=utf-8", "application/zip"
_log = logging.getLogger("diffuseg")


class Refused(UserError):
    """A request that cannot be answered, with the status that says why."""

    def __init__(self, status: HTTPStatus, what: str, do: str | None = None) -> None:
        self.status = status
        super().__init__(what, do=do)


@dataclass(frozen=True)
class Served:
    """What answers: a model, how it draws, and the folder whose images may be asked for by their paths."""

    model: Model
    options: SamplingOptions
    folder: Path | None = None
    probabilities: bool = True
    prob_dtype: str = "float32"
    root: str = field(default_factory=secret_root)

    def describe(self) -> dict[str, object]:
        """Which model it is, and what it expects."""
        plan = self.model.plan
        about = {"model": self.model.name, "hash": self.model.hash, "settings": self.model.settings(self.options)}
        return about | {"channels": list(plan.channels), "labels": plan.labels, "notice": NOTICE}

    def uploaded(self, name: str, place: Path) -> Path:
        """Where the image of this name is to lie. Refuses names of no image, and those that lead elsewhere."""
        if PureWindowsPath(name).name != name or "\0" in name or len(name) > 200:
            raise Refused(HTTPStatus.BAD_REQUEST, "the name of the image is no file name", "Give one such as scan.nii.gz")
        io.ending_of(name)
        return place / name

    def within(self, path: str) -> Path:
        """A path in the folder. Refuses those that lead out of it, links among them."""
        if self.folder is None:
            raise Refused(HTTPStatus.FORBIDDEN, "paths are not answered", "Start the server with --folder, or send the image")
        try:
            found, folder = (self.folder / path).resolve(), self.folder.resolve()
        except (OSError, ValueError):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{path!r} is no path") from None
        if not found.is_relative_to(folder):
            raise Refused(HTTPStatus.FORBIDDEN, f"{path} is not in the folder of this server")
        return self.folder / path

    @contextmanager
    def results(self, inputs: list[Path], place: Path) -> Iterator[IO[bytes]]:
        """A zip of what `predict` writes about the inputs. Refuses them where any case fails."""
        out = place / "out"
        found = predict_folder(
            self.model, inputs, out, self.options, probabilities=self.probabilities, prob_dtype=self.prob_dtype
        )
        if found.failed:
            raise UserError("; ".join(f"{case}: {reason}" for case, reason in found.failed))
        with tempfile.TemporaryFile(dir=place) as file:
            with zipfile.ZipFile(file, "w") as archive:  # stored: most of it is compressed already
                for path in sorted(out.iterdir()):
                    archive.write(path, path.name)
            yield file


class Answers(LoopbackAnswers):
    """One request, answered by the model."""

    methods = ("GET", "POST")
    timeout = 60  # seconds of silence after which nobody waits for the rest of a request
    served: Served

    def do_GET(self) -> None:
        """Which model it is; 403 for another host or origin, 404 elsewhere."""
        if self.is_foreign():
            return
        if f"{self.path.removesuffix('/')}/" != self.served.root:
            return self.say(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        self.send(HTTPStatus.OK, JSON, json.dumps(self.served.describe()).encode())

    def do_POST(self) -> None:
        """Results as a zip; 403 and 404 as above, 400, 411 and 413 for an odd request, 422 where `predict` would refuse."""
        if self.is_foreign():
            return
        if self.path.partition("?")[0] != f"{self.served.root}predict":
            return self.say(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        with tempfile.TemporaryDirectory(prefix="diffuseg-") as folder:
            place = Path(folder)
            try:
                with self.served.results(self._inputs(place), place) as file:
                    self._send_file(file)
            except Refused as fault:
                self.say(fault.status, str(fault))
            except UserError as fault:
                self.say(HTTPStatus.UNPROCESSABLE_ENTITY, str(fault).replace(f"{place}/", ""))
            except (ConnectionError, TimeoutError):
                self.close_connection = True  # whoever asked went elsewhere
            except Exception as error:
                _log.debug("%s", self.path, exc_info=True)
                self.say(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def say(self, status: HTTPStatus, text: str) -> None:
        """Faults are JSON here."""
        self.close_connection = True
        self.send(status, JSON, json.dumps({"error": text}).encode())

    def _inputs(self, place: Path) -> list[Path]:
        """What is to be segmented: the body, or paths."""
        body = place / "body"
        self._receive(body)  # also before a refusal, which would otherwise not be read
        asked = parse_qs(self.path.partition("?")[2], keep_blank_values=True)
        names, paths = asked.pop("name", []), asked.pop("path", [])
        if asked or len(names) + bool(paths) != 1:
            raise Refused(
                HTTPStatus.BAD_REQUEST, "ask for predict?name=FILE with the file as the body, or for predict?path=PATH"
            )
        if paths:
            return [self.served.within(path) for path in paths]
        return [body.rename(self.served.uploaded(names[0], place))]

    def _receive(self, file: Path) -> None:
        """Write the body of the request to a file."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the body is not said", "Send Content-Length")
        left = int(length) if len(length) < 20 else LARGEST + 1
        if left > LARGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {LARGEST} bytes", "Give a path: --folder")
        with file.open("wb") as written:
            while left:
                part = self.rfile.read(min(left, PART))
                if not part:
                    raise ConnectionError("the body is shorter than it says")
                left -= written.write(part)

    def _send_file(self, file: IO[bytes]) -> None:
        length = file.tell()
        file.seek(0)
        self.start(HTTPStatus.OK, ZIP, length)
        shutil.copyfileobj(file, self.wfile, PART)


class OneAtATime(HTTPServer):
    """What comes meanwhile waits."""

    request_queue_size = 64


def open_service(served: Served, port: int = 0) -> tuple[HTTPServer, str]:
    """A server that is bound but does not answer yet, and its address. Refuses settings that the model cannot have."""
    served.describe()
    if served.folder is not None and not served.folder.is_dir():
        raise UserError("no such folder", file=served.folder, do="--folder names a folder with images")
    server = bind(OneAtATime, port, type("AnswersOfThis", (Answers,), {"served": served}))
    return server, f"http://{ADDRESS}:{server.server_address[1]}{served.root.removesuffix('/')}"
