"""CDM beyond the contract: its losses, its guidance, what it decides about an image, and predictions from checkpoints."""

import json
import logging
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from diffuseg.checkpoint import save_checkpoint
from diffuseg.cli import app
from diffuseg.config import override
from diffuseg.data.transforms import to_grid
from diffuseg.errors import UserError
from diffuseg.inference.model import Model, load
from diffuseg.methods.weak.base import SaliencyCalibration
from diffuseg.methods.weak.binarize import logistic_mask, normalized_saliency
from diffuseg.methods.weak.cdm import CDM, MAPS
from diffuseg.types import Batch, Image
from tests.contract.test_methods import build, make_batch

WITH = "classifier_widths=4,8"


def with_options(method: CDM, *options: str) -> CDM:
    method.config = override(method.config, list(options))
    return method


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_dropped_label_is_not_seen_and_a_kept_one_is():
    batch = make_batch(build("cdm", "2d"), n=4)
    other = Batch(batch.image, label=1 - batch.label)
    for dropout, seen in (("1", False), ("0", True)):
        method = build("cdm", "2d", f"label_dropout={dropout}")
        loss, swapped = (method.loss(b, method.phases[0], rng())[0] for b in (batch, other))
        assert (loss == swapped) == (not seen)
        loss.backward()
        rows = method.network.table.weight.grad.abs().sum(1) > 0
        assert rows.tolist() == [seen, seen, not seen]


def test_labels_are_dropped_as_often_as_asked_for():
    method = build("cdm", "2d", "label_dropout=0.1")
    batch = Batch(torch.zeros(2000, 1, 4, 4), label=torch.ones(2000, dtype=torch.long))
    told: list[torch.Tensor] = []
    embed = method.network.embed
    method.network.embed = lambda label: told.append(label) or embed(label)
    method.loss(batch, method.phases[0], rng())
    assert (told[0] == method.network.no_label).float().mean().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_whatever_the_network_outputs_a_perfect_one_has_no_error_and_finds_the_image(predict):
    method = build("cdm", "2d", f"predict={predict}")
    x_0, noise = torch.randn(2, 3, 1, 20, 24, generator=rng())
    t = torch.tensor([3, 20, 45])
    ab = method.schedule.at(t, x_0)
    answers = {"eps": noise, "x0": x_0, "v": ab.sqrt() * noise - (1 - ab).sqrt() * x_0}
    method.output = lambda x_t, t, e: (answers[predict][: len(x_t)], None)
    torch.testing.assert_close(method.target(x_0, t, noise), answers[predict])
    x_t = method.schedule.q_sample(x_0[:1], 3, noise[:1])
    torch.testing.assert_close(method.denoise(x_t, 3, method.condition(1, "cpu")), x_0[:1], atol=1e-4, rtol=0)


def test_a_share_of_the_timesteps_lies_where_maps_are_taken():
    everywhere, focused = (build("cdm", "2d", "T=1000", f"focus={focus}").training_timesteps(4000, rng()) for focus in (0, 1))
    assert everywhere.double().mean() == pytest.approx(500, abs=20) and everywhere.min() < 10 and everywhere.max() > 990
    log_snr = build("cdm", "2d", "T=1000").schedule.snr(focused).log()
    assert float(log_snr.mean()) == pytest.approx(1.5, abs=0.1) and float(log_snr.std()) == pytest.approx(1.5, abs=0.1)


def test_z_scores_are_scaled_and_unit_intensities_are_not():
    assert build("cdm", "3d").scale.flatten().tolist() == pytest.approx([1 / 3, 1 / 3])


def test_held_out_error_is_the_loss_that_is_trained():
    """Averaged over timesteps and noise, both estimate one number."""
    method = build("cdm", "2d", "label_dropout=0", "focus=0", "T=16")
    image = torch.randn(1, 20, 24, generator=rng(1))
    with torch.no_grad():
        held = torch.stack([method.class_errors(image, seed) for seed in range(60)]).mean(0)
        for label in (0, 1):
            batch = Batch(image.expand(600, -1, -1, -1), label=torch.full((600,), label))
            assert float(method.loss(batch, method.phases[0], rng(2))[0]) == pytest.approx(float(held[label]), rel=0.05)


