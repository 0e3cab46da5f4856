"""Masks from image-level labels on the validation patients of a fold: every map, every threshold, and what costs what.

Masks are used to choose on one half of the patients and to report on the other: smoothing, thresholds and components of each
rule are those with the best mean Dice on the first half. The rule "negatives" has one border for all images: that of a few
training images without the object, whatever the map, intensity included. Average precision is that of the mean raw map.
Dice, IoU and HD95 on native pixels; an empty mask of an image without the object counts 1, any other mask of it 0; HD95 of an
image with the object and an empty mask is the image's diagonal. Models that learnt from masks, or from pseudo-labels, may
stand beside them (--masks NAME=CHECKPOINT): their own mask is scored, and whether it is empty is their verdict. Results are
numbers only.
"""

import argparse
import csv
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.score import write
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, evenly_spaced, open_dataset, patients, splits
from diffuseg.data.labels import TABLE, read_labels
from diffuseg.data.transforms import GridTransform, to_native
from diffuseg.evaluation.metrics import dice, hd95, iou
from diffuseg.evaluation.statistics import bootstrap_mean, group_folds
from diffuseg.inference.folds import own_fold, validation_cases
from diffuseg.inference.model import Model, load
from diffuseg.inference.saliency_calibration import null_quantile
from diffuseg.inference.sampling import ImageDraws, draw_seed
from diffuseg.methods.weak.binarize import Binarization, logistic_mask, normalized_saliency
from diffuseg.methods.weak.cdm import MAPS

SMOOTH = (0.0, 1.0, 2.0)
THRESHOLD = {"negatives": "null_quantile"}  # rule in the results -> the setting
GRID: dict[str, dict[str, Sequence[float]]] = {
    "negatives": {}, "otsu": {}, "otsu_twice": {},
    "quantile": {"quantile": (0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99)},
    "fixed": {"fixed": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)},
}  # fmt: skip
BEFOREHAND = {  # not fitted here; that 0.97 and one voxel of smoothing suit such images was known from a prototype on them
    "published: Otsu": Binarization(smooth=0.0, threshold="otsu", image=False, largest=False),
    "published: Otsu, largest": Binarization(smooth=0.0, threshold="otsu", image=False),
    "quantile 0.97, largest": Binarization(threshold="quantile", image=False),
    "as `predict` does": Binarization(),  # with the border of the negatives; where there is none, the quantile of each image
}
CDM: dict[str, tuple[str, ...]] = {
    "levels": (),
    "levels, one draw": (),
    "levels without support": ("support=0",),
    "levels without support, absolute": ("support=0", "part=absolute"),
    "levels without support, tau 0.95": ("support=0", "tau=0.95"),
    "levels without support, derivative": ("support=0", "tau=1.0"),
    "accumulated, one draw (CDM as published)": ("map=published",),
    "accumulated": ("map=published",),
    "accumulated, tau 0": ("map=published", "tau=0.0"),
    "classifier-free counterfactual": ("map=classifier_free",),
    "classifier-free counterfactual, signed": ("map=classifier_free", "part=signed"),
}
GUIDED: dict[str, tuple[str, ...]] = {
    "accumulated, guided by 10, one draw (CG-CDM as published)": ("map=published", "guidance=10.0"),
    "accumulated, guided by 10": ("map=published", "guidance=10.0"),
    "guided counterfactual (CG-Diff)": ("map=guided",),
    "guided counterfactual, signed": ("map=guided", "part=signed"),
    "guided counterfactual, signed, guided by 10": ("map=guided", "part=signed", "guidance=10.0"),
}
NEGATIVES = 24  # training images without the object that the border of a map is made of
SMOOTHED = 1.0  # voxels, before that
NEAR = 2.0  # slices: how close in height counts as the same place
CAMS = ("gradcam", "gradcam++", "layercam", "scorecam")


@dataclass(frozen=True)
class Case:
    """A validation image [c, *s] on the model's grid, its label, patient, place in the volume; its mask in its own pixels."""

    name: str
    patient: str
    label: int
    place: float
    digest: str
    image: Tensor
    transform: GridTransform
    truth: np.ndarray
    spacing: tuple[float, ...]

    def seeds(self, draws: int) -> tuple[int, ...]:
        """Those of `predict` with seed 0."""
        return tuple(draw_seed(0, self.digest, i) for i in range(draws))


