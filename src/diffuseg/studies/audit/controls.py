"""Drawing from weights in ways that leave something out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuseg.methods import Method
from diffuseg.methods.base import MaskMethod, mask_to_x


def draws(
    methods: Sequence[Method],
    sampling: str,
    image: Float[Tensor, "c *s"],
    other: Int[Tensor, "*o"],
    seeds: Sequence[int],
    steps: int,
    sampler: str | None,
    chunk: int = 8,
) -> Iterator[Float[Tensor, "k *s"]]:
    """Probability maps of a case on the grid, one per seed, drawn as `sampling` says (see `diffuseg.studies.audit.rows.Row`).

    other is the mask of another case, class indices on its own grid. "members" takes a method for each seed.
    """
    if sampling == "members":
        for method, seed in zip(methods, seeds, strict=True):
            yield from method.draw(image, [seed])
        return
    (method,) = methods
    if sampling == "dropout":
        with dropping(method):
            for seed in seeds:
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    yield from method.draw(image, [seed])
        return
    options = {"steps": steps, "sampler": sampler, "chunk": chunk} if method.generative else {}
    assert isinstance(method, MaskMethod)
    with controlled(method, sampling, other):
        yield from method.draw(image, seeds, **options)


@contextmanager
def controlled(method: MaskMethod, sampling: str, other: Int[Tensor, "*o"]) -> Iterator[None]:
    """For a while, the network is shown noise or another case's noisy mask in place of x_t, or always the same latent.

    The walk from level to level goes on as before: it is only hidden from the network.
    """
    if sampling == "noise":
        method.state = lambda x_t, t, noise: noise()
    elif sampling == "other_case":
        method.state = lambda x_t, t, noise: method.schedule.q_sample(_as_state(other, method, x_t), t, noise())
    elif sampling == "latent":
        fresh = method.latent

        def fixed(generators: Sequence[torch.Generator]) -> Tensor | None:
            fresh(generators)  # drawn all the same, so that the noise that follows is what it was
            one = fresh([torch.Generator().manual_seed(0)])
            return None if one is None else one.expand(len(generators), *one.shape[1:])

        method.latent = fixed
    try:
        yield
    finally:
        for name in ("state", "latent"):
            vars(method).pop(name, None)


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
