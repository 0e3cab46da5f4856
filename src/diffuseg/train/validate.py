"""Validation during training, by what the method learns from: drawn masks against true ones, or the denoising error alone."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from diffuseg.data.batches import Batches, FullCase
from diffuseg.data.dataset import Dataset, evenly_spaced
from diffuseg.data.plan import Plan
from diffuseg.evaluation.metrics import dice
from diffuseg.inference.sampling import SamplingOptions, prepare
from diffuseg.methods import Method
from diffuseg.methods.tiles import OVERLAP, windows
from diffuseg.text import pluralize

PICTURED = 3  # cases that are drawn after each validation, always the same ones
DRAWS = 4  # draws of each pictured case
FEW = 4  # whole cases: where not even so many can be afforded, patches of more cases say more
SLICES = 4  # of a volume that is validated by a patch of a 2-D network


@dataclass(frozen=True)
class Validation:
    """The cases of the fold that are looked at, and the seed that makes every validation draw the same noise.

    only     the cases that a training by the clock can afford, in place of `limit` of them
    draws    of each pictured case
    patches  one denoising step of a patch about the object in place of a whole case
    seconds  after which no further case is begun
    on_case  called with (done, cases) before each case
    """

    dataset: Dataset
    cases: list[str]
    plan: Plan
    seed: int
    limit: int
    only: tuple[str, ...] | None = None
    draws: int = DRAWS
    patches: bool = False
    seconds: float = math.inf
    on_case: Callable[[int, int], None] = lambda done, cases: None

    @property
    def chosen(self) -> list[str]:
        """All cases, or `limit` of them spread evenly; or those that can be afforded."""
        return evenly_spaced(self.cases, self.limit) if self.only is None else list(self.only)

    def begun(self) -> Iterator[tuple[int, str]]:
        """Number and name of the cases, as long as there is time; one case is always looked at."""
        started, names = time.perf_counter(), self.chosen
        for number, name in enumerate(names):
            if number and time.perf_counter() - started > self.seconds:
                return
            self.on_case(number, len(names))
            yield number, name

    def bounds(self) -> str:
        """How it is smaller than it was asked for, as text; "" where it is not."""
        cases = pluralize(len(self.chosen), "case")
        if self.patches:
            return f"{cases}, of each a patch about its object with one denoising step"
        return f"{cases} with one draw each" if self.only is not None else ""


@dataclass
class Result:
    """Dice per class of single draws (mean over cases; cases without the class in truth and prediction do not count)."""

    classes: dict[str, float]
    cases: int
    pictures: list[dict[str, Any]] = field(default_factory=list)
    patches: bool = False

    @property
    def dice(self) -> float:
        """Mean over the foreground classes."""
        return float(np.mean(list(self.classes.values())))

    @property
    def score(self) -> float:
        """What chooses the best checkpoint: higher is better."""
        return self.dice

    @property
    def values(self) -> dict[str, float]:
        """What the log keeps."""
        return {"dice": self.dice} | {f"dice_{name}": value for name, value in self.classes.items()}

    def __str__(self) -> str:
        return f"Dice {self.dice:.4f}"

    def summary(self) -> dict[str, Any]:
        """What the checkpoint remembers."""
        of = {"of": "patches about the object, one denoising step"} if self.patches else {}
        return {"dice": self.dice, "dice_per_class": self.classes, "cases": self.cases, "draws": 1} | of


@dataclass
class HeldOut:
    """Mean denoising error over held-out images, and the share of them whose own label denoises them best. No mask is read."""

    error: float
    right_label: float
    cases: int
    pictures: tuple[()] = ()

    @property
    def score(self) -> float:
        """What chooses the best checkpoint: higher is better."""
        return -self.error

    @property
    def values(self) -> dict[str, float]:
        """What the log keeps."""
        return {"error": self.error, "right_label": self.right_label}

    def __str__(self) -> str:
        return f"error {self.error:.4f}, right label {100 * self.right_label:.0f} %"

    def summary(self) -> dict[str, Any]:
        """What the checkpoint remembers."""
        return self.values | {"cases": self.cases}


def validate(method: Method, batches: Batches, validation: Validation) -> Result | HeldOut:
    """Look at the held-out cases of a fold, in the way that the method's supervision allows."""
    return VALIDATORS[method.supervision](method, batches.of(validation.cases), validation)


def by_label(method: Any, source: Batches, validation: Validation) -> HeldOut:
    """Denoising errors under each label, with noise that is the same in every validation."""
    device, labels = next(method.parameters()).device, source.labels
    assert labels is not None
    own, right = [], []
    for number, case in validation.begun():
        errors = method.class_errors(source.image(case).to(device), validation.seed + number)
        own.append(float(errors[labels[case]]))
        right.append(int(errors.argmin()) == labels[case])
    return HeldOut(float(np.mean(own)), float(np.mean(right)), len(own))


