"""Full disks and folders that cannot be written: a clear error with code 2 or 3, and no half file.

A small tmpfs is mounted where that is allowed (as root); else files may have no more than some bytes (RLIMIT_FSIZE), whose
error is another, EFBIG. Root may write anywhere, so what cannot be written is a mount that is read-only, or a file in a
folder's place.
"""

import os
import random
import resource
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.torture.child import Tally
from tools.torture.kills import WISHES, _fork, _predict_shards, _torn, _train

SIZES = (0, 1, 3, 8, 20, 60)  # kilobytes that are free


def run(work: Path, only: str = "") -> Iterator[Tally]:
    """Train, predict, merge, evaluate, convert and demo-data onto disks that are full at some point, or read-only."""
    from diffuseg.data.synthetic import make_dataset

    data = make_dataset(work / "data", cases=4, shape=(10, 12, 9), test_cases=4)
    pid = _fork(lambda: (_train(data, work / "model"), _predict_shards(_model(work), data / "imagesTs", work)))
    assert os.waitpid(pid, 0)[1] == 0, "fails undisturbed"
    return (_filled(name, how, work / "mounted") for name, how in _commands(work, data).items() if only in name)


def _filled(name: str, arguments: Callable[[Path], list[str]], place: Path) -> Tally:
    """What comes of one command."""
    tally = Tally("disk", name)
    for kilobytes in SIZES:
        _full(tally, name, arguments, place, kilobytes)
    _closed(tally, name, arguments, place)
    return tally


def _model(work: Path) -> Path:
    return work / "model" / "best.safetensors"


def _commands(work: Path, data: Path) -> dict[str, Callable[[Path], list[str]]]:
    wishes = [part for wish in WISHES for part in ("--set", wish)]
    train = ["train", str(data), "--method", "concat", "--steps", "2", "--device", "cpu", "--precision", "fp32", *wishes]
    predict = ["predict", str(_model(work)), str(data / "imagesTs"), "--draws", "2", "--steps", "2", "--device", "cpu"]
    shards = [str(work / "shard1"), str(work / "shard2")]
    return {
        "train": lambda out: [*train, "--out", str(out)],
        "predict": lambda out: [*predict, "--out", str(out)],
        "merge": lambda out: ["merge", str(out), *shards],
        "evaluate": lambda out: ["evaluate", str(data / "labelsTr"), str(data / "labelsTr"), "--out", str(out)],
        "convert": lambda out: ["convert", str(data / "imagesTr"), "--images-only", "--yes", "--out", str(out)],
        "demo-data": lambda out: ["demo-data", str(out), "--cases", "2"],
    }


def _full(tally: Tally, name: str, arguments: Callable[[Path], list[str]], place: Path, kilobytes: int) -> None:
    place.mkdir(exist_ok=True)
    mounted = _mount(place, "size=256k")
    try:
        if mounted:
            with (place / ".ballast").open("wb") as ballast:
                ballast.write(bytes(1024 * (256 - kilobytes) - 8192 if kilobytes else 1024 * 256 - 8192))
            if not kilobytes:
                _fill(place / ".more")
        limit = None if mounted else 1024 * kilobytes
        _judge(tally, f"{name}, {kilobytes} kB free", _command(arguments(place / "out"), limit), place / "out", full=True)
    finally:
        _unmount(place, mounted)


def _closed(tally: Tally, name: str, arguments: Callable[[Path], list[str]], place: Path) -> None:
    place.mkdir(exist_ok=True)
    if _mount(place, "size=256k,ro"):
        _judge(tally, f"{name}, read-only", _command(arguments(place / "out")), place / "out")
        _unmount(place, True)
    file = place.with_name("file")
    file.write_text("in place of a folder")
    _judge(tally, f"{name}, a file in place of the folder", _command(arguments(file)), place / "out")
    _judge(tally, f"{name}, a file above the folder", _command(arguments(file / "out")), place / "out")
    assert file.read_text() == "in place of a folder"


def _judge(tally: Tally, what: str, done: tuple[int, str], out: Path, full: bool = False) -> None:
    """A result where there was room, else a refusal; and no torn file."""
    status, said = done
    tally.mutants += 1
    torn = _torn(out)
    tally.results += status == 0 and not torn
    tally.refusals += status in (2, 3) and not torn
    if torn or status not in (2, 3, *((0,) if full else ())) or "Traceback" in said or (status and not said.strip()):
        tally.faults.append(f"{what}: code {status}; {torn or said[-300:]!r}")


def _command(arguments: list[str], limit: int | None = None) -> tuple[int, str]:
    """Exit code and error output of a command, in a fork; `limit` is the largest file that it may write."""
    inner, outer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _call(arguments, outer, limit)
    os.close(outer)
    with os.fdopen(inner, errors="replace") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def _call(arguments: list[str], pipe: int, limit: int | None) -> None:
    """What the fork does; never returns."""
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(pipe, 2)
        os.close(pipe)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        from diffuseg.cli import app

        app(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(random.Random(0).randbytes(1024))
        except OSError:
            return


def _mount(place: Path, options: str) -> bool:
    """Whether a small disk could be mounted there."""
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True).returncode == 0


def _unmount(place: Path, mounted: bool) -> None:
    if mounted:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)
