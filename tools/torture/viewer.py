"""The page of results: no address but loopback, no path outside of its cases, no foreign Host or Origin."""

import http.client
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tools.torture.child import Tally

SECRET = b"this lies outside"
PIECES = (
    "..",
    "%2e%2e",
    "..%2f",
    "%00",
    "//",
    "\\",
    "/etc/passwd",
    "secret.txt",
    "case",
    "0",
    "1",
    "99",
    "-1",
    "mask",
    "image",
    "?",
    "#",
    ".",
)
HOSTS = ("evil.example", "127.0.0.1.evil.example", "localhost.evil", "0.0.0.0", "[::1]", "", "127.1", "localhost@evil.example")


def run(count: int, work: Path, seed: int = 0) -> list[Tally]:
    """So many addresses, hosts and origins asked of a server."""
    from diffuseg.viewer.cases import find_cases
    from diffuseg.viewer.server import open_server
    from tools.torture.texts import _results

    folder = _results(work)
    (work / "secret.txt").write_bytes(SECRET)
    (folder / "case0_entropy.nii.gz").unlink()
    (folder / "case0_entropy.nii.gz").symlink_to(work / "secret.txt")
    server, address = open_server(find_cases(folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        door = urlsplit(address)
        assert door.port is not None
        rng = random.Random(seed)
        return [
            _asked("paths outside", count, lambda: _path(door.port or 0, door.path, rng)),
            _asked("foreign hosts", count, lambda: _host(door.port or 0, door.path, rng)),
            _asked("foreign origins", count, lambda: _origin(door.port or 0, door.path, rng)),
            _asked("other addresses", len(_addresses()), _reached(door.port)),
        ]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _asked(kind: str, count: int, ask: Callable[[], str]) -> Tally:
    """What is not refused is a fault; `ask` says how it is answered, "" where it is refused."""
    tally = Tally("viewer", kind)
    for _ in range(count):
        tally.mutants += 1
        fault = ask()
        tally.refusals += not fault
        tally.faults += [fault] if fault else []
    return tally


def _get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _path(port: int, root: str, rng: random.Random) -> str:
    path = rng.choice((root, root, "/", "")) + rng.choice(("", "/")).join(rng.choices(PIECES, k=rng.randint(2, 5)))
    status, body = _get(port, path or "/")
    known = {root + f"case/{case}/{key}" for case in (0, 1) for key in ("mask", "image")}
    return "" if path in known or (status in (403, 404, 422) and SECRET not in body) else f"{path}: {status}"


def _host(port: int, root: str, rng: random.Random) -> str:
    host = rng.choice(HOSTS) + rng.choice(("", f":{port}", ":80", ":x"))
    status, _ = _get(port, root, Host=host)
    return "" if status == 403 else f"Host {host}: {status}"


def _origin(port: int, root: str, rng: random.Random) -> str:
    origin = rng.choice(("http://", "https://", "file://", "")) + rng.choice((*HOSTS[:4], "null"))
    status, _ = _get(port, root + rng.choice(("", "cases.json", "case/0/mask")), Origin=origin)
    return "" if status == 403 else f"Origin {origin}: {status}"


def _addresses() -> list[str]:
    """Addresses of this machine that are not 127.0.0.1."""
    found = {"127.0.0.2", "127.1.2.3", "::1"}
    found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(found - {"127.0.0.1"})


def _reached(port: int) -> Callable[[], str]:
    addresses = iter(_addresses())

    def ask() -> str:
        address = next(addresses)
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            return ""
        return f"{address} is answered"

    return ask
