"""Distributional diffusion: a denoiser that draws from p(x_0 | x_t, I), trained by a scoring rule (De Bortoli et al. 2025).

A denoiser trained by squared error, or by Dice on each draw, says one mask for each x_t; only many small steps make a
distribution of it. Here the denoiser G(x_t, t, I, z) is scored for all its draws at once, against all that readers have marked,
so that already one step (T = 1, x_t pure noise) is a draw from p(x_0 | I). The image goes through a U-Net once; G is a light
decoder on its features, and the only part that runs per draw and step.

    L = E_t [ energy score of G(x_t, t, I, z_1..m) against Y_1..r ] + CE(mean_i G_i, mean_j Y_j)

At t = T each draw has noise of its own and any reader's mask is a sample of p(x_0 | I). Below T, x_t is made from one reader's
mask, which alone is a sample of p(x_0 | x_t, I).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.methods.base import MaskMethod, Phase, mask_to_x, noise_of, setting
from diffuseg.methods.scoring import energy_score
from diffuseg.methods.training import FewStepsConfig, annotated, sample_timesteps
from diffuseg.networks.blocks import Mapping
from diffuseg.networks.light import FeaturePyramid, LightDecoder
from diffuseg.networks.unet import ImageEncoder
from diffuseg.types import Batch


@dataclass(frozen=True)
class DistributionalConfig(FewStepsConfig):
    """Every choice of the method.

    steps            of a draw, where none are asked for
    light_widths     channels of the light decoder, full resolution first; left out: a quarter of the U-Net's, at most 32
    latent           size of z, 0 switches it off; latent_width and latent_depth: the mapping network
    noise            whether x_t is shown to the light decoder; without it, z alone makes draws differ
    train_draws      draws per image that are scored together
    distance         of the energy score: "jaccard", "jaccard_volume", "euclidean" or "crps"
    spread           weight of the distances between draws: 1 is proper, 0 rewards no spread
    fair             share of the spread that is kept, so that draws cannot drift apart at no cost (almost fair)
    cross_entropy    weight of the cross-entropy of the draws' mean
    p_terminal_timestep   share of elements at t = T, the others uniform over 1..T
    """

    T: int = setting(1, 1)
    steps: int = setting(1, 1)
    light_widths: tuple[int, ...] | None = setting(None, 1)
    latent: int = setting(16, 0)
    latent_width: int = setting(64, 1)
    latent_depth: int = setting(2, 1)
    noise: bool = True
    train_draws: int = setting(4, 2)
    distance: Literal["jaccard", "jaccard_volume", "euclidean", "crps"] = "jaccard"
    spread: float = setting(1.0, 0)
    fair: float = setting(0.95, 0, 1)
    cross_entropy: float = setting(1.0, 0)
    dropout: float = setting(0.0, 0, 0.99)
    p_terminal_timestep: float = setting(0.5, 0, 1)


class Distributional(MaskMethod[DistributionalConfig]):
    """A U-Net looks at the image once, a light decoder makes each draw; draws are trained together by a scoring rule.

    f = U-Net(I) once; x0_hat = G(x_t, t, f, z) per draw and step; the posterior q(x_s | x_t, x0_hat) between steps.
    """

    config_class = DistributionalConfig
    default_draws = 32  # a light pass each

    def __init__(self, plan: Plan, config: DistributionalConfig) -> None:
        super().__init__(plan, config)
        self.schedule = config.noise_schedule()
        self.default_steps = min(config.steps, config.T)
        light = config.light_widths or tuple(min(max(w // 4, 4), 32) for w in self.widths)
        self.encoder = ImageEncoder(plan.dims, plan.image_channels, self.widths[0], config.encoder_blocks)
        self.network = FeaturePyramid(plan.dims, self.widths, light, config.blocks, config.dropout)
        width = config.latent_width if config.latent else 0
        self.generator = LightDecoder(plan.dims, plan.classes, light, width, config.T > 1, config.noise)
        self.mapping = Mapping(config.latent, width, config.latent_depth) if config.latent else None

    @property
    def phases(self) -> tuple[Phase, ...]:
        mapping = () if self.mapping is None else ("mapping",)
        return (Phase("generator", ("encoder", "network", "generator", *mapping), self.config.learning_rate),)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        assert batch.mask is not None
        c, b, m = self.config, len(batch.mask), self.config.train_draws
        truths = batch.mask[:, None] if batch.raters is None else batch.raters
        t = sample_timesteps(b, c.T, c.p_terminal_timestep, rng).to(batch.mask.device)
        noise = torch.randn((b, m, *batch.mask.shape[1:]), generator=rng).to(batch.mask)
        x_t = noise
        if c.T > 1:
            terminal = (t == c.T).reshape(b, *[1] * (noise.ndim - 1))
            own = self.schedule.q_sample(mask_to_x(batch.mask), t, noise[:, 0])  # one x_t for all draws of an image
            x_t = torch.where(terminal, noise, own[:, None].expand_as(noise))
            truths = torch.where(terminal, truths, batch.mask[:, None].expand_as(truths))
        features = self.encode(batch.image)
        z = torch.randn((b * m, c.latent), generator=rng).to(batch.image) if c.latent else None
        logits = self._logits(x_t.flatten(0, 1), t.repeat_interleave(m), features, z)
        draws = logits.softmax(1).unflatten(0, (b, m))
        seen = draws if self.plan.ignore is None else draws * annotated(batch.mask)[:, None]
        score = energy_score(seen, truths, c.distance, c.spread * c.fair).mean()
        mean = draws.mean(1).clamp(min=1e-6)
        entropy = -(truths.mean(1) * mean.log()).sum(1).mean()
        return score + c.cross_entropy * entropy, {"energy_score": score.detach(), "cross_entropy": entropy.detach()}

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.network(self.encoder(image))

    def latent(self, generators: Sequence[torch.Generator]) -> Tensor | None:
        return noise_of(generators, (self.config.latent,)) if self.config.latent else None

    def denoise(self, x_t: Tensor | None, t: int, features: tuple[Tensor, ...], z: Tensor | None) -> Tensor:
        assert x_t is not None
        return 2 * self._logits(x_t, torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0]), features, z).softmax(1) - 1

    def _logits(self, x_t: Tensor, t: Tensor, features: tuple[Tensor, ...], z: Tensor | None) -> Tensor:
        w = None if self.mapping is None or z is None else self.mapping(z)
        return self.generator(features, x_t, t * (1000 / self.config.T), w).float()