@dataclass(frozen=True)
class Maps:
    """What the draws say of a case: their mean, and the evidence of each map by itself and with one border for all."""

    mean: Tensor
    alone: Tensor
    bordered: Tensor | None

    @classmethod
    def of(cls, draws: Tensor, border: float) -> "Maps":
        """From raw maps [n, *s]; no border where it is not above 0."""
        bordered = torch.stack([normalized_saliency(m, border) for m in draws]).mean(0) if border > 0 else None
        return cls(draws.mean(0), torch.stack([normalized_saliency(m) for m in draws]).mean(0), bordered)


RawMaps = dict[tuple[str, ...], Tensor]  # raw maps [n, *s] by settings and case
Maker = Callable[[Case], Tensor]  # raw maps [n, *s] of an image, one per draw


def main(asked: argparse.Namespace) -> None:
    """Measure what is asked for and write the results."""
    models = [load(path, "cpu") for path in asked.models]
    fold = own_fold(models[0]) if asked.fold is None else asked.fold
    dataset = open_dataset(asked.dataset)
    cases = load_cases(models[0], dataset, fold, asked.limit, asked.place)
    half = group_folds([case.patient for case in cases], 2)
    chosen, reported = ([c for c, h in zip(cases, half.tolist(), strict=True) if h == side] for side in (0, 1))
    counts = {side: [len(s), sum(c.label > 0 for c in s)] for side, s in (("chosen", chosen), ("reported", reported))}
    of = [c.patient for c in reported if c.label]
    results: dict[str, Any] = {
        "dataset": dataset.name,
        "fold": fold,
        "slices_and_positives": counts,
        "draws": asked.draws,
        "models": [model.hash for model in models],
        "patients": [sorted(set(of)).index(patient) for patient in of],  # of the reported positives, as dice_per_case
        "verdicts": {},
        "maps": [],
    }
    verdicts: dict[str, dict[str, float]] = {}
    for name, score in judges(models, cases, dataset, asked.place).items():
        results["verdicts"][name], verdicts[name] = judged(score, chosen, reported), score
    best = max(verdicts, key=lambda name: results["verdicts"][name]["auc_chosen"])
    results["verdict_used"] = best
    if asked.out.exists():
        before = json.loads(asked.out.read_text())
        if any(before.get(key) != results[key] for key in results if key != "maps"):
            raise SystemExit(f"{asked.out}: there are results of other cases or models; move them away, or give another --out")
        results["maps"] = before["maps"]  # what is there is not measured again
    there = {row["map"] for row in results["maps"]}
    makes, without = makers(models, asked, cases, dataset), negatives(models[0], dataset)
    wanted = {name: makes[name] for name in makes if re.search(asked.only, name) and name not in there}
    for name, (maker, evaluations) in wanted.items():
        least = results["verdicts"][best]["threshold"]
        row = measured(name, maker, evaluations, chosen, reported, without, verdicts[best], least)
        results["maps"].append(row)
        report(asked.out, results, row)
    for name, path in (text.split("=", 1) for text in asked.masks):
        if name in there:
            continue
        model = load(path, "cpu")
        own = {case.name: case for case in load_cases(model, dataset, fold, asked.limit, asked.place)}
        results["maps"].append(masked(name, model, [own[case.name] for case in reported]))
        report(asked.out, results, results["maps"][-1])


def report(out: Path, results: dict[str, Any], row: dict[str, Any]) -> None:
    """Keep what is there, and say the last row."""
    write(out, results)
    best = row["rules"][row["best"]]["dice"]
    print(json.dumps({k: row[k] for k in ("map", "ap", "ap_smoothed", "best", "seconds")} | {"dice": best}), flush=True)


def load_cases(model: Model, dataset: Dataset, fold: int, limit: int, place: str) -> list[Case]:
    """Validation cases with their masks; patients from the table of labels, where it has that column."""
    return read(model, dataset, validation_cases(model, dataset, fold, limit), place)


def read(model: Model, dataset: Dataset, names: list[str], place: str | None = None) -> list[Case]:
    """These cases on the model's grid."""
    labels = read_labels(dataset)
    of, _ = patients(dataset)
    with (dataset.folder / TABLE).open() as file:
        of |= {row["case"]: row["patient"] for row in csv.DictReader(file) if row.get("patient")}
    source, found = Batches(dataset, names, model.plan), []
    for name in names:
        whole, number = source.whole(name), place and re.search(place, name)
        at = float(number[1]) if number else float("nan")
        spacing = tuple(whole.native.spacing)
        found.append(
            Case(name, of[name], labels[name], at, whole.digest, whole.image, whole.transform, whole.truth > 0, spacing)
        )
    return found


