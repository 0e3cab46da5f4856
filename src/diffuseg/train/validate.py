"""Validation during training, by what the method learns from: drawn masks against true ones, or the denoising error alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, evenly_spaced
from diffuseg.data.plan import Plan
from diffuseg.evaluation.metrics import dice
from diffuseg.inference.sampling import SamplingOptions, prepare
from diffuseg.methods import Method

PICTURED = 3  # cases that are drawn after each validation, always the same ones
DRAWS = 4  # draws of each pictured case


@dataclass(frozen=True)
class Validation:
    """The cases of the fold that are looked at, and the seed that makes every validation draw the same noise."""

    dataset: Dataset
    cases: list[str]
    plan: Plan
    seed: int
    limit: int

    @property
    def chosen(self) -> list[str]:
        """All cases, or `limit` of them spread evenly."""
        return evenly_spaced(self.cases, self.limit)


@dataclass
class Result:
    """Dice per class of single draws (mean over cases; cases without the class in truth and prediction do not count)."""

    classes: dict[str, float]
    cases: int
    pictures: list[dict[str, Any]] = field(default_factory=list)

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
        return {"dice": self.dice, "dice_per_class": self.classes, "cases": self.cases, "draws": 1}


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
    for number, case in enumerate(validation.chosen):
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
    for number, case in enumerate(validation.chosen):
        whole = source.whole(case)
        options = SamplingOptions(DRAWS if number < PICTURED else 1, seed=validation.seed)
        draws = prepare(method, whole, options, device)
        maps = [draws.to_native(draw) for draw in draws.draw()]
        hard = [p.argmax(0) for p in maps]
        annotated = whole.truth < plan.classes
        scores.append([dice((hard[0] == k) & annotated, whole.truth == k) for k in range(1, plan.classes)])
        if number < PICTURED:
            mean = np.mean(maps, axis=0)
            entropy = -(mean * np.log(np.clip(mean, 1e-6, 1))).sum(0)
            known = [score for score in scores[-1] if np.isfinite(score)]
            title = f"{case}  Dice {np.mean(known):.3f}" if known else f"{case}  no class in truth and draw"
            truth = np.where(annotated, whole.truth, 0)
            pictures.append({"image": whole.native.data[0], "truth": truth, "draws": hard, "entropy": entropy, "title": title})
    table = np.array(scores)
    means = [float(np.nanmean(column)) if np.isfinite(column).any() else 0.0 for column in table.T]
    return Result(dict(zip(names[1:], means, strict=True)), len(scores), pictures)


VALIDATORS: dict[str, Callable[[Any, Batches, Validation], Result | HeldOut]] = {"mask": by_mask, "image_label": by_label}
