"""Annotations as JSON: COCO (polygons and run lengths) and Label Studio (polygons and brush), as masks.

A pixel is inside of a polygon if its middle is, by the even-odd rule of matplotlib.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

from diffuseg.data.convert.pairing import Drawn, Pair, Pairing, Shape, find_files
from diffuseg.data.layout import read_json
from diffuseg.errors import UserError
from diffuseg.text import few


def find_annotations(source: Path) -> list[Path]:
    """JSON files at the top of a folder or one below which look like annotations."""
    found = []
    for path in sorted([*source.glob("*.json"), *source.glob("*/*.json")]):
        try:
            content = read_json(path)
        except UserError:
            continue
        if _is_coco(content) or _is_label_studio(content):
            found.append(path)
    return found


def read_annotations(file: Path, source: Path) -> Pairing:
    """The images below a folder with what a file of annotations says of them; images without a mark have empty masks.

    Args:
        file: JSON of COCO or Label Studio.
        source: Folder of the images.

    Raises:
        UserError: Another format, no image found, or marks that are not read.
    """
    content = read_json(file)
    if _is_coco(content):
        drawn, names = _coco(content, file)
    elif _is_label_studio(content):
        drawn, names = _label_studio(content, file)
    else:
        raise UserError("neither COCO nor Label Studio", file=file, do="Export as COCO, or as JSON from Label Studio")
    if not names:
        raise UserError("it names no class", file=file)
    files = [path for path, _ in find_files(source)]
    by_name = defaultdict(list)
    for path in files:
        by_name[path.name].append(path)
    pairs, lost, raters = [], [], False
    for name, by_rater in drawn.items():
        image = _file_of(name, source, by_name)
        if image is None:
            lost.append(Path(name))
            continue
        several = len(by_rater) > 1
        raters = raters or several
        masks = [
            Drawn(file, what, str(number) if several else "", tuple(shapes.get(what, ())))
            for number, shapes in enumerate(by_rater, 1)
            for what in names
        ]
        pairs.append(Pair(image.name.rsplit(".", 1)[0], (image,), tuple(masks)))
    if not pairs:
        raise UserError(f"none of its images is below {source}: {few(map(str, lost))}", file=file)
    bare = set(files) - {pair.images[0] for pair in pairs}
    ordered = tuple(sorted(pairs, key=lambda pair: pair.name))
    return Pairing(ordered, (), "raters" if raters else "structures", "", tuple(sorted(bare)), tuple(lost))


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _is_label_studio(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) and "data" in task and "annotations" in task for task in content)
    )


def _file_of(name: str, source: Path, by_name: dict[str, list[Path]]) -> Path | None:
    """The image that annotations name; one of another folder, or with what an upload put before its name, is found too."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    if inside and (source / name).is_file():
        return source / name
    base = PurePosixPath(name).name
    for known in (base, base.partition("-")[2]):
        if len(by_name.get(known, ())) == 1:
            return by_name[known][0]
    return None


def _coco(content: dict[str, Any], file: Path) -> tuple[dict[str, list[dict[str, list[Shape]]]], list[str]]:
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        drawn: dict[str, list[dict[str, list[Shape]]]] = {name: [defaultdict(list)] for name in images.values()}
        for mark in content["annotations"]:
            what, shape = names[mark["category_id"]], _coco_shape(mark.get("segmentation"))
            if shape is None:
                raise UserError(f"annotation {mark.get('id')} has a box and no outline", file=file, do="A mask needs outlines")
            drawn[images[mark["image_id"]]][0][what].append(shape)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"broken: {type(error).__name__} {error}", file=file, do="Export it again") from None
    return drawn, list(dict.fromkeys(names.values()))


def _coco_shape(segmentation: Any) -> Shape | None:
    if isinstance(segmentation, dict):
        height, width = map(int, segmentation["size"])
        counts = segmentation["counts"]
        runs = _unpack(counts) if isinstance(counts, str) else tuple(map(int, counts))
        return Shape(runs=(height, width, runs), columns=True)
    if not segmentation:
        return None
    return Shape(tuple(_points(flat[0::2], flat[1::2]) for flat in segmentation))


def _points(xs: Sequence[Any], ys: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in zip(xs, ys, strict=True))


