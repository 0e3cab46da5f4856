"""Several masks of one image: whose file is whose, one mask of several, the rater that a step learns from, the crop."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from diffuseg.data.batches import Batches
from diffuseg.data.dataset import check, load_case, load_raters, open_dataset
from diffuseg.data.plan import Plan, explain, fingerprint, make_plan
from diffuseg.data.raters import fuse_raters, rater_files
from diffuseg.errors import UserError

SHAPE = (12, 10)
LABELS = {"background": 0, "nodule": 1, "spiculation": 2}


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array.astype(np.uint8)).save(path)


def make_rated(folder: Path, first: int = 1, lacking: tuple[tuple[str, int], ...] = (), raters: int = 4, **extra) -> Path:
    """Three pictures. Each rater marks columns of his own, the last one as label 2; the first saw nothing in case c."""
    for case in "abc":
        write(folder / f"imagesTr/{case}_0000.png", np.arange(120).reshape(SHAPE) + ord(case))
        for k in range(raters):
            mask = np.zeros(SHAPE)
            mask[3:9, 1 + k : 5 + k] = 2 if k == raters - 1 else 1
            if (case, k + first) not in lacking:
                write(folder / f"labelsTr/{case}_rater{k + first}.png", mask * (0 if (case, k) == ("c", 0) else 1))
    description = {"name": "rated", "channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".png", "raters": raters}
    (folder / "dataset.json").write_text(json.dumps(description | extra))
    return folder


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as fault:
        call()
    assert all(word in str(fault.value) for word in words), fault.value


# Layout


@pytest.mark.parametrize("first", [0, 1])
def test_the_masks_of_a_case_are_those_of_its_raters_from_0_or_from_1(tmp_path, first):
    dataset = open_dataset(make_rated(tmp_path, first, lacking=(("b", first + 2),)))
    names = {case.id: [path.name for path in case.raters] for case in dataset.cases}
    assert names["a"] == [f"a_rater{k + first}.png" for k in range(4)]
    assert names["b"] == [f"b_rater{k + first}.png" for k in (0, 1, 3)]  # three people read it
    assert [case.mask for case in dataset.cases] == [case.raters[0] for case in dataset.cases]
    image, masks = load_raters(dataset, dataset.cases[1])
    assert image.data.shape == (1, *SHAPE) and masks.data.shape == (3, *SHAPE)
    assert [int(mask.max()) for mask in masks.data] == [1, 1, 2]
    assert check(dataset) == []


@settings(max_examples=60, deadline=None)
@given(data=st.data(), raters=st.integers(1, 12), first=st.integers(0, 1), ending=st.sampled_from([".png", ".nii.gz"]))
def test_any_names_come_back_in_the_order_of_their_numbers(data, raters, first, ending):
    names = st.text("ab0_-", min_size=1, max_size=4) | st.just("x_rater1")
    numbers = st.sets(st.integers(first, first + raters - 1), min_size=1)
    wanted = data.draw(st.dictionaries(names, numbers, min_size=1, max_size=4))
    if first == 0:
        wanted["zero"] = {0}  # the number 0 is what tells
    files = [Path(f"{case}_rater{k}{ending}") for case, of in wanted.items() for k in of]
    found = rater_files(data.draw(st.permutations(files)), ending, raters)
    assert found == {case: tuple(Path(f"{case}_rater{k}{ending}") for k in sorted(of)) for case, of in wanted.items()}


def test_without_raters_everything_is_as_it_was(tmp_path):
    folder = make_rated(tmp_path, raters=1)
    for case in "abc":
        (folder / f"labelsTr/{case}_rater1.png").rename(folder / f"labelsTr/{case}.png")
    refused(lambda: open_dataset(folder), "missing mask of any rater for 3 of 3 cases: a, b, c", "<case>_rater<k>.png")
    description = json.loads((folder / "dataset.json").read_text())
    del description["raters"]
    (folder / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(folder)
    assert all(case.raters == () and case.masks == (case.mask,) for case in dataset.cases)
    assert load_raters(dataset, dataset.cases[0])[1].data.shape == (1, *SHAPE)
    assert fingerprint(dataset).raters == (1, 1)


@pytest.mark.parametrize("count", [0, -1, 2.0, "4", True, None])
def test_the_number_of_raters_is_one(tmp_path, count):
    refused(
        lambda: open_dataset(make_rated(tmp_path, raters=1) and make_described(tmp_path, raters=count)), "raters", repr(count)
    )


def make_described(folder: Path, **changes) -> Path:
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


def test_faults_of_raters_name_the_file(tmp_path):
    folder = make_rated(tmp_path)
    refused(lambda: open_dataset(make_described(folder, raters=3)), "a_rater4.png", "3 raters, 1 to 3")
    dataset = open_dataset(make_described(folder, raters=4))
    write(folder / "labelsTr/a_rater2.png", np.zeros((12, 11)))
    write(folder / "labelsTr/b_rater3.png", np.full(SHAPE, 7))
    (folder / "labelsTr/c_rater4.png").unlink()
    write(folder / "labelsTr/c.png", np.zeros(SHAPE))
    words = {"a": "a_rater2.png: its shape (12, 11)", "b": "b_rater3.png: label value 7", "c": "c_rater4.png: no such file"}
    for case in dataset.cases:
        refused(lambda case=case: load_raters(dataset, case), words[case.id])
        refused(lambda case=case: load_case(dataset, case), words[case.id])
    lines = check(dataset)
    assert len(lines) == 4 and all(any(word in line for line in lines) for word in words.values())
    assert any("c.png" in line and "<case>_rater<k>" in line for line in lines)
    for path in (folder / "labelsTr").glob("b_*"):
        path.unlink()
    refused(lambda: open_dataset(folder), "missing mask of any rater for 1 of 3 cases: b")
    description = {"modality": {"0": "CT"}, "channel_names": None, "training": [{"image": "a", "label": "b"}]}
    changed = {key: value for key, value in (json.loads((folder / "dataset.json").read_text()) | description).items() if value}
    (folder / "dataset.json").write_text(json.dumps(changed))
    refused(lambda: open_dataset(folder), "dataset.json", '"raters"', "training")


# One mask of several

MASKS = st.integers(1, 6).flatmap(lambda m: hnp.arrays(np.int16, (m, 3, 4), elements=st.sampled_from([0, 0, 1, 2, 5])))


def count_votes(votes: list[int], how: str) -> int:
    """One voxel, by counting."""
    background = votes.count(0)
    best = sorted((-number, value) for value, number in Counter(votes).items() if value)
    if not best or (how == "intersection" and background) or (how == "majority" and -best[0][0] < background):
        return 0
    return best[0][1]


@settings(max_examples=150, deadline=None)
@given(masks=MASKS, how=st.sampled_from(["majority", "union", "intersection"]), seed=st.integers(0, 9))
def test_fusions_agree_with_counting_voxel_by_voxel_in_whatever_order(masks, how, seed):
    result = fuse_raters(masks, how)
    assert result.dtype == masks.dtype
    for place in itertools.product(range(3), range(4)):
        expected = count_votes(masks[(slice(None), *place)].tolist(), how) if len(masks) > 1 else masks[(0, *place)]
        assert result[place] == expected
    assert np.array_equal(result, fuse_raters(np.random.default_rng(seed).permutation(masks), how))


def test_a_tie_is_foreground_and_an_empty_mask_is_a_vote_for_background():
    lesion, nothing = np.ones((1, 1), int), np.zeros((1, 1), int)
    ask = lambda yes, no: int(fuse_raters(np.stack([lesion] * yes + [nothing] * no))[0, 0])
    assert [ask(4, 0), ask(3, 1), ask(2, 2), ask(1, 3), ask(0, 4), ask(1, 1), ask(1, 2)] == [1, 1, 1, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="no mask"):
        fuse_raters(np.zeros((0, 1, 1), int))


def test_majority_agrees_with_simpleitk_where_there_is_no_tie():
    sitk = pytest.importorskip("SimpleITK")
    masks = np.random.default_rng(0).integers(0, 3, (5, 40, 40))
    votes = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    undecided = 9
    theirs = sitk.GetArrayFromImage(sitk.LabelVoting(votes, undecided))
    ours = fuse_raters(masks)
    assert np.array_equal(ours[theirs != undecided], theirs[theirs != undecided]) and (theirs == undecided).any()
    assert (ours[theirs == undecided] > 0).all()


def test_the_truth_of_a_case_is_the_majority(tmp_path):
    dataset = open_dataset(make_rated(tmp_path))
    _, masks = load_raters(dataset, dataset.cases[0])
    _, truth = load_case(dataset, dataset.cases[0])
    expected = np.zeros(SHAPE, int)
    expected[3:9, 2:7] = 1  # two votes at least, of which one may be for label 2 ...
    expected[3:9, 6] = 0  # ... or for background: one each for 1 and 2, two for none
    assert np.array_equal(truth.data[0], expected)
    whole = Batches(dataset, ["a"], plan()).whole("a")
    assert np.array_equal(whole.truth, truth.data[0]) and np.array_equal(fuse_raters(masks.data), truth.data[0])
    assert np.array_equal(whole.mask.numpy(), whole.truth)


# Training


def plan(**changes) -> Plan:
    grey = {"normalisation": ("unit",), "intensity": ({"low": 0.0, "high": 255.0},), "orientation": None, "dims": 2}
    settings = grey | {"patch": SHAPE, "augmentation": "none", "batch": 3} | changes
    return Plan("rated", ("CT",), LABELS, ".png", **settings)


def test_each_step_draws_a_rater_uniformly_and_reproducibly(tmp_path):
    dataset = open_dataset(make_rated(tmp_path, lacking=(("b", 2),)))
    source = Batches(dataset, list("abc"), plan(), seed=1)
    masks = {case.id: load_raters(dataset, case)[1].data for case in dataset.cases}
    drawn: dict[str, Counter] = {case: Counter() for case in "abc"}
    for step in range(400):
        batch = source.batch(step)
        for mask, case in zip(batch.mask.argmax(1).numpy(), batch.cases, strict=True):
            (rater,) = [k for k, own in enumerate(masks[case]) if np.array_equal(mask, own)]
            drawn[case][rater] += 1
    assert [len(drawn[case]) for case in "abc"] == [4, 3, 4]
    assert all(stats.chisquare(list(drawn[case].values())).pvalue > 1e-3 for case in "abc")
    again = Batches(dataset, list("abc"), plan(), seed=1)
    for step in (399, 7):
        assert torch.equal(source.batch(step).mask, again.batch(step).mask)
    others = [source.batch(step, rank, world=2).mask for step in range(20) for rank in range(2)]
    assert any(not torch.equal(a, b) for a, b in zip(others[::2], others[1::2], strict=True))
    seeds = [Batches(dataset, ["a"], plan(), seed).batch(0).mask for seed in range(6)]
    assert any(not torch.equal(seeds[0], other) for other in seeds[1:])


@pytest.mark.parametrize("how", ["majority", "union", "intersection"])
def test_a_fusion_is_what_every_step_learns_from(tmp_path, how):
    dataset = open_dataset(make_rated(tmp_path))
    source = Batches(dataset, list("abc"), plan(raters=how))
    masks = {case.id: load_raters(dataset, case)[1].data for case in dataset.cases}
    for step in range(3):
        batch = source.batch(step)
        for mask, case in zip(batch.mask.argmax(1).numpy(), batch.cases, strict=True):
            assert np.array_equal(mask, fuse_raters(masks[case], how))
            assert np.array_equal(source.whole(case).truth, fuse_raters(masks[case]))  # the truth is not changed by it


def test_all_raters_at_once(tmp_path):
    """`raters` holds each rater's mask in order, `mask` that of one of them, any of them in time."""
    dataset = open_dataset(make_rated(tmp_path))
    source = Batches(dataset, list("abc"), plan(raters="all"), seed=1)
    masks = {case.id: load_raters(dataset, case)[1].data for case in dataset.cases}
    drawn: Counter = Counter()
    for step in range(60):
        batch = source.batch(step)
        for raters, mask, case in zip(batch.raters.argmax(2).numpy(), batch.mask.argmax(1).numpy(), batch.cases, strict=True):
            assert np.array_equal(raters, masks[case])
            drawn[next(k for k, own in enumerate(masks[case]) if np.array_equal(mask, own))] += 1
    assert len(drawn) == 4 and stats.chisquare(list(drawn.values())).pvalue > 1e-3
    assert torch.equal(source.batch(7).mask, Batches(dataset, list("abc"), plan(raters="all"), seed=1).batch(7).mask)


