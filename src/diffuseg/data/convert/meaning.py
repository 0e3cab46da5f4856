"""What the values of masks mean: one pass over all of them decides, and says why, before anything is written."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffuseg.data.convert.colours import Colour, hex_of
from diffuseg.data.convert.reading import Painted
from diffuseg.errors import UserError
from diffuseg.text import pluralize

BACKGROUND = ("background", "backgrund", "hintergrund", "bg", "none", "unlabeled", "unlabelled")
MANY = 8  # values in a mask of 0 and 255 from which on it was smoothed
MOST = 512  # values or colours that are counted


@dataclass
class Found:
    """What masks hold: how often each value, colour or plane occurs.

    Attributes:
        values: Of masks in grey.
        colours: Of masks in colour.
        planes: How many planes masks with one per class have.
        names: Value -> name as the files say it.
        smooth: A file whose values lie between two, and why it is thought so.
    """

    values: Counter[int] = field(default_factory=Counter)
    colours: Counter[Colour] = field(default_factory=Counter)
    planes: int = 0
    names: dict[int, str] = field(default_factory=dict)
    smooth: tuple[Path, str] | None = None
    palette: dict[int, Colour] = field(default_factory=dict)


@dataclass(frozen=True)
class Meaning:
    """Classes, and how stored values become theirs.

    Attributes:
        labels: Class -> value, background 0 first.
        values: Stored value -> label.
        colours: Stored colour -> label.
        structures: Name of a structure -> label, where each has a mask of its own.
        planes: Label of each plane, where masks have one per class.
        threshold: From where on a value is foreground, where that was asked for.
        layered: Whether later structures lie over earlier ones.
        rows: What to show: (stored, class, label, share of pixels).
    """

    labels: dict[str, int]
    values: dict[int, int] = field(default_factory=dict)
    colours: dict[Colour, int] = field(default_factory=dict)
    structures: dict[str, int] = field(default_factory=dict)
    planes: tuple[int, ...] = ()
    threshold: float | None = None
    layered: bool = False
    rows: tuple[tuple[str, str, int, str], ...] = ()


def count_values(painted: Painted, file: Path, found: Found, threshold: float | None) -> None:
    """Count what a mask holds."""
    data = painted.image.data
    if not np.isfinite(data).all():
        raise UserError("NaN or infinite values", file=file, do="Replace them")
    if threshold is not None:
        above = int((binary(data, threshold)).sum())
        found.values.update({1: above, 0: data[0].size - above})
        return
    if len(data) == 3 and data.dtype == np.uint8 and (painted.colour or not _one_hot(data)):
        if painted.lossy:
            found.smooth = found.smooth or (file, "is JPEG in colour, which has no exact colours")
            return
        colours, counts = np.unique(data.reshape(3, -1).T, axis=0, return_counts=True)
        if len(colours) > MOST:
            found.smooth = found.smooth or (file, f"has {len(colours)} colours: smoothed, or no mask")
            return
        found.colours.update({_colour(c): int(n) for c, n in zip(colours, counts, strict=True)})
        return
    if len(data) > 1:
        _look_at_planes(data, file, found)
        return
    values, counts = np.unique(data, return_counts=True)
    reason = _smooth(values, counts, painted.lossy)
    if reason:
        found.smooth = found.smooth or (file, reason)
        return
    found.values.update({int(v): int(n) for v, n in zip(values, counts, strict=True)})
    for value, name in (painted.names or {}).items():
        if found.names.setdefault(value, name) != name:
            raise UserError(f"value {value} is {name!r} here and {found.names[value]!r} in others", file=file)
    for value, colour in (painted.palette or {}).items():
        if value in values:
            found.palette[value] = colour


def _look_at_planes(data: np.ndarray, file: Path, found: Found) -> None:
    if not _one_hot(data):
        what = f"it has {len(data)} planes of other values than 0 and 1 (or 255)"
        raise UserError(what, file=file, do="A mask has one plane of labels, three of colours, or one of 0 and 1 per class")
    both = int(((data > 0).sum(0) > 1).sum())
    if both:
        raise UserError(f"its planes overlap in {pluralize(both, 'voxel')}", file=file, do="A voxel has one class")
    if found.planes not in (0, len(data)):
        raise UserError(f"it has {len(data)} planes, others have {found.planes}", file=file)
    found.planes = len(data)
    found.values.update({n: int((plane > 0).sum()) for n, plane in enumerate(data)})
    found.values[-1] += int((data == 0).all(0).sum())  # in no plane


def _one_hot(data: np.ndarray) -> bool:
    high = data.max()
    return bool(high in (0, 1, 255) and ((data == 0) | (data == high)).all() and ((data > 0).sum(0) <= 1).all())


def _smooth(values: np.ndarray, counts: np.ndarray, lossy: bool) -> str | None:
    """Why values are taken for those of two that were smoothed; None if they are labels."""
    whole = np.issubdtype(values.dtype, np.integer) or bool((values == np.rint(values)).all())
    if not whole:
        return f"has {pluralize(len(values), 'value')} such as {values[len(values) // 2]:g}: a probability, or resampled"
    low, high = float(values[0]), float(values[-1])
    reach = 0.1 * (high - low)
    near = (values <= low + reach) | (values >= high - reach)
    share = counts[near].sum() / counts.sum()
    if lossy and len(values) > 2:
        return f"is lossy: {len(values)} values from {low:g} to {high:g}, {share:.0%} of the pixels near the two ends"
    if len(values) > MANY and high in (255, 65535) and share > 0.8:
        return f"has {len(values)} values from {low:g} to {high:g}, {share:.0%} of the pixels near the two ends: smoothed"
    return None


def binary(data: np.ndarray, threshold: float) -> np.ndarray:
    """Foreground of a mask: its values, or in colour the brightest of the three, at least the threshold."""
    return data.max(0) >= threshold


def decide(
    found: Found,
    structures: Sequence[str] = (),
    labels: Sequence[str] = (),
    table: Mapping[Colour, str] | None = None,
    threshold: float | None = None,
    name: str = "",
) -> Meaning:
    """The classes that masks hold.

    Args:
        found: What they hold.
        structures: Names of the structures, where each has a mask of its own; in their order, later ones over earlier ones.
        labels: Names of the classes by rising value (or by plane, or structures), or name=value.
        table: Colour -> class.
        threshold: As it was asked for.
        name: What file names say that masks are of.

    Raises:
        UserError: Values that say nothing: smoothed, empty, or colours without a table.
    """
    if found.smooth:
        file, reason = found.smooth
        do = (
            "--threshold 128 (or 0.5 for probabilities) takes what is at least that as foreground; better, export the mask anew"
        )
        raise UserError(reason, file=file, do=do)
    if found.colours and (found.planes or set(found.values) - {0, 255}):
        raise UserError("some masks are in colour and others are not", do="Convert them apart")
    if structures:
        return _by_structure(found, structures, labels)
    if found.colours:
        return _by_colour(found, table)
    if found.planes:
        return _by_plane(found, labels)
    if table:
        return _by_palette(found, table)
    return _by_value(found, labels, threshold, name or "foreground")


def _by_structure(found: Found, structures: Sequence[str], labels: Sequence[str]) -> Meaning:
    if (len(found.values) > 2 and not set(found.values) <= {0, 1, 255}) or found.planes or found.colours:
        raise UserError(f"masks of one structure hold more than two values: {sorted(found.values)[:8]}", do="Two each")
    names = list(labels) or list(structures)
    if sorted(names) != sorted(structures):
        raise UserError(
            f"--labels names {', '.join(names)}; the masks are of {', '.join(structures)}", do="Name these, in order"
        )
    values = {name: number for number, name in enumerate(names, 1)}
    rows = [("its own mask", name, value, "") for name, value in values.items()]
    return Meaning(
        {"background": 0} | values,
        {v: int(v != min(found.values)) for v in found.values},
        structures=values,
        layered=bool(labels),
        rows=(*rows,),
    )


def _by_colour(found: Found, table: Mapping[Colour, str] | None) -> Meaning:
    found.colours.update({(v, v, v): n for v, n in found.values.items()})
    listed = ", ".join(f"{hex_of(c)} ({_share(n, found.colours)})" for c, n in found.colours.most_common(12))
    if table is None:
        others = [c for c in found.colours if c != (0, 0, 0)]
        if len(others) != 1:
            such = f'{{"background": "#000000", "lesion": "{hex_of(others[0])}"}}'
            do = f"--colours FILE, such as {such}, or a CSV with name and colour"
            raise UserError(f"masks are in {pluralize(len(found.colours), 'colour')}: {listed}", do=do)
        table = {(0, 0, 0): "background", others[0]: "foreground"}
    unknown = [colour for colour in found.colours if colour not in table]
    if unknown:
        raise UserError(
            f"colours that the table lacks: {', '.join(map(hex_of, unknown[:8]))}; there are {listed}", do="Add them"
        )
    labels = _numbered(list(dict.fromkeys(table.values())))
    rows = [(hex_of(c), table[c], labels[table[c]], _share(n, found.colours)) for c, n in found.colours.most_common()]
    return Meaning(labels, colours={c: labels[name] for c, name in table.items()}, rows=(*rows,))


def _by_palette(found: Found, table: Mapping[Colour, str]) -> Meaning:
    """Indices of a palette, or grey, by the colour that they show."""
    colours = {value: found.palette.get(value, (value, value, value)) for value in sorted(found.values)}
    unknown = [hex_of(c) for c in colours.values() if c not in table]
    if unknown:
        raise UserError(f"colours that the table lacks: {', '.join(unknown[:8])}", do="Add them")
    labels = _numbered(list(dict.fromkeys(table.values())))
    values = {value: labels[table[c]] for value, c in colours.items()}
    rows = [(f"{v} ({hex_of(c)})", table[c], values[v], _share(found.values[v], found.values)) for v, c in colours.items()]
    return Meaning(labels, values, rows=(*rows,))


def _numbered(names: list[str]) -> dict[str, int]:
    back = next((name for name in names if name.strip().lower() in BACKGROUND), None)
    if back is None:
        raise UserError(f"none of the colours is called background: {', '.join(names)}", do='Call one "background"')
    return {"background": 0} | {name: number for number, name in enumerate((n for n in names if n != back), 1)}


def _by_plane(found: Found, labels: Sequence[str]) -> Meaning:
    complete = found.values[-1] == 0  # every voxel is in a plane: the first is the background
    number = found.planes - complete
    names = list(labels) or [f"class_{n}" for n in range(1, number + 1)]
    names = names[1:] if complete and len(names) == number + 1 else names
    if len(names) != number:
        first = ", the first being background" if complete else ""
        raise UserError(f"masks have {pluralize(found.planes, 'plane')}{first}; --labels gives {pluralize(len(names), 'name')}")
    planes = tuple(range(0 if complete else 1, number + 1))
    all_names = {"background": 0} | {name: value for value, name in enumerate(names, 1)}
    by_value = {value: name for name, value in all_names.items()}
    rows = [(f"plane {n}", by_value[v], v, _share(found.values[n], found.values)) for n, v in enumerate(planes)]
    return Meaning(all_names, planes=planes, rows=(*rows,))


def _by_value(found: Found, labels: Sequence[str], threshold: float | None, single: str) -> Meaning:
    values = sorted(found.values)
    given = dict(_given(text) for text in labels if "=" in text)
    if given and len(given) < len(labels):
        raise UserError("--labels is either names or name=value throughout", do="Such as --labels liver=1,tumour=2")
    back = next((v for name, v in given.items() if name.lower() in BACKGROUND), min(values))
    others = [value for value in values if value != back]
    if not others:
        raise UserError(f"all masks hold the value {values[0]} alone: nothing is marked in any", do="Is it the right folder?")
    if len(values) > (256 if labels or found.names else 64):
        do = "Are these the images? More than 64 values need --labels"
        raise UserError(f"masks hold {len(values)} different values, too many for classes", do=do)
    if given:
        names = {value: name for name, value in given.items()}
        unknown = [v for v in others if v not in names]
        if unknown:
            raise UserError(f"masks hold {_listed(unknown)} too", do="Name them in --labels, such as other=" + str(unknown[0]))
        others = [v for v in names if v != back]
    elif labels:
        names = dict(zip(others, [n for n in labels if n.lower() not in BACKGROUND], strict=False))
        if len(names) != len(others) or len([n for n in labels if n.lower() not in BACKGROUND]) != len(others):
            raise UserError(f"masks hold {_listed(others)} beside {back}; --labels gives {pluralize(len(labels), 'name')}")
    else:
        names = {value: found.names.get(value) or (single if len(others) == 1 else f"label_{value}") for value in others}
    kept = back == 0 and min(others) > 0 and len(others) > 1
    stored = {value: value if kept else number for number, value in enumerate(sorted(others), 1)}
    classes = {"background": 0} | {names[value]: stored[value] for value in others}
    if len(classes) < len(others) + 1:
        raise UserError(f"two classes have one name: {', '.join(names.values())}")
    total = found.values
    rows = [(_stored(back, found, threshold), "background", 0, _share(total[back], total))]
    rows += [(_stored(v, found, threshold), names[v], stored[v], _share(total[v], total)) for v in others]
    return Meaning(classes, {back: 0} | stored, threshold=threshold, rows=(*rows,))


def _given(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name or not re.fullmatch(r"-?\d+", value):
        raise UserError(f"--labels {text}: a name and an integer, such as liver=1")
    return name, int(value)


def _stored(value: int, found: Found, threshold: float | None) -> str:
    if threshold is not None:
        return f">= {threshold:g}" if value else f"< {threshold:g}"
    return f"{value} ({hex_of(found.palette[value])})" if value in found.palette else str(value)


def _share(count: int, total: Counter) -> str:
    share = count / max(sum(total.values()), 1)
    return f"{share:.1%}" if share >= 0.001 or not count else f"{share:.1e}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")


def _colour(row: np.ndarray) -> Colour:
    return int(row[0]), int(row[1]), int(row[2])


def recode(data: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Planes [c, *s] of a mask as stored -> labels [*s]."""
    if meaning.threshold is not None:
        return np.where(binary(data, meaning.threshold), meaning.values.get(1, 1), 0).astype(np.int32)
    if meaning.planes:
        labels = np.array([*meaning.planes, 0])
        return np.where((data > 0).any(0), labels[data.argmax(0)], 0).astype(np.int32)
    result = np.zeros(data.shape[1:], np.int32)
    if meaning.colours:
        planes = np.broadcast_to(data, (3, *data.shape[1:])).astype(np.int64)
        code = (planes[0] << 16) + (planes[1] << 8) + planes[2]
        for (r, g, b), label in meaning.colours.items():
            result[code == (r << 16) + (g << 8) + b] = label
        return result
    for value, label in meaning.values.items():
        result[data[0] == value] = label
    return result
