"""The server: this machine, GET, and what it knows by name; nothing else, however it is asked."""

import http.client
import json
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.loopback import serve
from diffuseg.viewer.cases import find_cases
from diffuseg.viewer.page import SCRIPTS
from diffuseg.viewer.server import Shown, open_server
from diffuseg.viewer.voxels import SERVED, encode


@pytest.fixture
def running(volumes):
    cases = find_cases(volumes)
    server, address = open_server(cases)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield cases, urlsplit(address)
    server.shutdown()
    server.server_close()
    thread.join()


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read()


def test_the_page_and_everything_that_it_names_is_there(running):
    cases, address = running
    status, headers, body = ask(address.port, address.path)
    assert status == 200 and headers["Content-Type"].startswith("text/html") and b"For research only" in body
    named = re.findall(rb'(?:src|href)="([^"]+)"', body)
    assert {b"style.css", b"niivue.js", b"page.js"} <= set(named)
    for name in named:
        if not name.startswith(b"data:"):
            assert ask(address.port, address.path + name.decode())[0] == 200, name
    listed = json.loads(ask(address.port, address.path + "cases.json")[2])
    assert [one["case"] for one in listed] == ["a", "b"]
    for number, case in enumerate(cases):
        assert [one["key"] for one in listed[number]["layers"]] == [layer.key for layer in case.layers]
        for layer in case.layers:
            status, _, body = ask(address.port, f"{address.path}case/{number}/{layer.key}")
            assert status == 200 and body == encode(case, layer, SERVED)


def test_only_this_machine_can_reach_it(running):
    _, address = running
    assert address.hostname == "127.0.0.1"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", address.port), timeout=2):
        pass  # another loopback address: a server on all addresses would answer there


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1]", "0.0.0.0"]
)
def test_other_hosts_are_refused(running, host):
    _, address = running
    status, _, body = ask(address.port, address.path, Host=host)
    assert status == 403 and b"research" not in body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.1:9", "localhost:65000"])
def test_the_names_of_this_machine_are_answered_at_any_port(running, host):
    """A port that was forwarded has another number."""
    _, address = running
    assert ask(address.port, address.path, Host=host)[0] == 200


def test_two_hosts_or_none_are_refused(running):
    _, address = running
    for hosts in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", address.port), timeout=10) as line:
            line.sendall(b"GET " + address.path.encode() + b" HTTP/1.0\r\n" + hosts + b"\r\n")
            assert b" 403 " in line.recv(100)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT"])
def test_only_get_is_answered(running, method):
    _, address = running
    status, headers, body = ask(address.port, address.path, method)
    assert status == 405 and headers["Allow"] == "GET" and b"<html" not in body