@pytest.mark.parametrize("name", ["likelihood_ratio", "published"])
def test_without_guidance_there_might_as_well_be_no_classifier(name):
    image = torch.randn(1, 20, 24, generator=rng())
    bare, beside = build("cdm", "2d"), build("cdm", "2d", WITH)
    beside.network.load_state_dict(bare.network.state_dict())
    maps = [next(iter(m.draw(image, [3], sampler=name, steps=2, label=1))) for m in (bare, beside)]
    assert torch.equal(*maps)
    guided = next(iter(with_options(beside, "guidance=5.0").draw(image, [3], sampler=name, steps=2, label=1)))
    assert not torch.allclose(maps[0], guided)


def test_guidance_is_the_formula_of_classifier_guidance():
    """eps <- eps - s sqrt(1 - ab) grad log p(y | x_t), each element towards its own label."""
    method = build("cdm", "2d", WITH)
    x = torch.randn(2, 1, 20, 24, generator=rng())
    one, none = (method.condition(y, "cpu") for y in (1, 0))
    both = type(one)(torch.cat([one.e, none.e]), torch.cat([one.w, none.w]))
    t, s = 20, 3.0
    ab = method.schedule.at(t, x)
    eps = lambda x_0: (x - ab.sqrt() * x_0) / (1 - ab).sqrt()
    leaf = x.clone().requires_grad_()
    log_p = method.logits(leaf, torch.full((2,), t)).log_softmax(1)
    (log_p[0, 1] + log_p[1, 0]).backward()
    with torch.no_grad():
        expected = eps(method.denoise(x, t, both)) - s * (1 - ab).sqrt() * leaf.grad
        torch.testing.assert_close(eps(method.guide(x, t, both, s)), expected, atol=1e-4, rtol=1e-4)


def test_what_needs_a_classifier_says_so():
    with pytest.raises(UserError, match="classifier_widths"):
        build("cdm", "2d", "guidance=1.0")
    with pytest.raises(UserError, match="classifier_widths"):
        list(build("cdm", "2d").draw(torch.zeros(1, 20, 24), [0], sampler="guided", steps=2, label=1))
    with pytest.raises(UserError, match="tau"):
        list(build("cdm", "2d", WITH, "guidance=1.0", "tau=1.0").draw(torch.zeros(1, 20, 24), [0], label=1))
    with pytest.raises(UserError, match="likelihood_ratio, published"):
        build("cdm").sampling("ddim", None)


def test_a_classifier_learns_from_noised_images_in_a_phase_of_its_own():
    method = build("cdm", "2d", WITH, "T=20")
    network, classifier = method.phases
    assert network.modules == ("network",) and classifier.modules == ("classifier",)
    label = torch.arange(8) % 2
    batch = Batch((2.0 * label - 1).reshape(-1, 1, 1, 1) * 2 + torch.zeros(8, 1, 20, 24), label=label)
    optimiser = torch.optim.Adam(method.classifier.parameters(), 1e-2)
    for i in range(30):
        loss, log = method.loss(batch, classifier, rng(i))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert log["right"] > 0.9
    method = with_options(method, "decide=classifier").eval()
    for image, y in zip(batch.image[:2], label[:2], strict=True):
        verdict = method.classify_image(image)
        assert verdict.label == int(y) and verdict.by == "classifier"
        assert sum(np.exp(list(verdict.scores.values()))) <= 1 + 1e-6


def test_a_learned_variance_is_trained_by_the_bound_alone_and_changes_no_map():
    label = torch.arange(6) % 2
    batch, gradients, bounds = Batch(torch.randn(6, 1, 16, 16, generator=rng()), label=label), [], []
    for weight in (0.001, 5):
        torch.manual_seed(0)
        method = build("cdm", "2d", "variance=learned", "T=20", f"vlb={weight}")
        last = method.network.unet.last
        torch.nn.init.normal_(last.weight, std=0.1, generator=rng(1))
        loss, log = method.loss(batch, method.phases[0], rng(2))
        loss.backward()
        torch.testing.assert_close(loss, log["mse"] + weight * log["vlb"])
        gradients.append(last.weight.grad)
        bounds.append(log["vlb"])
    assert len(gradients[0]) == 2 and gradients[0][1].any() and bounds[0] == bounds[1] > 0
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(5000 * gradients[0][1], gradients[1][1], atol=1e-5, rtol=1e-3)
    first = [p.clone() for p in method.draw(batch.image[0], [1], label=1)]
    with torch.no_grad():
        last.weight[1] += 1
    assert torch.equal(torch.stack(first), torch.stack(list(method.draw(batch.image[0], [1], label=1)))) and first[0][1].any()


