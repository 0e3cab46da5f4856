"""Stochastic segmentation networks: a low-rank Gaussian over all logits of an image, from one pass (Monteiro et al. 2020).

    eta | I ~ N(mu(I), P(I) P(I)^T + diag(d(I)))           eq. 4: rank columns of P join voxels that err together
    p(y | I) ~ 1/M sum_m prod_voxels softmax(eta_m)[y]     eqs. 5 to 7: the likelihood, M samples

No diffusion: the bar for draws that cost next to nothing. The mean alone is trained by the U-Net's own cross-entropy where the
covariance vanishes. A draw is eta = mu + P z + sqrt(d) x_T with z [rank] for the whole image and the noise x_T of its voxels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.methods.base import Loss, MaskConfig, MaskMethod, Phase, noise_of, setting
from diffuseg.networks.unet import ImageEncoder, UNet
from diffuseg.types import Batch


@dataclass(frozen=True)
class SSNConfig(MaskConfig):
    """Every choice of the method.

    rank           columns of P
    train_samples  M, samples of the logits in the likelihood
    epsilon        smallest variance of a logit
    dropout        share of features set to zero in training
    """

    rank: int = setting(10, 1)
    train_samples: int = setting(20, 1)
    epsilon: float = setting(1e-5, 0)
    dropout: float = setting(0.0, 0, 0.99)


class SSN(MaskMethod[SSNConfig]):
    """No diffusion: one pass of a U-Net gives a Gaussian over masks, from which each draw costs next to nothing.

    mu, P and d come from the U-Net; they make the Gaussian of the logits.
    """

    config_class = SSNConfig
    default_draws = 32  # a weighted sum each

    def __init__(self, plan: Plan, config: SSNConfig) -> None:
        super().__init__(plan, config)
        self.schedule = NoiseSchedule.variance_preserving(1)  # one step from noise to a draw
        self.encoder = ImageEncoder(plan.dims, plan.image_channels, self.widths[0], config.encoder_blocks)
        outputs = plan.classes * (2 + config.rank)
        self.network = UNet(plan.dims, 0, outputs, self.widths, config.blocks, time=False, dropout=config.dropout)
        with torch.no_grad():  # P = 0 is a saddle point: no column would be better than its negative
            columns = self.network.get_parameter("last.weight")[2 * plan.classes :]
            columns.normal_(std=(plan.classes * self.widths[0]) ** -0.5)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("network", ("encoder", "network"), self.config.learning_rate),)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.mask is not None
        b, m = len(batch.mask), self.config.train_samples
        truths = batch.mask[:, None] if batch.raters is None else batch.raters
        mean, factors, deviation = (f.float() for f in self.encode(batch.image))
        z = torch.randn((m, b, self.config.rank), generator=rng).to(mean)
        noise = torch.randn((m, *mean.shape), generator=rng).to(mean)
        log_p = torch.stack([_logits(mean, factors, deviation, *both).log_softmax(1) for both in zip(z, noise, strict=True)])
        log_likelihood = torch.einsum("mbk...,brk...->mbr", log_p, truths.to(log_p))  # [m, b, readers], in nats
        nll = math.log(m) - log_likelihood.logsumexp(0)
        loss = nll.mean() / math.prod(mean.shape[2:])
        return loss, {"nll": loss.detach(), "deviation": deviation.detach().mean()}

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu [b, k, *s], P [b, rank * k, *s] and the square root of d [b, k, *s]."""
        k = self.plan.classes
        mean, variance, factors = self.network(None, features=self.encoder(image)).split([k, k, k * self.config.rank], 1)
        return mean, factors, (F.softplus(variance) + self.config.epsilon).sqrt()

    def latent(self, generators: Sequence[torch.Generator]) -> Tensor:
        return noise_of(generators, (self.config.rank,))

    def denoise(self, x_t: Tensor | None, t: int, features: tuple[Tensor, ...], z: Tensor | None) -> Tensor:
        assert x_t is not None and z is not None
        mean, factors, deviation = (f.float() for f in features)
        return 2 * _logits(mean, factors, deviation, z, x_t).softmax(1) - 1


def _logits(mean: Tensor, factors: Tensor, deviation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    """eta = mu + P z + sqrt(d) noise [b, k, *s], for z [b, rank]; maps of one image serve all elements."""
    b, rank = z.shape
    columns = factors.unflatten(1, (rank, -1)).expand(b, -1, *[-1] * (factors.ndim - 1))
    return mean + torch.einsum("br,brk...->bk...", z, columns) + deviation * noise
