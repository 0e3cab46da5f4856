"""Broken image files: each is read as an image and as a mask, or refused in a sentence."""

import contextlib
import functools
import gzip
import io
import itertools
import random
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import PIL.Image
import tifffile

from diffuseg.data.convert.dicom import pair_dicom
from diffuseg.data.convert.reading import attempt, read_painted, read_picture
from diffuseg.data.io import read_image, read_mask
from diffuseg.errors import UserError
from tools.torture.child import Tally, torture
from tools.torture.mutate import broken

SHAPE = (6, 5, 4)


def run(count: int, only: str = "", seed: int = 0) -> Iterator[Tally]:
    """So many broken files of each format whose name holds a word."""
    return (torture("files", kind, _trial(kind, make(), seed), count) for kind, make in KINDS.items() if only in kind)


def _trial(kind: str, samples: list[dict[str, bytes]], seed: int) -> Callable[[int, Path], Any]:
    """Reads the mutant of a number; of a sample of several files one is broken, most often the first."""

    def trial(number: int, place: Path) -> None:
        rng = random.Random(f"{kind}/{seed}/{number}")
        sample = dict(rng.choice(samples))
        victim = list(sample)[0 if rng.random() < 0.6 else rng.randrange(len(sample))]
        sample[victim] = broken(sample[victim], rng)
        for name, content in sample.items():
            (place / name).write_bytes(content)
        image = place if "DICOM" in kind else place / next(iter(sample))
        if kind == "convert DICOM":
            marked(image)
        elif kind.startswith("convert"):
            convert(image)
        else:
            read(image, kind not in ("DICOM", "JPEG"))

    return trial


def read(path: Path, mask: bool) -> None:
    """Read a file both ways; refused if both are."""
    try:
        image = read_image(path)
        assert image.data.dtype == np.float32 and np.isfinite(image.data).all() and np.isfinite(image.affine).all()
    except UserError:
        if not mask:
            raise
        read_mask(path)
        return
    if mask:
        try:
            read_mask(path)
        except UserError:
            return


def convert(path: Path) -> None:
    """Read a file that `convert` alone takes as an image and as a mask of its shape; refused if both are."""
    shape = SHAPE if path.suffix in (".npy", ".npz", ".nrrd", ".nhdr", ".hdr") else (15, 11)
    try:
        image = read_picture(path, (1.0, 2.0, 3.0))
        assert image.data.ndim == 1 + image.dims and np.isfinite(image.affine).all()
    except UserError:
        read_painted(path, shape)
        return
    with contextlib.suppress(UserError):
        read_painted(path, image.shape)


def marked(folder: Path) -> None:
    """Read series with what SEG and RTSTRUCT mark on them."""
    found = pair_dicom(folder)
    for case in found.pairs:
        image = read_picture(case.images[0])
        for drawn in case.masks:
            mask = attempt(drawn.path, functools.partial(drawn.read, image)) if drawn.read else None
            assert mask is not None and mask.shape == image.shape and set(np.unique(mask)) <= {0, 1}
    if not found.pairs:
        raise UserError("nothing is marked")


def _voxels(dtype: Any, *channels: int) -> np.ndarray:
    return np.arange(np.prod(SHAPE + channels)).reshape(SHAPE + channels).astype(dtype)


def _nifti(packed: bool) -> list[dict[str, bytes]]:
    made = [nib.Nifti1Image(_voxels(kind), np.diag([1.0, 2, 3, 1])) for kind in (np.uint8, np.int16, np.float32)]
    made.append(nib.Nifti1Image(_voxels(np.uint8, 2), np.eye(4)))
    made.append(nib.Nifti2Image(_voxels(np.int16), np.eye(4)))
    contents = [image.to_bytes() for image in made]
    return [{"x.nii.gz": gzip.compress(one)} if packed else {"x.nii": one} for one in contents]


def _mgz() -> list[dict[str, bytes]]:
    made = [nib.MGHImage(_voxels(kind), np.eye(4)).to_bytes() for kind in (np.uint8, np.float32)]
    return [{"x.mgz": gzip.compress(one)} for one in made] + [{"x.mgh": made[0]}]


def _itk(ending: str) -> list[dict[str, bytes]]:
    import SimpleITK

    samples = []
    for kind, channels, packed in ((np.uint8, (), True), (np.int16, (), False), (np.float32, (2,), False)):
        image = SimpleITK.GetImageFromArray(_voxels(kind, *channels), isVector=bool(channels))
        with tempfile.TemporaryDirectory() as folder:
            SimpleITK.WriteImage(image, f"{folder}/x{ending}", useCompression=packed)
            paths = sorted(Path(folder).iterdir(), key=lambda path: path.suffix != ending)
            samples.append({path.name: path.read_bytes() for path in paths})
    return samples


def _pictures(ending: str) -> list[dict[str, bytes]]:
    grey = np.arange(15 * 11, dtype=np.uint8).reshape(15, 11)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    made = [PIL.Image.fromarray(grey), PIL.Image.fromarray(colour)]
    options: list[dict[str, Any]] = [{}]
    if ending == ".png":
        made += [PIL.Image.fromarray(grey > 80), PIL.Image.fromarray(grey.astype(np.uint16) * 250), made[1].quantize(9)]
    if ending == ".jpg":
        options = [{}, {"progressive": True}]
    if ending == ".tif":
        options = [{"compression": name} for name in ("raw", "tiff_lzw", "jpeg", "packbits")]
    samples = []
    for picture in made:
        for option in options:
            buffer = io.BytesIO()
            picture.save(buffer, {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}[ending], **option)
            samples.append({f"x{ending}": buffer.getvalue()})
    if ending == ".tif":
        for array, option in ((grey, {"compression": "zlib"}), (colour.astype(np.float32), {}), (grey, {"bigtiff": True})):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, array, **option)
            samples.append({"x.tif": buffer.getvalue()})
        buffer = io.BytesIO()
        PIL.Image.fromarray(grey > 80).save(buffer, "TIFF", compression="group4")
        samples.append({"x.tif": buffer.getvalue()})
    return samples


