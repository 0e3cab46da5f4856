"""What nobody has annotated changes no loss: of every method that learns from masks."""

from dataclasses import replace

import pytest
import torch

from diffuseg.methods import METHODS
from diffuseg.methods.training import segmentation_loss, squared_error
from diffuseg.types import Batch
from tests.contract.test_methods import build, make_batch


def test_losses_of_logits_have_no_gradient_where_nobody_has_annotated():
    mask = torch.zeros(2, 3, 8, 8)
    mask[:, 0] = 1
    mask[..., 5:] = 0
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    terms = segmentation_loss(logits, mask)
    error = squared_error(logits, 2 * mask - 1, mask.sum(1, keepdim=True)).mean()
    (gradient,) = torch.autograd.grad(sum(terms.values()) + error, logits)
    assert (gradient[..., 5:] == 0).all() and (gradient[..., :5] != 0).any()


LEARN_FROM_MASKS = [(name,) for name in METHODS if METHODS[name].supervision == "mask"]


@pytest.mark.parametrize(
    "built", [*LEARN_FROM_MASKS, ("medsegdiff", "calibration=1"), ("medsegdiff", "predict=x0")], ids=" ".join
)
def test_a_batch_that_nobody_has_annotated_teaches_nothing(built):
    name, *options = built
    method = build(name, "2d", *options)
    method.plan = replace(method.plan, ignore=99)
    made = make_batch(method)
    assert made.mask is not None
    batch = Batch(made.image, torch.zeros_like(made.mask), cases=made.cases)
    for phase in method.phases:
        if "discriminator" not in phase.modules:  # it meets noise and image alone, the same as real and as fake
            method.zero_grad()
            loss, _ = method.loss(batch, phase, torch.Generator().manual_seed(0))
            if loss.requires_grad:
                loss.backward()
            grads = [
                p.grad.abs().max() for n in phase.modules for p in method.get_submodule(n).parameters() if p.grad is not None
            ]
            assert all(float(g) < 1e-7 for g in grads)


def test_a_discriminator_sees_nothing_where_nobody_has_annotated():
    """Real and fake are alike there: 0, of every pair and in every phase."""
    method = build("cdal", "2d", "adversarial=1", "r1=1")
    batch, seen = make_batch(method), []
    assert batch.mask is not None and method.discriminator is not None
    mask = batch.mask.clone()
    mask[..., 5:] = 0
    method.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for phase in method.phases:
        method.loss(Batch(batch.image, mask, cases=batch.cases), phase, torch.Generator().manual_seed(0))
        pairs = torch.cat([pair[:, : 2 * mask.shape[1]] for pair in seen])
        assert seen and (pairs[..., 5:] == 0).all() and (pairs[..., :5] != 0).any(), phase.name
        seen.clear()
