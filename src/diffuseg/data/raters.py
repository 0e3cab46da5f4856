"""Several people marked one image: which file is whose, and how their masks become one where one is needed.

Everybody counts alike, and whoever marked nothing counts as a vote for background: an empty mask is an opinion. A file that
is not there is none: that person did not read the image.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer

from diffuseg.data.io import LOSSLESS, grid_fault, read_mask
from diffuseg.errors import UserError
from diffuseg.text import pluralize
from diffuseg.types import Image

MAJORITY = "the majority vote of the raters (a tie is foreground)"
Fusion = Literal["majority", "union", "intersection"]
NAME = re.compile(r"(.+)_rater(\d+)")


def rater_count(extra: dict[str, Any], file: Path) -> int:
    """The "raters" of dataset.json, 0 where it says nothing.

    Args:
        extra: What dataset.json holds.
        file: Its name in messages.

    Raises:
        UserError: It is no number of people.
    """
    count = extra.get("raters", 0)
    if "raters" in extra and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise UserError(f'"raters" is the number of people who marked each image, not {count!r}', file=file)
    return count


def rater_files(files: Sequence[Path], ending: str, raters: int) -> dict[str, tuple[Path, ...]]:
    """The masks of each case, by rising number: `<case>_rater<k><ending>`, k from 0 or from 1, at most `raters` of them.

    Numbers count from 0 if any file has that number. Masks have the images' ending or any lossless one.

    Args:
        files: Of labelsTr.
        ending: Of the images.
        raters: How many there are.

    Raises:
        UserError: A number beyond the last rater.
    """
    found: dict[str, dict[int, Path]] = {}
    for end in dict.fromkeys((ending, *LOSSLESS)):  # of two files of one rater the first kind counts, as for single masks
        for path in files:
            match = NAME.fullmatch(path.name[: -len(end)]) if path.name.endswith(end) else None
            if match:
                found.setdefault(match[1], {}).setdefault(int(match[2]), path)
    first = 0 if any(0 in masks for masks in found.values()) else 1
    last = first + raters - 1
    for masks in found.values():
        if max(masks) > last:
            what = f"dataset.json says {pluralize(raters, 'rater')}, {first} to {last}"
            raise UserError(what, file=masks[max(masks)], do='Correct "raters", or the name')
    return {case: tuple(masks[number] for number in sorted(masks)) for case, masks in found.items()}


def read_raters(paths: Sequence[Path]) -> Image:
    """The masks of one case as one image [m, *s] on the grid of the first.

    Args:
        paths: One file per rater.

    Raises:
        UserError: What `read_mask` refuses, and masks on other grids.
    """
    masks = [read_mask(path) for path in paths]
    for mask in masks[1:]:
        fault = grid_fault(masks[0], mask)
        if fault is not None:
            raise UserError(f"its {fault} (of {paths[0].name})", file=mask.source, do="All raters' masks lie on one grid")
    return replace(masks[0], data=np.concatenate([mask.data for mask in masks]))


def fuse_raters(masks: Integer[np.ndarray, "m *s"], how: Fusion = "majority") -> Integer[np.ndarray, "*s"]:
    """One label map of those of m raters, label values with background 0.

    Of several foreground labels the one with most votes wins, of equals the smallest.

    Args:
        masks: Label values [m, *s].
        how: "majority": the label that most raters give, background only where it has more votes than any other label; so with
            one foreground class, foreground is where at least half of the raters mark it: that two of four see nothing is no
            reason to demand that there is nothing. "union": foreground where any rater marks it. "intersection": where all do.

    Raises:
        ValueError: There is no mask.
    """
    if not len(masks):
        raise ValueError("there is no mask to fuse")
    if len(masks) == 1:
        return masks[0]
    label, votes = np.zeros_like(masks[0]), np.zeros(masks.shape[1:], np.int64)
    for value in np.unique(masks[masks != 0]):
        count = (masks == value).sum(0)
        label, votes = np.where(count > votes, value, label), np.maximum(count, votes)
    background = (masks == 0).sum(0)
    kept = {"majority": votes >= background, "union": votes > 0, "intersection": background == 0}[how]
    return np.where(kept, label, 0).astype(masks.dtype)
