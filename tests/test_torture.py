"""A few of the broken files and texts of `make torture`, and the faults that it found."""

import io
import json
import struct
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from diffuseg.checkpoint import FORMAT, load_checkpoint, read_meta, write_tensors
from diffuseg.config import to_dict
from diffuseg.data.convert.reading import read_painted, read_picture
from diffuseg.data.dataset import open_dataset
from diffuseg.data.io import read_image
from diffuseg.data.layout import read_json
from diffuseg.data.plan import check_plan
from diffuseg.data.region import _mask_file
from diffuseg.data.synthetic import make_dataset
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from tests.inference.oracle import make_plan
from tools.torture import files
from tools.torture.child import Tally, torture


@pytest.mark.parametrize("kind", sorted(files.KINDS))
def test_a_few_broken_files_of_each_format_are_read_or_refused(kind):
    found = torture("files", kind, files._trial(kind, files.KINDS[kind](), seed=1), 25)
    assert found.mutants == 25 and found.faults == [] and found.results + found.refusals == 25


def test_what_is_neither_a_result_nor_a_refusal_is_a_fault():
    def trial(number, place):
        if number == 0:
            raise UserError("no")
        if number == 1:
            raise KeyError("code")
        if number == 2:
            struct.unpack("<Q", b"")
        if number == 3:
            import os

            os.kill(os.getpid(), 11)

    found = torture("files", "made", trial, 5)
    assert (found.mutants, found.results, found.refusals, len(found.faults)) == (5, 1, 1, 3)
    assert isinstance(found, Tally) and "ended with -11" in found.faults[2]


@pytest.mark.parametrize("change", [{"NDims": "-1"}, {"TransformMatrix": "1 0 0 0 1 0 0 1e308 1"}, {"Offset": "0 1e300 0"}])
def test_a_metaimage_that_would_end_or_stop_the_library(tmp_path, change):
    head = {"ObjectType": "Image", "NDims": "3", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0"}
    head |= {"ElementSpacing": "1 1 1", "DimSize": "5 4 3", "ElementType": "MET_UCHAR"} | change | {"ElementDataFile": "LOCAL"}
    (tmp_path / "x.mha").write_bytes("".join(f"{k} = {v}\n" for k, v in head.items()).encode() + bytes(60))
    with pytest.raises(UserError, match=r"NDims|nowhere"):
        read_image(tmp_path / "x.mha")


def test_a_decoder_without_memory_is_a_refusal(tmp_path, monkeypatch):
    def none(*_):
        raise MemoryError

    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.setattr("diffuseg.data.pictures.read", none)
    with pytest.raises(UserError, match=r"x\.png.*no memory"):
        read_image(tmp_path / "x.png")


def stranger(path, config=None, **changes):
    """A checkpoint with one small tensor that says anything."""
    plan = to_dict(make_plan(patch=(8, 8, 8), widths=(4, 8))) | changes.pop("plan", {})
    header = {"method": "unet", "config": config or {}, "plan": plan, "classes": plan["labels"]} | changes
    save_file({"a": torch.zeros(3)}, path, metadata={"format": FORMAT, "diffuseg": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": {"widths": [10**6, 10**6]}},
        {"plan": {"widths": [4096, 4096]}},
        {"plan": {"patch": [10**6, 10**6, 10**6]}},
        {"plan": {"context": 10**9}},
        {"config": {"dropout": 10**9}},
        {"plan": None},
        {"method": ["unet"]},
        {"fingerprint": {"ranges": {"x": [1]}}},
        {"recommended": {"draws": 10**9, "steps": 1, "sampler": None}},
        {"training_cases": [1]},
    ],
    ids=str,
)
def test_a_header_that_asks_for_too_much_or_for_nonsense_is_refused(tmp_path, changes):
    path = tmp_path / "x.safetensors"
    if changes.get("plan", {}) is None:
        stranger(path, classes="x")
    else:
        stranger(path, **changes)
    with pytest.raises(UserError):
        load_checkpoint(path)


def test_weights_that_a_file_does_not_hold_are_not_made(tmp_path, monkeypatch):
    """Refused at the first parameters, before any is written to."""
    path = stranger(tmp_path / "x.safetensors", plan={"widths": [1024, 1024]})
    drawn = []
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, *_, **__: drawn.append(tensor.numel()))
    with pytest.raises(UserError, match="more weights than it holds"):
        load_checkpoint(path)
    assert sum(drawn) < 3e6


def test_a_header_that_is_no_json_or_too_deep(tmp_path):
    for number, text in enumerate(("", "{", "[" * 100_000, '"x"', '{"method": "unet"}')):
        path = tmp_path / f"{number}.safetensors"
        save_file({"a": torch.zeros(3)}, path, metadata={"format": FORMAT, "diffuseg": text})
        with pytest.raises(UserError, match=path.name):
            read_meta(path)


def test_a_stored_model_of_every_method_still_loads(tmp_path):
    from diffuseg.checkpoint import save_checkpoint

    method = METHODS["unet"](make_plan(patch=(8, 8, 8), widths=(4, 8)), METHODS["unet"].config_class())
    save_checkpoint(tmp_path / "x.safetensors", method, {"fingerprint": {"cases": 1, "ranges": {}, "volume_ml": {}}})
    loaded, _, _ = load_checkpoint(tmp_path / "x.safetensors")
    for name, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value, method.state_dict()[name])


