"""The data set itself: files are surveyed first, then written to a temporary folder, which is renamed when it is complete."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import write_csv, write_json
from diffuseg.data import io
from diffuseg.data.convert.colours import Colour
from diffuseg.data.convert.meaning import Found, Meaning, binary, count_values, decide, recode
from diffuseg.data.convert.pairing import Drawn, Pair, Pairing
from diffuseg.data.convert.polygons import rasterise
from diffuseg.data.convert.reading import Painted, attempt, onto_grid, read_painted, read_picture
from diffuseg.data.label_values import label_values
from diffuseg.data.pictures import LOSSY
from diffuseg.errors import UserError
from diffuseg.text import few, pluralize
from diffuseg.types import Image

RARE = 0.1  # share of the masks; a value that no more of them hold is rare, as is one of a single mask
ENOUGH = 4  # masks, before anything of them is called rare


@dataclass(frozen=True)
class Wishes:
    """What the user says of the data.

    Attributes:
        labels: Names of classes, or name=value.
        colours: Colour -> class.
        threshold: From where on a value is foreground.
        spacing: Voxel size of arrays, mm.
        name: Of the data set.
    """

    labels: tuple[str, ...] = ()
    colours: dict[Colour, str] | None = None
    threshold: float | None = None
    spacing: tuple[float, ...] = ()
    name: str = ""


@dataclass
class Survey:
    """What all files hold, before anything is written.

    Attributes:
        meaning: Classes; None for images alone.
        ending: Of the images to be written.
        copied: Whether images are copied as they are.
        channels: Their names.
        missing: Structure -> number of cases without a mask of it.
        strays: Values that hardly any mask holds, a sentence each; none where classes are named.
    """

    meaning: Meaning | None
    ending: str
    copied: bool
    channels: tuple[str, ...]
    missing: dict[str, int] = field(default_factory=dict)
    strays: tuple[str, ...] = ()


def survey(pairing: Pairing, wishes: Wishes) -> Survey:
    """Read all images and masks once, and decide what they become.

    Raises:
        UserError: A file is broken, grids differ, or masks do not say what they mean.
    """
    found, kinds, planes, dims = Found(), set(), set(), set()
    held: list[tuple[Path, set[int]]] = []
    structures = _structures(pairing)
    for case in pairing.pairs:
        image = _image(case, wishes)
        kinds.add(str(image.data.dtype))
        planes.add(len(image.data))
        dims.add(image.dims)
        for drawn in case.masks:
            painted = _painted(drawn, image)
            laid = replace(painted, image=replace(image, data=onto_grid(painted.image, image, drawn.path)))
            before = found.values.copy()
            count_values(laid, drawn.path, found, wishes.threshold)
            held.append((drawn.path, {value for value, count in found.values.items() if count != before[value]}))
    if len(dims) > 1:
        raise UserError("pictures and volumes are mixed", do="Convert them apart")
    if len(planes) > 1:
        raise UserError(f"images have {' or '.join(map(str, sorted(planes)))} channels", do="Grey and colour apart")
    meaning = None
    if any(case.masks for case in pairing.pairs):
        _check_threshold(found, wishes.threshold)
        meaning = decide(found, structures, wishes.labels, wishes.colours, wishes.threshold, pairing.named)
        label_values({"labels": meaning.labels}, Path("--labels"))
    counts = Counter(what for case in pairing.pairs for what in {drawn.what for drawn in case.masks})
    missing = {what: len(pairing.pairs) - counts[what] for what in structures if counts[what] < len(pairing.pairs)}
    ending, copied = _ending(pairing, dims.pop(), kinds, planes)
    asked = structures or wishes.labels or wishes.colours or found.colours or found.planes or found.names
    strays = () if asked else _strays(held)
    return Survey(meaning, ending, copied, _channels(pairing, planes.pop()), missing, strays)


def _strays(held: Sequence[tuple[Path, set[int]]]) -> tuple[str, ...]:
    """Values that hardly any mask holds: each would become a class of its own, and may be a slip of a pen.

    Args:
        held: The values of each mask, with its file.
    """
    files: dict[int, list[Path]] = {}
    for path, values in held:
        for value in sorted(values):
            files.setdefault(value, []).append(path)
    rare = {value: paths for value, paths in sorted(files.items()) if len(paths) <= max(1, RARE * len(held))}
    if len(held) < ENOUGH or len(files) - len(rare) < 2:  # there is no common class that they could be slips of
        return ()
    named = {value: few("/".join(path.parts[-2:]) for path in paths) for value, paths in rare.items()}
    return tuple(f"value {value} is in {len(rare[value])} of {len(held)} masks only: {names}" for value, names in named.items())


def _check_threshold(found: Found, threshold: float | None) -> None:
    """Refuse a threshold on one side of which there is nothing."""
    counts = [found.values[side] for side in (0, 1)]
    if threshold is not None and not all(counts):
        what = f"--threshold {threshold:g}: {'all' if counts[1] else 'no'} values of the masks are at least that"
        raise UserError(what, do="Choose one between those of background and foreground")


def _structures(pairing: Pairing) -> list[str]:
    """Names of structures with a mask each; none where the values of one mask say it."""
    if not any(drawn.what for case in pairing.pairs for drawn in case.masks):
        return []
    return list(dict.fromkeys(drawn.what for case in pairing.pairs for drawn in case.masks))


def _image(case: Pair, wishes: Wishes) -> Image:
    parts = [read_picture(path, wishes.spacing) for path in case.images]
    for path, part in zip(case.images, parts, strict=True):
        if not np.isfinite(part.data).all():
            raise UserError("NaN or infinite values", file=path, do="Replace them")
        fault = io.grid_fault(parts[0], part)
        if fault is not None:
            raise UserError(f"its {fault} (of {case.images[0].name})", file=path, do="Channels must lie on one grid")
    return Image(np.concatenate([part.data for part in parts]), parts[0].affine, case.images[0], parts[0].header)


def _painted(drawn: Drawn, image: Image) -> Painted:
    if (read := drawn.read) is not None:
        return Painted(Image(attempt(drawn.path, lambda: read(image))[None], image.affine))
    if drawn.shapes is not None:
        if image.dims != 2:
            raise UserError("annotations are of pictures, this image is a volume", file=image.source)
        size = image.shape[0], image.shape[1]
        return Painted(Image(rasterise(drawn.shapes, size, drawn.path)[None], image.affine))
    painted = read_painted(drawn.path, image.shape)
    if painted.geometry and painted.image.dims == image.dims:
        return painted
    if painted.image.shape != image.shape:
        what = f"its shape {painted.image.shape} is not {image.shape}"
        do = "Are they of one case? Was one turned by its camera's tag, or shrunk?"
        raise UserError(f"{what} (of {image.source.name if image.source else 'the image'})", file=drawn.path, do=do)
    return Painted(
        Image(painted.image.data, image.affine), False, painted.palette, painted.names, painted.lossy, painted.colour
    )


def _ending(pairing: Pairing, dims: int, kinds: set[str], planes: set[int]) -> tuple[str, bool]:
    """The ending of the images, and whether their files can be copied as they are."""
    names = [path.name.lower() for case in pairing.pairs for path in case.images]
    for ending in io.ENDINGS:
        if all(name.endswith(ending) for name in names) and (ending in LOSSY or ending not in io.WRITTEN_AS):
            return ending, True
    if dims == 3:
        return ".nii.gz", False
    per_file = max(planes) // max(len(case.images) for case in pairing.pairs)
    fits = (kinds <= {"uint8"} and per_file in (1, 3)) or (kinds <= {"uint8", "uint16"} and per_file == 1)
    return (".png" if fits else ".tif"), False


def _channels(pairing: Pairing, planes: int) -> tuple[str, ...]:
    if len(pairing.channels) == planes:
        return pairing.channels
    if planes == 3 and not pairing.channels:
        return ("R", "G", "B")
    return ("image",) if planes == 1 else tuple(f"channel {n}" for n in range(planes))


def write_dataset(out: Path, pairing: Pairing, found: Survey, wishes: Wishes) -> None:
    """Write the data set in the layout of nnU-Net; leaves nothing if it is stopped.

    Args:
        out: Is made; it must not be there, unless it is empty.
        pairing: Which files belong together.
        found: What `survey` decided.
        wishes: What the user asked for.

    Raises:
        UserError: There is something at `out`, or it cannot be written.
    """
    with _aside(out) as folder:
        rows: list[dict[str, Any]] = []
        people = sorted({drawn.rater for case in pairing.pairs for drawn in case.masks if drawn.rater})
        train = [case for case in pairing.pairs if case.split != "test"]
        everyone_is_test = not train and found.meaning is not None
        for case in pairing.pairs:
            tail = "Ts" if case.split == "test" and not everyone_is_test else "Tr"
            _write_case(folder, tail, case, found, wishes, people)
            files = " ".join(map(str, case.images)), " ".join(dict.fromkeys(str(drawn.path) for drawn in case.masks))
            rows.append({"case": case.name, "split": case.split, "images": files[0], "masks": files[1]})
        write_csv(folder / "sources.csv", rows)
        if found.meaning is not None:
            cases = list(pairing.pairs) if everyone_is_test else train
            known = {case.name: pairing.patients[case.name] for case in cases if pairing.patients}
            _describe(folder, cases, found, wishes.name or out.resolve().name, len(people), known)


def _write_case(folder: Path, tail: str, case: Pair, found: Survey, wishes: Wishes, people: list[str]) -> None:
    image = _image(case, wishes)
    images, labels = folder / f"images{tail}", folder / f"labels{tail}"
    images.mkdir(exist_ok=True)
    start = 0
    for number, path in enumerate(case.images):
        target = images / f"{case.name}_{number:04d}{found.ending}"
        if found.copied:
            shutil.copyfile(path, target)
            continue
        part = read_picture(path, wishes.spacing)
        io.write(target, part.data if len(part.data) > 1 else part.data[0], part)
        start += len(part.data)
    if found.meaning is None:
        return
    for number, rater in enumerate(people or [""], 1):
        drawn = [each for each in case.masks if each.rater == rater]
        if drawn:
            name = f"{case.name}_rater{number}" if people else case.name
            ending = ".png" if found.ending in LOSSY else found.ending
            io.write(labels / (name + ending), _mask(drawn, image, found.meaning), image)


def _mask(drawn: Sequence[Drawn], image: Image, meaning: Meaning) -> np.ndarray:
    """One mask of all that was drawn by one person; parts of one class are put together."""
    if meaning.structures:
        order = list(meaning.structures)
        drawn = sorted(drawn, key=lambda each: order.index(each.what))
    result = np.zeros(image.shape, np.int32)
    for each in drawn:
        data = onto_grid(_painted(each, image).image, image, each.path)
        if meaning.structures:
            labels = recode(data, meaning) * meaning.structures[each.what]
        else:
            labels = recode(data, meaning)
        both = (labels > 0) & (result > 0) & (labels != result)
        if both.any() and not meaning.layered:
            names = {value: name for name, value in meaning.labels.items()}
            first, second = names[int(result[both][0])], names[int(labels[both][0])]
            do = "A voxel has one class; with --labels in an order the later one lies over the earlier"
            raise UserError(f"{first} and {second} share {pluralize(int(both.sum()), 'voxel')}", file=each.path, do=do)
        result = np.where(labels > 0, labels, result)
    return result


def _describe(folder: Path, cases: Sequence[Pair], found: Survey, name: str, people: int, known: dict[str, str]) -> None:
    assert found.meaning is not None
    parts = {split: [case.name for case in cases if case.split == split] for split in ("train", "val")}
    if parts["train"] and parts["val"]:
        write_json(folder / "splits_final.json", [parts])
    content: dict[str, Any] = {
        "name": name,
        "channel_names": {str(number): channel for number, channel in enumerate(found.channels)},
        "labels": found.meaning.labels,
        "file_ending": found.ending,
        "numTraining": len(cases),
    }
    if people:
        content["raters"] = people
    if known:
        content["patients"] = known
    patients = {case.name.split("_")[0] for case in cases}
    if all(patient.startswith("sub-") for patient in patients):
        content["patient_pattern"] = "^(sub-[^_]+)"
    write_json(folder / "dataset.json", content)  # last: without it nothing looks finished


def refuse_existing(out: Path, source: Path | None = None) -> None:
    """Refuse a place where something is, an empty folder is nothing; and one in the source, which would be read with it."""
    if source is not None and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"lies in {source}, which is left as it is", file=out, do="Choose an --out beside it")
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise UserError("is there already, and nothing is overwritten", file=out, do="Choose another --out")


@contextmanager
def _aside(out: Path) -> Any:
    """A hidden folder beside the place, renamed to it at the end; whatever stops the work, it is taken away."""
    refuse_existing(out)
    aside = out.with_name(f".{os.getpid()}-{out.name}")
    try:
        aside.mkdir(parents=True)
        yield aside
        refuse_existing(out)
        if out.exists():
            out.rmdir()
        os.rename(aside, out)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", file=out) from None
    finally:
        if aside.exists():
            shutil.rmtree(aside, ignore_errors=True)


def empty_masks(pairing: Pairing) -> str:
    """How many images have annotations that mark nothing, as a sentence; "" where all have some."""
    bare = [case.name for case in pairing.pairs if case.masks and all(drawn.shapes == () for drawn in case.masks)]
    return f"{pluralize(len(bare), 'image has', 'images have')} no mark: {few(bare)}" if bare else ""


__all__ = ["Survey", "Wishes", "binary", "empty_masks", "refuse_existing", "survey", "write_dataset"]