def test_the_class_that_denoises_best_is_what_an_image_shows():
    method = build("cdm", "2d")
    errors = torch.tensor([0.5, 0.4])
    with_options(method, "decide=diffusion")
    method.class_errors = lambda image, seed: errors + 0.01 * seed
    assert method.classify_image(torch.zeros(1, 20, 24)).label == 1
    errors[1] = 0.6
    verdict = method.classify_image(torch.zeros(1, 20, 24))
    assert verdict.label == 0 and verdict.scores["background"] == pytest.approx(-0.515)
    assert with_options(method, "decide=present").classify_image(torch.zeros(1, 20, 24)).label == 1


def test_a_judgement_is_a_function_of_the_image():
    method = build("cdm", "3d")
    images = torch.randn(2, 2, 8, 12, 9, generator=rng())
    torch.manual_seed(1)
    first = method.classify_image(images[0])
    method.classify_image(images[1])
    torch.manual_seed(2)
    assert method.classify_image(images[0]) == first


def refer(method: CDM, null_threshold: float = 0.01) -> CDM:
    """With a reference for its own maps."""
    foreground = method.plan.names[1:]
    how = method.map_settings(*method.sampling(None, None))
    method.calibration = SaliencyCalibration(how, dict.fromkeys(foreground, null_threshold), dict.fromkeys(foreground, 0.5), 5)
    return method


def test_a_judgement_by_the_map_is_a_function_of_the_image_and_costs_what_it_says():
    method, asked = refer(build("cdm", "3d", "decide=auto", "steps=2", "part=absolute")), []
    method.network.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    image = torch.randn(2, 8, 12, 9, generator=rng())
    torch.manual_seed(1)
    first = method.classify_image(image)
    torch.manual_seed(2)
    assert method.classify_image(image) == first and first.by == "map"
    assert sum(asked) == 2 * first.evaluations == 2 * (2 * 2 * 4 * 2)  # asked twice: noises, classes, one map of two steps
    for y in (1, 2):
        alone = [next(method.maps(image, [seed], y, "likelihood_ratio", 2)) for seed in (0, 1)]
        torch.testing.assert_close(method.mean_map(image, y, "likelihood_ratio", 2), (alone[0] + alone[1]) / 2)
        largest = method.largest_saliency((alone[0] + alone[1]) / 2, 0.01)
        assert first.scores[f"class{y}"] == pytest.approx(np.log(largest / 0.5), abs=1e-4)


def test_evidence_is_in_units_of_the_border_of_maps_like_this_and_else_of_the_map_itself():
    method, image = build("cdm", "2d", "steps=2"), torch.randn(1, 20, 24, generator=rng())
    null_threshold = float(next(method.maps(image, [1], 1, "likelihood_ratio", 2)).abs().max()) / 100
    refer(method, null_threshold)
    for sampler, steps in (("likelihood_ratio", 2), ("likelihood_ratio", 3), ("published", 2)):
        known = null_threshold if (sampler, steps) == ("likelihood_ratio", 2) else None
        drawn = list(method.draw(image, [1, 2], sampler=sampler, steps=steps, label=1))
        for p, m in zip(drawn, method.maps(image, [1, 2], 1, sampler, steps), strict=True):
            torch.testing.assert_close(p[1], normalized_saliency(m, known))
        mean = torch.stack(drawn).mean(0)
        expected = logistic_mask(mean[1], method.config, image, known is not None)
        assert torch.equal(method.finalize_draw(mean, image, sampler, steps)[1], expected) and (expected > 0.5).any()
        assert not torch.equal(expected, logistic_mask(mean[1], replace(method.config, threshold="otsu"), image))


OTHERS = {
    "smooth": "2.0", "threshold": "otsu", "quantile": "0.5", "fixed": "0.1", "image": "false", "largest": "false",
    "map": "published", "steps": "2", "log_snr": "3,1", "tau": "0.5", "guidance": "1.0",
    "free_weight": "2.0", "support": "0", "part": "absolute", "decide": "diffusion",
}  # fmt: skip