def _unpack(text: str) -> tuple[int, ...]:
    """Run lengths from COCO's text: five bits a letter, each run from the fourth on less that two before it."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        value = shift = 0
        more = True
        while more:
            code = ord(text[at]) - 48
            value |= (code & 31) << shift
            more, at, shift = bool(code & 32), at + 1, shift + 5
            if not more and code & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return tuple(runs)


def _label_studio(content: list[dict[str, Any]], file: Path) -> tuple[dict[str, list[dict[str, list[Shape]]]], list[str]]:
    drawn: dict[str, list[dict[str, list[Shape]]]] = {}
    names: dict[str, None] = {}
    try:
        for task in content:
            address = next(str(value) for value in task["data"].values() if isinstance(value, str))
            people = [each for each in task["annotations"] if not each.get("was_cancelled")]
            for person in people:
                shapes: dict[str, list[Shape]] = defaultdict(list)
                for what, shape in _marks(person["result"], file):
                    names[what] = None
                    shapes[what].append(shape)
                drawn.setdefault(_name_in(address), []).append(shapes)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise UserError(f"broken: {type(error).__name__} {error}", file=file, do="Export it again") from None
    return drawn, list(names)


def _name_in(address: str) -> str:
    """The file that an address names: /data/upload/1/3f2a-scan.png, /data/local-files/?d=set/scan.png, s3://bucket/scan.png."""
    parsed = urlparse(address)
    local = parse_qs(parsed.query).get("d")
    return unquote(local[0] if local else parsed.path.lstrip("/"))


def _marks(result: list[dict[str, Any]], file: Path) -> Iterator[tuple[str, Shape]]:
    for mark in result:
        kind, value = mark.get("type"), mark.get("value", {})
        if kind in ("polygonlabels", "polygon"):
            width, height = mark["original_width"] / 100, mark["original_height"] / 100
            points = tuple((float(x) * width, float(y) * height) for x, y in value["points"])
            yield value["polygonlabels"][0], Shape((points,))
        elif kind in ("brushlabels", "brush"):
            size = int(mark["original_height"]), int(mark["original_width"])
            yield value["brushlabels"][0], Shape(runs=(*size, _brush(value["rle"])))
        elif kind in ("rectanglelabels", "ellipselabels", "keypointlabels"):
            raise UserError(f"it has {kind}, which are no outlines", file=file, do="Use polygons or the brush")


def _brush(packed: Sequence[int]) -> tuple[int, ...]:
    """Run lengths of 0 and 1, row by row, from Label Studio's brush: RGBA values packed as runs of words of some bits.

    A head of 32 bits has the number of values, 5 the width of a word, four times 4 the widths of lengths. Then each block
    begins with a bit (1: one word repeated) and the choice of a width, and a length less one.
    """
    bits = "".join(f"{int(byte):08b}" for byte in packed)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    number, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if number > 2**31:
        raise ValueError(f"{number} values")
    values = np.zeros(number, np.uint8)
    done = 0
    while done < number:
        repeated, length = take(1), take(widths[take(2)]) + 1
        if repeated:
            values[done : done + length] = take(word)
        else:
            values[done : done + length] = [take(word) for _ in range(length)]
        done += length
    opaque = values[3::4] > 0
    changes = np.flatnonzero(np.diff(opaque.astype(np.int8), prepend=0))
    return tuple(int(n) for n in np.diff(np.array([0, *changes, len(opaque)])))


def rasterise(shapes: Sequence[Shape], size: tuple[int, int], file: Path) -> np.ndarray:
    """All shapes of one class as a mask [h, w] of 0 and 1.

    Args:
        shapes: Polygons and run-length masks.
        size: Rows and columns of the image.
        file: The annotations, for messages.

    Raises:
        UserError: A run-length mask is of another size.
    """
    mask = np.zeros(size, np.uint8)
    for shape in shapes:
        for polygon in shape.polygons:
            _fill(mask, np.array(polygon))
        if shape.runs is not None:
            height, width, runs = shape.runs
            if (height, width) != size or sum(runs) != height * width:
                what = f"a mask of {height} x {width} pixels, in runs of {sum(runs)}, for an image of {size[0]} x {size[1]}"
                raise UserError(what, file=file)
            flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
            mask |= flat.reshape(width, height).T if shape.columns else flat.reshape(size)
    return mask


def _fill(mask: np.ndarray, polygon: np.ndarray) -> None:
    from matplotlib.path import Path as Outline

    if len(polygon) < 3:
        return
    low = np.clip(np.floor(polygon.min(0)).astype(int), 0, mask.shape[::-1])
    high = np.clip(np.ceil(polygon.max(0)).astype(int), 0, mask.shape[::-1])
    xs, ys = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    inside = Outline(polygon).contains_points(np.stack([xs.ravel(), ys.ravel()], 1)).reshape(xs.shape)
    mask[low[1] : high[1], low[0] : high[0]] |= inside.astype(np.uint8)
