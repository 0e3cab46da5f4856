"""What more steps and more draws buy: quality and cost of each setting, on cases that the model was not trained on.

Draws are shared: the mean of the first n draws of a case is the result for n draws, as `Model.predict` makes it with the
same seed. So the quality of all numbers of draws costs what the largest costs.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from diffuseg.atomic_io import atomic_write, nan_to_none, write_csv, write_json
from diffuseg.data.batches import Batches, FullCase
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import band, brier, nll
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.multirater import DrawAgreement, draw_agreement
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.inference.folds import validation_set
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import Method
from diffuseg.reports.tables import text_table
from diffuseg.text import pluralize
from diffuseg.types import Image

WITHIN = 0.002  # of the best Dice: what a cheaper setting may lose
DRAWS = (1, 2, 4, 8)


class Quality(NamedTuple):
    """Of one case: of the mean of its draws, and of the draws one by one."""

    dice: float
    nll: float
    brier: float
    agreement: DrawAgreement


@dataclass(frozen=True)
class Point:
    """One setting.

    dice, dice_low, dice_high   mean over cases (of the mean over classes), and its 95 % bootstrap interval
    nll      mean of -log p(true class), nats, in the usual band round the true border; mean over cases that have one
    brier    mean of the sum over classes of (p - y)^2, in [0, 2], in the same band; likewise
    evaluations   of the network per tile: steps times draws
    seconds  wall time of predicting the timed case
    memory_mb     peak while it was predicted: allocated on a GPU, else resident in the whole process; None: not known
    dice_draw_truth, dice_draw_draw   mean Dice of a draw with the truth, and of two draws (NaN for a single one)
    dice_gap, dice_gap_low, dice_gap_high   the first minus the second with its 95 % interval; 0 where draws differ as much as
             they err
    """

    steps: int
    draws: int
    dice: float
    dice_low: float
    dice_high: float
    nll: float
    brier: float
    evaluations: int
    seconds: float
    memory_mb: float | None
    dice_draw_truth: float = math.nan
    dice_draw_draw: float = math.nan
    dice_gap: float = math.nan
    dice_gap_low: float = math.nan
    dice_gap_high: float = math.nan


@dataclass(frozen=True)
class Curve:
    """All points, steps first, and where they were measured; `timed` is the case (of median size) that costs were taken on."""

    points: list[Point]
    model: str
    dataset: str
    fold: int
    cases: list[str]
    sampler: str
    seed: int
    timed: str
    device: str
    precision: str

    @property
    def recommended(self) -> Point:
        """The cheapest setting within WITHIN of the best Dice: fewest network evaluations; among equals, the fastest.

        A single draw has no uncertainty: it is recommended only where nothing else was measured. Settings without a Dice (no
        class in any truth or draw) are passed over.
        """
        scored = [point for point in self.points if np.isfinite(point.dice)]
        several = [point for point in scored if point.draws > 1] or scored
        best = max(point.dice for point in several)
        near = [point for point in several if point.dice >= best - WITHIN]
        return min(near, key=lambda point: (point.evaluations, point.seconds))

    def recommendation(self) -> dict[str, Any]:
        """What a checkpoint remembers of it, for `predict`."""
        chosen = self.recommended
        kept = {"steps": chosen.steps, "draws": chosen.draws, "sampler": self.sampler, "dice": round(chosen.dice, 5)}
        return kept | {"within": WITHIN, "dataset": self.dataset, "fold": self.fold, "cases": len(self.cases)}


def measure_curve(
    model: Model,
    folder: Path,
    steps: Sequence[int] = (),
    draws: Sequence[int] = DRAWS,
    options: SamplingOptions | None = None,
    fold: int | None = None,
    limit: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> Curve:
    """Dice, likelihood, Brier score, time and memory of every steps x draws on the validation cases of a fold.

    Args:
        model: A model with draws.
        folder: The data set.
        steps: Numbers of steps; empty: those of `usual_steps`.
        draws: Numbers of draws.
        options: Sampler and seed; its own draws and steps are not used.
        fold: None: the one the model was validated on.
        limit: So many cases, spread evenly; 0: all.
        on_case: Called with (done, cases) after each case.

    Raises:
        UserError: A method without draws, settings that the model refuses, a fold that is not there, cases that the model was
            trained on, or no case with a Dice.
    """
    if not model.method.generative:
        raise UserError(f"{model.name} makes one answer in one step", do="There is nothing to choose")
    steps, draws = sorted(set(steps) or usual_steps(model.method)), sorted(set(draws))
    if not draws:
        raise UserError("no number of draws is given")
    options = options or SamplingOptions()
    settings = {(s, n): model.resolve(replace(options, steps=s, draws=n)) for s in steps for n in draws}
    dataset, fold, cases, groups = validation_set(model, folder, fold, limit)
    source = Batches(dataset, cases, model.plan)
    qualities: dict[tuple[int, int], list[Quality]] = {setting: [] for setting in settings}
    voxels = {}
    for number, name in enumerate(cases):
        case = source.whole(name)
        voxels[name] = case.truth.size
        for s in steps:
            for n, quality in _qualities(model, case, settings[s, draws[-1]], draws).items():
                qualities[s, n].append(quality)
        if on_case is not None:
            on_case(number + 1, len(cases))
    if not any(np.isfinite(quality.dice) for rows in qualities.values() for quality in rows):
        what = f"no class is in any truth or draw of {pluralize(len(cases), 'case')}: there is no Dice to choose by"
        raise UserError(what, file=folder, do="Take more cases (--cases) or another fold (--fold).")
    timed = sorted(cases, key=voxels.__getitem__)[len(cases) // 2]
    image = source.whole(timed).native
    model.predict(image, options, draws=1, steps=1, anyway=True)  # what only the first call costs
    points = [_point(model, image, setting, qualities[key], groups) for key, setting in settings.items()]
    sampler = str(settings[steps[0], draws[0]].sampler)
    where = (dataset.name, fold, cases, sampler, options.seed, timed, str(model.device), model.precision.reason)
    return Curve(points, model.hash, *where)


def usual_steps(method: Method) -> list[int]:
    """Powers of two up to 16 or to the method's own number, whichever is more, and that number, as far as there are levels."""
    own = method.default_steps
    powers = {2**i for i in range(max(16, own).bit_length())}
    return sorted(s for s in powers | {own} if s <= min(max(16, own), method.schedule.T))