def makers(models: list[Model], asked: argparse.Namespace, cases: list[Case], dataset: Dataset) -> dict[str, tuple[Maker, int]]:
    """Maps by name, with the network evaluations of one."""
    dark = getattr(models[0].method.config, "part", None) == "negative"  # the object is darker than what is around it
    found: dict[str, tuple[Maker, int]] = {"intensity": (lambda case: intensity(case, dark), 0)}
    mean = class_difference(models[0], dataset)
    found["position: mean of positives minus mean of negatives"] = (lambda case: resized(mean, case.image.shape[1:])[None], 0)
    kept: RawMaps = {}
    for model, path in zip(models, asked.models, strict=True):
        if model.meta["method"] == "cam":
            layers = [0, len(model.method.widths) - 1, len(model.method.widths) - 2]
            options = {
                f"{name}, layer {layer or 'last'}": (f"map={name}", f"layer={layer}") for name in CAMS for layer in layers
            }
        else:
            options = CDM | (GUIDED if getattr(model.method, "classifier", None) is not None else {})
        for name, wishes in options.items():
            if dark:
                wishes = tuple(wish.replace("part=signed", "part=negative") for wish in wishes)
            changed = load(path, "cpu", wishes)
            single = not changed.method.generative or "one draw" in name or "counterfactual" in name
            draws = 1 if single else asked.draws
            steps = changed.method.sampling(None, None)
            found[name] = (drawn(changed, draws, wishes, kept), draws * changed.method.evaluations(*steps))
    return found


def intensity(case: Case, dark: bool) -> Tensor:
    """How bright each pixel is, or how dark: the bar of a map that looks for such objects."""
    mean = case.image.mean(0)[None]
    return mean.max() - mean if dark else mean - mean.min()


def drawn(model: Model, draws: int, wishes: Sequence[str] = (), kept: RawMaps | None = None) -> Maker:
    """The raw maps that `predict` would make with seed 0.

    Maps of one channel differ in nothing but their sign, whatever part of them counts: `kept` holds the signed ones, made once.
    """
    method = model.method
    part = getattr(method.config, "part", None)
    part = MAPS[method.config.map].part if part == "auto" else part
    store: RawMaps = {} if kept is None else kept
    one = model.plan.image_channels == 1 and part is not None
    if one:
        method.config = replace(method.config, part="signed")
    name, steps = method.sampling(None, None)

    def make(case: Case) -> Tensor:
        key = (*sorted(wish for wish in wishes if not wish.startswith("part=")), str(draws), case.name)
        maps = store.get(key) if one else None
        if maps is None:
            raw = method.eval().maps(case.image, case.seeds(draws), case.label or 1, name, steps)
            maps = torch.stack([m.float() for m in raw])
            if one:
                store[key] = maps
        if one and part == "negative":
            return (-maps).clamp(min=0)
        return maps.abs() if one and part == "absolute" else maps

    return make


def negatives(model: Model, dataset: Dataset) -> list[Case]:
    """A few training images without the object, evenly spread: their masks are empty, and not looked at."""
    labels = read_labels(dataset)
    names = [name for name in splits(dataset)[own_fold(model)]["train"] if not labels[name]]
    return read(model, dataset, evenly_spaced(names, NEGATIVES))