OUTSIDE = [
    "/", "/etc/passwd", "//etc/passwd", "/cases.json", "{root}../cases.json", "{root}..%2fcases.json",
    "{root}%2e%2e/%2e%2e/etc/passwd", "{root}/etc/passwd", "{root}a.json", "{root}../a.json", "{root}case/0/../../a.json",
    "{root}case/0/%2e%2e", "{root}case/9/mask", "{root}case/-1/mask", "{root}case/0/mask/", "{root}case/0/mask?x",
    "{root}case/0/mask%00", "{root}case/00000000000/mask", "{root}case/0/image/../mask", "{root}case/0/nothing",
    "{root}page.py", "{root}server.js", "{root}..\\a.json", "{root}niivue.umd.js", "http://evil.example/",
    "http://127.0.0.1{root}", "{root}%63ases.json", "{root}cases.json#", "*", "{root}NIIVUE_NOTICE.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_not_in_the_table_is_not_there(running, path):
    _, address = running
    status, _, body = ask(address.port, path.replace("{root}", address.path))
    assert status == (403 if "evil" in path else 404) and len(body) < 100


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_no_address_leads_anywhere_else(rest):
    shown = Shown([])
    known = {"", "style.css", "cases.json", *(f"{name}.js" for name in SCRIPTS)}
    assert (shown.answer(shown.root + rest) is not None) == (rest in known)


def test_a_link_out_of_the_folder_leads_nowhere(volumes, tmp_path):
    secret = tmp_path / "scans" / "a_0000.nii.gz"
    (volumes / "a_entropy.nii.gz").unlink()
    (volumes / "a_entropy.nii.gz").symlink_to(secret)
    shown = Shown(find_cases(volumes))
    assert shown.answer(f"{shown.root}case/0/entropy") is None
    assert shown.answer(f"{shown.root}case/0/mask") is not None


def test_pages_may_load_from_this_server_alone(running):
    _, address = running
    policy = ask(address.port, address.path)[1]["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert {source for sources in rules.values() for source in sources.split()} <= {"'none'", "'self'", "data:", "blob:"}
    assert ask(address.port, address.path)[1]["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_layer_that_cannot_be_read_is_said_so_and_the_others_are_shown(volumes, running):
    _, address = running
    (volumes / "a_prob.nii.gz").write_bytes(b"no gzip")
    status, _, body = ask(address.port, address.path + "case/0/prob0")
    assert status == 422 and b"a_prob.nii.gz" in body
    assert ask(address.port, address.path + "case/0/mask")[0] == 200


def test_each_server_has_a_word_of_its_own():
    assert len({Shown([]).root for _ in range(20)}) == 20


def test_a_port_that_is_taken_is_refused(running):
    _, address = running
    with pytest.raises(UserError, match=str(address.port)):
        open_server([], address.port)


def test_an_interrupt_is_how_it_ends():
    server, _ = open_server([])

    def interrupted():
        raise KeyboardInterrupt

    serve(server, interrupted)
    assert server.socket.fileno() == -1


def test_the_word_is_not_among_the_arguments_of_a_browser(volumes, monkeypatch):
    opened = []

    def browse(door: str) -> None:
        file = Path(url2pathname(urlsplit(door).path))
        opened.append((door, file, stat.S_IMODE(file.parent.stat().st_mode), file.read_text()))

    monkeypatch.setattr("webbrowser.open", browse)
    monkeypatch.setattr("diffuseg.loopback.serve", lambda server, on_ready: (on_ready(), server.server_close()))
    done = CliRunner().invoke(app, ["view", str(volumes)])
    address = done.stdout.split()[0]
    ((door, file, mode, content),) = opened
    assert done.exit_code == 0 and urlsplit(door).scheme == "file" and urlsplit(address).path.strip("/") not in door
    assert mode == 0o700 and f'content="0; url={address}"' in content and not file.parent.exists()
    opened.clear()
    monkeypatch.setattr("tempfile.tempdir", str(volumes / "a.json"))
    refused = CliRunner().invoke(app, ["view", str(volumes)])
    assert refused.exit_code == 2 and "--no-browser" in refused.stderr and refused.stderr.count("\n") == 1 and not opened
    assert CliRunner().invoke(app, ["view", str(volumes), "--no-browser"]).exit_code == 0 and not opened


def test_the_command_serves_until_it_is_interrupted(volumes):
    command = [sys.executable, "-u", "-m", "diffuseg.cli", "view", str(volumes), "--no-browser"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background may have inherited deafness
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as running:
        address = urlsplit(running.stdout.readline().split()[0])
        assert ask(address.port, address.path)[0] == 200
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=30)
    assert running.returncode == 0 and said == ("", "")


def test_a_page_without_an_origin_of_its_own_may_lead_here_and_read_nothing(running):
    _, address = running
    assert ask(address.port, address.path, Origin="null")[0] == 403
    for other in ("http://evil.example", "null"):
        assert ask(address.port, address.path + "cases.json", Origin=other, **{"Sec-Fetch-Mode": "cors"})[0] == 403
    assert ask(address.port, address.path, Origin="null", **{"Sec-Fetch-Mode": "navigate"})[0] == 200
    assert ask(address.port, address.path, Origin="http://evil.example", **{"Sec-Fetch-Mode": "navigate"})[0] == 403
