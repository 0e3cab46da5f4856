"""Whether cleaning its masks makes a model better: rules are tried on validation cases, and only what helps is kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from rich.table import Table
from scipy import ndimage

from diffuseg.atomic_io import nan_to_none, write_json
from diffuseg.data.dataset import load_raters
from diffuseg.data.raters import fuse_raters
from diffuseg.data.transforms import class_indices
from diffuseg.evaluation.metrics import dice
from diffuseg.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from diffuseg.inference.calibration import SETTINGS
from diffuseg.inference.folds import validation_set
from diffuseg.inference.model import Model
from diffuseg.inference.postprocessing import ALL, WORDS, Postprocessing, Rule, clean
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.reports.tables import text_table
from diffuseg.text import pluralize
from diffuseg.types import Image

PATIENTS = 6  # with fewer, even a rise in each of them is a chance of more than 5 % where a rule does nothing: 2 / 2^5


@dataclass(frozen=True)
class Tried:
    """What one rule does to the Dice (mean of classes, then of cases), on top of the rules that were kept before it.

    changed  number of cases whose mask it changes
    """

    rule: Rule
    changed: int
    before: Interval
    after: Interval
    difference: Interval
    kept: bool


@dataclass(frozen=True)
class Found:
    """What was tried on which cases, and what is kept of it; None where no rule helps.

    scores  case -> Dice, mean of classes: "before" any rule, and "after" all that are kept
    """

    postprocessing: Postprocessing | None
    tried: list[Tried]
    scores: dict[str, dict[str, float]]
    patients: int
    where: str


@dataclass(frozen=True)
class _Masks:
    """Class indices of one case, predicted and true, in the box that holds the foreground of both."""

    predicted: Integer[np.ndarray, "*s"]
    truth: Integer[np.ndarray, "*s"]


def learn_postprocessing(
    model: Model,
    folder: Path,
    options: SamplingOptions | None = None,
    fold: int | None = None,
    limit: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> Found:
    """Try each rule on the masks that `predict` would make of validation cases of a fold; the model is not changed.

    A rule is kept if the mean Dice rises, its paired 95 % interval over patients excludes 0, and there are PATIENTS patients.

    Args:
        model: Whose masks are cleaned.
        folder: The data set.
        options: How predictions will be drawn.
        fold: None: the one the model was validated on.
        limit: So many cases, spread evenly; 0: all.
        on_case: Called with (done, cases) after each case.

    Raises:
        UserError: What `Model.settings` and `validation_cases` refuse.
    """
    options = replace(model.resolve(options or SamplingOptions()), postprocess=False, spread=False)
    dataset, fold, names, groups = validation_set(model, folder, fold, limit)
    files, cases = {case.id: case for case in dataset.cases}, []
    for number, name in enumerate(names):
        cases.append(_masks(model, *load_raters(dataset, files[name]), options))
        if on_case is not None:
            on_case(number + 1, len(names))
    before = [_dice(case.predicted, case.truth, model.plan.classes) for case in cases]
    tried, after = try_rules([(case.predicted, case.truth) for case in cases], model.plan.names, groups)
    settings = model.settings(options)
    rules = [asdict(one.rule) for one in tried if one.kept]
    learnt_with = {key: settings[key] for key in SETTINGS}
    kept = Postprocessing(rules, learnt_with, dataset.name, fold, len(names), len(set(groups))) if rules else None
    scores = {name: {"before": old, "after": new} for name, old, new in zip(names, before, after, strict=True)}
    return Found(kept, tried, scores, len(set(groups)), f"fold {fold} of {dataset.name}")


def try_rules(
    masks: Sequence[tuple[Integer[np.ndarray, "*s"], Integer[np.ndarray, "*s"]]], names: Sequence[str], groups: Sequence[str]
) -> tuple[list[Tried], list[float]]:
    """All rules one after the other, each on top of those that were kept, and the Dice of each case in the end.

    Args:
        masks: Class indices of each case, predicted and true.
        names: Of the classes, background first.
        groups: The patient of each case.
    """
    now, truths = [predicted for predicted, _ in masks], [truth for _, truth in masks]
    score = [_dice(mask, truth, len(names)) for mask, truth in zip(now, truths, strict=True)]
    tried = []
    for rule in candidates(names):
        cleaned = [clean(mask, rule, names) for mask in now]
        changed = [new is not old for new, old in zip(cleaned, now, strict=True)]
        rows = zip(cleaned, truths, score, changed, strict=True)
        better = [_dice(mask, truth, len(names)) if touched else old for mask, truth, old, touched in rows]
        difference = paired_difference(better, score, groups)
        kept = difference.mean > 0 and difference.low > 0 and len(set(groups)) >= PATIENTS
        means = bootstrap_mean(score, groups), bootstrap_mean(better, groups)
        tried.append(Tried(rule, sum(changed), *means, difference, kept))
        if kept:
            now, score = cleaned, better
    return tried, score


def candidates(names: Sequence[str]) -> Iterator[Rule]:
    """The rules that are tried, in this order: of all foreground where there are several classes, then of each class."""
    for of in ([ALL] if len(names) > 2 else []) + list(names[1:]):
        for what in WORDS:
            yield Rule(what, of)


def _masks(model: Model, image: Image, masks: Image, options: SamplingOptions) -> _Masks:
    truth = class_indices(replace(masks, data=fuse_raters(masks.data)[None]), model.plan)
    mask = model.predict(image, options, calibrate=False, anyway=True).mask
    predicted = np.searchsorted(sorted(model.plan.labels.values()), mask)
    box = ndimage.find_objects(((predicted > 0) | (truth > 0)).astype(np.uint8))
    part = box[0] if box else (slice(0, 1),) * truth.ndim
    small = np.uint8 if model.plan.classes < 256 else np.uint16
    return _Masks(predicted[part].astype(small), truth[part].astype(small))


def _dice(mask: Integer[np.ndarray, "*s"], truth: Integer[np.ndarray, "*s"], classes: int) -> float:
    """Mean of the foreground classes; a class in neither mask counts as right."""
    return float(np.mean([dice(mask == k, truth == k, "one") for k in range(1, classes)]))


def table(found: Found) -> Table:
    """What was tried, for a terminal."""
    rows = [
        (str(one.rule), str(one.changed), f"{one.before.mean:.4f}", f"{one.after.mean:.4f}", one.difference.text(4, "+"),
         "kept" if one.kept else "")
        for one in found.tried
    ]  # fmt: skip
    notes = [
        f"Dice of {pluralize(len(found.scores), 'validation case')} of {pluralize(found.patients, 'patient')} ({found.where}), "
        "mean of classes; each rule on top of those that were kept. Kept is what raises the mean, with an interval that "
        f"excludes 0 over at least {PATIENTS} patients. These figures are of the cases that the rules were chosen on."
    ]
    header = ("rule", "masks changed", "before", "after", "difference [95 %]", "")
    return text_table("Post-processing", header, rows, notes)


def write_postprocessing(found: Found, model: str, out: Path) -> Path:
    """Write postprocessing.json into a folder; returns its path."""
    path = Path(out) / "postprocessing.json"
    plain: list[dict[str, Any]] = [
        asdict(one.rule) | {"masks_changed": one.changed, "kept": one.kept}
        | {key: getattr(one, key)._asdict() for key in ("before", "after", "difference")}
        for one in found.tried
    ]  # fmt: skip
    learnt = None if found.postprocessing is None else asdict(found.postprocessing)
    write_json(path, nan_to_none({"model": model, "learnt": learnt, "tried": plain, "cases": found.scores}))
    return path
