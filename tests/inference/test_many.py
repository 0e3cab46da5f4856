"""Many cases with one model: in order, none lost, no more than two ahead."""

import threading
import weakref

import nibabel as nib
import numpy as np
import pytest

from diffuseg.errors import UserError
from diffuseg.inference import many
from diffuseg.inference.many import AHEAD
from tests.inference.oracle import make_model

SHAPE = (6, 5, 4)


def images(n: int) -> list[np.ndarray]:
    return [10.0 * np.random.default_rng(seed).integers(0, 2, SHAPE) for seed in range(n)]


def test_results_come_in_order_and_are_those_of_one_at_a_time():
    model, given = make_model(noise=0.6), images(5)
    found = list(model.predict_many(given, draws=2, spacing=(1, 2, 3)))
    assert [result.name for result in found] == [f"case_{n:04d}" for n in range(5)]
    for (_, prediction, error), image in zip(found, given, strict=True):
        alone = model.predict(image, draws=2, spacing=(1, 2, 3))
        assert error is None
        np.testing.assert_array_equal(prediction.probability, alone.probability)
        assert prediction.image.spacing == (1, 2, 3)


def test_an_error_stands_in_the_place_of_its_case(tmp_path):
    good, bad = images(2), [None, np.zeros((2, 2)), tmp_path / "nowhere.nii.gz"]
    given = {"a": good[0], "none": bad[0], "flat": bad[1], "missing": bad[2], "b": good[1]}
    found = list(make_model().predict_many(given, draws=1, out=tmp_path / "out"))
    assert [(one.name, one.error is None, one.prediction is None) for one in found] == [
        ("a", True, False), ("none", False, True), ("flat", False, True), ("missing", False, True), ("b", True, False)
    ]  # fmt: skip
    assert all(isinstance(one.error, UserError) for one in found[1:4])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a.json", "b.json"]
    np.testing.assert_array_equal(nib.load(tmp_path / "out/b.nii.gz").get_fdata(), 3 * good[1] / 10)
    assert (tmp_path / "out/b.json").is_file()


def test_files_give_their_names_and_two_of_one_name_do_not_overwrite_each_other(tmp_path):
    paths = []
    for folder, name in (("x", "scan_0000.nii.gz"), ("x", "other.nii.gz"), ("y", "scan.nii.gz")):
        (tmp_path / folder).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(images(1)[0], np.eye(4)), tmp_path / folder / name)
        paths.append(tmp_path / folder / name)
    found = list(make_model().predict_many(iter(paths), draws=1, out=tmp_path / "out"))
    assert [(one.name, str(one.error or "")[:13]) for one in found] == [("scan", ""), ("other", ""), ("scan", "a second case")]
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_a_case_that_cannot_be_written_is_its_own_error(tmp_path):
    model = make_model()
    found = list(model.predict_many({"a": images(1)[0], "b/\0": images(1)[0], "c": images(1)[0]}, draws=1, out=tmp_path))
    assert [one.error is None for one in found] == [True, False, True]


def test_no_more_than_two_cases_are_read_ahead_and_none_is_kept():
    taken, held = [], []

    def source():
        for seed in range(8):
            image = 10.0 * np.random.default_rng(seed).integers(0, 2, SHAPE)
            taken.append(threading.current_thread().name)
            held.append(weakref.ref(image))
            yield image

    for number, result in enumerate(make_model().predict_many(source(), draws=1)):
        assert len(taken) <= number + 1 + AHEAD
        del result
        alive = sum(one() is not None for one in held)
        assert alive <= AHEAD + 2  # those ahead, the present one, and the one that the source is making
    assert len(taken) == 8 and all(name.startswith("diffuseg-read") for name in taken), "read beside the computing"


def test_reading_and_writing_go_on_while_a_case_is_computed(tmp_path, monkeypatch):
    """Computing case 1 waits until case 2 was read and case 0 is being written: one after the other would never end."""
    read, writing = threading.Event(), threading.Event()
    model, original = make_model(), many._written

    def source():
        for number, image in enumerate(images(3)):
            if number == 2:
                read.set()
            yield image

    def written(result, out):
        writing.set()
        return original(result, out)

    def draw(image, seeds, **options):
        count.append(1)
        if len(count) == 2:
            assert read.wait(20) and writing.wait(20)
        yield from type(model.method).draw(model.method, image, seeds, **options)

    count: list[int] = []
    monkeypatch.setattr(many, "_written", written)
    monkeypatch.setattr(model.method, "draw", draw)
    assert [one.error for one in model.predict_many(source(), draws=1, out=tmp_path)] == [None] * 3


def test_threads_end_with_the_loop_that_is_left_early():
    for _ in make_model().predict_many(images(6), draws=1):
        break
    assert [one for one in threading.enumerate() if one.name.startswith("diffuseg")] == []


def test_what_is_no_list_of_cases_is_refused_at_once(tmp_path):
    for given in ("scan.nii.gz", tmp_path, 3, None):
        with pytest.raises(UserError, match="several cases"):
            make_model().predict_many(given)


def test_an_iterator_that_fails_says_so():
    def source():
        yield images(1)[0]
        raise RuntimeError("the disk is gone")

    results = make_model().predict_many(source(), draws=1)
    assert next(results).error is None
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(results)
