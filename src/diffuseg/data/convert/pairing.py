"""Which masks belong to which image, by name; whatever finds no partner is named, and nothing is guessed from the order.

1. Image and mask have the same words, those of their folders included, without the words that say image or mask.
2. Their own names have the same words, and no other image has these.
3. The mask's name has all words of one image, and more: these say which structure or which reader it is of.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from diffuseg.data.convert.names import READER, Named, read_name
from diffuseg.data.io import CONVERTED, ENDINGS
from diffuseg.data.layout import read_table
from diffuseg.errors import UserError
from diffuseg.text import few, pluralize
from diffuseg.types import Image

READ = tuple(sorted({*ENDINGS, *CONVERTED, ".bmp"}, key=len, reverse=True))
Several = Literal["parts", "structures", "raters"]


@dataclass(frozen=True)
class Shape:
    """What somebody drew: polygons as rows of (x, y) in pixels, or a run-length mask as (height, width, runs of 0 and 1)."""

    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()
    runs: tuple[int, int, tuple[int, ...]] | None = None
    columns: bool = False


@dataclass(frozen=True)
class Drawn:
    """One mask, or what annotations say of one class: `what` names the structure, `rater` the person.

    `read` gives the mask on the voxels of its image, where the file by itself does not.
    """

    path: Path
    what: str = ""
    rater: str = ""
    shapes: tuple[Shape, ...] | None = None
    read: Callable[[Image], np.ndarray] | None = None


@dataclass(frozen=True)
class Pair:
    """An image, its channels in one file or one file each, with its masks."""

    name: str
    images: tuple[Path, ...]
    masks: tuple[Drawn, ...]
    split: str = ""


@dataclass(frozen=True)
class Pairing:
    """What belongs together, and what is left.

    Attributes:
        pairs: By name.
        channels: Names of the channels; empty where names say nothing.
        several: What several masks of one image are; "" where each has one.
        named: What the names say that all masks are of, "lesion"; "" where they do not.
        without_mask: Images that no mask belongs to.
        without_image: Masks that no image belongs to.
        patients: Case -> patient, where files tell.
    """

    pairs: tuple[Pair, ...]
    channels: tuple[str, ...] = ()
    several: Several | Literal[""] = ""
    named: str = ""
    without_mask: tuple[Path, ...] = ()
    without_image: tuple[Path, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)


def find_files(source: Path) -> list[tuple[Path, str]]:
    """All files of a folder and those below that can be read, with their endings, sorted; hidden ones are passed over."""
    found, seen = [], set()
    for folder, below, files in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            ending = next((end for end in READ if name.lower().endswith(end) and len(name) > len(end)), None)
            if ending and not name.startswith("."):
                found.append((Path(folder) / name, ending))
    return sorted(found)


def pair(source: Path, channels: Sequence[str] = (), several: Several | None = None) -> Pairing:
    """Pair all images and masks below a folder by their names.

    Args:
        source: The folder.
        channels: Which channels to take, in this order; all by default.
        several: What several masks of one image are, where names do not say it.

    Raises:
        UserError: No image or no pair is there, two images have one name, or channels are missing.
    """
    if not source.is_dir():
        raise UserError("no such folder", file=source)
    files = find_files(source)
    if not files:
        do = f"Known endings, at any depth: {' '.join(sorted(READ))}, and DICOM"
        raise UserError("there is no image in this folder", file=source, do=do)
    found = _pair(files, source, channels, several, numbered=False)
    if not found.pairs:  # names may end in the number of a channel
        with_numbers = _pair(files, source, channels, several, numbered=True)
        found = with_numbers if with_numbers.pairs else found
    return found


def _pair(
    files: list[tuple[Path, str]], source: Path, channels: Sequence[str], several: Several | None, numbered: bool
) -> Pairing:
    named = [read_name(path, source, ending, numbered) for path, ending in files]
    groups: dict[tuple[str, ...], list[Named]] = defaultdict(list)
    for each in named:
        if each.role == "image":
            groups[each.key].append(each)
    partners: dict[tuple[str, ...], list[tuple[Named, tuple[str, ...]]]] = defaultdict(list)
    lost = []
    stems = Counter(group[0].stem for group in groups.values())
    alone = {group[0].stem: key for key, group in groups.items() if stems[group[0].stem] == 1 and group[0].stem}
    for mask in named:
        if mask.role == "mask":
            key, rest = _image_of(mask, groups, alone)
            if key is None:
                lost.append(mask.path)
            else:
                partners[key].append((mask, rest))
    chosen = _choose_channels({key: groups[key] for key in partners}, source, channels)
    what = _several(partners, source, several)
    names = _names({key: groups[key][0] for key in partners}, source)
    pairs = []
    for key, masks in partners.items():
        drawn = tuple(_drawn(mask.path, rest, what) for mask, rest in masks)
        pairs.append(Pair(names[key], tuple(chosen[1][key]), drawn, groups[key][0].split or masks[0][0].split))
    bare = [each.path for key, group in groups.items() if key not in partners for each in group]
    ordered = tuple(sorted(pairs, key=lambda pair: pair.name))
    rests = {rest for masks in partners.values() for _, rest in masks}
    named_after = "_".join(next(iter(rests))) if what == "" and len(rests) == 1 and not _digits(next(iter(rests))) else ""
    return Pairing(ordered, chosen[0], what, named_after, tuple(sorted(bare)), tuple(sorted(lost)))


def _image_of(
    mask: Named, groups: dict[tuple[str, ...], list[Named]], alone: dict[tuple[str, ...], tuple[str, ...]]
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The key of the image that a mask belongs to, and the words that the mask has beyond those of the image."""
    if mask.key in groups:
        return mask.key, ()
    if mask.stem in alone:
        key = alone[mask.stem]
        return key, tuple(word for word in mask.folders if word not in key)
    inside = [(key, _beyond(key, mask.key)) for key in groups if key]
    inside += [(key, _beyond(stem, mask.stem)) for stem, key in alone.items()]
    fits = [(key, rest) for key, rest in inside if rest and (not _digits(rest) or len(rest) <= mask.after)]
    if not fits:
        return None, ()
    fewest = min(len(rest) for _, rest in fits)
    best = {key: rest for key, rest in fits if len(rest) == fewest}
    return next(iter(best.items())) if len(best) == 1 else (None, ())