def _arrays(packed: bool) -> list[dict[str, bytes]]:
    samples = []
    for array in (_voxels(np.uint8), _voxels(np.float32, 2), _voxels(np.int64) % 3 == 0):
        buffer = io.BytesIO()
        if packed:
            np.savez_compressed(buffer, image=array, mask=array)
        else:
            np.save(buffer, array)
        samples.append({f"x.np{'z' if packed else 'y'}": buffer.getvalue()})
    return samples


def _further_pictures() -> list[dict[str, bytes]]:
    grey = np.arange(15 * 11, dtype=np.uint8).reshape(15, 11)
    colour = PIL.Image.fromarray(np.stack([grey, grey[::-1], grey[:, ::-1]], -1))
    samples = []
    for name, picture in itertools.product(
        ("bmp", "gif", "webp", "ppm"), (colour, PIL.Image.fromarray(grey), colour.quantize(9))
    ):
        buffer = io.BytesIO()
        (picture.convert("RGB") if name == "ppm" else picture).save(buffer, name)
        samples.append({f"x.{name}": buffer.getvalue()})
    return samples


def _pairs() -> list[dict[str, bytes]]:
    """Header and voxels in two files, and a segmentation of 3D Slicer."""
    analyze = nib.AnalyzeImage(_voxels(np.int16), np.eye(4)).to_file_map
    files = {"header": nib.FileHolder(fileobj=io.BytesIO()), "image": nib.FileHolder(fileobj=io.BytesIO())}
    analyze(files)
    header, voxels = (files[key].fileobj.getvalue() for key in ("header", "image"))
    samples = [{"x.hdr": header, "x.img": voxels}, *_itk(".nhdr")]
    head = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n"
    )
    segments = "".join(f"Segment{n}_Name:=s{n}\nSegment{n}_Layer:=0\nSegment{n}_LabelValue:={n + 1}\n" for n in range(2))
    return [*samples, {"x.seg.nrrd": (head + segments + "\n").encode() + (_voxels(np.uint8) % 3).tobytes()}]


def _dicom() -> list[dict[str, bytes]]:
    """A series as it is and in two compressions, and one file for all frames."""
    from pydicom.uid import UID, JPEG2000Lossless, RLELossless

    from tests.data import dicom_phantom as made

    numbers = itertools.count(1)
    phantom = made.Phantom(made.blocks((40, 36, 3)))
    samples = []
    with mock.patch.object(made, "generate_uid", lambda: UID(f"1.2.3.{next(numbers)}")):
        for syntax in (None, RLELossless, JPEG2000Lossless):
            series = made.slices(phantom, series="1.2.3.0")
            for part in series if syntax else ():
                part.compress(syntax, generate_instance_uid=False)
            samples.append({f"IM{n}": _bytes(part) for n, part in enumerate(series)})
        samples.append({"IM0": _bytes(made.enhanced(phantom))})
    return samples


def _marked_dicom() -> list[dict[str, bytes]]:
    """A series with a segmentation of either kind, and with contours; these are broken, and the series sometimes."""
    from tests.data import dicom_phantom as made
    from tests.data.test_convert_dicom import mark, region

    phantom, samples, rng = made.Phantom(made.blocks((12, 10, 3))), [], random.Random(0)
    for kind in ("binary", "labelmap", "contours"):
        with tempfile.TemporaryDirectory() as place, mock.patch("uuid.uuid4", lambda: uuid.UUID(int=rng.getrandbits(128))):
            made.write_series(Path(place), phantom)
            if kind == "contours":
                region(Path(place), phantom, [("a", 1, [(1, 1), (8, 1), (8, 7)]), ("b", 2, [(2, 2), (5, 2), (5, 6)])])
            else:
                mark(Path(place), kind)
            files = sorted(Path(place).iterdir(), key=lambda path: path.name.startswith("IM"))
            samples.append({path.name: path.read_bytes() for path in files})
    return samples


def _bytes(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


KINDS: dict[str, Callable[[], list[dict[str, bytes]]]] = {
    "NIfTI .nii": lambda: _nifti(False),
    "NIfTI .nii.gz": lambda: _nifti(True),
    "NRRD": lambda: _itk(".nrrd"),
    "MetaImage .mha": lambda: _itk(".mha"),
    "MetaImage .mhd": lambda: _itk(".mhd"),
    "FreeSurfer .mgz": _mgz,
    "PNG": lambda: _pictures(".png"),
    "TIFF": lambda: _pictures(".tif"),
    "JPEG": lambda: _pictures(".jpg"),
    "DICOM": _dicom,
    "convert DICOM": _marked_dicom,
    "convert .npy": lambda: _arrays(False),
    "convert .npz": lambda: _arrays(True),
    "convert .bmp .gif .webp .ppm": _further_pictures,
    "convert .hdr .nhdr .seg.nrrd": _pairs,
}
