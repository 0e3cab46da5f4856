"""From an image to a prediction in its own geometry, with a method that knows the answer."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

import diffuseg
from diffuseg.checkpoint import save_checkpoint, weights_hash
from diffuseg.data import geometry
from diffuseg.data.transforms import to_grid, to_native
from diffuseg.device import choose_device
from diffuseg.errors import UserError
from diffuseg.inference import sampling
from diffuseg.inference.model import load
from diffuseg.inference.sampling import draw_seed
from diffuseg.methods import METHODS
from diffuseg.types import Image
from tests.contract.test_methods import build
from tests.inference.oracle import Certain, make_model, make_plan

THREE = {"background": 0, "near": 2, "far": 700}


def organs(shape: tuple[int, ...] = (9, 8, 7), classes: int = 3) -> np.ndarray:
    """Class indices without any symmetry; times 10 they are the intensities that the oracle reads."""
    return np.random.default_rng(0).integers(0, classes, shape)


def turned(index: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> Image:
    """The same voxels at the same places in the world, stored along other axes; 1 mm voxels."""
    data = np.transpose(index, order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign
        affine[world, 3] = 0 if sign > 0 else data.shape[axis] - 1
        data = data if sign > 0 else np.flip(data, axis)
    return Image(10.0 * data[None].astype(np.float32), affine)


ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize(("order", "signs"), ORDERS[::5])
def test_the_mask_lies_on_the_images_own_voxels_with_the_values_of_the_labels(order, signs):
    image = turned(organs(), order, signs)
    p = make_model(labels=THREE).predict(image, draws=2)
    np.testing.assert_array_equal(p.mask, np.array([0, 2, 700])[np.rint(image.data[0] / 10).astype(int)])
    assert p.probability.shape == (3, *image.shape) and p.mask.dtype == np.int32
    assert p.image is image


@pytest.mark.parametrize(("order", "signs"), ORDERS[3::9])
def test_how_an_image_is_stored_changes_neither_noise_nor_result(order, signs):
    """Not only the answer but also the noise stays where it is in the world."""
    model = make_model(noise=0.9, labels=THREE)
    straight = model.predict(turned(organs(), (0, 1, 2), (1, 1, 1)), draws=3)
    other = model.predict(turned(organs(), order, signs), draws=3)
    assert straight.provenance["seeds"] == other.provenance["seeds"]
    back = np.flip(other.probability, [1 + axis for axis, sign in enumerate(signs) if sign < 0])
    np.testing.assert_array_equal(straight.probability, np.transpose(back, (0, *(1 + np.argsort(order)))))


def test_statistics_are_those_of_the_draws():
    model, image = make_model(noise=0.8), turned(organs(classes=2), (0, 1, 2), (1, 1, 1))
    p = model.predict(image, draws=5)
    x, _ = to_grid(image, model.plan)
    stack = torch.stack(list(model.method.draw(x, p.provenance["seeds"]))).double().numpy()
    mean = stack.mean(0)
    entropy = lambda q: -(q * np.log(q)).sum(-4)
    np.testing.assert_allclose(p.probability, mean, atol=1e-6)
    np.testing.assert_allclose(p.uncertainty["entropy"], entropy(mean), atol=1e-5)
    np.testing.assert_allclose(p.uncertainty["mutual_information"], entropy(mean) - entropy(stack).mean(0), atol=1e-5)
    np.testing.assert_allclose(p.uncertainty["variance"], stack.var(0).sum(0), atol=1e-6)
    assert sorted(p.uncertainty) == ["entropy", "expected_entropy", "mutual_information", "variance"]


def test_on_another_grid_probabilities_go_back_before_the_argmax():
    model = make_model(noise=0.7, spacing=(2.0, 1.0, 0.7), labels=THREE)
    image = turned(organs((12, 11, 10)), (2, 0, 1), (-1, 1, 1))
    p = model.predict(image, draws=3)
    x, transform = to_grid(image, model.plan)
    assert transform.grid != transform.oriented
    mean = torch.stack(list(model.method.draw(x, p.provenance["seeds"]))).mean(0)
    native = to_native(mean, transform)
    np.testing.assert_allclose(p.probability, native, atol=1e-6)
    np.testing.assert_array_equal(p.mask, np.array([0, 2, 700])[native.argmax(0)])
    np.testing.assert_allclose(p.probability.sum(0), 1, atol=1e-5)


def test_the_interval_of_a_single_draw_is_its_mask_on_the_images_own_voxels():
    """A thin object loses volume by interpolation; the interval must not be of the grid and the mask of the image."""
    image = np.zeros((13, 11, 12), np.float32)
    image[4:9, 3:8, 5:8] = 10
    record = make_model(spacing=(1.6, 1.6, 1.6)).predict(image, draws=1).provenance
    volume = record["volume_ml"]["organ"]
    assert volume > 0 and record["volume_ml_90"]["organ"] == pytest.approx([volume, volume], abs=1e-6)


def test_volumes_in_ml_and_their_interval():
    index = np.zeros((8, 8, 8), int)
    index[:2, :5, :4] = 1  # 40 voxels of 2 x 1 x 1.5 mm
    image = Image(10.0 * index[None].astype(np.float32), np.diag([-2.0, 1.0, 1.5, 1.0]))
    certain = make_model().predict(image, draws=4).provenance
    assert certain["volume_ml"] == {"organ": pytest.approx(0.12)}
    assert certain["volume_ml_90"] == {"organ": pytest.approx([0.12, 0.12])}
    model = make_model(noise=0.6)
    found = model.predict(image, draws=11).provenance
    x, _ = to_grid(image, model.plan)
    volumes = [0.003 * int((p.argmax(0) == 1).sum()) for p in model.method.draw(x, found["seeds"])]
    assert len(set(volumes)) > 1
    low, high, own = np.percentile(volumes, 5), np.percentile(volumes, 95), found["volume_ml"]["organ"]
    assert found["volume_ml_90"]["organ"] == pytest.approx([min(low, own), max(high, own)])  # it holds the mask's own
    assert model.predict(image, draws=11, calibrate=False).provenance["volume_ml_90"]["organ"] == pytest.approx([low, high])


def test_a_single_draw_is_flagged_as_no_interval():
    image = turned(organs(classes=2), (0, 1, 2), (1, 1, 1))
    single, several = (make_model(noise=0.6).predict(image, draws=n).provenance for n in (1, 3))
    assert single["volume_ml_90"]["organ"][0] == single["volume_ml_90"]["organ"][1]
    assert "a point" in single["volume_note"] and "a point" not in several["volume_note"]


def test_the_voxel_volume_on_the_grid_is_that_of_the_grid():
    """A full volume has the same ml however it is resampled."""
    image = Image(np.full((1, 10, 10, 10), 10.0, np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = make_model(spacing=(1.0, 0.5, 4.0)).predict(image, draws=2).provenance
    assert found["volume_ml"]["organ"] == pytest.approx(8.0)
    assert found["volume_ml_90"]["organ"] == pytest.approx([8.0, 8.0])


def test_noise_depends_on_the_image_and_the_seed_and_nothing_else(tmp_path):
    model = make_model(noise=0.9)
    data = 10.0 * organs(classes=2).astype(np.float32)
    for name in ("a.nii.gz", "b.nii"):
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / name)
    of = lambda image, **options: model.predict(image, **options).provenance["seeds"]
    seeds = of(tmp_path / "a.nii.gz", draws=4)
    assert len(set(seeds)) == 4 and all(0 <= s < 2**48 for s in seeds)
    assert of(tmp_path / "b.nii", draws=2) == seeds[:2]
    assert not set(of(tmp_path / "a.nii.gz", draws=4, seed=1)) & set(seeds)
    data[0, 0, 0] += 0.5
    assert not set(of(data, draws=4)) & set(seeds)


def test_seeds_of_draws_are_pinned():
    """Results of one version are those of the next: this number is part of the promise `same seed, same result`."""
    assert draw_seed(0, "case", 1) == 234165257159892
    assert len({draw_seed(s, d, i) for s in range(3) for d in "ab" for i in range(5)}) == 30


def test_a_deterministic_method_is_asked_once(caplog, monkeypatch):
    monkeypatch.setattr(geometry, "_WARNED", set())
    image = turned(organs(classes=2), (0, 1, 2), (1, 1, 1))
    p = make_model(method=Certain).predict(image, draws=8)
    assert "8 draws of" in caplog.text and "one is made" in caplog.text
    found = p.provenance
    assert (found["draws"], found["seeds"], found["seed"], found["network_evaluations"]) == (1, [], None, 1)
    assert not p.uncertainty["mutual_information"].any()
    for idle in ({"steps": 0}, {"steps": 3}, {"sampler": "ddim"}, {"sampler": "nothing"}, {"fuse": "staple"}):
        with pytest.raises(UserError, match=f"{next(iter(idle))}.*deterministic"):
            make_model(method=Certain).predict(image, **idle)


def test_a_method_of_one_step_has_no_sampler():
    method = build("ssn", "2d")
    assert method.sampling(None, None) == method.sampling(method.default_sampler, 1) == (method.default_sampler, 1)
    for sampler, words in (("ddim", "one step, whatever the sampler"), ("nothing", "unknown sampler")):
        with pytest.raises(UserError, match=words):
            method.sampling(sampler, None)


def test_steps_and_sampler_reach_the_method_and_the_record():
    model, seen = make_model(), []
    image = turned(organs(classes=2), (0, 1, 2), (1, 1, 1))
    found = model.predict(image, draws=3, steps=4, sampler="ddim", on_draw=lambda *done: seen.append(done)).provenance
    assert model.method.calls == [{"steps": 4, "sampler": "ddim", "chunk": 8}]
    assert (found["steps"], found["sampler"], found["network_evaluations"]) == (4, "ddim", 12)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    default = model.predict(image).provenance
    assert (default["steps"], default["sampler"], default["draws"], default["seed"]) == (2, "ancestral", 8, 0)


def test_large_images_are_drawn_fewer_at_a_time(monkeypatch):
    model, image = make_model(), np.zeros((4, 5, 6))
    for limit, draws in ((4 * 2 * 120 * 3, 3), (1, 1), (2**28, 8)):
        monkeypatch.setattr(sampling, "STATE_BYTES", limit)
        model.predict(image)
        assert model.method.calls[-1]["chunk"] == draws


def test_pictures_in_two_dimensions():
    index = organs((13, 17), 2)
    model = make_model(dims=2, orientation=None, patch=(8, 8))
    p = model.predict(10 * index, draws=2)
    np.testing.assert_array_equal(p.mask, 3 * index)
    assert p.probability.shape == (2, 13, 17) and p.uncertainty["entropy"].shape == (13, 17)
    assert p.provenance["volume_ml"]["organ"] == pytest.approx(index.sum() / 1000)
    assert "thickness" in p.provenance["volume_note"]


def test_an_array_is_taken_with_and_without_channels():
    model, index = make_model(), organs(classes=2)
    for array in (10 * index, 10.0 * index[None]):
        np.testing.assert_array_equal(model.predict(array, draws=1).mask, 3 * index)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.predict(np.zeros((2, 5, 5, 5))), "2 channels, but the plan has 1"),
        (lambda m: m.predict(np.zeros((5, 5))), "array of shape"),
        (lambda m: m.predict(np.zeros((0, 5, 5))), "array of shape"),
        (lambda m: m.predict(np.full((5, 5, 5), "x")), "array of shape"),
        (lambda m: m.predict(np.full((5, 5, 5), np.nan)), "NaN"),
        (lambda m: m.predict(Image(np.zeros((1, 5, 5), np.float32))), "picture"),
        (lambda m: m.predict("nowhere.nii.gz"), "no such file"),
        (lambda m: m.predict(np.zeros((5, 5, 5)), draws=0), "at least one"),
        (lambda m: m.predict(np.zeros((5, 5, 5)), steps=9), "4 timesteps"),
        (lambda m: m.predict(np.zeros((5, 5, 5)), steps=0), "4 timesteps"),
        (lambda m: m.predict(np.zeros((5, 5, 5)), sampler="dmd"), "Known: ancestral, ddim"),
    ],
)
def test_what_cannot_be_done_is_refused_before_drawing(call, says):
    model = make_model()
    with pytest.raises(UserError, match=says):
        call(model)
    assert not model.method.calls


@pytest.fixture
def checkpoint(tmp_path):
    plan = make_plan(patch=(8, 8, 8), widths=(8, 8), normalisation=("zscore",), intensity=())
    cls = METHODS["concat"]
    torch.manual_seed(0)
    method = cls(plan, cls.config_class())
    with torch.no_grad():  # last layers start at zero: let the noise show
        for p in method.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    save_checkpoint(path, method, {"name": "made/concat"})
    return path


def test_a_checkpoint_knows_everything_that_prediction_needs(checkpoint):
    model = diffuseg.load(checkpoint, device="cpu")
    assert (model.name, model.hash, model.plan.labels) == (
        "made/concat",
        weights_hash(checkpoint),
        {"background": 0, "organ": 3},
    )
    image = np.random.default_rng(0).normal(size=(10, 9, 8)).astype(np.float32)
    first, again = (model.predict(image, draws=2, steps=2) for _ in range(2))
    np.testing.assert_array_equal(first.probability, again.probability)
    assert first.uncertainty["mutual_information"].max() > 0, "draws of a diffusion model differ"
    assert first.provenance["model"] == model.hash and first.provenance["versions"]["torch"] == torch.__version__


def test_names_are_those_of_packaged_models(checkpoint, monkeypatch, tmp_path):
    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    (package / "models" / "organ.safetensors").write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr("diffuseg.inference.checkpoints.files", lambda name: package)
    assert load("organ").name == "organ"
    with pytest.raises(UserError, match=r"liver: .* Packaged models: organ$"):
        load("liver")
    with pytest.raises(UserError, match="neither a checkpoint, nor a run"):
        load(package)


def test_devices_that_are_not_there_are_refused():
    assert choose_device("cpu") == torch.device("cpu")
    for name, says in (("tpu", "unknown device"), ("cuda:x", "unknown device"), ("cuda:99", "no device")):
        with pytest.raises(UserError, match=says):
            choose_device(name)


def test_a_number_in_second_place_is_that_of_the_draws():
    model = make_model()
    image = np.random.default_rng(0).normal(size=(6, 5, 4))
    first, second = model.predict(image, 3), model.predict(image, draws=3)
    assert first.provenance["draws"] == 3 and np.array_equal(first.probability, second.probability)
