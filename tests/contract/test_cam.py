"""Class activation maps against MONAI's, against their formulas, and on images where the answer is known."""

import copy

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM, GradCAMpp

from diffuseg.config import override
from diffuseg.errors import UserError
from diffuseg.methods.weak.base import SaliencyCalibration
from diffuseg.methods.weak.binarize import normalized_saliency
from diffuseg.methods.weak.cam import CAM
from diffuseg.types import Batch
from tests.contract.test_methods import build

MAPS = ("gradcam", "gradcam++", "layercam", "scorecam")


def raw(method: CAM, x: torch.Tensor, name: str, y: int = 1) -> torch.Tensor:
    return method.saliency(x, y, name, 1, lambda: x)[0].detach()


@pytest.mark.parametrize(("name", "reference"), [("gradcam", GradCAM), ("gradcam++", GradCAMpp)])
@pytest.mark.parametrize("grid", ["2d", "3d"])
@pytest.mark.parametrize("layer", [1, 2])
def test_the_map_is_monais(name, reference, grid, layer):
    method = build("cam", grid, f"layer={layer}").eval()
    x = torch.randn(
        1, len(method.plan.channels), *((20, 24) if grid == "2d" else (8, 12, 10)), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():  # gradients that are large beside the 1e-7 that MONAI adds, and a score that exp() can take
        method.classifier.last.weight *= torch.tensor([0.0, 1e3, 0.0])[
            : method.plan.classes, None
        ]  # log-odds: logit 1 and no other
        method.classifier.last.bias -= method.classifier(x)[0]
    theirs = reference(copy.deepcopy(method.classifier), f"stages.{layer - 1}").compute_map(x, class_idx=1).detach()
    assert theirs.max() > 0
    expected = method.enlarged(theirs, x)[0, 0]
    torch.testing.assert_close(normalized_saliency(raw(method, x, name)), normalized_saliency(expected), atol=1e-4, rtol=0)


def test_layercam_and_scorecam_are_their_formulas():
    method = build("cam", "2d", "layer=1").eval()
    x = torch.randn(1, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    A = method.classifier.upto(x, 1).detach().requires_grad_()
    logits = method.classifier.onward(A, 1)[0]
    (logits[1] - logits[0]).backward()
    layer = sum(torch.relu(A.grad[0, k]) * A[0, k] for k in range(A.shape[1])).relu().detach()
    torch.testing.assert_close(raw(method, x, "layercam"), layer)
    total = torch.zeros(20, 24)
    for a in A[0].detach():
        seen = (a - a.min()) / (a.max() - a.min())
        masked = x.min() + (x - x.min()) * seen
        total += method.classifier(masked).softmax(1)[0, 1].detach() * a
    torch.testing.assert_close(raw(method, x, "scorecam"), total.relu(), atol=1e-5, rtol=1e-4)


def test_maps_differ_from_one_another_and_layers_must_exist():
    method = build("cam", "2d").eval()
    x = torch.randn(1, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    maps = [normalized_saliency(raw(method, x, name)) for name in MAPS]
    assert all(not torch.allclose(a, b) for i, a in enumerate(maps) for b in maps[:i])
    assert [m.shape for m in maps] == [(20, 24)] * 4
    with pytest.raises(UserError, match="2 stages"):
        build("cam", "2d", "layer=3")


def test_a_border_is_for_one_map_of_one_layer_and_leaves_the_judgement_to_the_classifier():
    method = build("cam", "2d", "map=gradcam", "decide=classifier").eval()
    image = torch.randn(1, 20, 24, generator=torch.Generator().manual_seed(0))
    m = raw(method, (image * method.scale)[None], "gradcam")
    null_threshold = float(m.max()) / 5
    before = method.classify_image(image)
    method.calibration = SaliencyCalibration(method.map_settings("gradcam", 1), {"class1": null_threshold}, {"class1": 0.5}, 3)
    p = next(iter(method.draw(image, [0], label=1)))
    torch.testing.assert_close(p[1], normalized_saliency(m, null_threshold))
    assert p[1].max() == pytest.approx((1 + 5 / 6) / 2) and method.classify_image(image) == before
    for other in ("map=layercam", "layer=1"):
        method.config = override(method.config, [other])
        assert method.null_threshold(1, *method.sampling(None, None)) is None


@pytest.fixture(scope="module")
def trained() -> tuple[CAM, torch.Tensor, torch.Tensor]:
    """A classifier of pictures with and without a bright square somewhere, a picture with it, and where it is."""
    generator = torch.Generator().manual_seed(0)
    method = build("cam", "2d", "widths=8,16")
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)

    def world(n: int) -> tuple[Batch, torch.Tensor]:
        label, squares = torch.arange(n) % 2, torch.zeros(n, 1, 32, 32)
        for i in range(1, n, 2):
            r, c = torch.randint(2, 23, (2,), generator=generator).tolist()
            squares[i, 0, r : r + 6, c : c + 6] = 1
        return Batch(3 * squares + torch.randn(n, 1, 32, 32, generator=generator), label=label), squares[:, 0] > 0

    for _ in range(60):
        batch, _ = world(16)
        loss, _ = method.loss(batch, method.phases[0], generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    batch, truth = world(2)
    return method.eval(), batch.image, truth


@pytest.mark.parametrize("name", MAPS)
def test_the_square_is_found_and_a_picture_without_it_has_an_empty_mask(trained, name):
    method, (without, picture), (_, truth) = trained
    method.config = override(method.config, [f"map={name}", "decide=classifier", "quantile=0.9"])
    assert method.classify_image(picture).label == 1 and method.classify_image(without).label == 0
    p = next(iter(method.draw(picture, [0])))
    assert p[1][truth].mean() > p[1][~truth].mean() + 0.1
    assert not next(iter(method.draw(without, [0])))[1].any()
    assert method.evaluations("", 1) == (17 if name == "scorecam" else 1)


def test_held_out_is_the_cross_entropy():
    method = build("cam", "2d").eval()
    image = torch.randn(1, 20, 24)
    batch = Batch(image[None], label=torch.tensor([1]))
    loss = float(method.loss(batch, method.phases[0], torch.Generator())[0].detach())
    assert float(method.class_errors(image, 0)[1]) == pytest.approx(loss, rel=1e-5)
    assert np.exp(-method.class_errors(image, 0).numpy()).sum() == pytest.approx(1)
