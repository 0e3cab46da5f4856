"""From DICOM slices to stacks: which slices make one image, in which order, and where it lies in the world.

Order and distances come from positions and orientations alone, never from instance numbers, names, or the thickness of slices.
A series whose slices do not lie evenly on one line is refused with the slices' names. A line that is not at right angles to
the slices (gantry tilt) makes a sheared affine, which is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from diffuseg.data.dicom_files import TRAITS, Slice, dicom_files, read_slices
from diffuseg.data.geometry import LPS_TO_RAS, warn_once
from diffuseg.errors import UserError
from diffuseg.text import by, few, pluralize

ELSEWHERE = 0.1  # of a voxel: as far as a slice or a corner may be from where an even grid has it
ONE_PLACE = 0.01  # of a pixel: positions that are closer are one
ONE_DIRECTION = 0.01  # difference of direction cosines that makes two stacks of one
AGAIN = "Export it again as it was acquired, or choose another series"


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one image in the order of space, or a single picture without a place in space.

    place   what it can be read from again: its folder, or where that has several, its first file
    label   number of the series, "5", or "5/2" where it holds several stacks
    detail  what tells it from other stacks of its series ("time point 2")
    affine  [4, 4], (column, row, slice) -> RAS mm; of a picture (row, column)
    fault   why it is no image, None if it is one
    """

    place: Path
    slices: tuple[Slice, ...]
    label: str = ""
    detail: str = ""
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    fault: str | None = None

    def __str__(self) -> str:
        first = self.slices[0]
        return f"{self.place} (series {self.label or first.number}, {first.modality})"

    @property
    def name(self) -> str:
        """The last part of its place, as of a path."""
        return self.place.name

    @property
    def dims(self) -> int:
        """3, or 2 of a picture."""
        return 2 if self.slices[0].position is None else 3

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is in, each once."""
        return tuple(dict.fromkeys(part.file for part in self.slices))

    @property
    def localizer(self) -> bool:
        """Whether it is there to plan other series."""
        return self.slices[0].localizer

    def line(self) -> str:
        """What a person needs to know to choose it."""
        first = self.slices[0]
        size = by((*reversed(first.shape), *([len(self.slices)] if self.dims == 3 else [])))
        steps = np.linalg.norm(self.affine[:3, : self.dims], axis=0)
        spacing = "" if self.fault or first.spacing is None else f", {by(steps)} mm"
        planes = pluralize(len(self.slices), "slice") if self.dims == 3 else "picture"
        about = ", ".join(filter(None, (repr(first.description) if first.description else "", self.detail)))
        fault = f" (not usable: {self.fault})" if self.fault else ""
        uid = "/".join(filter(None, (first.series, self.label.partition("/")[2])))  # as `_asked` takes it
        return f"  {self.label:<6} {first.modality:<3} {about or 'no description'}: {planes}, {size}{spacing}, UID {uid}{fault}"


def find_stacks(place: Path, nested: bool = True) -> tuple[list[Stack], dict[str, int]]:
    """All images among the DICOM files of a folder, by series number, and how many other objects there are by kind.

    Args:
        place: A folder.
        nested: Also look into the folders in it.
    """
    slices, others = read_slices(dicom_files(place, nested))
    series: dict[str, list[Slice]] = {}
    for part in slices:
        series.setdefault(part.series, []).append(part)
    numbers = [min((part.number is None, part.number or 0) for part in parts) for parts in series.values()]
    stacks: list[Stack] = []
    for parts, number in sorted(zip(series.values(), numbers, strict=True), key=lambda item: (item[1], item[0][0].series)):
        made = sorted(_stacks(parts, place), key=lambda stack: stack.localizer)
        twice = numbers.count(number) > 1 or number[0]
        name = f"#{1 + list(series.values()).index(parts)}" if twice else str(number[1])
        names = [name] if len(made) == 1 else [f"{name}/{k}" for k in range(1, len(made) + 1)]
        stacks += [replace(stack, label=label) for stack, label in zip(made, names, strict=True)]
    if sum(stack.dims == 3 and not stack.localizer for stack in stacks) > 1:  # the folder alone does not say which
        stacks = [replace(stack, place=stack.files[0]) for stack in stacks]
    return stacks, others


def choose(stacks: Sequence[Stack], others: dict[str, int], asked: Sequence[str], place: Path) -> list[Stack]:
    """The images meant: those asked for in that order, else the only one there is; "all" are all but localizers.

    Asked for by UID, number (`label`) or a part of the description. Where there is nothing to choose from, too much, or what
    was asked for is not there or not usable, the message lists what is there.
    """
    offered = [stack for stack in stacks if not stack.localizer]
    volumes = [stack for stack in offered if stack.dims == 3]
    offered = volumes or offered
    if not stacks:
        kinds = f" ({', '.join(f'{n} {kind}' for kind, n in others.items())})" if others else ""
        raise UserError(f"there are DICOM files here, but no image in them{kinds}", file=place)
    if list(asked) == ["all"]:
        chosen = [stack for stack in offered if stack.fault is None]
        for stack in offered:
            if stack.fault is not None:
                warn_once(place, f"series {stack.label} is left out: {stack.fault}")
    elif asked:
        chosen = [_asked(stacks, text, place) for text in asked]
    else:
        chosen = offered if len(offered) == 1 or not volumes else []
    if not chosen:
        what = f"{len(offered)} image series, and none was chosen" if offered else "nothing but localizers"
        do = "Choose by --series UID, NUMBER or a part of the description; --series all takes each as a case of its own"
        raise UserError(f"{what}:\n{listing(stacks, others)}\n{do}", file=place)
    for stack in chosen:
        if stack.fault is not None:
            raise UserError(f"series {stack.label} is refused: {stack.fault}", file=stack.place, do=AGAIN)
    return chosen


def listing(stacks: Sequence[Stack], others: dict[str, int]) -> str:
    """One line for each image, then what else lies there."""
    lines = [stack.line() + (" (localizer)" if stack.localizer else "") for stack in stacks]
    if others:
        lines.append(f"  besides: {', '.join(f'{n} {kind}' for kind, n in others.items())}")
    return "\n".join(lines)


def _asked(stacks: Sequence[Stack], text: str, place: Path) -> Stack:
    rules: tuple[Callable[[Stack], bool], ...] = (
        lambda stack: text == stack.label,
        lambda stack: text == stack.slices[0].series or text == f"{stack.slices[0].series}/{stack.label.partition('/')[2]}",
        lambda stack: text == stack.label.partition("/")[0],
        lambda stack: text.lower() in stack.slices[0].description.lower(),
    )
    for rule in rules:
        found = [stack for stack in stacks if rule(stack)]
        if len(found) > 1 and not all(stack.localizer for stack in found):
            found = [stack for stack in found if not stack.localizer]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"--series {text} means {len(found)} images:\n{listing(found, {})}\nName one of them by --series UID",
                file=place,
            )
    raise UserError(f"there is no series {text!r}; there are:\n{listing(stacks, {})}", file=place)


def _stacks(slices: list[Slice], place: Path) -> list[Stack]:
    """The stacks of one series: same size, spacing, direction and kind, and where they can be told apart, one per position."""
    groups: list[list[Slice]] = []
    made: list[Stack] = []
    for part in slices:
        if part.position is None:
            continue
        group = next((group for group in groups if _alike(group[0], part)), None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    for group in groups:
        detail = "" if len(groups) == 1 else "of another size or direction"
        made += [_ordered(part, place, ", ".join(filter(None, (detail, text)))) for part, text in _apart(group)]
    by_file: dict[tuple[Path, bool], list[Slice]] = {}
    for part in slices:
        if part.position is None:
            by_file.setdefault((part.file, part.film), []).append(part)
    made += [_picture(parts, file) for (file, _), parts in by_file.items()]
    return made


def _alike(one: Slice, other: Slice) -> bool:
    same = lambda part: (part.shape, part.samples, part.localizer, part.space, part.modality, part.spacing is None)
    if same(one) != same(other) or (one.spacing is not None and not np.allclose(one.spacing, other.spacing or 0, rtol=1e-3)):
        return False
    return float(np.abs(np.subtract(one.orientation, other.orientation)).max()) < ONE_DIRECTION  # type: ignore[arg-type]


def _apart(group: list[Slice]) -> list[tuple[list[Slice], str]]:
    """A group split so that each part has one slice per position, if a trait of the slices does it; with its name."""
    bins = _positions(group)
    times = len(bins[0])
    if times == 1 or any(len(found) != times for found in bins):
        return [(group, "")]
    for trait, name in TRAITS.items():
        values = sorted({part.traits.get(trait, "") for part in group}, key=_natural)
        parts = [[part for part in group if part.traits.get(trait, "") == value] for value in values]
        if len(values) == times and all(len(_positions(part)) == len(part) == len(bins) for part in parts):
            return [(part, f"{name} {value}") for part, value in zip(parts, values, strict=True)]
    return [(group, "")]


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def _positions(group: list[Slice]) -> list[list[Slice]]:
    """Slices by where they are, along the normal of the slices."""
    near = ONE_PLACE * min(group[0].spacing or (1.0, 1.0))
    normal = np.cross(*_directions(group[0]))
    bins: list[list[Slice]] = []
    for part in sorted(group, key=lambda part: float(normal @ _place(part))):
        if bins and np.linalg.norm(_place(bins[-1][0]) - _place(part)) < near:
            bins[-1].append(part)
        else:
            bins.append([part])
    return bins


def _place(part: Slice) -> np.ndarray:
    assert part.position is not None
    return np.array(part.position)


def _directions(part: Slice) -> np.ndarray:
    """Unit vectors along a row and along a column, [2, 3]."""
    assert part.orientation is not None
    axes = np.reshape(part.orientation, (2, 3))
    return axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-12)


def _ordered(group: list[Slice], place: Path, detail: str) -> Stack:
    bins = _positions(group)
    ordered = tuple(part for found in bins for part in found)
    files = {part.file for part in group}
    stack = Stack(files.pop() if len(files) == 1 else place, ordered, detail=detail)
    fault = _fault_of_slices(ordered) or _fault_of_bins(bins)
    if fault is not None:
        return replace(stack, fault=fault)
    step, fault = _step(ordered)
    if fault is not None:
        return replace(stack, fault=fault)
    row, column = _directions(ordered[0])
    assert ordered[0].spacing is not None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * ordered[0].spacing[1], column * ordered[0].spacing[0]
    affine[:3, 2], affine[:3, 3] = step, _place(ordered[0])
    return replace(stack, affine=LPS_TO_RAS @ affine)


def _fault_of_slices(ordered: Sequence[Slice]) -> str | None:
    """What is wrong with single slices, or with the directions of two."""
    first = ordered[0]
    if any(part.mosaic for part in ordered):
        return "each image is a mosaic of many slices; dcm2niix takes them apart"
    if first.spacing is None or min(first.spacing) <= 0:
        return f"{first.name} says no distance between pixels"
    axes = np.reshape(np.array(first.orientation), (2, 3))
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
        return f"the orientation of {first.name} is not that of two axes at right angles"
    reach = np.array([first.shape[1] * first.spacing[1], first.shape[0] * first.spacing[0]])
    for part in ordered[1:]:
        away = float(reach @ np.linalg.norm(_directions(part) - _directions(first), axis=1))
        if away > ELSEWHERE * min(first.spacing):
            return f"{part.name} is turned against {first.name}, by {away:.3g} mm at its corner"
    return None


def _fault_of_bins(bins: list[list[Slice]]) -> str | None:
    """Several images at one position that nothing tells apart."""
    double = [found for found in bins if len(found) > 1]
    if not double:
        return None
    if len(double) == len(bins) > 1 and len({len(found) for found in bins}) == 1:
        what = f"{len(double[0])} images at each of {len(bins)} positions, and nothing in their headers tells them apart"
        return f"{what} (such as {few(part.name for part in double[0])})"
    pairs = [" and ".join(part.name for part in found) for found in double]
    return f"duplicate slices, more than one at a position: {few(pairs)}"


def _step(ordered: Sequence[Slice]) -> tuple[np.ndarray, str | None]:
    """The way from a slice to the next, LPS mm, and what is wrong with it."""
    row, column = _directions(ordered[0])
    normal = np.cross(row, column)
    if len(ordered) == 1:
        thick = ordered[0].thickness
        if thick is None:
            warn_once(ordered[0].file, "a single slice that says nothing of its thickness: 1 mm is assumed")
        return normal * (thick or 1.0), None
    places = np.array([_place(part) for part in ordered])
    gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    usual = float(np.median(gaps))
    wide = [k for k in range(len(gaps)) if gaps[k] > 1.5 * usual]
    whole = [k for k in wide if abs(gaps[k] / usual - round(gaps[k] / usual)) < 2 * ELSEWHERE]
    if wide and wide == whole and len(wide) < len(gaps) / 2:
        named = [
            f"{pluralize(round(gaps[k] / usual) - 1, 'slice')} between {ordered[k].name} and {ordered[k + 1].name}"
            for k in wide
        ]
        return normal, f"missing slices: {few(named)} ({gaps[wide[0]]:.4g} mm apart, others {usual:.4g} mm)"
    step = (places[-1] - places[0]) / (len(ordered) - 1)
    away = np.linalg.norm(places - places[0] - np.arange(len(ordered))[:, None] * step, axis=1)
    worst = int(away.argmax())
    if away[worst] > ELSEWHERE * float(np.linalg.norm(step)):
        apart = f"distances are {gaps.min():.4g} to {gaps.max():.4g} mm"
        return normal, f"slices are not evenly spaced: {apart}, {ordered[worst].name} is {away[worst]:.3g} mm off"
    if abs(normal @ step) < 0.1 * np.linalg.norm(step):
        return normal, "its slices lie beside and not behind each other"
    return step, None


def _picture(parts: list[Slice], file: Path) -> Stack:
    """A file without a place in space: one plane, or a film, which is refused."""
    first = parts[0]
    affine = np.eye(4)
    if first.spacing is not None and min(first.spacing) > 0:
        affine[0, 0], affine[1, 1] = first.spacing
    fault = None
    if first.film or len(parts) > 1:
        fault = "its frames have no place in space (a film, or a whole slide)"
    elif first.mosaic:
        fault = "it is a mosaic of many slices; dcm2niix takes it apart"
    return Stack(file, tuple(parts), affine=affine, fault=fault)
