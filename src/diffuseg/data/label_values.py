"""What the "labels" of dataset.json mean: the classes, the background (value 0, by rule), and nnU-Net's label "ignore"."""

import re
from pathlib import Path
from typing import Any

from diffuseg.data.geometry import warn_once
from diffuseg.data.names import words
from diffuseg.errors import UserError

IGNORE = "ignore"  # nnU-Net's name for voxels that nobody has annotated
ALIKE = (
    "void", "unannotated", "not annotated", "unlabelled", "unlabeled", "not labelled", "not labeled", "dont care", "don't care",
    "do not care", "unknown", "undefined", "unsure", "not sure", "uncertain", "unclear", "exclude", "excluded", "na",
    "n/a", "invalid",
)  # fmt: skip
BACKGROUND = ("background", "bg", "backgr", "back", "unlabelled", "unlabeled", "other", "others", "rest", "none", "nothing",
              "outside", "clear", "healthy", "control", "empty", "air", "void", "unknown", "normal", "hintergrund", "fond",
              "fondo", "fundo", "sfondo", "achtergrond", "exterior", "0", "null", "zero")  # fmt: skip


def label_values(extra: dict[str, Any], file: Path) -> dict[str, int]:
    """Classes and their values.

    Args:
        extra: What dataset.json holds.
        file: Its name in messages.

    Returns:
        Name -> value, by rising value, background first; without "ignore".

    Raises:
        UserError: Regions, negative values, names that mean "ignore" in other words, or a background that is not 0.
    """
    return _classes_and_ignore(extra, file)[0]


def ignore_value(extra: dict[str, Any], file: Path) -> int | None:
    """The value of voxels that nobody has annotated; None where dataset.json has no label "ignore".

    Args:
        extra: What dataset.json holds.
        file: Its name in messages.

    Raises:
        UserError: As `label_values`.
    """
    return _classes_and_ignore(extra, file)[1]


def _classes_and_ignore(extra: dict[str, Any], file: Path) -> tuple[dict[str, int], int | None]:
    labels = _by_name(extra, file)
    ignored = [name for name in labels if name.strip().lower() == IGNORE]
    ignore = labels[ignored[0]] if ignored else None
    if ignore is not None and (len(ignored) > 1 or ignore != max(labels.values()) or ignore == 0):
        do = f"It says {labels}; masks have to agree"
        raise UserError('the label "ignore" must be one, and the highest value of all', file=file, do=do)
    if ignore is not None and extra.get("raters"):
        do = 'Leave out "raters", or the label "ignore"'
        raise UserError('"ignore" and "raters" together are not supported: votes would be missing', file=file, do=do)
    classes = {name: value for name, value in labels.items() if name not in ignored}
    named = [name for name in classes if name.strip().lower() == "background"]
    if any(classes[name] != 0 for name in named) or 0 not in classes.values():
        raise UserError("the background must be label 0", file=file, do=f"It says {labels}")
    if len(set(labels.values())) < len(labels) or len(classes) < 2:
        raise UserError(f"labels need a background and further, different values, not {labels}", file=file)
    odd = [name for name in classes if classes[name] != 0 and _alike(name)]
    if odd:
        do = 'If nobody annotated these voxels, name the label "ignore"; if it is a class, give it another name'
        raise UserError(f"label {odd[0]!r} would be learnt as a class", file=file, do=do)
    zero = next(name for name in classes if classes[name] == 0)
    if not set(words(zero)) & set(BACKGROUND) and zero.strip() not in BACKGROUND:
        warn_once(file, f"label 0, {zero!r}, is taken for the background: it is no class, and is not predicted")
    return dict(sorted(classes.items(), key=lambda item: item[1])), ignore


def _alike(name: str) -> bool:
    """Whether a label means by its name that nobody has annotated its voxels."""
    plain = " ".join(re.split(r"[\W_]+(?!t\b)", name.strip().lower())).strip()
    somewhere = any(word.startswith(("ignor", "exclud", "unannotat", "unlabel")) for word in words(name))
    return plain in ALIKE or name.strip().lower() in ALIKE or somewhere


def _by_name(extra: dict[str, Any], file: Path) -> dict[str, int]:
    """Name -> value, whichever way round they are stored."""
    labels = extra.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise UserError('it needs "labels": {"background": 0, ...}', file=file)
    if all(re.fullmatch(r"-?\d+", key) for key in labels):  # MSD writes {"0": "background"}
        twice = sorted({str(name) for name in labels.values() if list(labels.values()).count(name) > 1})
        if twice:
            raise UserError(f"two labels have one name: {', '.join(twice)}", file=file, do="Give each value its own name")
        labels = {str(name): int(value) for value, name in labels.items()}
    names = [name.strip() for name in labels]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"labels need names that differ, not {', '.join(map(repr, labels))}", file=file)
    for name, value in labels.items():
        if isinstance(value, list):
            what = f"label {name!r} is a region, {value}: one integer per label is supported, no regions"
            raise UserError(what, file=file, do="Give each label one integer; draw regions from its classes afterwards")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"label {name!r} has the value {value!r}; one integer per label is supported", file=file)
        if value < 0:
            do = 'Values count from 0, the background; voxels that nobody annotated get the highest value, named "ignore"'
            raise UserError(f"label {name!r} has the value {value}: a negative label is no class", file=file, do=do)
    return labels
