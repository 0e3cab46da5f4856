"""DICOM series to images: what is chosen of a folder, and its voxels.

Intensities are rescaled slice by slice, as each header says (Hounsfield units, Bq/ml). The axes of an array are column, row and
slice, as SimpleITK has them; of a picture without a place in space, rows and columns. Needs the extra `diffuseg[dicom]`.
"""

import hashlib
import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.data.claimed_size import Claim, check_claim
from diffuseg.data.dicom_files import Slice, holds_dicom, is_dicom, lenient, pydicom
from diffuseg.data.dicom_series import Stack, choose, find_stacks
from diffuseg.data.geometry import warn_once
from diffuseg.errors import UserError
from diffuseg.types import Image

PACKED = 10**5  # bytes out of one, more than any slice is packed; JPEG 2000 itself has no bound
ENDINGS = (".dcm", ".dicom", ".ima")


def holds_series(path: Path) -> bool:
    """Whether a path is a DICOM file, or a folder with one in it or below it."""
    return holds_dicom(path) if path.is_dir() else path.is_file() and is_dicom(path)


def open_series(path: Path | str | Sequence[Path | str], series: Sequence[str] = ()) -> list[Stack]:
    """The images meant by a folder, or by files of one folder: each stands for all files of its series there.

    Args:
        path: A folder, looked through with all folders in it, or files.
        series: Which of them, in this order: UID, number or a part of the description; ("all",) are all but localizers.

    Raises:
        UserError: What `choose` refuses, and files that cannot be read; without pydicom the name of the extra.
    """
    paths = [Path(item) for item in ([path] if isinstance(path, (str, Path)) else path)]
    pydicom()
    if paths[0].is_dir():
        stacks, others = find_stacks(paths[0])
        return choose(stacks, others, series, paths[0])
    stacks, others = find_stacks(paths[0].parent, nested=False)
    given = {item.resolve() for item in paths}
    own = [stack for stack in stacks if any(file.resolve() in given for file in stack.files)]
    return choose(own, {} if own else others, series, paths[0].parent if len(paths) > 1 else paths[0])


def group_paths(paths: Sequence[Path]) -> list[list[Path]]:
    """DICOM paths that are opened together: each folder by itself, the files of one folder as one."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(path / "." if path.is_dir() else path.parent.resolve() / "*", []).append(path)
    return list(groups.values())


def read_dicom(path: Path | str, series: str | None = None) -> Image:
    """Read one DICOM image as float32 [c, *s]: `model.predict(read_dicom("folder", series="T1"))`.

    Args:
        path: A folder, or a file of a series.
        series: Which one, where there are several: UID, number or a part of the description.

    Raises:
        UserError: What `open_series` refuses, pixels that cannot be decoded, and several images.
    """
    stacks = open_series(path, [series] if series else [])
    if len(stacks) != 1:
        raise UserError(f"{len(stacks)} pictures", file=path, do="Name the file of one of them")
    data, affine = read_stack(stacks[0])
    return Image(np.asarray(data, np.float32), affine, stacks[0].place, stacks[0])


def read_stack(stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [c, column, row, slice] as float32, or [c, row, column] of a picture, and voxel -> RAS mm.

    Raises:
        UserError: Pixels cannot be decoded, are of a palette, or are not as many as the header says.
    """
    first = stack.slices[0]
    _say_monochrome1(stack)
    shape = (first.samples, *reversed(first.shape), len(stack.slices))
    data = np.empty(shape, np.float32)
    opened: dict[Path, tuple[Any, np.ndarray]] = {}  # the last file alone: frames of one file follow each other
    for number, part in enumerate(stack.slices):
        if part.file not in opened:
            opened = {part.file: _decode(part.file)}
        plane = _rescaled(*opened[part.file], part)
        planes = plane[None] if first.samples == 1 else np.moveaxis(plane, -1, 0)
        if planes.shape != (first.samples, *first.shape):
            raise UserError(f"its pixels are {planes.shape}, its header says otherwise", file=part.file, do="Export it again")
        data[..., number] = planes.swapaxes(1, 2)
    if stack.dims == 2:
        return np.ascontiguousarray(data[..., 0].swapaxes(1, 2)), stack.affine
    return data, stack.affine