@pytest.mark.parametrize("name", CDM.inference_settings)
def test_a_border_outlives_settings_that_leave_the_map_as_it_is(name):
    plain = refer(build("cdm", "2d", WITH))
    other = build("cdm", "2d", WITH, f"{name}={OTHERS[name]}")
    other.calibration = plain.calibration
    kept = name in ("threshold", "quantile", "fixed", "image", "largest", "decide", "free_weight")
    assert other.null_threshold(1, *other.sampling(None, None)) == (0.01 if kept else None)
    if kept:
        image = torch.randn(1, 20, 24, generator=rng())
        assert torch.equal(*(m.mean_map(image, 1, *m.sampling(None, None)) for m in (plain, other)))


def test_a_map_that_is_asked_for_by_name_has_the_border_of_one_that_was_set():
    plain, other = build("cdm", "2d"), refer(build("cdm", "2d", "map=published", "steps=4"))
    plain.calibration = other.calibration
    assert plain.null_threshold(1, "published", 4) == 0.01
    assert plain.null_threshold(1, "published", 5) is None and plain.null_threshold(1, *plain.sampling(None, None)) is None


@pytest.mark.parametrize("name", MAPS)
def test_every_map_is_evidence_at_any_size_and_none_for_an_image_without_object(name):
    method = build("cdm", "2d", WITH)
    image = torch.randn(1, 23, 17, generator=rng())
    for p in method.draw(image, [1, 2], sampler=name, steps=2, label=1):
        assert p.shape == (2, 23, 17) and p.min() >= 0 and p.max() <= 1
        assert p[1].max() == 1 or p[1].min() == 0  # the largest change, either way
        torch.testing.assert_close(p.sum(0), torch.ones(23, 17))
    for p in method.draw(image, [1, 2], sampler=name, steps=2, label=0):
        assert not p[1].any() and not method.finalize_draw(p, image)[1].any()


@pytest.mark.parametrize("guidance", ["guidance=0.0", "guidance=2.0", None])
@pytest.mark.parametrize("name", MAPS)
def test_the_stated_cost_is_what_the_networks_are_asked(name, guidance):
    method, asked = build("cdm", "2d", WITH, *filter(None, [guidance])), []
    for network in (method.network, method.classifier):
        network.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    list(method.draw(torch.randn(1, 16, 16, generator=rng()), [1, 2, 3], sampler=name, steps=2, label=1))
    assert sum(asked) == 3 * method.evaluations(name, 2)


def test_equal_embeddings_give_an_empty_mask():
    method = build("cdm", "2d")
    with torch.no_grad():
        method.network.table.weight[1] = method.network.table.weight[0]
    for name in ("likelihood_ratio", "published"):
        for tau in ("0.0", "0.95", "1.0"):
            with_options(method, f"tau={tau}")
            image = torch.randn(1, 20, 24, generator=rng())
            for p in method.draw(image, [1, 2], sampler=name, steps=2, label=1):
                assert torch.equal(p[1], torch.full((20, 24), 0.5))
                assert not method.finalize_draw(p, image)[1].any()


def test_the_class_of_several_is_the_one_that_is_shown():
    method = build("cdm", "3d", "part=absolute")  # of an untrained network all may be below 0
    image = torch.randn(2, 8, 12, 9, generator=rng())
    p = next(iter(method.draw(image, [1], label=2)))
    assert not p[1].any() and p[2].any()
    concluded = method.finalize_draw(p, image)
    assert not concluded[1].any() and (concluded[2] > 0.5).any()


@pytest.fixture
def checkpoint(tmp_path):
    method = build("cdm", "2d", WITH, "steps=2", "decide=diffusion")
    method.plan = replace(method.plan, orientation=None)  # pictures
    save_checkpoint(tmp_path / "m.safetensors", method, {"name": "made"})
    return tmp_path / "m.safetensors"


IMAGE = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)


def predicted(model: Model, **how):
    return model.predict(IMAGE, draws=3, **how)


def test_a_prediction_says_what_was_decided_by_whom_and_at_what_cost(checkpoint):
    model = load(checkpoint)
    shown = predicted(model, label="class1")
    record = shown.provenance
    assert record["image_label"] == {"label": "class1", "decided_by": "as told", "scores": {}, "network_evaluations": 0}
    assert (
        record["network_evaluations"] == 3 * 4 * 2 and record["sampler"] == "likelihood_ratio" and record["label"] == "class1"
    )
    assert "not calibrated" in record["note"] and record["options"]["quantile"] == 0.97
    assert shown.mask.any() and np.array_equal(shown.mask == 1, shown.probability[1] > shown.probability[0])
    none = predicted(model, label="background")
    assert not none.mask.any() and none.provenance["network_evaluations"] == 0
    own = predicted(model)
    decided = own.provenance["image_label"]
    assert decided["decided_by"] == "diffusion" and decided["network_evaluations"] == 4 * 8 * 2
    assert own.mask.any() == (decided["label"] == "class1")
    with pytest.raises(UserError, match="class1"):
        predicted(model, label="tumour")


