"""Drawing from weights in ways that leave something out."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuseg.inference.sampling import ImageDraws
from diffuseg.methods import Method
from diffuseg.methods.base import MaskMethod, mask_to_x


def draw_row(
    draws: ImageDraws, methods: Sequence[Method], sampling: str, other: Int[Tensor, "*o"]
) -> Iterator[Float[Tensor, "k *s"]]:
    """Draw from an image as a row of an audit says.

    Args:
        draws: The image and its seeds.
        methods: The weights; "members" takes as many as there are seeds, each for one draw.
        sampling: See `diffuseg.studies.audit.rows.Row`.
        other: The mask of another case, class indices on its own grid.
    """
    if sampling == "members":
        for method, seed in zip(methods, draws.seeds, strict=True):
            yield from replace(draws, method=method, seeds=(seed,)).draw()
        return
    (method,) = methods
    if sampling == "dropout":
        for seed in draws.seeds:
            with dropping(method), torch.random.fork_rng():
                torch.manual_seed(seed)
                probability = next(replace(draws, method=method, seeds=(seed,)).draw())
            yield probability
        return
    assert isinstance(method, MaskMethod)
    yield from replace(draws, method=controlled(method, sampling, other)).draw()


def controlled(method: MaskMethod, sampling: str, other: Int[Tensor, "*o"]) -> MaskMethod:
    """The same weights, shown noise or another case's noisy mask in place of x_t, or always the same latent.

    The sampler walks its timesteps as before: x_t is only hidden from the network.

    Args:
        method: Stays as it is.
        sampling: "noise", "other_case" or "latent"; "": nothing is changed.
        other: Mask of another case, class indices on its own grid.
    """
    shown = copy.copy(method)
    if sampling == "noise":
        shown.state = lambda x_t, t, noise: noise()
    elif sampling == "other_case":
        shown.state = lambda x_t, t, noise: method.schedule.q_sample(_as_state(other, method, x_t), t, noise())
    elif sampling == "latent":

        def latent(generators: Sequence[torch.Generator]) -> Tensor | None:
            method.latent(generators)  # drawn all the same, so that the noise that follows is what it was
            one = method.latent([torch.Generator().manual_seed(0)])
            return None if one is None else one.expand(len(generators), *one.shape[1:])

        shown.latent = latent
    return shown


@contextmanager
def dropping(method: Method) -> Iterator[None]:
    """For a while, dropout acts in evaluation as it does in training."""
    drop = lambda module, inputs, _: F.dropout(inputs[0], module.p, training=True)
    hooks = [module.register_forward_hook(drop) for module in method.modules() if isinstance(module, nn.Dropout)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_state(mask: Int[Tensor, "*o"], method: MaskMethod, x_t: Float[Tensor, "n k *s"]) -> Float[Tensor, "1 k *s"]:
    """A mask [*o] as x_0 in the shape of x_t: cut and filled up with background about the middle."""
    plan, shape = method.plan, x_t.shape[2:]
    if plan.dims == 2 and mask.ndim == 3:
        mask = mask.movedim(plan.slice_axis, 0)  # as tiles hold a volume for a 2-D network
    classes = torch.zeros(shape, dtype=torch.long)
    source, target = [], []
    for have, want in zip(mask.shape, shape, strict=True):
        n = min(have, want)
        source.append(slice((have - n) // 2, (have - n) // 2 + n))
        target.append(slice((want - n) // 2, (want - n) // 2 + n))
    classes[tuple(target)] = mask[tuple(source)].cpu()
    return mask_to_x(F.one_hot(classes, plan.classes).movedim(-1, 0)[None].float()).to(x_t.device)
