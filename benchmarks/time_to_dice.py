"""Processor time of a training until its validation Dice is so much: `python -m benchmarks.time_to_dice DATASET METHOD...`.

Each method is trained by itself, on one thread, with a validation on all cases of the fold every so many steps. Planning is
part of the time, validations are not. Dice is that of the averaged weights, as `diffuseg train` prints it. A training ends when
it is through, or at the highest of the targets; its rate falls as that of a whole training of `--steps` does.
"""

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.score import RESULTS, environment, replaced
from diffuseg.train.loop import TrainSettings, train

FILE = RESULTS / "time_to_dice.json"
TARGETS = (0.80, 0.85, 0.87)
DICE = "validation/dice"


class Clock:
    """A logger that remembers (steps, processor seconds of the training alone, Dice) at each validation.

    Args:
        enough: The Dice at which the training is asked to stop, as Ctrl-C does.
    """

    def __init__(self, enough: float) -> None:
        self.enough, self.points = enough, list[tuple[int, float, float]]()
        self._last, self._trained = time.process_time(), 0.0

    def log(self, values: dict[str, float], step: int) -> None:
        """A step, or a validation after it."""
        now = time.process_time()
        if DICE in values:
            self.points.append((step, self._trained, values[DICE]))
        else:
            self._trained += now - self._last
        self._last = now
        if values.get(DICE, 0.0) >= self.enough:
            signal.raise_signal(signal.SIGINT)

    def flush(self) -> None:
        """Nothing is kept elsewhere."""

    def close(self, failed: bool) -> None:
        """Nothing is open."""


def first(points: Sequence[tuple[int, float, float]], target: float) -> tuple[int, float] | None:
    """Steps and seconds of the first validation with this Dice; None where there is none."""
    return next(((step, seconds) for step, seconds, dice in points if dice >= target), None)


def measure(dataset: Path, method: str, steps: int, every: int, fold: int, options: Sequence[str]) -> dict[str, Any]:
    """One training, and when it reached each target."""
    clock = Clock(max(TARGETS))
    chosen = ["train.log_every=1", "train.validation_cases=0", *options]  # the clock is read after every step
    with tempfile.TemporaryDirectory(prefix="time-to-dice-") as folder, suppress(KeyboardInterrupt):
        out = Path(folder) / "run"
        settings = TrainSettings(dataset, method, out, fold, steps=steps, set=chosen, validate_every=every, log_to=[clock])
        train(settings)
    reached = {f"{target:.2f}": first(clock.points, target) for target in TARGETS}
    row = {
        "method": method,
        "set": dataset.resolve().name,
        "fold": fold,
        "steps": steps,
        "every": every,
        "options": " ".join(options),
    }
    return row | {"reached": reached, "points": clock.points, "environment": environment()}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=25, help="steps between validations")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="as in `diffuseg train`; repeatable")
    parser.add_argument("--out", type=Path, default=FILE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for method in asked.methods:
        row = measure(asked.dataset, method, asked.steps, asked.every, asked.fold, asked.set)
        print(json.dumps({key: row[key] for key in ("method", "reached")}), flush=True)
        before = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": [], "others": []}
        before["rows"] = replaced(before["rows"], [row], ("method", "set", "fold", "options"))
        asked.out.write_text(json.dumps(before, indent=1) + "\n")


if __name__ == "__main__":
    main()
