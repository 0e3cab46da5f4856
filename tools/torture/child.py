"""Trials in a child process with limits of memory and of seconds; a child that dies is a fault, and the next one goes on."""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuseg.errors import UserError

MEMORY = 2_000_000_000  # bytes that a trial may take
SECONDS = 10  # of the processor that it may last
PATIENCE = 12  # times as many seconds by the clock, on a busy machine
AGAIN = 98  # status of a child after a fault: the next trial gets another
Trial = Callable[[int, Path], Any]  # number, folder: a result, or a UserError


class Hang(BaseException):
    """A trial that lasted too long."""


@dataclass
class Tally:
    """What came of the trials of one kind: results, refusals in a sentence, and whatever else."""

    part: str
    kind: str
    mutants: int = 0
    results: int = 0
    refusals: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0
    processor: float = 0.0  # seconds of all trials together

    def row(self) -> dict[str, Any]:
        """As it is stored."""
        measured = {name: round(getattr(self, name), 2) for name in ("seconds", "processor")} | {
            "megabytes": round(self.megabytes)
        }
        return vars(self) | {"faults": len(self.faults)} | measured


def torture(part: str, kind: str, trial: Trial, count: int) -> Tally:
    """Run trials 0 to count - 1 in children, each over its own folder."""
    tally = Tally(part, kind)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        first = 0
        while first < count:
            first = _one_child(tally, trial, first, count, folder)
    finally:
        shutil.rmtree(folder)
    return tally


def _one_child(tally: Tally, trial: Trial, first: int, count: int, folder: Path) -> int:
    """Trials of one child from the first on; returns the number of the next one."""
    inner, outer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inner)
        _trials(trial, first, count, folder, outer)
    os.close(outer)
    begun, slow, text = first, False, b""
    while True:
        if not select.select([inner], [], [], 2 * PATIENCE * SECONDS)[0]:  # code that is not Python's hears no alarm
            os.kill(pid, signal.SIGKILL)
            slow = True
        block = os.read(inner, 65536)
        if not block:
            break
        *lines, text = (text + block).split(b"\n")
        for line in lines:
            begun = _take(tally, json.loads(line), begun)
    os.close(inner)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:
        return count
    if status == AGAIN:
        return begun + 1
    tally.mutants += 1
    tally.faults.append(f"{begun}: {'hangs in a library' if slow else f'the process ended with {status}'}")
    return begun + 1


def _take(tally: Tally, said: dict[str, Any], begun: int) -> int:
    """One line of a child: what it begins, or what came of it."""
    if "begins" in said:
        return said["begins"]
    tally.mutants += 1
    tally.results += said["outcome"] == "result"
    tally.refusals += said["outcome"] == "refusal"
    if said["outcome"] == "fault":
        tally.faults.append(f"{begun}: {said['what']}")
    tally.seconds = max(tally.seconds, said["seconds"])
    tally.megabytes = max(tally.megabytes, said["megabytes"])
    return begun


def _trials(trial: Trial, first: int, count: int, folder: Path, pipe: int) -> None:
    """What the child does; never returns."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        limit = _memory("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, _hang)
        signal.signal(signal.SIGALRM, _hang)
        for number in range(first, count):
            os.write(pipe, json.dumps({"begins": number}).encode() + b"\n")
            place = folder / str(number)
            place.mkdir()
            found = attempt(trial, number, place)
            os.write(pipe, json.dumps(found).encode() + b"\n")
            shutil.rmtree(place)
            if found["outcome"] == "fault":  # an import that was cut short, say, is no fault of the next trial
                os._exit(AGAIN)
        os._exit(0)
    finally:
        os._exit(99)


def attempt(trial: Trial, number: int, place: Path) -> dict[str, Any]:
    """One trial: its outcome, seconds, and megabytes above those before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started, what = _memory("VmRSS"), time.process_time(), ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE * SECONDS)
    try:
        trial(number, place)
        outcome = "result"
    except UserError as refusal:
        outcome, what = "refusal", str(refusal)
    except BaseException as error:
        outcome, what = "fault", f"{_where(error)}{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    seconds, megabytes = time.process_time() - started, (_memory("VmHWM") - before) / 1e6
    if megabytes > MEMORY / 1e6:
        outcome, what = "fault", f"takes {megabytes:.0f} MB"
    return {"outcome": outcome, "what": what, "seconds": seconds, "megabytes": megabytes}


def _hang(number: int, frame: Any) -> None:
    raise Hang(f"more than {SECONDS} s")


def _where(error: BaseException) -> str:
    """The last line of this project that an error came through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "diffuseg" in file or "torture" in file:
            place = f"{Path(file).name}:{trace.tb_lineno} "
        trace = trace.tb_next
    return place


def _memory(name: str) -> int:
    """Bytes by a line of /proc/self/status; 0 where there is none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0
