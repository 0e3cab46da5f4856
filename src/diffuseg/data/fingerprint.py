"""What a data set looks like in numbers: all that a plan is made from, and nothing that needs a second look at a voxel."""

from collections import Counter
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from diffuseg.data.dataset import Dataset, load_case, load_image, patients
from diffuseg.data.geometry import warn_once
from diffuseg.errors import UserError
from diffuseg.text import pluralize
from diffuseg.types import Image

SAMPLED = 10_000  # foreground voxels per case that the intensity statistics look at


@dataclass(frozen=True)
class Fingerprint:
    """Sizes, spacings, intensities and frequencies of a data set; axes of volumes are those after turning to RAS.

    size_*        voxels per axis, over the cases; spacing_* in mm
    orientations  axis codes of the files -> number of cases; empty for pictures
    integer       whether every intensity is a whole number, as in 8- and 16-bit files
    intensity     per channel: minimum and maximum of all voxels; mean, std and the percentiles 0.5 ("low"), 50 ("median")
                  and 99.5 ("high") of the voxels with a label other than background (of all where nothing is labelled)
    frequency     label -> share of all voxels; present: label -> number of cases that have it; both empty without masks
    brightest     highest intensity of a case: that of the darkest case and that of the brightest
    raters        fewest and most masks of a case; where there are several, all of the above looks at their majority vote
    """

    cases: int
    patients: int
    patient_rule: str
    dims: int
    size_median: tuple[float, ...]
    size_smallest: tuple[int, ...]
    size_largest: tuple[int, ...]
    spacing_median: tuple[float, ...]
    spacing_smallest: tuple[float, ...]
    spacing_largest: tuple[float, ...]
    orientations: dict[str, int]
    integer: bool
    intensity: tuple[dict[str, float], ...]
    frequency: dict[str, float]
    present: dict[str, int]
    raters: tuple[int, int] = (1, 1)
    brightest: tuple[float, float] = (0.0, 0.0)


def fingerprint(dataset: Dataset) -> Fingerprint:
    """Read every case once and measure it.

    Args:
        dataset: What `open_dataset` returns.

    Raises:
        UserError: What `load_case` refuses, pictures mixed with volumes, or masks that mark nothing in any case.
    """
    sizes, spacings, orientations, samples, extremes = [], [], Counter(), [], []
    counts = {label: 0 for label in dataset.labels}
    present = dict(counts)
    integer, dims = True, None
    for case in dataset.cases:
        image, mask = (load_image(dataset, case), None) if case.mask is None else load_case(dataset, case)
        dims = dims or image.dims
        if image.dims != dims:
            raise UserError(f"it has {image.dims} axes, other cases have {dims}", file=case.images[0], do="Do not mix them")
        size, spacing, codes = _geometry(image)
        sizes.append(size)
        spacings.append(spacing)
        orientations.update([codes] if codes else [])
        flat = image.data.reshape(len(image.data), -1)
        labelled = np.zeros(flat.shape[1], int) if mask is None else mask.data.reshape(-1)
        if dataset.ignore is not None:
            labelled = np.where(labelled == dataset.ignore, 0, labelled)
        extremes.append((flat.min(1), flat.max(1)))
        integer = integer and bool((flat == np.rint(flat)).all())
        samples.append(_sample(flat, labelled))
        for label, value in dataset.labels.items() if mask is not None else ():
            count = int((mask.data == value).sum()) if mask is not None else 0
            counts[label] += count
            present[label] += count > 0
    patient_of, rule = patients(dataset)
    _refuse_empty(dataset, present, counts)
    total, masks = sum(counts.values()), [len(case.masks) for case in dataset.cases]
    tops = [float(high.max()) for _, high in extremes]
    low, high = np.min([low for low, _ in extremes], 0), np.max([high for _, high in extremes], 0)
    return Fingerprint(
        cases=len(dataset.cases),
        patients=len(set(patient_of.values())),
        patient_rule=rule,
        dims=int(dims or 0),
        size_median=_plain(np.median(sizes, 0)),
        size_smallest=tuple(int(n) for n in np.min(sizes, 0)),
        size_largest=tuple(int(n) for n in np.max(sizes, 0)),
        spacing_median=_plain(np.median(spacings, 0)),
        spacing_smallest=_plain(np.min(spacings, 0)),
        spacing_largest=_plain(np.max(spacings, 0)),
        orientations=dict(orientations),
        integer=integer,
        intensity=_statistics(samples, low, high),
        frequency={label: count / total for label, count in counts.items() if total},
        present=present if total else {},
        raters=(min(masks), max(masks)),
        brightest=(min(tops), max(tops)),
    )


def _refuse_empty(dataset: Dataset, present: dict[str, int], counts: dict[str, int]) -> None:
    """Refuse masks that mark nothing in any case; name the classes that no case has."""
    foreground = [label for label, value in dataset.labels.items() if value != 0]
    absent = [label for label in foreground if not present[label]]
    if not any(counts.values()) or not absent:
        return
    if absent == foreground:
        what = f"no mask of {pluralize(len(dataset.cases), 'case')} marks anything: there is nothing to learn"
        raise UserError(
            what, file=dataset.folder / "labelsTr", do="Are these the right masks, and do values agree with dataset.json?"
        )
    warn_once(dataset.folder / "labelsTr", f"in no mask: {', '.join(absent)}")


def _geometry(image: Image) -> tuple[np.ndarray, np.ndarray, str]:
    """Size, spacing and axis codes; the axes of a volume in the order they have after turning to RAS."""
    size, spacing = np.array(image.shape), np.array(image.spacing)
    if image.dims == 2:
        return size, spacing, ""
    order = np.argsort(nib.orientations.io_orientation(image.affine)[:, 0])
    return size[order], spacing[order], "".join(nib.orientations.aff2axcodes(image.affine))


def _sample(flat: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, bool]:
    """Up to SAMPLED voxels [c, n] at regular intervals, and whether they are foreground."""
    chosen = np.flatnonzero(labelled)
    labelled_any = len(chosen) > 0
    if not labelled_any:
        chosen = np.arange(flat.shape[1])
    return flat[:, chosen[:: -(-len(chosen) // SAMPLED)]].astype(np.float64), labelled_any


def _statistics(samples: list[tuple[np.ndarray, bool]], low: np.ndarray, high: np.ndarray) -> tuple[dict[str, float], ...]:
    anywhere = any(labelled_any for _, labelled_any in samples)
    voxels = np.concatenate([sample for sample, labelled_any in samples if labelled_any or not anywhere], 1)
    percentiles = np.percentile(voxels, (0.5, 50, 99.5), axis=1)
    rows = zip(low, high, *percentiles, voxels.mean(1), voxels.std(1), strict=True)
    names = ("minimum", "maximum", "low", "median", "high", "mean", "std")
    return tuple({name: float(f"{value:.6g}") for name, value in zip(names, row, strict=True)} for row in rows)


def _plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
