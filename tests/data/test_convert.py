"""From what people have to a data set: names that pair, masks of every kind, nothing overwritten, nothing half written."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import tifffile

from diffuseg.data.convert import folder as made
from diffuseg.data.convert.colours import read_colours
from diffuseg.data.convert.folder import Wishes, survey, write_dataset
from diffuseg.data.convert.pairing import Pairing, Shape, only_images, pair, read_pairs
from diffuseg.data.convert.polygons import rasterise, read_annotations
from diffuseg.data.convert.reading import onto_grid, read_painted
from diffuseg.data.dataset import check, load_case, open_dataset, splits
from diffuseg.data.io import read_mask
from diffuseg.errors import UserError
from diffuseg.types import Image
from tests.data.test_dataset import refused

SIZE = (12, 10)
TRUTH = np.zeros(SIZE, np.uint8)
TRUTH[3:7, 2:8] = 1
GREY = np.random.default_rng(0).integers(0, 200, SIZE).astype(np.uint8)


def picture(path: Path, data: np.ndarray = GREY, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(data).save(path, **how)


def volume(path: Path, data: np.ndarray, affine=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def converted(source: Path, out: Path, pairing: Pairing | None = None, **wishes):
    """The data set made of a folder, checked by the reader of data sets; its masks by case."""
    pairing = pairing or pair(source)
    wish = Wishes(**wishes)
    write_dataset(out, pairing, survey(pairing, wish), wish)
    data = open_dataset(out)
    assert [fault for fault in check(data) if "validation needs" not in fault] == []  # some have one case
    return data, {case.id: load_case(data, case)[1].data[0] for case in data.cases}


LAYOUTS = {
    "folders": [("images/a1.png", "masks/a1.png"), ("images/a2.png", "masks/a2.png")],
    "words in names": [("img_001.png", "mask_001.png"), ("img_002.png", "mask_002.png")],
    "a folder per case": [("case1/image.png", "case1/mask.png"), ("case2/image.png", "case2/mask.png")],
    "suffixes": [("images/a.jpg", "masks/a_mask.png"), ("images/b.jpg", "masks/b_mask.png")],
    "_seg": [("a.png", "a_seg.png"), ("b.png", "b_seg.png")],
    "_label, _gt, _segmentation": [("a.png", "a_label.png"), ("b.png", "b_gt.png"), ("c.png", "c_segmentation.png")],
    "splits": [("train/images/1.png", "train/masks/1.png"), ("test/images/1.png", "test/masks/1.png")],
    "splits within": [("images/train/1.png", "masks/train/1.png"), ("images/test/2.png", "masks/test/2.png")],
    "other folders": [
        ("T1-2_Training_Input/ISIC_01.jpg", "T1_Training_GroundTruth/ISIC_01_segmentation.png"),
        ("T1-2_Training_Input/ISIC_02.jpg", "T1_Training_GroundTruth/ISIC_02_segmentation.png"),
    ],
    "the other way round": [("images/a_1.png", "labels/1_a.png"), ("images/b.png", "labels/b.png")],
    "frames": [("images/img_0000.png", "masks/mask_0000.png"), ("images/img_0001.png", "masks/mask_0001.png")],
    "nnU-Net without its table": [("imagesTr/a_0000.png", "labelsTr/a.png"), ("imagesTr/b_0000.png", "labelsTr/b.png")],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_that_pair(tmp_path, name):
    for image, mask in LAYOUTS[name]:
        for file in (image, mask):
            picture(tmp_path / file)
    found = pair(tmp_path)
    expected = {(image, mask) for image, mask in LAYOUTS[name] if image != "images/a_1.png"}
    pairs = {(str(p.images[0].relative_to(tmp_path)), str(p.masks[0].path.relative_to(tmp_path))) for p in found.pairs}
    assert pairs == expected and all(len(p.images) == len(p.masks) == 1 for p in found.pairs)
    assert len({p.name for p in found.pairs}) == len(found.pairs)
    left = [path.name for path in (*found.without_mask, *found.without_image)]
    assert left == (["a_1.png", "1_a.png"] if name == "the other way round" else [])


def test_bids_pairs_channels_and_keeps_subjects(tmp_path):
    for subject in ("sub-01", "sub-02"):
        for session in ("ses-1", "ses-2"):
            stem = f"{subject}/{session}/anat/{subject}_{session}"
            for kind in ("T1w", "FLAIR"):
                volume(tmp_path / f"in/{stem}_{kind}.nii.gz", np.ones((4, 5, 3), np.float32))
            mask = np.zeros((4, 5, 3), np.uint8)
            mask[1, 2, 1] = 1
            volume(tmp_path / f"in/derivatives/manual/{stem}_space-T1w_label-lesion_mask.nii.gz", mask)
    data, _ = converted(tmp_path / "in", tmp_path / "out")
    assert data.channels == ("FLAIR", "T1w") and data.labels == {"background": 0, "lesion": 1}
    assert data.cases[0].id == "sub-01_ses-1"
    for fold in splits(data):  # both sessions of a subject on one side
        assert len({case[:6] for case in fold["val"]}) == len(fold["val"]) / 2
    (tmp_path / "in/sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz").unlink()
    refused(lambda: pair(tmp_path / "in"), "1 image lacks a channel", "sub-01_ses-1_T1w", "--channels")
    assert pair(tmp_path / "in", ["T1w"]).channels == ("T1w",)


def test_a_split_stays_a_split(tmp_path):
    for split in ("train", "val", "test"):
        for number in range(2):
            picture(tmp_path / f"in/{split}/images/{number}.png")
            picture(tmp_path / f"in/{split}/masks/{number}.png", 255 * TRUTH)
    data, _ = converted(tmp_path / "in", tmp_path / "out")
    assert len(data.cases) == 4 and len(list((tmp_path / "out/imagesTs").iterdir())) == 2
    assert splits(data) == [{"train": ["train_0", "train_1"], "val": ["val_0", "val_1"]}]


def kinds_of_masks(folder: Path, kind: str) -> dict:
    """Writes a mask of one kind for images a and b; what to wish for."""
    two = np.where(TRUTH > 0, [[200]], 40).astype(np.uint8)
    colour = np.zeros((*SIZE, 3), np.uint8)
    colour[TRUTH > 0] = (255, 0, 0)
    for name in "ab":
        path = folder / f"masks/{name}.png"
        if kind in ("255", "threshold"):
            picture(path, 255 * TRUTH)
        elif kind == "bool":
            picture(path, TRUTH > 0)
        elif kind == "two values":
            picture(path, two)
        elif kind == "red":
            picture(path, colour)
        elif kind == "grey as colour":
            picture(path, np.stack([255 * TRUTH] * 3, -1))
        elif kind == "alpha":
            picture(path, np.concatenate([colour, 255 * TRUTH[..., None]], -1))
        elif kind == "palette":
            shown = PIL.Image.fromarray(TRUTH)
            shown.putpalette([0, 0, 0, 255, 0, 0])
            path.parent.mkdir(exist_ok=True)
            shown.save(path)
        elif kind == "gif":
            picture(path.with_suffix(".gif"), 255 * TRUTH)
        elif kind == "jpg":
            picture(path.with_suffix(".jpg"), 255 * TRUTH, quality=95)
        elif kind == "npy":
            path.parent.mkdir(exist_ok=True)
            np.save(path.with_suffix(".npy"), TRUTH > 0)
        elif kind == "npz":
            path.parent.mkdir(exist_ok=True)
            np.savez(path.with_suffix(".npz"), mask=TRUTH, other=GREY)
        elif kind == "one-hot npy":
            path.parent.mkdir(exist_ok=True)
            np.save(path.with_suffix(".npy"), np.stack([TRUTH == 0, TRUTH == 1], -1))
        elif kind == "one-hot tif":
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(
                path.with_suffix(".tif"), np.stack([TRUTH == 0, TRUTH == 1]).astype(np.uint8), photometric="minisblack"
            )
    return {"threshold": 128.0} if kind in ("jpg", "threshold") else {}


KINDS = (
    "255", "threshold", "bool", "two values", "red", "grey as colour", "alpha", "palette", "gif", "jpg", "npy", "npz",
    "one-hot npy", "one-hot tif",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_any_kind_becomes_the_same_labels(tmp_path, kind):
    for name in "ab":
        picture(tmp_path / f"in/images/{name}.png")
    data, masks = converted(tmp_path / "in", tmp_path / "out", **kinds_of_masks(tmp_path / "in", kind))
    for mask in masks.values():
        np.testing.assert_array_equal(mask, TRUTH)
    assert list(data.labels.values()) == [0, 1]


def test_masks_that_say_nothing_are_refused_with_the_reason(tmp_path):
    picture(tmp_path / "images/a.png")
    smooth = np.linspace(0, 255, 120).reshape(SIZE).astype(np.uint8)
    smooth[:, :2], smooth[:, 3:] = 0, 255
    three = np.zeros((*SIZE, 3), np.uint8)
    three[0], three[1] = (255, 0, 0), (0, 255, 0)
    for name, data, words in (
        ("a.png", smooth, ("smoothed", "--threshold 128")),
        ("a.jpg", 255 * TRUTH, ("lossy", "--threshold")),
        ("a.png", 0 * TRUTH, ("value 0 alone", "nothing is marked")),
        ("a.png", three, ("3 colours", "#ff0000", "#00ff00", "--colours")),
        ("a.png", np.zeros((5, 5), np.uint8), ("(5, 5) is not (12, 10)",)),
    ):
        picture(tmp_path / "masks" / name, data)
        refused(lambda: survey(pair(tmp_path), Wishes()), *words)
        (tmp_path / "masks" / name).unlink()
    volume(tmp_path / "v/images/a.nii", np.zeros((4, 4, 4), np.int16))
    volume(tmp_path / "v/masks/a.nii", np.full((4, 4, 4), 0.3, np.float32))
    refused(lambda: survey(pair(tmp_path / "v"), Wishes()), "probability", "--threshold")


def test_a_value_of_few_masks_is_said_and_very_many_values_need_names(tmp_path):
    for number in range(12):
        picture(tmp_path / f"images/p{number:02d}.png")
        picture(tmp_path / f"masks/p{number:02d}.png", 255 * TRUTH)
    look = lambda **wishes: survey(pair(tmp_path), Wishes(**wishes)).strays
    assert look() == ()
    slip = 255 * TRUTH
    slip[4, 4] = 128
    picture(tmp_path / "masks/p03.png", slip)
    assert look() == ("value 128 is in 1 of 12 masks only: masks/p03.png",)
    assert look(labels=("slip=128", "organ=255")) == look(threshold=128.0) == ()
    picture(tmp_path / "masks/p05.png", slip)
    assert look() == ()  # in a sixth of the masks
    many = np.arange(120, dtype=np.uint8).reshape(SIZE)
    picture(tmp_path / "masks/p03.png", many)
    refused(look, "122 different values", "More than 64 values need --labels")
    assert survey(pair(tmp_path), Wishes(labels=tuple(f"c{n}" for n in range(121)))).meaning


@pytest.mark.parametrize("kind", ["json", "csv", "rgb csv"])
def test_colours_by_a_table(tmp_path, kind):
    colour = np.zeros((*SIZE, 3), np.uint8)
    colour[TRUTH > 0], colour[:2] = (255, 0, 0), (0, 128, 255)
    picture(tmp_path / "in/images/a.png")
    picture(tmp_path / "in/images/b.png")
    picture(tmp_path / "in/masks/a.png", colour)
    picture(tmp_path / "in/masks/b.png", np.zeros_like(colour))
    table = tmp_path / f"t.{kind[-4:].strip()}"
    table.write_text(
        {
            "json": '{"background": "#000000", "vein": [0, 128, 255], "tumour": "#FF0000"}',
            "csv": "name,colour\nbackground,#000000\nvein,#0080ff\ntumour,ff0000\n",
            "rgb csv": "name,r,g,b\nbackground,0,0,0\nvein,0,128,255\ntumour,255,0,0\n",
        }[kind]
    )
    data, masks = converted(tmp_path / "in", tmp_path / "out", colours=read_colours(table))
    assert data.labels == {"background": 0, "vein": 1, "tumour": 2}
    expected = np.where(TRUTH > 0, 2, 0)
    expected[:2] = 1
    np.testing.assert_array_equal(masks["a"], expected)
    lacking = {(0, 0, 0): "background", (255, 0, 0): "tumour"}
    refused(lambda: survey(pair(tmp_path / "in"), Wishes(colours=lacking)), "lacks: #0080ff")
    table.write_text('{"a": "#00"}' if kind == "json" else "a,#00\nb,#00\n")
    refused(lambda: read_colours(table), "no colour")


def test_labels_that_are_not_consecutive_stay_and_get_names(tmp_path):
    """As in BraTS: 1, 2 and 4."""
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[0], mask[1], mask[2] = 1, 2, 4
    for name in "ab":
        volume(tmp_path / f"in/{name}/{name}_T1.nii.gz", np.ones((5, 4, 3), np.int16))
        volume(tmp_path / f"in/{name}/{name}_seg.nii.gz", mask)
    data, masks = converted(tmp_path / "in", tmp_path / "out", labels=("necrosis", "oedema", "enhancing"))
    assert data.labels == {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4}
    np.testing.assert_array_equal(masks["a"], mask)
    named = Wishes(labels=("necrosis=1", "oedema=2"))
    refused(lambda: survey(pair(tmp_path / "in"), named), "masks hold 4 too")
    refused(lambda: survey(pair(tmp_path / "in"), Wishes(labels=("a", "b"))), "1, 2, 4", "2 names")


def test_a_mask_per_structure_is_a_class_each(tmp_path):
    other = np.zeros_like(TRUTH)
    other[8:10] = 1
    for name in ("s1", "s2"):
        picture(tmp_path / f"in/{name}/ct.png")
        picture(tmp_path / f"in/{name}/segmentations/liver.png", 255 * TRUTH)
        picture(tmp_path / f"in/{name}/segmentations/spleen.png", 255 * other)
    data, masks = converted(tmp_path / "in", tmp_path / "out")
    assert data.labels == {"background": 0, "liver": 1, "spleen": 2} and data.channels == ("ct",)
    np.testing.assert_array_equal(masks["s1"], TRUTH + 2 * other)
    picture(tmp_path / "in/s1/segmentations/spleen.png", 255 * TRUTH)
    refused(lambda: converted(tmp_path / "in", tmp_path / "again"), "liver and spleen share 24 voxels", "--labels")
    _, masks = converted(tmp_path / "in", tmp_path / "again", labels=("spleen", "liver"))
    np.testing.assert_array_equal(masks["s1"], 2 * TRUTH)


def test_masks_of_several_people_stay_apart(tmp_path):
    for name in ("n1", "n2"):
        picture(tmp_path / f"in/images/{name}.png")
        picture(tmp_path / f"in/masks/{name}_rater1.png", 255 * TRUTH)
        picture(tmp_path / f"in/masks/{name}_rater2.png", 255 * (1 - TRUTH))
    data, _ = converted(tmp_path / "in", tmp_path / "out")
    assert data.extra["raters"] == 2
    np.testing.assert_array_equal(read_mask(data.cases[0].masks[1]).data[0], 1 - TRUTH)
    for path in (tmp_path / "in/masks").iterdir():
        path.rename(path.with_name(path.name.replace("_rater", "_mask_")))
    refused(lambda: pair(tmp_path / "in"), "do not say what they are", "--several")
    _, masks = converted(tmp_path / "in", tmp_path / "parts", pair(tmp_path / "in", several="parts"))
    assert masks["n1"].all()


def test_volumes_of_any_format_keep_their_place(tmp_path):
    affine = nib.affines.from_matvec(np.diag([-1, 0.5, 2]), [3, 4, 5])
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[1, 2, 1] = 1
    volume(tmp_path / "in/images/a.nii.gz", np.ones((5, 4, 3), np.int16), affine)
    nib.save(nib.MGHImage(np.ones((5, 4, 3), np.float32), affine), tmp_path / "in/images/b.mgz")
    (tmp_path / "in/masks").mkdir()
    np.save(tmp_path / "in/masks/a.npy", mask)  # lies where its image does
    turned = nib.Nifti1Image(mask[::-1, :, ::-1], affine @ nib.affines.from_matvec(np.diag([-1, 1, -1]), [4, 0, 2]))
    nib.save(turned, tmp_path / "in/masks/b.nii.gz")  # another order of the same voxels
    data, masks = converted(tmp_path / "in", tmp_path / "out")
    for case in data.cases:
        np.testing.assert_allclose(load_case(data, case)[0].affine, affine, atol=1e-5)
        np.testing.assert_array_equal(masks[case.id], mask)
    nib.save(nib.Nifti1Image(mask, affine + np.pad([[0.3], [0], [0]], ((0, 1), (3, 0)))), tmp_path / "in/masks/b.nii.gz")
    refused(lambda: survey(pair(tmp_path / "in"), Wishes()), "b.nii.gz", "0.3 mm apart")


def test_a_segmentation_of_slicer_is_put_into_its_image(tmp_path):
    image = sitk.Image([5, 4, 3], sitk.sitkInt16)
    image.SetOrigin([10, 20, 30])
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in/a.nrrd"))
    cut = sitk.Image([2, 2, 1], sitk.sitkUInt8) + 1
    cut[0, 0, 0] = 2
    cut.SetOrigin([11, 21, 32])
    sitk.WriteImage(cut, str(tmp_path / "in/a.seg.nrrd"))
    raw = (tmp_path / "in/a.seg.nrrd").read_bytes()
    said = b"".join(
        f"Segment{n}_{key}:={value}\n".encode()
        for n, (name, label) in enumerate((("tumour", 2), ("liver", 1)))
        for key, value in (("Name", name), ("LabelValue", label), ("Layer", 0))
    )
    (tmp_path / "in/a.seg.nrrd").write_bytes(raw.replace(b"\n\n", b"\n" + said + b"\n", 1))
    (tmp_path / "in/a.seg.nrrd").rename(tmp_path / "in/a_mask.seg.nrrd")
    data, masks = converted(tmp_path / "in", tmp_path / "out")
    expected = np.zeros((5, 4, 3), int)
    expected[1:3, 1:3, 2] = 2
    expected[1, 1, 2] = 1
    np.testing.assert_array_equal(masks["a"], expected)
    assert data.labels == {"background": 0, "tumour": 1, "liver": 2}


def test_a_part_outside_of_the_image_is_no_mask_of_it():
    image = Image(np.zeros((1, 4, 4, 4)))
    mask = Image(np.ones((1, 3, 3, 3), np.uint8), nib.affines.from_matvec(np.eye(3), [2, 0, 0]))
    refused(lambda: onto_grid(mask, image, Path("x")), "outside of the image")


def test_arrays_need_a_voxel_size_if_they_are_volumes(tmp_path):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/a.npz", image=np.ones((6, 5, 7), np.float32), label=np.eye(6, 5)[..., None].repeat(7, -1))
    pairing = only_images(tmp_path / "in")
    refused(lambda: survey(pairing, Wishes()), "no voxel size", "--spacing")
    wishes = Wishes(spacing=(1.0, 2.0, 3.0))
    write_dataset(tmp_path / "out", pairing, survey(pairing, wishes), wishes)
    assert nib.load(tmp_path / "out/imagesTs/a_0000.nii.gz").header.get_zooms() == (1, 2, 3)
    (tmp_path / "in/pairs.csv").write_text("case,image,mask\nx,a.npz,a.npz\n")  # both in one file
    _, masks = converted(
        tmp_path / "in", tmp_path / "set", read_pairs(tmp_path / "in/pairs.csv", tmp_path), spacing=(1.0, 2.0, 3.0)
    )
    assert masks["x"].sum() == 5 * 7
    (tmp_path / "in/pairs.csv").write_text("image,mask\na.npz,b.npz\n")
    refused(lambda: read_pairs(tmp_path / "in/pairs.csv", tmp_path), "line 2", "not there")


def coco(segmentation, **more) -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 5, "name": "duct"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 5, "segmentation": segmentation, **more}],
    }


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 3, 8, 3, 8, 7, 2, 7]],
        {"size": [12, 10], "counts": [27, 4, 8, 4, 8, 4, 8, 4, 8, 4, 8, 4, 29]},
        {"size": [12, 10], "counts": "k048000000000e0"},
    ],
    ids=["polygon", "runs", "packed runs"],
)
def test_coco(tmp_path, segmentation):
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/b.png")
    file = tmp_path / "in/annotations.json"
    file.write_text(json.dumps(coco(segmentation)))
    data, masks = converted(tmp_path / "in", tmp_path / "out", read_annotations(file, tmp_path / "in"))
    assert data.labels == {"background": 0, "cell": 1, "duct": 2}
    np.testing.assert_array_equal(masks["a"], 2 * TRUTH)
    assert not masks["b"].any()
    file.write_text(json.dumps(coco([])))
    refused(lambda: read_annotations(file, tmp_path / "in"), "box and no outline")


def packed_brush(mask: np.ndarray) -> list[int]:
    """RGBA of a mask as Label Studio packs it, by runs of one word each; written from the layout of the bits."""
    values = np.repeat(255 * mask.ravel(), 4)
    bits = f"{len(values):032b}{7:05b}" + f"{2:04b}{3:04b}{7:04b}{15:04b}"
    starts = [0, *(np.flatnonzero(np.diff(values.astype(int))) + 1), len(values)]
    for start, stop in zip(starts, starts[1:], strict=False):
        bits += f"1{3:02b}{stop - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("kind", ["polygon", "brush"])
def test_label_studio(tmp_path, kind):
    picture(tmp_path / "in/images/a b.png")
    value = {"polygonlabels": ["Cell"], "points": [[20, 25], [80, 25], [80, 700 / 12], [20, 700 / 12]]}
    if kind == "brush":
        value = {"brushlabels": ["Cell"], "format": "rle", "rle": packed_brush(TRUTH)}
    mark = {"type": f"{kind}labels", "original_width": 10, "original_height": 12, "value": value}
    task = {"data": {"image": "/data/upload/3/0f1e2d3c-a%20b.png"}, "annotations": [{"result": [mark]}]}
    file = tmp_path / "in/export.json"
    file.write_text(json.dumps([task]))
    data, masks = converted(tmp_path / "in", tmp_path / "out", read_annotations(file, tmp_path / "in"))
    np.testing.assert_array_equal(masks["a b"], TRUTH)
    assert data.labels == {"background": 0, "Cell": 1}
    mark["type"] = "rectanglelabels"
    file.write_text(json.dumps([task]))
    refused(lambda: read_annotations(file, tmp_path / "in"), "no outlines")


def test_a_polygon_holds_the_pixels_whose_middle_is_inside():
    triangle = Shape((((0.0, 0.0), (10.0, 0.0), (0.0, 10.0)),))
    rows, columns = np.mgrid[:12, :12] + 0.5
    np.testing.assert_array_equal(
        rasterise([triangle], (12, 12), Path("x"))[rows + columns != 10], (rows + columns < 10)[rows + columns != 10]
    )
    beyond = Shape((((-5.0, -5.0), (50.0, -5.0), (50.0, 50.0), (-5.0, 50.0)),))
    assert rasterise([beyond], SIZE, Path("x")).all()


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, monkeypatch):
    for name in "ab":
        picture(tmp_path / f"in/images/{name}.png")
        picture(tmp_path / f"in/masks/{name}.png", 255 * TRUTH)
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.png")}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    refused(lambda: converted(tmp_path / "in", tmp_path / "out"), "there already", "nothing is overwritten")
    for error, expected in ((KeyboardInterrupt, KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)):
        with monkeypatch.context() as patch:
            patch.setattr(made, "_describe", lambda *_, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(expected):
                converted(tmp_path / "in", tmp_path / "new")
        assert sorted(os.listdir(tmp_path)) == ["in", "out"] and os.listdir(tmp_path / "out") == ["mine.txt"]
    converted(tmp_path / "in", tmp_path / "new")
    assert before == {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.png")}
    shutil.rmtree(tmp_path / "out")


def test_two_images_of_one_name(tmp_path):
    for name in ("images/a.png", "images/a.jpg", "masks/a.png"):
        picture(tmp_path / name)
    refused(lambda: pair(tmp_path), "several images of one name: a.jpg, a.png")
    refused(lambda: pair(tmp_path / "none"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: pair(tmp_path / "empty"), "no image")


def test_a_broken_mask_is_named(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes((tmp_path / "images/a.png").read_bytes()[:60])
    refused(lambda: survey(pair(tmp_path), Wishes()), "a.png", "broken or truncated")
    (tmp_path / "masks/a.png").write_bytes(b"")
    refused(lambda: read_painted(tmp_path / "masks/a.png", SIZE), "empty (0 bytes)")