@pytest.mark.parametrize("field", ["Segment0_Layer:=x", "Segment0_Layer:=7", "Segment0_LabelValue:=1e9"])
def test_a_slicer_segmentation_whose_fields_say_nonsense_is_refused(tmp_path, field):
    head = "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 3 2 2\nspace directions: "
    head += "(1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n"
    (tmp_path / "x.seg.nrrd").write_bytes(f"{head}Segment0_Name:=a\n{field}\n\n".encode() + bytes(12))
    with pytest.raises(UserError, match=r"x\.seg\.nrrd"):
        read_painted(tmp_path / "x.seg.nrrd", (3, 2, 2))


NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 3 2 2\n{}\nencoding: raw\n{}\n"


@pytest.mark.parametrize("name", ["x.nrrd", "x.nhdr"])
def test_a_long_line_of_an_nrrd_header_is_refused_before_it_ends_the_library(tmp_path, name):
    text = NRRD.format("space directions: (1,0,0) (0,1,0) (0,0" + "x" * 1000, "data file: x.raw\n" if name == "x.nhdr" else "")
    (tmp_path / "x.raw").write_bytes(bytes(12))
    (tmp_path / name).write_bytes(text.encode() + bytes(12))
    with pytest.raises(UserError, match="a line of 10"):
        read_picture(tmp_path / name)


def test_long_lines_that_a_header_of_slicer_has_are_read(tmp_path):
    segments = "".join(f"Note{n}:={'t' * 2000}\n" for n in range(50)) + "Segment1_Name:=last\nSegment1_LabelValue:=1\n"
    text = NRRD.format("space directions: (1,0,0) (0,1,0) (0,0,1)", "kinds: domain domain domain\n" + segments)
    (tmp_path / "x.seg.nrrd").write_bytes(text.encode() + bytes([1] * 12))
    assert "last" in (read_painted(tmp_path / "x.seg.nrrd", (3, 2, 2)).names or {}).values()


@pytest.mark.parametrize(("shape", "read"), [((3, 2, 2), (3, 2, 2)), ((3, 2, 2, 1), (3, 2, 2)), ((3, 2, 2, 1, 2), None)])
def test_an_analyze_file_is_a_volume_or_refused(tmp_path, shape, read):
    nib.save(nib.AnalyzeImage(np.ones(shape, np.int16), np.eye(4)), tmp_path / "x.img")
    if read:
        assert read_picture(tmp_path / "x.hdr").shape == read
    else:
        assert read_picture(tmp_path / "x.hdr").data.shape == (2, 3, 2, 2)
    nib.save(nib.AnalyzeImage(np.ones((3, 2, 2, 2, 2), np.int16), np.eye(4)), tmp_path / "y.img")
    with pytest.raises(UserError, match=r"y\.hdr.*no image"):
        read_picture(tmp_path / "y.hdr")


def test_half_a_character_in_json_is_refused_where_it_is_read(tmp_path):
    """It could not be written again, into the record of a resumed run say; a whole one in two halves can."""
    path = tmp_path / "x.json"
    path.write_text('{"name": "\\ud83d\\ude00"}')
    assert read_json(path) == {"name": "\U0001f600"}
    path.write_text('{"name": ["\\ud83d"]}')
    with pytest.raises(UserError, match=r"x\.json.*JSON"):
        read_json(path)


def test_axes_that_a_plan_mirrors_are_looked_at_one_by_one():
    """However many axes it claims, no list of them is made."""
    tracemalloc.start()
    with pytest.raises(UserError, match="dims is 2 or 3"):
        check_plan(make_plan(patch=(8, 8, 8), widths=(4, 8), dims=10**6, flips=(0,)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_names_that_no_disk_could_hold_are_files_that_are_missing(tmp_path):
    make_dataset(tmp_path, cases=2, shape=(8, 8, 8))
    description = json.loads((tmp_path / "dataset.json").read_text())
    description |= {
        "training": [{"image": f"{'é' * 300}.nii.gz", "label": "x.nii.gz"}],
        "modality": description.pop("channel_names"),
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="missing"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="neither a box nor a file"):
        _mask_file("9" * 300)


def test_a_full_disk_is_a_refusal_of_checkpoints_and_states_too(tmp_path, monkeypatch):
    """The error of the library that writes tensors is none of the machine's."""

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("diffuseg.checkpoint.save_file", full)
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be written.*No space left"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_made_up_volume_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def half(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(UserError, match="No space left"):
        make_dataset(tmp_path, cases=1, shape=(8, 8, 8))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_packed_array_cannot_claim_more_than_its_bytes_hold(tmp_path):
    """Its table of contents says what its header says: two thousand million bytes of some hundred."""
    path, size = tmp_path / "x.npz", 2**31 - 1000
    np.savez_compressed(path, image=np.zeros(100, np.uint8))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("image.npy", buffer.getvalue())
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02") + 24  # the unpacked size, in the table of contents
    raw[at : at + 4] = struct.pack("<I", size + 128)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="its header claims"):
        read_picture(path)
