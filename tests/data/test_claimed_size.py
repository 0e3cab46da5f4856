"""Headers that claim more than there is are refused before memory is taken; files that hold more than they claim too."""

import gzip
import io
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from diffuseg.data import claimed_size
from diffuseg.data.claimed_size import Claim, check_claim
from diffuseg.data.convert.reading import read_picture
from diffuseg.data.io import read_image, write
from diffuseg.errors import UserError
from diffuseg.types import Image

SMALL = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)


def refused_cheaply(path, read=read_image, words: str = "claims|exceeds limit") -> str:
    """One line that says it, and less than 20 MB taken for it."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words) as fault:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert str(path) in str(fault.value) and "\n" not in str(fault.value)
    return str(fault.value)


def nifti(dims, kind=nib.Nifti1Image) -> bytes:
    raw = bytearray(kind(SMALL, np.eye(4)).to_bytes())
    if kind is nib.Nifti1Image:
        struct.pack_into("<8h", raw, 40, len(dims), *dims, *[1] * (7 - len(dims)))
    else:
        struct.pack_into("<8q", raw, 16, len(dims), *dims, *[1] * (7 - len(dims)))
    return bytes(raw)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("dims", [(10000, 10000, 10000), (3000, 800, 800), (5, 4, 2000)])
def test_a_nifti_that_claims_what_it_does_not_hold(tmp_path, pack, dims):
    path = tmp_path / "x.nii"
    path.write_bytes(pack(nifti(dims)))
    if pack is gzip.compress and dims == (5, 4, 2000):
        with pytest.raises(UserError, match="broken or truncated"):
            read_image(path)
    else:
        refused_cheaply(path)


def test_a_nifti_2_that_claims_a_million_million_voxels(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(nifti((10**4, 10**4, 10**4), nib.Nifti2Image))
    assert "10000 x 10000 x 10000 = 1e+12 values" in refused_cheaply(path)


def test_a_packed_file_of_far_more_than_its_header_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(claimed_size, "SLACK", 2**21)
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(nifti((5, 4, 3)) + bytes(2**22), compresslevel=1))
    refused_cheaply(path, words="unpacks to far more")
    path.write_bytes(gzip.compress(nifti((5, 4, 3)) + bytes(1000)))
    np.testing.assert_array_equal(read_image(path).data[0], SMALL)


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
def test_an_mgh_that_lies(tmp_path, ending):
    raw = bytearray(nib.MGHImage(SMALL, np.eye(4)).to_bytes())
    struct.pack_into(">4i", raw, 4, 20000, 20000, 3000, 1)
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(bytes(raw)) if ending == ".mgz" else bytes(raw))
    refused_cheaply(path)


@pytest.mark.parametrize("sizes", ["100000 100000 100", "5 4 3000000"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_an_nrrd_that_lies(tmp_path, sizes, encoding):
    head = f"NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\nendian: little\n\n"
    body = SMALL.tobytes() if encoding == "raw" else gzip.compress(SMALL.tobytes())
    path = tmp_path / "x.nrrd"
    path.write_bytes(head.encode() + body)
    refused_cheaply(path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sizes", ["100000 100000 100", "5 4 3000000"])
def test_a_metaimage_that_lies(tmp_path, sizes, packed):
    body = zlib.compress(SMALL.tobytes()) if packed else SMALL.tobytes()
    for ending, where in ((".mha", "LOCAL"), (".mhd", "x.raw")):
        head = f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_UCHAR\nCompressedData = {packed}\n"
        path = tmp_path / f"x{ending}"
        path.write_bytes(f"{head}ElementDataFile = {where}\n".encode() + (body if ending == ".mha" else b""))
        (tmp_path / "x.raw").write_bytes(body)
        refused_cheaply(path)


@pytest.mark.parametrize("where", ["../x.raw", "/etc/hostname", "LIST", "x%03d.raw 1 3 1", "none.raw"])
def test_voxels_lie_beside_their_header(tmp_path, where):
    (tmp_path / "in").mkdir()
    (tmp_path / "x.raw").write_bytes(SMALL.tobytes())
    head = "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_UCHAR\n"
    path = tmp_path / "in" / "x.mhd"
    path.write_text(f"{head}ElementDataFile = {where}\n")
    words = "outside of its folder|several files|not there"
    with pytest.raises(UserError, match=words):
        read_image(path)
    (tmp_path / "in" / "y.raw").write_bytes(SMALL.tobytes())
    path.write_text(f"{head}ElementDataFile = y.raw\n")
    np.testing.assert_array_equal(read_image(path).data[0].T, SMALL.reshape(3, 4, 5))


def png(width: int, height: int, body: bytes) -> bytes:
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100000, 100000), (9000, 9000)])
def test_a_png_that_lies(tmp_path, size):
    path = tmp_path / "x.png"
    path.write_bytes(png(*size, bytes(100)))
    refused_cheaply(path)


def test_a_tif_that_lies(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, SMALL[..., 0])
    with tifffile.TiffFile(path, mode="r+b") as pages:
        pages.pages[0].tags["ImageWidth"].overwrite(60000)
        pages.pages[0].tags["ImageLength"].overwrite(60000)
    refused_cheaply(path)


def test_arrays_that_lie(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (40000, 40000)})
    (tmp_path / "x.npy").write_bytes(buffer.getvalue() + bytes(100))
    refused_cheaply(tmp_path / "x.npy", read_picture)
    np.save(tmp_path / "y.npy", np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"y\.npy"):
        read_picture(tmp_path / "y.npy")


def test_the_limit_is_on_what_could_be_there_too(tmp_path, monkeypatch):
    path = tmp_path / "x.nii.gz"
    write(path, SMALL, Image(SMALL[None]))
    monkeypatch.setenv(claimed_size.VARIABLE, "59")
    with pytest.raises(UserError, match=r"5 x 4 x 3 = 60 values; at most 59.*DIFFUSEG_MOST_VOXELS"):
        read_image(path)
    monkeypatch.setenv(claimed_size.VARIABLE, "60")
    assert read_image(path).shape == (5, 4, 3)
    monkeypatch.setenv(claimed_size.VARIABLE, "many")
    with pytest.raises(UserError, match="'many'"):
        read_image(path)


def test_the_emptiest_file_is_within_the_bound(tmp_path):
    """Deflate reaches 1032 to one only in the limit: a mask of zeros, packed as well as can be, is no lie."""
    zeros = bytes(10**6)
    for level in (1, 6, 9):
        check_claim(tmp_path, Claim((10**6,), 1), len(gzip.compress(zeros, level)), claimed_size.DEFLATE)
    picture = np.zeros((1500, 1500), np.uint8)
    PIL.Image.fromarray(picture > 0).save(tmp_path / "x.png", optimize=True)
    assert read_image(tmp_path / "x.png").shape == (1500, 1500)