def by_mask(method: Method, source: Batches, validation: Validation) -> Result:
    """Dice of one draw per case in native geometry, and a few cases with several draws for the picture.

    The truth of several raters is their majority vote, whatever the training learns from.
    """
    plan, device = validation.plan, next(method.parameters()).device
    names = plan.names
    scores: list[list[float]] = []
    pictures = []
    for number, case in validation.begun():
        whole = source.whole(case)
        options = SamplingOptions(validation.draws if number < PICTURED else 1, seed=validation.seed)
        maps, truth, image = _draw(method, whole, options, device, validation.patches)
        hard = [p.argmax(0) for p in maps]
        annotated = truth < plan.classes
        scores.append([dice((hard[0] == k) & annotated, truth == k) for k in range(1, plan.classes)])
        if number < PICTURED:
            mean = np.mean(maps, axis=0)
            entropy = -(mean * np.log(np.clip(mean, 1e-6, 1))).sum(0)
            known = [score for score in scores[-1] if np.isfinite(score)]
            title = f"{case}  Dice {np.mean(known):.3f}" if known else f"{case}  no class in truth and draw"
            truth = np.where(annotated, truth, 0)
            pictures.append({"image": image, "truth": truth, "draws": hard, "entropy": entropy, "title": title})
    table = np.array(scores)
    means = [float(np.nanmean(column)) if np.isfinite(column).any() else 0.0 for column in table.T]
    return Result(dict(zip(names[1:], means, strict=True)), len(scores), pictures, validation.patches)


def bounded(validation: Validation, method: Method, batches: Batches, seconds: float) -> Validation:
    """The same validation, or a smaller one where it would take longer than so many seconds: fewer cases, then patches.

    What a tile costs is measured on one patch. Cases are taken for as large as the first one.

    Args:
        validation: What was planned.
        method: On its device.
        batches: The validation cases.
        seconds: How long it may take.
    """
    if method.supervision != "mask":
        return replace(validation, seconds=seconds)
    chosen, device = validation.chosen, next(method.parameters()).device
    case = batches.of(validation.cases).whole(chosen[0])
    tile = min(_seconds(method, case, validation.seed, device) for _ in range(2))  # the first call has costs of its own
    steps = method.evaluations(*method.sampling(None, None)) if method.generative else 1
    whole = tile * steps * _tiles(case.image.shape[1:], validation.plan)
    if whole * (len(chosen) + min(PICTURED, len(chosen)) * (validation.draws - 1)) <= seconds:
        return replace(validation, seconds=seconds)
    patches = seconds < whole * min(FEW, len(chosen))
    number = min(max(1, int(seconds / (tile if patches else whole))), len(chosen))
    return replace(validation, only=_spread(chosen, number), draws=1, patches=patches, seconds=seconds)


def _seconds(method: Method, case: FullCase, seed: int, device: torch.device) -> float:
    """What one denoising step of a patch takes."""
    started = time.perf_counter()
    _draw(method, case, SamplingOptions(1, seed=seed), device, patch=True)
    return time.perf_counter() - started


def _spread(names: list[str], number: int) -> tuple[str, ...]:
    """Some of the cases, in an order in which the first ones are spread over all, should there be no time for the rest."""
    some = evenly_spaced(names, number)
    return tuple(some[i] for i in sorted(range(len(some)), key=lambda i: i * 0.618034 % 1))


def _draw(
    method: Method, case: FullCase, options: SamplingOptions, device: torch.device, patch: bool
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Probabilities [k, *s] of the draws, true classes [*s] and image [*s]: native, or of a patch on the plan's grid."""
    if not patch:
        draws = prepare(method, case, options, device)
        return [draws.to_native(draw) for draw in draws.draw()], case.truth, case.native.data[0]
    part = _patch(case, method.plan)
    draws = prepare(method, part, replace(options, steps=1), device)
    return [draw.cpu().numpy() for draw in draws.draw()], part.truth, part.image[0].numpy()


def _patch(case: FullCase, plan: Plan) -> FullCase:
    """The patch about the middle of the object, or of the image where there is none."""
    sizes = list(plan.patch)
    if case.mask.ndim > plan.dims:
        sizes.insert(plan.slice_axis, SLICES)
    where = ((case.mask > 0) & (case.mask < plan.classes)).nonzero()
    middle = where.median(0).values.tolist() if len(where) else [n // 2 for n in case.mask.shape]
    starts = [min(max(m - p // 2, 0), max(n - p, 0)) for m, p, n in zip(middle, sizes, case.mask.shape, strict=True)]
    window = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    mask = case.mask[window]
    return case._replace(image=case.image[(slice(None), *window)], mask=mask, truth=mask.numpy())


def _tiles(shape: Sequence[int], plan: Plan) -> int:
    """How many patches a network looks at in one denoising of a case; slices of a volume one by one."""
    plane = list(shape)
    slices = plane.pop(plan.slice_axis) if len(plane) > plan.dims else 1
    count = len(list(windows(tuple(plane), plan.patch, OVERLAP)))
    return count * max(1, slices // SLICES)  # a patch of a 2-D network is SLICES of them


VALIDATORS: dict[str, Callable[[Any, Batches, Validation], Result | HeldOut]] = {"mask": by_mask, "image_label": by_label}
