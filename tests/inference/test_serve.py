"""The service: what `predict` writes, for requests of this machine alone; faults as JSON, and the next request is answered."""

import http.client
import io
import json
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diffuseg.checkpoint import save_checkpoint
from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference import serve
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.inference.serve import Served, open_service
from diffuseg.methods import METHODS
from tests.inference.oracle import make_model, make_plan

OPTIONS = SamplingOptions(draws=2)


@pytest.fixture
def scans(tmp_path) -> Path:
    """A folder with two scans, and one beside it that is nobody's business."""
    for number, name in enumerate(("scans/a.nii.gz", "scans/b.nii.gz", "secret.nii.gz")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        voxels = 10.0 * np.random.default_rng(number).integers(0, 2, (6, 5, 4)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    (tmp_path / "scans/link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    return tmp_path / "scans"


@contextmanager
def running(served: Served):
    server, address = open_service(served)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield urlsplit(f"{address}/")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def service(scans):
    served = Served(make_model(noise=0.5), OPTIONS, scans)
    with running(served) as address:
        yield served, address


def ask(address, what: str, body: bytes | None = b"", method: str = "POST", **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
    connection.putrequest(method, what if what.startswith("/") else address.path + what, skip_host="Host" in headers)
    if body is not None and "Content_Length" not in headers:
        headers["Content_Length"] = str(len(body))
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read()


def contents(files: dict[str, bytes]) -> dict[str, Any]:
    """Files by name; records without their time and place."""
    own = ("seconds", "source")
    return {
        name: {key: value for key, value in json.loads(data).items() if key not in own} if name.endswith("json") else data
        for name, data in files.items()
    }


def unpacked(body: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        return contents({name: archive.read(name) for name in archive.namelist()})


def test_an_image_that_is_sent_or_named_gives_what_predict_writes(service, scans, tmp_path):
    _, address = service
    predict_folder(make_model(noise=0.5), [scans / "a.nii.gz", scans / "b.nii.gz"], tmp_path / "out", OPTIONS)
    written = contents({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    status, headers, body = ask(address, "predict?path=a.nii.gz&path=b.nii.gz")
    assert (status, headers["Content-Type"]) == (200, "application/zip") and unpacked(body) == written
    sent = unpacked(ask(address, "predict?name=a.nii.gz", (scans / "a.nii.gz").read_bytes())[2])
    assert sent == {name: content for name, content in written.items() if name.startswith("a")} and len(sent) == 4


def test_probabilities_are_left_out_where_they_are_not_wanted(scans):
    with running(Served(make_model(), OPTIONS, scans, probabilities=False)) as address:
        assert set(unpacked(ask(address, "predict?path=a.nii.gz")[2])) == {"a.nii.gz", "a_entropy.nii.gz", "a.json"}


def test_it_says_which_model_it_is(service):
    served, address = service
    status, _, body = ask(address, address.path.removesuffix("/"), None, "GET")
    told = json.loads(body)
    assert status == 200 and told["hash"] == served.model.hash and told["settings"] == served.model.settings(OPTIONS)


FAULTS = [
    ("predict?name=a.nii.gz", b"no gzip", {}, 422, "a: a.nii.gz: "),
    ("predict?name=a.xyz", b"x", {}, 422, "a.xyz: this file ending"),
    ("predict?name=../a.nii.gz", b"x", {}, 400, "no file name"),
    ("predict?name=..", b"x", {}, 422, "file ending"),
    ("predict?name=%2Ftmp%2Fa.nii.gz", b"x", {}, 400, "no file name"),
    ("predict?name=x%5Ca.nii.gz", b"x", {}, 400, "no file name"),
    ("predict?name=a%00.nii.gz", b"x", {}, 400, "no file name"),
    ("predict?name=a.nii.gz&name=b.nii.gz", b"x", {}, 400, "ask for"),
    ("predict?name=a.nii.gz&path=a.nii.gz", b"x", {}, 400, "ask for"),
    ("predict?name=a.nii.gz&draws=3", b"x", {}, 400, "ask for"),
    ("predict", b"x", {}, 400, "ask for"),
    ("predict?path=c.nii.gz", b"", {}, 422, "no such file"),
    ("predict?path=../secret.nii.gz", b"", {}, 403, "not in the folder"),
    ("predict?path=link.nii.gz", b"", {}, 403, "not in the folder"),
    ("predict?path=/etc/passwd", b"", {}, 403, "not in the folder"),
    ("predict?path=a%00.nii.gz", b"", {}, 400, "is no path"),
    ("predict?name=a.nii.gz", None, {}, 411, "Content-Length"),
    ("predict?name=a.nii.gz", b"", {"Content_Length": "-1"}, 411, "Content-Length"),
    ("predict?name=a.nii.gz", b"", {"Content_Length": str(2**33 + 1)}, 413, "8589934592 bytes"),
    ("predict?name=a.nii.gz", b"", {"Content_Length": "9" * 5000}, 413, "8589934592 bytes"),
    ("other?name=a.nii.gz", b"", {}, 404, "nothing"),
    ("/predict?path=a.nii.gz", b"", {}, 404, "nothing"),
    ("predict?path=a.nii.gz", b"", {"Host": "evil.example"}, 403, "this machine alone"),
    ("predict?path=a.nii.gz", b"", {"Origin": "http://evil.example"}, 403, "its own pages"),
    ("predict?path=a.nii.gz", b"", {"Origin": "null", "Sec_Fetch_Mode": "navigate"}, 403, "its own pages"),
]


def test_a_fault_is_said_in_json_computes_nothing_and_the_next_request_is_answered(service):
    served, address = service
    for what, body, headers, expected, says in FAULTS:
        status, answered, told = ask(address, what, body, **headers)
        assert (status, answered["Content-Type"]) == (expected, serve.JSON), (what, told)
        error = json.loads(told)["error"]
        assert says in error and "/diffuseg-" not in error, (what, error)
    assert ask(address, "", None, "DELETE")[:1] == (405,) and ask(address, "x", None, "GET")[0] == 404
    assert served.model.method.calls == []
    assert ask(address, "predict?path=a.nii.gz")[0] == 200


def test_paths_are_asked_for_in_a_folder_that_was_named_alone(scans):
    with running(Served(make_model(), OPTIONS)) as address:
        status, _, body = ask(address, f"predict?path={scans / 'a.nii.gz'}")
        assert status == 403 and b"--folder" in body


def test_one_of_several_images_that_fails_fails_the_request(service, scans):
    (scans / "b.nii.gz").write_bytes(b"no gzip")
    status, _, body = ask(service[1], "predict?path=a.nii.gz&path=b.nii.gz")
    assert status == 422 and "b.nii.gz" in json.loads(body)["error"]


def test_what_goes_wrong_by_itself_is_said_too_and_nothing_is_left_behind(service, monkeypatch, tmp_path):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scans"))
    monkeypatch.setattr(serve, "predict_folder", full)
    status, _, body = ask(service[1], "predict?name=a.nii.gz", b"x")
    assert status == 500 and "No space left" in json.loads(body)["error"]
    monkeypatch.undo()
    assert ask(service[1], "predict?path=a.nii.gz")[0] == 200 and not list(tmp_path.rglob("diffuseg-*"))


def test_one_request_at_a_time(service, monkeypatch):
    at_once, most = [], []

    def slowly(*arguments, **keywords):
        at_once.append(1)
        most.append(len(at_once))
        threading.Event().wait(0.02)
        at_once.pop()
        return predict_folder(*arguments, **keywords)

    monkeypatch.setattr(serve, "predict_folder", slowly)
    answers: list[int] = []
    asking = [threading.Thread(target=lambda: answers.append(ask(service[1], "predict?path=a.nii.gz")[0])) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == [200] * 4 and most == [1] * 4


def test_settings_and_folders_that_cannot_be_are_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        open_service(Served(make_model(), SamplingOptions(draws=0)))
    with pytest.raises(UserError, match="--folder"):
        open_service(Served(make_model(), OPTIONS, tmp_path / "nowhere"))


def test_the_command_says_where_it_answers(scans, monkeypatch, tmp_path):
    labels = {"background": 0, "organ": 1}
    method = METHODS["concat"](make_plan(patch=(8, 8, 8), widths=(4, 4), labels=labels), METHODS["concat"].config_class())
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.safetensors", method, {"name": "made/concat"})
    found = []

    def answer_one(server, on_ready):
        on_ready()
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        root = server.RequestHandlerClass.served.root
        found.append((root, *ask(urlsplit(f"http://127.0.0.1:{server.server_address[1]}{root}"), "predict?path=a.nii.gz")))
        thread.join()
        server.server_close()

    monkeypatch.setattr("diffuseg.loopback.serve", answer_one)
    asked = ["serve", str(tmp_path / "m.safetensors"), "--folder", str(scans), "--draws", "3", "--steps", "1", "--no-prob"]
    done = CliRunner().invoke(app, asked)
    ((root, status, _, body),) = found
    files = unpacked(body)
    assert done.exit_code == 0 and f"{done.stdout.split()[0]}/".endswith(root), done.output
    assert status == 200 and set(files) == {"a.nii.gz", "a_entropy.nii.gz", "a.json"}
    assert (files["a.json"]["draws"], files["a.json"]["steps"]) == (3, 1)