def write_curve(curve: Curve, out: Path) -> list[Path]:
    """Write curve.csv, curve.json and curve.png into a folder; returns their paths."""
    from diffuseg.reports.plots import curve_figure

    rows = [asdict(point) for point in curve.points]
    paths = [Path(out) / f"curve.{ending}" for ending in ("csv", "json", "png")]
    write_csv(paths[0], rows)
    write_json(paths[1], nan_to_none(asdict(curve) | {"recommended": curve.recommendation()}))
    atomic_write(paths[2], curve_figure(rows, asdict(curve.recommended)))
    return paths


def table(curve: Curve) -> Table:
    """The points for a terminal of 80 columns, the recommended one marked; the rest is in the files."""
    rows = []
    for p in curve.points:
        overlap = Interval(p.dice, p.dice_low, p.dice_high).text(4)
        memory = "-" if p.memory_mb is None else f"{p.memory_mb:.0f}"
        mark = "*" if p == curve.recommended else ""
        seconds = f"{p.seconds:.{2 if p.seconds < 100 else 0}f}"
        rows.append((str(p.steps), f"{p.draws}{mark}", overlap, f"{p.nll:.3f}", f"{p.brier:.3f}", seconds, memory))
    where = f"fold {curve.fold}, {pluralize(len(curve.cases), 'case')}"
    notes = [
        f"{where}; time and memory of {curve.timed} on {curve.device}.",
        f"* recommended: fewest evaluations of the network within {WITHIN} of the best Dice; a single draw has no spread, "
        "hence no uncertainty.",
        *_agreement_notes(curve),
    ]
    return text_table("Steps and draws", ("steps", "draws", "Dice [95 %]", "NLL", "Brier", "s/case", "MB"), rows, notes)


def _agreement_notes(curve: Curve) -> list[str]:
    """Whether draws differ as much as they err, of the recommended steps and the most draws."""
    point = [p for p in curve.points if p.steps == curve.recommended.steps][-1]
    if not np.isfinite(point.dice_gap):
        return []
    gap = Interval(point.dice_gap, point.dice_gap_low, point.dice_gap_high).text(3, "+")
    return [
        f"Dice of a draw with the truth {point.dice_draw_truth:.3f}, of two draws {point.dice_draw_draw:.3f}, difference {gap} "
        f"({pluralize(point.draws, 'draw')}): 0 where draws differ as much as they err, below 0 where they differ less."
    ]


def peak_of(work: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """Wall seconds of some work, and the peak memory in MB (10^6 bytes) meanwhile, None where it cannot be told."""
    measurable = device.type != "cuda" and _forget_peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter() - started, torch.cuda.max_memory_allocated(device) / 1e6
    seconds = time.perf_counter() - started
    return seconds, _peak() if measurable else None


def _point(model: Model, image: Image, options: SamplingOptions, qualities: list[Quality], groups: list[str]) -> Point:
    """The mean quality of a setting, and what one image costs."""
    assert options.steps is not None and options.draws is not None and options.sampler is not None
    seconds, memory = peak_of(lambda: model.predict(image, options, anyway=True), model.device)
    overlap, likelihood, squares, agreements = zip(*qualities, strict=True)
    truth, other, gaps = zip(*agreements, strict=True)
    evaluations = model.method.evaluations(options.sampler, options.steps) * options.draws
    interval, gap = bootstrap_mean(overlap, groups), bootstrap_mean(gaps, groups)
    return Point(
        steps=options.steps,
        draws=options.draws,
        dice=interval.mean,
        dice_low=interval.low,
        dice_high=interval.high,
        nll=_mean(likelihood),
        brier=_mean(squares),
        evaluations=evaluations,
        seconds=seconds,
        memory_mb=memory,
        dice_draw_truth=_mean(truth),
        dice_draw_draw=_mean(other),
        dice_gap=gap.mean,
        dice_gap_low=gap.low,
        dice_gap_high=gap.high,
    )


def _qualities(model: Model, case: FullCase, options: SamplingOptions, counts: Sequence[int]) -> dict[int, Quality]:
    """Number of draws -> quality of the mean of the first so many draws, on native voxels."""
    draws, near, qualities = model.prepare(case, options), band(case.truth, case.native.steps), {}
    ensemble, masks = draws.ensemble(), []
    labels = range(1, model.plan.classes)
    for draw in draws.draw():
        ensemble.add(draw)
        masks.append(draws.to_native(draws.finalize(draw)).argmax(0))
        if ensemble.draws in counts:
            p, truth = draws.to_native(ensemble.mean), case.truth
            agreement = draw_agreement(np.stack(masks), truth[None], labels)
            mask = p.argmax(0)
            overlap = _mean([dice(mask == k, truth == k) for k in labels])
            qualities[ensemble.draws] = Quality(overlap, nll(p, truth, near), brier(p, truth, near), agreement)
    return qualities


def _mean(values: Sequence[float]) -> float:
    """Over the cases that have a value."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _forget_peak() -> bool:
    """Make the system measure this process's peak memory anew, where it can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> float | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)