def test_the_mask_comes_from_the_mean_of_the_draws_evidence(checkpoint):
    model = load(checkpoint)
    shown = predicted(model, label="class1")
    x = to_grid(Image(IMAGE[None]), model.plan)[0]
    maps = list(model.method.draw(x, shown.provenance["seeds"], label=1))
    expected = model.method.finalize_draw(torch.stack(maps).mean(0), x)
    torch.testing.assert_close(torch.from_numpy(shown.probability), expected, atol=1e-5, rtol=0)
    single = model.method.finalize_draw(maps[0], x)
    assert not torch.allclose(single, expected, atol=1e-3)


def test_settings_of_drawing_may_change_after_training_and_others_may_not(checkpoint):
    changed = load(checkpoint, options=["threshold=otsu", "tau=0.9", "largest=false"])
    assert changed.method.config.threshold == "otsu" and changed.settings()["options"]["largest"] is False
    assert not np.array_equal(
        predicted(changed, label="class1").probability, predicted(load(checkpoint), label="class1").probability
    )
    with pytest.raises(UserError, match="fixed when the model was trained"):
        load(checkpoint, options=["T=10"])
    with pytest.raises(UserError, match="did you mean 'quantile'"):
        load(checkpoint, options=["quantil=0.9"])


@pytest.mark.slow
@pytest.mark.parametrize("brightness", [1.2, -1.2])
def test_a_model_trained_for_a_minute_finds_the_disc_with_the_right_sign(brightness):
    generator = rng(3)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")

    def world(n: int) -> tuple[Batch, torch.Tensor]:
        label = torch.arange(n) % 2
        centre = torch.randint(4, 12, (n, 2), generator=generator)
        discs = ((rows - centre[:, 0, None, None]) ** 2 + (columns - centre[:, 1, None, None]) ** 2 < 7).float()
        discs = discs * label.reshape(-1, 1, 1)
        return Batch((3 * brightness * discs + torch.randn(n, 16, 16, generator=generator))[:, None], label=label), discs

    method = build("cdm", "2d", "T=1000", "widths=16,32", "smooth=0.5", "quantile=0.92")
    phase = method.phases[0]
    optimiser = torch.optim.Adam(method.parameters(), 2e-3)
    for i in range(400):
        batch, _ = world(32)
        loss, _ = method.loss(batch, phase, rng(i))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    method.eval()
    batch, truth = world(12)
    part = "signed" if brightness > 0 else "negative"
    with_options(method, f"part={part}")
    scores = []
    for image, disc in zip(batch.image[1::2], truth[1::2] > 0, strict=True):
        evidence = torch.stack(list(method.draw(image, range(8), label=1))).mean(0)
        mask = method.finalize_draw(evidence, image)[1] > 0.5
        scores.append(2 * float((mask & disc).sum()) / float(mask.sum() + disc.sum()))
    assert np.mean(scores) > 0.6


def test_the_kind_of_map_is_chosen_by_map_and_still_by_its_former_names(checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("diffuseg.config._WARNED", set())
    PIL.Image.fromarray((IMAGE * 40 + 100).clip(0, 255).astype(np.uint8)).save(tmp_path / "a_0000.png")

    def mask(name: str, *options: object) -> tuple[bytes, str]:
        call = ["predict", checkpoint, tmp_path / "a_0000.png", "--out", tmp_path / name, "--label", "class1", *options]
        done = CliRunner().invoke(app, [str(a) for a in [*call, "--draws", 1, "--steps", 2, "--device", "cpu"]])
        assert done.exit_code == 0, done.output
        record = json.loads((tmp_path / name / "a.json").read_text())
        return next((tmp_path / name).glob("a.png")).read_bytes(), record["sampler"]

    new = mask("new", "--map", "published")
    assert new[1] == "published" and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert mask("old", "--sampler", "accumulated") == mask("again", "--sampler", "accumulated") == new
    assert [record.getMessage() for record in caplog.records] == ["--sampler accumulated: now called --map published"]
    assert new != mask("default")