def class_difference(model: Model, dataset: Dataset) -> Tensor:
    """Mean training image with the object minus mean training image without: what position alone can say.

    Images of several sizes are brought to that of the first, so that a place is a share of height and width.
    """
    names, labels = splits(dataset)[own_fold(model)]["train"], read_labels(dataset)
    source = Batches(dataset, names, model.plan, labels=labels)
    images = {name: source.image(name).mean(0) for name in names}
    size = images[names[0]].shape
    images = {name: resized(image, size) for name, image in images.items()}
    one, none = ([images[name] for name in names if (labels[name] > 0) == side] for side in (True, False))
    return torch.stack(one).mean(0) - torch.stack(none).mean(0)


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image [*s] at another size, interpolated linearly; the same where it has that size."""
    if tuple(image.shape) == tuple(size):
        return image
    mode = "bilinear" if image.ndim == 2 else "trilinear"
    return torch.nn.functional.interpolate(image[None, None], tuple(size), mode=mode, align_corners=False)[0, 0]


def judges(models: list[Model], cases: list[Case], dataset: Dataset, place: str) -> dict[str, dict[str, float]]:
    """Per judge and case, a score that is higher where the object is."""
    scores = {"position in the volume": height(cases, dataset, own_fold(models[0]), place)}
    scores["brightest percent"] = {case.name: float(case.image.quantile(0.99)) for case in cases}
    for model in models:
        kinds = ["classifier"] if model.meta["method"] == "cam" else ["diffusion"]
        if model.meta["method"] == "cdm":
            kinds += ["classifier"] if model.method.config.classifier_widths else []
            kinds += ["map"] if model.method.classify_by_map(cases[0].image) is not None else []
        for kind in kinds:
            method = model.method
            method.config = replace(method.config, decide=kind)
            name = f"{model.meta['method']}: {kind}"
            scores[name] = {case.name: margin(method.classify_image(case.image).scores) for case in cases}
    return scores


def height(cases: list[Case], dataset: Dataset, fold: int, place: str) -> dict[str, float]:
    """The share of training slices with the object among those about as high in their volumes."""
    labels, training = read_labels(dataset), splits(dataset)[fold]["train"]
    found = [(float(number[1]), labels[name] > 0) for name in training if (number := re.search(place, name))]
    if not found:
        return {case.name: 0.0 for case in cases}
    at, shown = np.array(found, float).T
    near = lambda z: np.exp(-(((at - z) / NEAR) ** 2) / 2) + 1e-9  # far from all of them: the share of all
    return {case.name: float(np.average(shown, weights=near(case.place))) for case in cases}


def margin(scores: dict[str, float]) -> float:
    """How far the best class lies above the background."""
    background, *rest = scores.values()
    return max(rest) - background


def judged(score: dict[str, float], chosen: list[Case], reported: list[Case]) -> dict[str, Any]:
    """AUC on both halves, and the accuracy on the second at the threshold that is best on the first (and at 0)."""
    values, labels = (np.array([f(c) for c in chosen]) for f in (lambda c: score[c.name], lambda c: c.label > 0))
    options = np.unique(np.append(values, values.max() + 1))
    threshold = float(options[int(np.argmax([np.mean((values >= t) == labels) for t in options]))])
    right = [float((score[c.name] >= threshold) == (c.label > 0)) for c in reported]
    plain = [float((score[c.name] > 0) == (c.label > 0)) for c in reported]
    groups = [c.patient for c in reported]
    return {
        "auc_chosen": auc(score, chosen), "auc": auc(score, reported), "threshold": threshold,
        "accuracy": list(bootstrap_mean(right, groups)), "accuracy_at_0": list(bootstrap_mean(plain, groups)),
    }  # fmt: skip


def auc(score: dict[str, float], cases: list[Case]) -> float:
    """How often an image with the object scores higher than one without; equals count half."""
    one, none = (np.array([score[c.name] for c in cases if (c.label > 0) == side]) for side in (True, False))
    above = (one[:, None] > none).mean() + 0.5 * (one[:, None] == none).mean()
    return float(above)


def measured(
    name: str, make: Maker, evaluations: int, chosen: list[Case], reported: list[Case], without: list[Case],
    verdict: dict[str, float], least: float,
) -> dict[str, Any]:  # fmt: skip
    """One row: average precision, and Dice under each rule, all on the reported half."""
    border = null_quantile([make(case).mean(0) for case in without], SMOOTHED)
    positive = [[case for case in half if case.label] for half in (chosen, reported)]
    started = time.process_time()
    maps = {case.name: Maps.of(make(case), border) for half in positive for case in half}
    seconds = (time.process_time() - started) / len(maps)
    groups = [case.patient for case in positive[1]]
    row: dict[str, Any] = {"map": name, "evaluations": evaluations, "seconds": seconds, "rules": {}}
    smooth = max(SMOOTH, key=lambda s: np.mean([precision(maps[c.name].mean, c, s) for c in positive[0]]))
    row["ap"] = list(bootstrap_mean([precision(maps[c.name].mean, c, 0.0) for c in positive[1]], groups))
    row["ap_smoothed"] = list(bootstrap_mean([precision(maps[c.name].mean, c, smooth) for c in positive[1]], groups))
    for rule, how, first in rules(maps, positive[0]):
        masks = {c.name: mask_of(maps[c.name], c, how) for c in positive[1]}
        seen = {c.name: verdict[c.name] >= least for c in reported}
        row["rules"][rule] = {"cut": vars(how), "dice_chosen": first} | scores(masks, seen, reported)
    fitted = [rule for rule in row["rules"] if rule not in BEFOREHAND]
    row["best"] = max(fitted, key=lambda rule: row["rules"][rule]["dice_chosen"])
    return row


def masked(name: str, model: Model, reported: list[Case]) -> dict[str, Any]:
    """The row of a model that makes masks: its own mask of one draw, its probability as the map."""
    started, maps, masks = time.process_time(), {}, {}
    for case in reported:
        draws = ImageDraws(model.method, case.image, case.transform, case.seeds(1), None, None, model.device)
        p = draws.to_native(next(draws.draw()).float())
        maps[case.name], masks[case.name] = 1 - p[0], p.argmax(0) > 0
    seconds = (time.process_time() - started) / len(reported)
    positive = [case for case in reported if case.label]
    ap = list(bootstrap_mean([average_precision(maps[c.name], c.truth) for c in positive], [c.patient for c in positive]))
    seen = {name: bool(mask.any()) for name, mask in masks.items()}
    evaluations = model.method.evaluations(*model.method.sampling(None, None)) if model.method.generative else 1
    row = {"map": name, "evaluations": evaluations, "seconds": seconds, "ap": ap, "ap_smoothed": ap}
    return row | {"best": "its own mask", "rules": {"its own mask": scores(masks, seen, reported)}}


def scores(masks: dict[str, np.ndarray], seen: dict[str, bool], reported: list[Case]) -> dict[str, Any]:
    """Means over images with the object, and Dice over all; `seen` says which images are taken to show it."""
    positive = [case for case in reported if case.label]
    groups = [case.patient for case in positive]
    overlaps = {c.name: dice(masks[c.name], c.truth, "zero") for c in positive}
    every = [overlaps[c.name] * seen[c.name] if c.label else float(not seen[c.name]) for c in reported]
    return {
        "dice": list(bootstrap_mean(list(overlaps.values()), groups)),
        "iou": list(bootstrap_mean([iou(masks[c.name], c.truth, "zero") for c in positive], groups)),
        "hd95_mm": list(bootstrap_mean([hd95(masks[c.name], c.truth, c.spacing, "zero") for c in positive], groups)),
        "dice_all_slices": list(bootstrap_mean(every, [c.patient for c in reported])),
        "dice_per_case": {f"case{i}": round(v, 5) for i, v in enumerate(overlaps.values())},
    }


def rules(maps: dict[str, Maps], cases: list[Case]) -> list[tuple[str, Binarization, float]]:
    """Each rule with its best numbers on these cases, and the Dice there; then the choices made beforehand."""
    found = []
    for (rule, numbers), image in itertools.product(GRID.items(), (False, True)):
        if rule == "negatives" and any(m.bordered is None for m in maps.values()):
            continue
        smooths = (SMOOTHED,) if rule == "negatives" else SMOOTH
        options = [
            Binarization(
                smooth=smooth,
                threshold=THRESHOLD.get(rule, rule),
                largest=largest,
                image=image,
                **dict(zip(numbers, values, strict=True)),
            )  # type: ignore[arg-type]
            for smooth, largest, *values in itertools.product(smooths, (True, False), *numbers.values())
        ]
        means = [float(np.mean([overlap(maps[c.name], c, how) for c in cases])) for how in options]
        best = int(np.argmax(means))
        found.append((rule + (" and image" if image else ""), options[best], means[best]))
    return found + [
        (name, how, float(np.mean([overlap(maps[c.name], c, how) for c in cases]))) for name, how in BEFOREHAND.items()
    ]


def mask_of(m: Maps, case: Case, how: Binarization) -> np.ndarray:
    """The mask that a cut makes, on native pixels."""
    border = m.bordered if how.threshold in ("null_quantile", "auto") else None
    p = logistic_mask(m.alone if border is None else border, how, case.image, calibrated=border is not None)
    return to_native(p[None], case.transform)[0] > 0.5


def overlap(m: Maps, case: Case, how: Binarization) -> float:
    """Dice of the mask that a cut makes."""
    return dice(mask_of(m, case, how), case.truth, empty="zero")


def precision(m: Tensor, case: Case, smooth: float) -> float:
    """Average precision of a map, brought to native pixels."""
    from scipy.ndimage import gaussian_filter

    soft = torch.from_numpy(gaussian_filter(m.double().numpy(), smooth, mode="nearest") if smooth else m.double().numpy())
    return average_precision(to_native(soft[None].float(), case.transform)[0], case.truth)


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision over the true pixels, in falling order of score; equal scores are taken together."""
    order = np.argsort(-score, axis=None, kind="stable")
    values, hits = score.ravel()[order], truth.ravel()[order].astype(float)
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    found = hits.cumsum()[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / hits.sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="checkpoints of cdm and cam, trained on one grid and fold")
    parser.add_argument("--fold", type=int)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--limit", type=int, default=0, help="so many validation slices, 0 for all")
    parser.add_argument("--only", default="", help="maps whose names match")
    parser.add_argument("--masks", nargs="*", default=[], metavar="NAME=CHECKPOINT", help="models that learnt from masks")
    parser.add_argument("--place", default=r"_(\d+)$", help="the slice's number in a case's name")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