def test_all_raters_are_turned_alike(tmp_path):
    """Augmentation moves the masks of all raters as it moves that of one."""
    dataset = open_dataset(make_rated(tmp_path))
    turned = plan(raters="all", augmentation="flips", flips=(0, 1))
    batch = Batches(dataset, ["a"], turned, seed=0).batch(3)
    masks = load_raters(dataset, dataset.cases[0])[1].data
    flips = [lambda x: x, lambda x: x[..., ::-1, :], lambda x: x[..., ::-1], lambda x: x[..., ::-1, ::-1]]
    ways = [flip(x) for flip in flips for x in (masks, masks.swapaxes(-1, -2))]
    for raters in batch.raters.argmax(2).numpy():
        assert any(x.shape == raters.shape and np.array_equal(x, raters) for x in ways)


def test_all_raters_ask_for_as_many_of_each_case(tmp_path):
    dataset = open_dataset(make_rated(tmp_path, lacking=(("b", 2),)))
    with pytest.raises(UserError, match=r"masks of 3 to 4 raters.*plan\.raters=random"):
        [Batches(dataset, list("abc"), plan(raters="all", batch=3)).batch(step) for step in range(3)]


def test_the_plan_says_what_it_does_with_raters(tmp_path):
    dataset = open_dataset(make_rated(tmp_path, lacking=(("b", 2),)))
    found = fingerprint(dataset)
    assert found.raters == (3, 4)
    pixels = sum(int((load_case(dataset, case)[1].data == 0).sum()) for case in dataset.cases)
    assert found.frequency["background"] == pytest.approx(pixels / 360)
    rows = {name: (value, reason) for name, value, reason in explain(make_plan(dataset, found))}
    assert rows["raters"][0] == '"random"' and "3 to 4 masks" in rows["raters"][1]
    assert make_plan(dataset, found, raters="union").reasons["raters"] == "as asked for"
    with pytest.raises(UserError, match="expected one of random, all, majority, union, intersection"):
        make_plan(dataset, found, raters="mean")
