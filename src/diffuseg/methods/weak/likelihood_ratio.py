"""The likelihood-ratio map: CDM's default, and our own; the paper has no such map.

At a few timesteps, where does its class explain the image better than the absence of it? What is compared
is the denoising of the true image; no path is walked, unlike in the paper's Algorithm 1.
"""

import math
from collections.abc import Callable

import scipy  # its parts are imported where they are used first
import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.methods.weak.sensitivity import Contrast


def likelihood_ratio(
    contrast: Contrast, x_0: Float[Tensor, "n c *s"], schedule: NoiseSchedule, noise: Callable[[], Tensor],
    steps: int, log_snr: tuple[float, float], support: float = 0.0,
) -> Float[Tensor, "n c *s"]:  # fmt: skip
    """Mean over timesteps, log-SNR evenly from the first to the last, of how much better the object explains a voxel.

    SNR |x_0 - x0_hat|^2 / 2 per unit of log-SNR is the variational bound's part of -log p(x_0 | y), so SNR D . R, see
    `supported_change`, is that of the log-likelihood ratio (tau = 0), but for three liberties: reconstructions are averaged
    before the product, R is smoothed, and what speaks against the object is left out. Each timestep has fresh noise on the true
    image, and the same noise with the other sign, so that what is odd in the noise cancels.

    Args:
        contrast: the two conditions.
        x_0: scaled images.
        schedule: how noise grows.
        noise: makes noise like x_0.
        steps: number of timesteps.
        log_snr: first and last.
        support: standard deviation of the smoothing of R, in voxels; 0: the change alone, at each timestep of unit size.

    References:
        Kingma et al. 2021, eq. 17 (the bound as an integral over the SNR).
    """
    n, total = len(x_0), torch.zeros_like(x_0)
    for i in range(steps):
        share = i / (steps - 1) if steps > 1 else 0.5
        t = schedule.timestep(log_snr[0] + share * (log_snr[1] - log_snr[0]))
        fresh = noise()
        x_t = schedule.q_sample(torch.cat([x_0, x_0]), t, torch.cat([fresh, -fresh]))
        one, change = (x.unflatten(0, (2, n)).mean(0) for x in contrast.at(x_t, t))
        if support:
            middle = one - change / 2  # between y1 and y0; exact for tau = 0, else as if the label acted linearly
            total = total + schedule.snr(t).to(x_0) * supported_change(change, x_0 - middle, support)
        else:
            total = total + unit(change)
    return total / steps


def supported_change(
    change: Float[Tensor, "n c *s"], residual: Float[Tensor, "n c *s"], sigma: float
) -> Float[Tensor, "n c *s"]:
    """sign(D) max(D . (G_sigma * R), 0): the change D where the image differs from both reconstructions in its direction.

    |x_0 - x0_hat(y0)|^2 - |x_0 - x0_hat(y1)|^2 = 2 D . R, with D = x0_hat(y1) - x0_hat(y0) and R = x_0 minus their mean:
    summed over an image and the timesteps that is the evidence of a diffusion classifier, here kept apart for each voxel.
    The residual is smoothed by a Gaussian of sigma voxels: by itself it is mostly texture and noise.

    Args:
        change: D.
        residual: R.
        sigma: In voxels; 0: the residual as it is.

    References:
        Li et al., ICCV 2023 (diffusion classifiers).
    """
    smooth = scipy.ndimage.gaussian_filter(
        residual.cpu().double().numpy(), (0, 0, *[sigma] * (residual.ndim - 2)), mode="nearest"
    )
    return change.sign() * (change * torch.from_numpy(smooth).to(change)).clamp(min=0)


def unit(x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """Each element divided by its root mean square; zero stays zero."""
    size = x.square().flatten(1).mean(1).sqrt()
    return x / torch.where(size > 0, size, math.inf).reshape(-1, *[1] * (x.ndim - 1))
