"""cDAL: conditional diffusion with spatial attention and latent embedding (Hejrati et al., MICCAI 2024).

A denoising-diffusion GAN over masks. The generator jumps from x_t to x0_hat in a handful of steps T; a latent z in every
normalisation lets one x_t have many answers; a discriminator tells true pairs (x_s, x_t) from made ones; its features become
a spatial attention map. Notation: timesteps t = 1..T, s = t - 1 (the paper's t + 1 and t), I the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.samplers import ModelOutput
from diffuseg.errors import UserError
from diffuseg.methods.base import Loss, MaskMethod, Phase, mask_to_x, noise_of, setting
from diffuseg.methods.training import (
    FewStepsConfig,
    annotated,
    detached,
    randn_like,
    recycled_input,
    sample_timesteps,
    segmentation_loss,
    soft_dice_loss,
    squared_error,
)
from diffuseg.networks.blocks import Mapping
from diffuseg.networks.discriminator import Discriminator
from diffuseg.networks.unet import ImageEncoder, UNet
from diffuseg.types import Batch


@dataclass(frozen=True)
class CDALConfig(FewStepsConfig):
    """Every choice of the method by name; docs/methods/cdal.md says what the paper and its code choose.

    steps                   of a draw, where none are given: any number up to T
    input_scale             below 1: a harder schedule, as if the mask were multiplied by it before noising
    latent                  size of z, 0 switches it off; latent_width and latent_depth: the mapping network
    output                  "softmax" couples the classes, "tanh" treats each channel alone (as released)
    mse, dice, cross_entropy, adversarial   weights of the generator's loss
    discriminator_every     generator steps per step of the discriminator
    r1, r1_every            gradient penalty on real pairs, gamma, and its lazy interval (rescaled by the interval)
    discriminator           "ours" halves the image in every block; "released" is that of the released hippocampus training:
                            channels grow in the first convolution of a block, the first block keeps the resolution, and the
                            logit is made of a sum over positions
    attention               "label" multiplies the label before noising (as released, training only; it needs recycle=0);
                            "input" multiplies the image features, from D on x_t alone: in training and in sampling
    attention_norm          "none" (as released, signed and unbounded), "sigmoid" or "mean": positive with mean one
    recycle                 share of batches whose x_t (t < T) comes from the model's own prediction, not from the mask
    p_terminal_timestep     share of elements at the noisiest timestep T, the others uniform over 1..T
    """

    aliases: ClassVar = {"hardest": "p_terminal_timestep"}

    steps: int = setting(2, 1)
    input_scale: float = setting(1.0, 1e-3)
    latent: int = setting(64, 0)
    latent_width: int = setting(128, 1)
    latent_depth: int = setting(3, 1)
    output: Literal["softmax", "tanh"] = "softmax"
    pyramid: bool = False
    attention_levels: tuple[int, ...] = ()
    dropout: float = setting(0.0, 0, 0.99)
    mse: float = setting(0.0, 0)
    dice: float = setting(1.0, 0)
    cross_entropy: float = setting(1.0, 0)
    adversarial: float = setting(0.02, 0)
    discriminator_widths: tuple[int, ...] = setting((16, 16, 32, 64), 1)
    discriminator_image: bool = True
    discriminator: Literal["ours", "released"] = "ours"
    discriminator_learning_rate: float = setting(2e-4, 0)
    discriminator_every: int = setting(2, 1)
    r1: float = 1.0
    r1_every: int = setting(16, 1)
    attention: Literal["off", "label", "input"] = "off"
    attention_norm: Literal["none", "sigmoid", "mean"] = "mean"
    attention_level: int = setting(2, 0)
    recycle: float = setting(1.0, 0, 1)
    p_terminal_timestep: float = setting(0.5, 0, 1)
    betas: tuple[float, float] = setting((0.9, 0.99), 0, 0.9999)


CDALSettings = TypeVar("CDALSettings", bound=CDALConfig)


class CDAL(MaskMethod[CDALSettings]):
    """G(x_t, t, I, z) -> x0_hat, D(x_s, x_t, t [, I]) -> logit, and the posterior q(x_s | x_t, x0_hat) between steps."""

    config_class = CDALConfig

    def __init__(self, plan: Plan, config: CDALSettings) -> None:
        super().__init__(plan, config)
        k, c = plan.classes, plan.image_channels
        self.schedule = config.noise_schedule().scaled(config.input_scale)
        self.default_steps = min(config.steps, config.T)
        self.encoder = ImageEncoder(plan.dims, c, self.widths[0], config.encoder_blocks)
        self.generator = UNet(
            plan.dims, k, k, self.widths, config.blocks, True, config.latent_width if config.latent else 0,
            config.attention_levels, config.pyramid, config.dropout,
        )  # fmt: skip
        self.mapping = Mapping(config.latent, config.latent_width, config.latent_depth) if config.latent else None
        self.discriminator = None
        if config.adversarial or config.attention != "off":
            inputs = 2 * k + (c if config.discriminator_image else 0)
            if config.attention != "off" and config.attention_level >= len(config.discriminator_widths):
                last = len(config.discriminator_widths) - 1
                raise UserError(f"attention_level={config.attention_level}: the discriminator's last block is {last}")
            self.discriminator = Discriminator(
                plan.dims, inputs, config.discriminator_widths, config.discriminator == "released"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Discriminator, lazy R1, generator; without a discriminator only the last."""
        c = self.config
        generator = ("encoder", "generator", "mapping") if self.mapping is not None else ("encoder", "generator")
        phases = (Phase("generator", generator, c.learning_rate, 1, c.betas),)
        if self.discriminator is None:
            return phases
        every, rate, modules = c.discriminator_every, c.discriminator_learning_rate, ("discriminator",)
        adversary = (Phase("discriminator", modules, rate, every, c.betas),)
        penalty = (Phase("r1", modules, rate, every * c.r1_every, c.betas, twice=True),) if c.r1 else ()
        return adversary + penalty + phases

    def check_training(self) -> None:
        """Attention on the label acts on a mask that recycling then takes out of x_t.

        Raises:
            UserError: attention=label goes with recycling.
        """
        if self.config.attention == "label" and self.config.recycle:
            raise UserError(
                f"attention=label: recycling (recycle={self.config.recycle:g}) takes the label out of x_t again",
                do="Give recycle=0 too, or attention=input.",
            )

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.mask is not None
        x_0 = mask_to_x(batch.mask)
        if phase.name == "discriminator":
            return self._discriminator_loss(x_0, batch.image, rng, annotated(batch.mask))
        if phase.name == "r1":
            return self._r1(x_0, batch.image, rng, annotated(batch.mask))
        return self._generator_loss(x_0, batch.mask, batch.image, rng)

    # -- the generator ---------------------------------------------------------------------------------------------

    def _generator_loss(self, x_0: Tensor, mask: Tensor, image: Tensor, rng: torch.Generator) -> Loss:
        c, known = self.config, annotated(mask)
        t = sample_timesteps(len(x_0), c.T, c.p_terminal_timestep, rng).to(x_0.device)
        features = self.encode(image)
        x_t = self._training_input(x_0, t, image, features, rng)
        logits = self._logits(x_t, t, features, self._latents(len(x_0), rng))
        x0_hat, probability = self._mask(logits)
        terms = {"mse": squared_error(x0_hat, x_0, known).mean()}
        if c.output == "softmax":
            terms |= segmentation_loss(logits, mask, probability)
        else:
            terms["dice"] = soft_dice_loss(probability, mask).mean()
            terms["cross_entropy"] = F.binary_cross_entropy(probability, mask, known.expand_as(mask))
        if c.adversarial:
            assert self.discriminator is not None
            x_s = self.schedule.posterior(x0_hat, x_t, t, t - 1, 1.0, randn_like(x_t, rng))
            terms["adversarial"] = F.softplus(-self._discriminate(x_s, x_t, t, image, known)).mean()
        total = sum((getattr(c, name) * value for name, value in terms.items() if getattr(c, name)), torch.zeros(()))
        return total, detached(terms)

    def _training_input(self, x_0: Tensor, t: Tensor, image: Tensor, features: Tensor, rng: torch.Generator) -> Tensor:
        """x_t for the generator: from the mask, or from its own prediction (recycling)."""
        noise = randn_like(x_0, rng)
        if self.config.attention == "label":
            x_0 = self._attention(self._pair_inputs(*self._real_pair(x_0, t, rng), image), t, x_0) * x_0
        x_t = self.schedule.q_sample(x_0, t, noise)

        def denoiser(x_T: Tensor, T: Tensor) -> ModelOutput:
            return ModelOutput(self._mask(self._logits(x_T, T, features.detach(), self._latents(len(t), rng)))[0])

        return recycled_input(x_t, t, noise, self.schedule, self.config.recycle, denoiser, rng)

    def _logits(self, x_t: Tensor, t: Tensor, features: Tensor, z: Tensor | None) -> Tensor:
        w = None if self.mapping is None or z is None else self.mapping(z)
        if self.config.attention == "input":
            features, image = features.split([self.widths[0], self.plan.image_channels], dim=1)
            image = image.expand(x_t.shape[0], *image.shape[1:])
            features = features * self._attention(self._pair_inputs(x_t, x_t, image), t, x_t)
        return self.generator(x_t, t * (1000 / self.config.T), features, w).float()

    def _mask(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat in [-1, 1], probability in [0, 1])."""
        if self.config.output == "softmax":
            probability = logits.softmax(1)
            return 2 * probability - 1, probability
        x0_hat = logits.tanh()
        return x0_hat, (x0_hat + 1) / 2

    def _latents(self, n: int, rng: torch.Generator) -> Tensor | None:
        device = next(self.parameters()).device
        return torch.randn(n, self.config.latent, generator=rng).to(device) if self.config.latent else None

    # -- the discriminator -----------------------------------------------------------------------------------------

    def _real_pair(self, x_0: Tensor, t: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x_s, x_t) with s = t - 1: x_s ~ q(x_s | x_0), x_t ~ q(x_t | x_s)."""
        x_s = self.schedule.q_sample(x_0, t - 1, randn_like(x_0, rng))
        return x_s, self.schedule.q_step(x_s, t - 1, t, randn_like(x_0, rng))

    def _pair_inputs(self, x_s: Tensor, x_t: Tensor, image: Tensor) -> Tensor:
        return torch.cat([x_s, x_t, image] if self.config.discriminator_image else [x_s, x_t], dim=1)

    def _discriminate(self, x_s: Tensor, x_t: Tensor, t: Tensor, image: Tensor, known: Tensor | float = 1.0) -> Tensor:
        """The logit of a pair; real and fake are alike, 0, where nobody has annotated."""
        assert self.discriminator is not None
        x_s, x_t = x_s * known, x_t * known
        return self.discriminator(self._pair_inputs(x_s, x_t, image), t * (1000 / self.config.T)).float()

    def _discriminator_loss(self, x_0: Tensor, image: Tensor, rng: torch.Generator, known: Tensor | float = 1.0) -> Loss:
        """Non-saturating: softplus(-D(real)) + softplus(D(fake)), the fake x_s ~ q(x_s | x_t, G(x_t))."""
        t = torch.randint(1, self.config.T + 1, (len(x_0),), generator=rng).to(x_0.device)
        x_s, x_t = self._real_pair(x_0, t, rng)
        with torch.no_grad():
            x0_hat, _ = self._mask(self._logits(x_t, t, self.encode(image), self._latents(len(t), rng)))
            fake = self.schedule.posterior(x0_hat, x_t, t, t - 1, 1.0, randn_like(x_t, rng))
        real_logit = self._discriminate(x_s, x_t, t, image, known)
        fake_logit = self._discriminate(fake, x_t, t, image, known)
        log: dict[str, float | Tensor] = {"D(real)": real_logit.detach().mean(), "D(fake)": fake_logit.detach().mean()}
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean(), log

    def _r1(self, x_0: Tensor, image: Tensor, rng: torch.Generator, known: Tensor | float = 1.0) -> Loss:
        """gamma / 2 E |grad_{x_s} D|^2 on real pairs, times the interval at which it runs."""
        t = torch.randint(1, self.config.T + 1, (len(x_0),), generator=rng).to(x_0.device)
        x_s, x_t = self._real_pair(x_0, t, rng)
        x_s.requires_grad_(True)
        with torch.autocast(x_0.device.type, enabled=False):  # a gradient of a gradient deserves full precision
            logit = self._discriminate(x_s, x_t, t, image, known)
            (gradient,) = torch.autograd.grad(logit.sum(), x_s, create_graph=True)
        penalty = gradient.square().flatten(1).sum(1).mean()
        return self.config.r1 / 2 * self.config.r1_every * penalty, {"r1": penalty.detach()}

    @torch.no_grad()
    def _attention(self, inputs: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """A [b, 1, *s]: D's features averaged over channels, enlarged to the mask's size, and normalised."""
        assert self.discriminator is not None
        F_t = self.discriminator.features(inputs, t * (1000 / self.config.T), self.config.attention_level).float()
        mode = "bilinear" if like.ndim == 4 else "trilinear"
        A = F.interpolate(F_t.mean(1, keepdim=True), size=like.shape[2:], mode=mode, align_corners=False)
        if self.config.attention_norm == "none":
            return A
        axes = tuple(range(1, A.ndim))
        if self.config.attention_norm == "sigmoid":
            A = torch.sigmoid((A - A.mean(axes, keepdim=True)) / (A.std(axes, keepdim=True) + 1e-6))
        else:
            A = A.abs()
        return A / (A.mean(axes, keepdim=True) + 1e-6)

    # -- sampling --------------------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        return torch.cat([features, image], dim=1) if self.config.attention == "input" else features

    def latent(self, generators: Sequence[torch.Generator]) -> Tensor | None:
        return noise_of(generators, (self.config.latent,)) if self.config.latent else None

    def denoise(self, x_t: Tensor | None, t: int, features: Tensor, z: Tensor | None) -> Tensor:
        assert x_t is not None
        return self._mask(self._logits(x_t, torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0]), features, z))[0]
