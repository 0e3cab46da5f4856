"""Image-level labels: tables, folders per class, refusals; and batches that never open a mask."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from diffuseg.data.batches import Batches
from diffuseg.data.dataset import open_dataset
from diffuseg.data.fingerprint import fingerprint
from diffuseg.data.labels import check_labels, read_labels
from diffuseg.data.plan import make_plan
from diffuseg.errors import UserError
from tests.data.test_dataset import refused

LABELS = {"background": 0, "lump": 5}
CASES = {"a": 0, "b": 1, "c": 1, "d": 0}


def describe(folder: Path, labels: dict[str, int] = LABELS) -> None:
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".png"}))


def paint(path: Path, value: int, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full(size, value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures without a mask, each of one grey value; case n has the value 10 n."""
    for number, case in enumerate(CASES):
        paint(tmp_path / f"imagesTr/{case}_0000.png", 10 * number)
    describe(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "image_labels.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        "case,label\na,background\nb,lump\nc,lump\nd,background\n",
        "label,case\n0,a\n5,b\n5,c\n0,d\n",
        "case,patient,lump\na,p,0\nb,p,1\nc,q,1\nd,q,0\nunknown,r,1\n",
    ],
)
def test_every_form_of_table_says_the_same(folder, text):
    write(folder, text)
    assert read_labels(open_dataset(folder, masks=False)) == CASES
    elsewhere = write(folder, text, "other.csv")
    (folder / "image_labels.csv").unlink()
    assert read_labels(open_dataset(folder, masks=False), elsewhere) == CASES


def test_a_folder_per_class_says_the_same_as_a_table(folder):
    for case, index in CASES.items():
        place = folder / "imagesTr" / list(LABELS)[index]
        place.mkdir(exist_ok=True)
        (folder / f"imagesTr/{case}_0000.png").rename(place / f"{case}_0000.png")
    dataset = open_dataset(folder, masks=False)
    assert [case.id for case in dataset.cases] == list(CASES)
    assert read_labels(dataset) == CASES
    paint(folder / "imagesTr/lump/a_0000.png", 1)
    refused(lambda: open_dataset(folder, masks=False), "several classes", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("case,label\na,background\nb,lump\nc,lumps\nd,0\n", ("case c", "lumps", "5 lump")),
        ("case,label\na,0\nb,5\n", ("2 of 4 cases", "c, d", "--labels")),
        ("case,label\na,0\na,5\nb,5\nc,0\nd,0\n", ("case a has two labels",)),
        ("name,label\na,0\n", ("columns case and label",)),
        ("case,lump\na,2\n", ("case a", "0 or 1")),
    ],
)
def test_what_a_table_may_not_say(folder, text, says):
    write(folder, text)
    refused(lambda: read_labels(open_dataset(folder, masks=False)), "image_labels.csv", *says)


def test_no_labels_at_all_and_no_table_there(folder):
    dataset = open_dataset(folder, masks=False)
    refused(lambda: read_labels(dataset), "4 of 4 cases", "--labels")
    refused(lambda: read_labels(dataset, folder / "none.csv"), "no such table", "none.csv")
    refused(lambda: check_labels(CASES, ["b", "c"], list(LABELS)), "background")


def test_of_several_classes_one_may_be_marked(folder):
    describe(folder, {"background": 0, "lump": 5, "ring": 7})
    dataset = open_dataset(folder, masks=False)
    assert read_labels(dataset, write(folder, "case,lump,ring\na,0,0\nb,1,0\nc,0,1\nd,0,0\n")) == {
        "a": 0,
        "b": 1,
        "c": 2,
        "d": 0,
    }
    refused(lambda: read_labels(dataset, write(folder, "case,lump,ring\na,1,1\n")), "case a", "at most 1")


def test_batches_have_labels_and_whole_images_and_no_mask_is_opened(folder):
    labels = folder / "labelsTr"
    labels.mkdir()
    for case in CASES:
        (labels / f"{case}.png").write_bytes(b"no picture: whoever opens this fails")
    dataset = open_dataset(folder, masks=False)
    plan = make_plan(dataset, fingerprint(dataset), batch=8, augmentation="none", normalisation=("zscore",))
    assert plan.patch == (16, 16)
    for case in dataset.cases:
        assert case.mask is None
    with pytest.raises(UserError):
        fingerprint(open_dataset(folder))
    plan = make_plan(dataset, fingerprint(dataset), batch=8, augmentation="none")
    batch = Batches(dataset, list(CASES), plan, labels=CASES).batch(0)
    assert batch.mask is None and batch.label is not None and batch.image.shape == (8, 1, 16, 16)
    for image, label, case in zip(batch.image, batch.label, batch.cases, strict=True):
        value = 2 * 10 * list(CASES).index(case) / 255 - 1
        torch.testing.assert_close(image, torch.full_like(image, value), atol=1e-3, rtol=0)
        assert int(label) == CASES[case]


def test_augmented_batches_repeat_and_differ(folder):
    rng = np.random.default_rng(0)
    for case in CASES:
        PIL.Image.fromarray(rng.integers(0, 255, (12, 16), np.uint8)).save(folder / f"imagesTr/{case}_0000.png")
    dataset = open_dataset(folder, masks=False)
    plan = make_plan(dataset, fingerprint(dataset), batch=4)
    first, again = (Batches(dataset, list(CASES), plan, seed=3, labels=CASES).batch(1) for _ in range(2))
    assert torch.equal(first.image, again.image) and torch.equal(first.label, again.label)
    other = Batches(dataset, list(CASES), plan, seed=3, labels=CASES).batch(5)  # the same cases, one lap later
    assert sorted(other.cases) == sorted(first.cases) and not torch.equal(first.image, other.image)


def test_an_image_that_is_larger_than_the_patch_is_refused(folder):
    dataset = open_dataset(folder, masks=False)
    plan = make_plan(dataset, fingerprint(dataset), batch=4, patch=(8, 8))
    refused(lambda: Batches(dataset, list(CASES), plan, labels=CASES).batch(0), "whole image", "12 x 16", "plan.spacing")
    coarse = make_plan(dataset, fingerprint(dataset), batch=4, spacing=(2, 2), patch=(8, 8))
    assert Batches(dataset, list(CASES), coarse, labels=CASES).batch(0).image.shape == (4, 1, 8, 8)