def _beyond(short: tuple[str, ...], long: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a long name around those of a short one; () where it does not have these in a row."""
    for at in range(len(long) - len(short) + 1):
        if long[at : at + len(short)] == short:
            return long[:at] + long[at + len(short) :]
    return ()


def _digits(words: Sequence[str]) -> bool:
    return all(word.isdigit() for word in words)


def _is_reader(rest: tuple[str, ...]) -> bool:
    return bool(rest) and not _digits(rest) and all(word.isdigit() or word in READER for word in rest)


def _several(
    partners: dict[tuple[str, ...], list[tuple[Named, tuple[str, ...]]]], source: Path, asked: Several | None
) -> Several | Literal[""]:
    """What several masks of one image are, by their names or as asked; "" where no image has several."""
    rests = [rest for masks in partners.values() for _, rest in masks]
    if max((len(masks) for masks in partners.values()), default=0) <= 1 and len(set(rests)) <= 1:
        return ""
    if asked:
        return asked
    if all(_is_reader(rest) for rest in rests):
        return "raters"
    if all(rest and not _digits(rest) and not _is_reader(rest) for rest in rests):
        return "structures"
    if max(len(masks) for masks in partners.values()) <= 1:
        return ""
    example = next(masks for masks in partners.values() if len(masks) > 1)
    what = f"{example[0][0].path.name} and {example[1][0].path.name} belong to one image, and names do not say what they are"
    do = "Say --several parts (of one mask), structures (a class each) or raters (people who marked the same)"
    raise UserError(what, file=source, do=do)


def _drawn(path: Path, rest: tuple[str, ...], several: str) -> Drawn:
    if several == "raters":
        return Drawn(path, rater="_".join(rest) or "0")
    if several == "parts":
        return Drawn(path)
    return Drawn(path, what="_".join(rest) or "mask" if several else "")


def _choose_channels(
    groups: dict[tuple[str, ...], list[Named]], source: Path, wanted: Sequence[str]
) -> tuple[tuple[str, ...], dict[tuple[str, ...], list[Path]]]:
    """Names of the channels, and the files of each case in their order."""
    if not groups:
        return (), {}
    tags = {key: {each.channel.lower(): each for each in group} for key, group in groups.items()}
    for key, group in groups.items():
        if len(tags[key]) < len(group):
            names = [each.path.name for each in group if tags[key][each.channel.lower()] != each or each.channel == ""]
            raise UserError(
                f"several images of one name: {few(sorted({*names, group[0].path.name}))}", file=source, do="Keep one of them"
            )
    every = sorted({tag for found in tags.values() for tag in found})
    order = [name.lower() for name in wanted] or every
    lacking = sorted({each.path.name for key, found in tags.items() for each in groups[key] if set(order) - set(found)})
    if lacking:
        here = ", ".join(tag or "no name of a channel" for tag in every)
        what = f"{pluralize(len(lacking), 'image lacks', 'images lack')} a channel of the others ({here}): {few(lacking)}"
        raise UserError(
            what, file=source, do="Take fewer with --channels, such as --channels " + next(filter(None, every), "T1")
        )
    named = {tag: each.channel for found in tags.values() for tag, each in found.items()}
    names = () if order == [""] else tuple(named[tag] for tag in order)
    return names, {key: [found[tag].path for tag in order] for key, found in tags.items()}


def _names(images: dict[tuple[str, ...], Named], source: Path) -> dict[tuple[str, ...], str]:
    """A name for each case: that of its file, with those of its folders where two would be called alike."""
    plain = {key: each.shown or "_".join(each.places) or source.resolve().name for key, each in images.items()}
    counts = Counter(name.lower() for name in plain.values())
    long = {
        key: name if counts[name.lower()] == 1 else "_".join(filter(None, (*images[key].places, images[key].shown)))
        for key, name in plain.items()
    }
    again = Counter(long.values())
    return {key: name if again[name] == 1 else f"{name}_{number}" for number, (key, name) in enumerate(long.items())}


def read_pairs(table: Path, source: Path) -> Pairing:
    """What a table says belongs together: a CSV with the columns image and mask, and perhaps case; paths from its folder.

    Args:
        table: The CSV.
        source: The folder that is converted.

    Raises:
        UserError: A column, a file or a value is missing.
    """
    rows, columns = read_table(table)
    if not {"image", "mask"} <= columns:
        raise UserError("it needs the columns image and mask (and perhaps case)", file=table)
    pairs = []
    for number, row in enumerate(rows, 2):
        files = [next((base / row[key] for base in (source, table.parent) if (base / row[key]).is_file()), None)
                 for key in ("image", "mask")]  # fmt: skip
        if not row["image"] or not row["mask"] or None in files:
            raise UserError(f"line {number} names a file that is not there", file=table, do="Paths count from its folder")
        image, mask = files
        assert image is not None and mask is not None
        pairs.append(Pair(row.get("case") or image.name.split(".")[0], (image,), (Drawn(mask),)))
    twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if twice or not pairs:
        raise UserError(f"cases twice: {few(twice)}" if twice else "no line in it", file=table, do="One line per case")
    return Pairing(tuple(sorted(pairs, key=lambda pair: pair.name)))


def only_images(source: Path) -> Pairing:
    """All files below a folder, or one file, as images to predict.

    Raises:
        UserError: There is no image.
    """
    files = find_files(source) if source.is_dir() else [(p, e) for p, e in find_files(source.parent) if p == source]
    if not files:
        raise UserError("there is no image in it", file=source, do=f"Known: {' '.join(sorted(READ))}")
    base = source if source.is_dir() else source.parent
    named = {each.key or (str(i),): each for i, each in enumerate(read_name(p, base, e, role="image") for p, e in files)}
    if len(named) < len(files):
        named = {(str(i),): read_name(path, base, ending, role="image") for i, (path, ending) in enumerate(files)}
    names = _names(named, source)
    return Pairing(tuple(replace(Pair(names[key], (each.path,), ()), split="test") for key, each in named.items()))
