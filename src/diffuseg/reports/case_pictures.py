"""Pictures of the worst, the median and the best case of one or more evaluations, from the files that are still there."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffuseg.data.io import ending_of, read_mask
from diffuseg.data.layout import list_files
from diffuseg.data.outputs import record_of, sidecar_name, stored_as_one
from diffuseg.data.pictures import LOSSLESS
from diffuseg.data.raters import fuse_raters, read_raters
from diffuseg.errors import UserError
from diffuseg.reports.evaluation import Evaluation
from diffuseg.reports.figures import cases_figure
from diffuseg.reports.folders import image_of, read_on_grid_of
from diffuseg.reports.titles import evaluation_letter
from diffuseg.types import Image


def case_pictures(evaluations: Sequence[Evaluation]) -> list[tuple[str, bytes]]:
    """Pictures of the worst, the median and the best case by the mean Dice of all evaluations, as (title, PNG).

    Images are looked for in the folder that the evaluation remembers; probability and entropy beside the prediction. What
    is not found or does not fit is left out of the picture, and a case whose masks are gone has none.
    """
    scores = _dice_of_common_cases(evaluations)
    ranked = sorted(scores, key=lambda case: (float(np.mean(scores[case])), case))
    if not ranked:
        return []
    chosen = {ranked[0]: "Worst", ranked[len(ranked) // 2]: "Median", ranked[-1]: "Best"}
    pictures = []
    for case, which in chosen.items():
        try:
            png = _picture(evaluations, case, scores[case], f"{which} case: {case}")
        except Exception:  # files are no longer those that were evaluated, or cannot be drawn: numbers matter more
            continue
        pictures.append((f"{which} case: {case}", png))
    return pictures


def stack_pictures(pictures: Sequence[bytes]) -> bytes:
    """PNG pictures below one another as one PNG."""
    from PIL import Image as Picture

    parts = [Picture.open(io.BytesIO(png)).convert("RGB") for png in pictures]
    stack = Picture.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        stack.paste(part, (0, top))
        top += part.height
    content = io.BytesIO()
    stack.save(content, "png")
    return content.getvalue()


def read_with_maps(case: str, file: Path, classes: int) -> tuple[Image, np.ndarray | None, np.ndarray | None]:
    """A mask, and the probability of its foreground [*s] and entropy [*s] in nats, as predict wrote them beside it.

    In a .png, which holds fractions of 1 in 16 bits, there is a file per class, and entropy is a part of its maximum.

    Args:
        case: The name of the case.
        file: Its mask.
        classes: The number of classes, the background among them.

    Raises:
        UserError: The mask cannot be read.
    """
    mask, ending = read_mask(file), ending_of(file)
    named = [path for path in list_files(file.parent) if path.name.lower().endswith(ending)]
    parts = [_readable(path, mask) for path in named if path.name.startswith(sidecar_name(case, "prob", ""))]
    entropy = _readable(file.with_name(sidecar_name(case, "entropy", ending)), mask)
    one, top = (65535, math.log(classes)) if ending == ".png" else (1, 1.0)
    share = stored_as_one(record_of(file.parent, case), ending)
    sums = [part.data.sum(0) / share for part in parts if part is not None]
    return mask, np.sum(sums, axis=0) if sums else None, None if entropy is None else entropy.data[0] / one * top


def _dice_of_common_cases(evaluations: Sequence[Evaluation]) -> dict[str, list[float]]:
    """Case -> its Dice in each evaluation, of the cases that have a value in all, and masks that are still there."""
    common = set.intersection(*(set(one.predictions) & set(one.truths) for one in evaluations))
    dice = [dict(zip(one.cases, one.per_case("dice").tolist(), strict=True)) for one in evaluations]
    scores = {case: [values.get(case, math.nan) for values in dice] for case in sorted(common)}
    return {case: values for case, values in scores.items() if all(map(math.isfinite, values))}


def _picture(evaluations: Sequence[Evaluation], case: str, dice: Sequence[float], title: str) -> bytes:
    labels = evaluations[0].labels
    truth, rows, image = read_raters(evaluations[0].truths[case]), [], None
    for number, (one, value) in enumerate(zip(evaluations, dice, strict=True)):
        mask, probability, entropy = read_with_maps(case, one.predictions[case], len(labels) + 1)
        letter = f"{evaluation_letter(number)}: " if len(evaluations) > 1 else ""
        maps = {"mask": mask.data[0], "probability": probability, "entropy": entropy}
        rows.append({"title": f"{letter}Dice {value:.3f}"} | maps)
        folder = one.summary.get("folders", {}).get("images")
        if image is None and folder:
            image = _readable(image_of(Path(folder), case), mask)
    voxels = None if image is None else image.data
    affine = (
        None if truth.source is not None and ending_of(truth.source) in LOSSLESS else truth.affine
    )  # stacks of pictures have no sides
    return cases_figure(voxels, fuse_raters(truth.data), rows, truth.spacing, labels, title, affine)


def _readable(file: Path | None, mask: Image) -> Image | None:
    """The image in a file, if it is there, can be read and lies on the grid of the mask."""
    if file is None or not file.is_file():
        return None
    try:
        return read_on_grid_of(mask, file)
    except UserError:
        return None  # the picture shows what there is; the faults of an image are not those of the evaluation
