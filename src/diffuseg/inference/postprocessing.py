"""What `diffuseg postprocess` learnt about a model: rules that clean its masks, kept in its checkpoint and used by predict.

largest   only the largest connected component stays, where voxels that touch at a corner are connected; the rest is background
fill      background that is closed in becomes what closes it in, where voxels that touch by a face are connected

Either is for one class, or for all foreground together (ALL). No rule empties a class that has voxels, or gives voxels to one
that has none. Probabilities, entropy and the masks of single draws are left as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from diffuseg.config import from_dict
from diffuseg.errors import UserError
from diffuseg.inference.calibration import digest_of, settings_mismatch
from diffuseg.text import pluralize

ALL = "all foreground"
WORDS = {"largest": "largest component", "fill": "filled holes"}


@dataclass(frozen=True)
class Rule:
    """One step of cleaning: `what` is a key of WORDS, `of` the name of a class or ALL."""

    what: str
    of: str

    def __str__(self) -> str:
        return f"{WORDS[self.what]} of {self.of}"


@dataclass(frozen=True)
class Postprocessing:
    """Rules in their order, and what they were learnt from.

    rules      [{"what", "of"}, ...], at least one: see `Rule`
    settings   draws, steps, sampler and fuse that they were learnt with: with others they say nothing
    dataset, fold, cases, patients   validation cases that they were learnt from, and how many patients they are of
    """

    rules: list[dict[str, str]]
    settings: dict[str, Any]
    dataset: str
    fold: int
    cases: int
    patients: int

    @property
    def steps(self) -> list[Rule]:
        """The rules."""
        return [Rule(rule["what"], rule["of"]) for rule in self.rules]

    @property
    def id(self) -> str:
        """What tells it from other rules for the same weights."""
        return digest_of(self.rules)

    def mismatch(self, settings: dict[str, Any]) -> str:
        """Why nothing is applied with these settings of a prediction; "" if the rules are."""
        if settings["options"].get("postprocess") is False:
            return "it was asked for without"
        other = settings_mismatch(self.settings, settings)
        return other and f"learnt with {other}"

    def announce(self, settings: dict[str, Any]) -> str:
        """One line: what is done to masks with these settings, or why nothing is."""
        mismatch, rules = self.mismatch(settings), "; ".join(map(str, self.steps))
        if mismatch:
            return f"masks are not post-processed ({rules}): {mismatch}"
        where = f"{pluralize(self.cases, 'validation case')} (fold {self.fold} of {self.dataset})"
        return f"masks are post-processed ({rules}), as learnt on {where}; --no-postprocess leaves them as they are"


def read_postprocessing(meta: dict[str, Any], names: Sequence[str]) -> Postprocessing | None:
    """The rules in the header of a checkpoint of these classes, if there are any.

    Raises:
        UserError: Another version wrote them otherwise.
    """
    header = meta.get("postprocessing")
    if header is None:
        return None
    learnt = from_dict(Postprocessing, header, "postprocessing.")
    for rule in learnt.steps:
        if rule.what not in WORDS or rule.of not in (ALL, *names[1:]):
            do = "Learn them again: diffuseg postprocess MODEL DATASET"
            raise UserError(f"its post-processing has a rule that is not known: {rule.of}, {rule.what}", do=do)
    return learnt


def postprocessing_of(record: dict[str, Any]) -> str | None:
    """The `id` of the rules that were applied to a prediction, by its record."""
    applied = record.get("postprocessing") or {}
    return applied.get("id") if applied.get("applied") else None


def apply_postprocessing(
    learnt: Postprocessing | None, classes: Integer[np.ndarray, "*s"], names: Sequence[str], settings: dict[str, Any]
) -> tuple[Integer[np.ndarray, "*s"], dict[str, Any]]:
    """Class indices after the rules, if there are any, and what <case>.json says; with other settings they stay, and why.

    Args:
        learnt: Of the model; None: there is nothing.
        classes: Class indices [*s] on the image's own voxels.
        names: Of the classes, by index.
        settings: Of the prediction, see `Model.settings`.
    """
    if learnt is None:
        return classes, {}
    mismatch = learnt.mismatch(settings)
    if mismatch:
        return classes, {"postprocessing": {"applied": False, "reason": mismatch}}
    cleaned = classes
    for rule in learnt.steps:
        cleaned = clean(cleaned, rule, names)
    changed = int(np.count_nonzero(cleaned != classes))
    return cleaned, {"postprocessing": {"applied": True, "id": learnt.id, "changed_voxels": changed} | asdict(learnt)}


def clean(classes: Integer[np.ndarray, "*s"], rule: Rule, names: Sequence[str]) -> Integer[np.ndarray, "*s"]:
    """Class indices after one rule; the same array where nothing changes, which is never written to.

    Args:
        classes: Class indices of a mask.
        rule: What is done to which class.
        names: Of the classes by their index, background first.
    """
    from scipy import ndimage

    mine = classes > 0 if rule.of == ALL else classes == list(names).index(rule.of)
    found = ndimage.find_objects(mine.astype(np.uint8))  # only the box round it is worked on
    if not found:
        return classes
    part, shape = classes[found[0]], mine[found[0]]
    changed = _RULES[rule.what](part, shape)
    if np.array_equal(changed, part):
        return classes
    cleaned = classes.copy()
    cleaned[found[0]] = changed
    return cleaned


def _largest(classes: Integer[np.ndarray, "*s"], mine: Bool[np.ndarray, "*s"]) -> Integer[np.ndarray, "*s"]:
    from scipy import ndimage

    found: Any = ndimage.label(mine, ndimage.generate_binary_structure(mine.ndim, mine.ndim))
    labels = found[0]
    size = np.bincount(labels.ravel())
    size[0] = 0
    return np.where(mine & (labels != int(size.argmax())), 0, classes).astype(classes.dtype)


def _fill(classes: Integer[np.ndarray, "*s"], mine: Bool[np.ndarray, "*s"]) -> Integer[np.ndarray, "*s"]:
    """What is filled gets the class of the nearest voxel that closes it in."""
    from scipy import ndimage

    holes = ndimage.binary_fill_holes(mine) & (classes == 0)
    if not holes.any():
        return classes
    nearest: Any = ndimage.distance_transform_edt(~mine, return_distances=False, return_indices=True)
    return np.where(holes, classes[tuple(nearest)], classes)


_RULES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"largest": _largest, "fill": _fill}
