"""A world whose denoiser is known: Gaussian pixels, and in images of the object a disc is brighter by c (darker, if c < 0).

x_0 = phi(e) c disc + sigma z, with e = 0 for "none" and 1 for "object"; the posterior mean of x_0 is exact for every e.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.methods.weak.sensitivity import Condition, Contrast

SIGMA = 0.4
SCHEDULE = NoiseSchedule.cosine(200)


def disc(size: int = 24) -> Tensor:
    """A disc off the centre, [h, w] in {0, 1}, float64."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((rows - 9) ** 2 + (columns - 14) ** 2 < 16).double()


def denoiser(
    contrast: float, phi: Callable[[Tensor], Tensor] = lambda e: e, schedule: NoiseSchedule = SCHEDULE
) -> Callable[[Tensor, int, Condition], Tensor]:
    """E[x_0 | x_t, e] of this world."""

    def posterior_mean(x_t: Tensor, t: int, condition: Condition) -> Tensor:
        mean = phi(condition.e).reshape(-1, 1, 1, 1) * contrast * disc(x_t.shape[-1])
        ab = schedule.at(t, x_t)
        gain = ab.sqrt() * SIGMA**2 / (ab * SIGMA**2 + 1 - ab)
        return mean + gain * (x_t - ab.sqrt() * mean)

    return posterior_mean


def condition(e: float) -> Condition:
    return Condition(torch.tensor([[e]], dtype=torch.float64), torch.tensor([[1 - e, e]], dtype=torch.float64))


def contrast(brightness: float, tau: float, phi: Callable[[Tensor], Tensor] = lambda e: e) -> Contrast:
    return Contrast(denoiser(brightness, phi), condition(1.0), condition(0.0), tau)


def image(brightness: float, n: int = 3, seed: int = 0) -> Tensor:
    """n times the same image of the object, [n, 1, h, w]."""
    noise = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (brightness * disc() + SIGMA * noise).expand(n, -1, -1, -1)


def noise(n: int = 3, seed: int = 1) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(n, 1, 24, 24, generator=generator, dtype=torch.float64)
