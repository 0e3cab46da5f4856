"""Broken image files: each is read as an image and as a mask, or refused in a sentence."""

import gzip
import io
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import PIL.Image
import tifffile

from diffuseg.data.io import read_image, read_mask
from diffuseg.errors import UserError
from tools.torture.child import Tally, torture
from tools.torture.mutate import broken

SHAPE = (6, 5, 4)


def run(count: int, seed: int = 0) -> Iterator[Tally]:
    """So many broken files of each format."""
    return (torture("files", kind, _trial(kind, make(), seed), count) for kind, make in KINDS.items())


def _trial(kind: str, samples: list[dict[str, bytes]], seed: int) -> Callable[[int, Path], Any]:
    """Reads the mutant of a number; of a sample of several files one is broken, most often the first."""

    def trial(number: int, place: Path) -> None:
        rng = random.Random(f"{kind}/{seed}/{number}")
        sample = dict(rng.choice(samples))
        victim = list(sample)[0 if rng.random() < 0.6 else rng.randrange(len(sample))]
        sample[victim] = broken(sample[victim], rng)
        for name, content in sample.items():
            (place / name).write_bytes(content)
        image = place if kind == "DICOM" else place / next(iter(sample))
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
}