def case_name(stack: Stack, folder: Path, several: bool) -> str:
    """What the results of a series are called: after its folder, or after the file where one file is all of it.

    Nothing of the header goes into it but the number of the series, where a folder holds several.

    Args:
        stack: The series.
        folder: Where it was looked for.
        several: Whether that folder holds several series which are cases.
    """
    if len(stack.files) > 1 and not folder.is_dir():
        folder = folder.parent
    if stack.dims == 2 or not folder.is_dir():
        name = stack.slices[0].file.name
        ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
        return name[: len(name) - len(ending)] or name
    name = folder.resolve().name or "series"
    return f"{name}_{stack.label.replace('/', '_').replace('#', 'n')}" if several else name


def digest(stack: Stack) -> str:
    """What tells the files of a stack from those of another: 16 hexadecimal digits over their bytes, in the order of space."""
    total = hashlib.sha256()
    for file in stack.files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    total.update(repr([part.frame for part in stack.slices]).encode())
    return total.hexdigest()[:16]


def _decode(file: Path) -> tuple[Any, np.ndarray]:
    """The whole file, and its pixels: [row, column], with a first axis of frames, a last one of colours."""
    library, syntax = pydicom(), "an unknown way"
    try:
        with lenient():
            header = library.dcmread(file, force=True)
            if not hasattr(header, "file_meta") or "TransferSyntaxUID" not in header.file_meta:  # as in old files
                header.ensure_file_meta()
                implicit = header.original_encoding[0]
                header.file_meta.TransferSyntaxUID = (
                    library.uid.ImplicitVRLittleEndian if implicit else library.uid.ExplicitVRLittleEndian
                )
            syntax = header.file_meta.TransferSyntaxUID.name
            _check_claim(header, file)
            with _own_locale():
                return header, library.pixels.pixel_array(header)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything at all on a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"its pixels ({syntax}) cannot be decoded: {reason}"
        raise UserError(what, file=file, do="Copy or export it again, or as another transfer syntax") from None


@contextmanager
def _own_locale() -> Iterator[None]:
    """GDCM puts the process into the C locale, in which files without a given encoding are no longer UTF-8."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _check_claim(header: Any, file: Path) -> None:
    """Compare what a header claims with its file, before memory is taken."""
    names = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")
    shape = tuple(int(header.get(name) or 1) for name in names)
    ratio = PACKED if header.file_meta.TransferSyntaxUID.is_compressed else 8  # a bit may become a byte
    check_claim(file, Claim(shape, max(int(header.get("BitsAllocated") or 8) // 8, 1)), file.stat().st_size, ratio)


def _rescaled(header: Any, pixels: np.ndarray, part: Slice) -> np.ndarray:
    """The plane of one slice in the units that its header gives."""
    if part.photometric == "PALETTE COLOR":
        raise UserError("its pixels are numbers of a palette", file=part.file, do="Export it as RGB or grey")
    if part.frame is not None:
        pixels = pixels[part.frame] if int(getattr(header, "NumberOfFrames", 1)) > 1 else pixels
        groups = (header.PerFrameFunctionalGroupsSequence[part.frame], *header.get("SharedFunctionalGroupsSequence", []))
        found = [group.PixelValueTransformationSequence[0] for group in groups if "PixelValueTransformationSequence" in group]
        header = found[0] if found else header
    if part.samples > 1:
        return pixels
    if part.position is None and part.photometric == "MONOCHROME1":
        bits = int(header.get("BitsStored", 8 * pixels.dtype.itemsize))
        signed = pixels.dtype.kind == "i"
        return (-1.0 if signed else 2.0**bits - 1) - pixels.astype(np.float64)
    with lenient():
        return pydicom().pixels.apply_modality_lut(pixels, header)


def _say_monochrome1(stack: Stack) -> None:
    first = stack.slices[0]
    if first.photometric != "MONOCHROME1":
        return
    if stack.dims == 2:
        warn_once(first.file, "MONOCHROME1, low values are bright: turned over, high values are bright now")
    else:
        warn_once(stack.place, "MONOCHROME1, to be shown with low values bright: values are taken as they are stored")
