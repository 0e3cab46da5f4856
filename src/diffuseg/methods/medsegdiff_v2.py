"""MedSegDiff V2: an anchor and a semantic condition, from a U-Net that segments by itself (Wu et al., AAAI 2024).

Two U-Nets. The condition U-Net sees the image I and decodes it to features f_c and a segmentation of its own; the
diffusion U-Net sees x_t. They meet twice:

    f_anc = max(f_c * k_Gauss, f_c),   f_d <- sigmoid(f_anc * k_1x1) . f_d + f_d            anchor, at full resolution
    e <- e + W c',  c' = SS-Former(e, c, t)                                                 semantic, between the bottoms
    L_t = L_noise + [t = 0 mod alpha] (L_dice + beta L_ce), the bracket on the condition's segmentation

We know V2's paper from its figure, its abstract and restatements of its equations; docs/methods/medsegdiff.md lists what
is taken from them and what is our reading. The released code has neither the gate nor the transformer nor the bracket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.data.plan import Plan
from diffuseg.errors import UserError
from diffuseg.methods.base import Loss, Phase, mask_to_x, setting
from diffuseg.methods.tiles import Features
from diffuseg.methods.training import (
    DenoisingConfig,
    MaskDenoising,
    cross_entropy,
    detached,
    sample_timesteps,
    segmentation_loss,
    soft_dice_loss,
)
from diffuseg.networks.blocks import Norm, TimeEmbedding, conv, crop, halve, in_float32, pad_to_multiple
from diffuseg.networks.ssformer import SSFormer
from diffuseg.networks.stages import Bottom, Decoder, Encoder
from diffuseg.types import Batch


@dataclass(frozen=True)
class MedSegDiffV2Config(DenoisingConfig):
    """V2's choices by name. Its alpha, beta and number of transformer blocks are not known to us: these are ours.

    anchor          whether the condition's features gate the first features of the diffusion U-Net
    ss_former       whether the bottoms meet in the SS-Former; without it the condition is added as it is
    former_blocks   blocks of the SS-Former; band_pass: whether its spectra pass the timestep's band-pass
    alpha           the bracket is trained where t is a multiple of it; left out: 5, or T where there are fewer timesteps
    alpha_counts    "timesteps": t is that of the element, as L_t says it: a reading of the paper's notation; "training_steps":
                    every so many steps of the training the whole batch, in a step and with moments of its own
    beta            weight of its cross-entropy beside its Dice term
    """

    anchor: bool = True
    ss_former: bool = True
    former_blocks: int = setting(1, 1)
    band_pass: bool = True
    alpha: int | None = setting(None, 1)
    alpha_counts: Literal["timesteps", "training_steps"] = "timesteps"
    beta: float = setting(1.0, 0)

    @property
    def interval(self) -> int:
        """alpha, filled in where it is left out."""
        return self.alpha or (5 if self.alpha_counts == "training_steps" else min(5, self.T))


class ConditionUNet(nn.Module):
    """The image alone: c at the bottom, f_c after decoding, and the logits of a segmentation; nothing here knows t."""

    def __init__(self, plan: Plan, widths: Sequence[int], blocks: int, encoder_blocks: int) -> None:
        super().__init__()
        self.multiple = 2 ** (len(widths) - 1)
        self.encoder = Encoder(plan.dims, plan.image_channels, widths[:-1], [encoder_blocks] * (len(widths) - 1))
        self.bottom = Bottom(plan.dims, widths[-2], widths[-1])
        self.decoder = Decoder(plan.dims, widths, blocks)
        self.norm, self.head = Norm(widths[0]), conv(plan.dims, widths[0], plan.classes)

    def encode(self, image: Float[Tensor, "b i *s"]) -> tuple[Tensor, list[Tensor]]:
        """c, and the features of each stage above it, at padded sizes."""
        skips = self.encoder(pad_to_multiple(image, self.multiple))
        return self.bottom(halve(skips[-1])), skips

    def forward(self, image: Float[Tensor, "b i *s"]) -> tuple[Tensor, Tensor]:
        """(c, f_c) at padded sizes."""
        c, skips = self.encode(image)
        return c, self.decoder(c, skips)

    def segment(self, image: Float[Tensor, "b i *s"]) -> Float[Tensor, "b k *s"]:
        """Class logits."""
        _, f_c = self(image)
        return crop(self.head(F.silu(self.norm(f_c))), image.shape[2:])


class Anchor(nn.Module):
    """sigmoid(max(f_c * k_Gauss, f_c) * k_1x1): where the first features of the diffusion U-Net are to be strengthened.

    k_Gauss has a learnable mean and standard deviation per axis, in voxels, on a support of 7 voxels per axis, and sums
    to one: it spreads a condition that may be wrong at an edge, and the maximum keeps what was certain.
    """

    reach = 3

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.mean, self.log_sigma = nn.Parameter(torch.zeros(dims)), nn.Parameter(torch.zeros(dims))
        self.point = conv(dims, channels, 1, kernel=1)

    def kernels(self) -> Float[Tensor, "dims support"]:
        """One normalised Gaussian per axis; their outer product is k_Gauss."""
        x = torch.arange(-self.reach, self.reach + 1, device=self.mean.device)
        return (-0.5 * ((x - self.mean[:, None]) / self.log_sigma[:, None].exp()).square()).softmax(dim=1)

    def smooth(self, f: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """f * k_Gauss, axis by axis, edge values continued: products with a banded matrix.

        A convolution of each channel by itself is several times slower on a processor, forwards and backwards.
        """
        for axis, kernel in enumerate(self.kernels(), start=2):
            n = f.shape[axis]
            reached = torch.arange(n, device=f.device)[:, None] + torch.arange(-self.reach, self.reach + 1, device=f.device)
            band = torch.einsum("k,nkm->nm", kernel, F.one_hot(reached.clamp(0, n - 1), n).to(kernel))
            f = (f.movedim(axis, -1) @ band.T.to(f.dtype)).movedim(-1, axis)
        return f

    def forward(self, f_c: Float[Tensor, "b c *s"]) -> Float[Tensor, "b 1 *s"]:
        return torch.sigmoid(self.point(torch.maximum(self.smooth(f_c), f_c)))


class DiffusionUNet(nn.Module):
    """The noisy mask: its first features gated by the anchor, its bottom joined with the condition."""

    def __init__(self, plan: Plan, widths: Sequence[int], c: MedSegDiffV2Config) -> None:
        super().__init__()
        dims, time = plan.dims, 4 * widths[0]
        self.multiple = 2 ** (len(widths) - 1)
        self.time = TimeEmbedding(widths[0], time)
        self.encoder = Encoder(dims, plan.classes, widths[:-1], [c.blocks] * (len(widths) - 1), time)
        self.bottom = Bottom(dims, widths[-2], widths[-1], 2, time)
        self.former = SSFormer(dims, widths[-1], time, c.former_blocks, c.band_pass) if c.ss_former else None
        self.join = conv(dims, widths[-1], widths[-1], kernel=1)
        self.decoder = Decoder(dims, widths, c.blocks, time)
        self.norm, self.last = Norm(widths[0]), conv(dims, widths[0], c.outputs(plan.classes), zero=True)
        self.exact = c.predict == "eps"

    def forward(
        self, x_t: Float[Tensor, "b k *s"], t: Float[Tensor, " b"], c: Float[Tensor, "n w *r"], gate: Tensor | None
    ) -> Float[Tensor, "b o *s"]:
        """c and gate of one image serve the whole batch."""
        time = self.time(t)
        f_d = self.encoder.stage(0, pad_to_multiple(x_t, self.multiple), time)
        skips = [f_d if gate is None else gate * f_d + f_d]
        for k in range(1, len(self.encoder.stages)):
            skips.append(self.encoder.stage(k, skips[-1], time))
        e = self.bottom(halve(skips[-1]), time)
        c = c.expand(len(e), *c.shape[1:])
        e = e + self.join(c if self.former is None else self.former(e, c, time))
        h = F.silu(self.norm(self.decoder(e, skips, time)))
        h = in_float32(self.last, h) if self.exact else self.last(h)
        return crop(h, x_t.shape[2:])


class MedSegDiffV2(MaskDenoising[MedSegDiffV2Config]):
    """Diffusion in many steps, guided by a U-Net that segments the image once and joined to it by a transformer (version 2).

    Once per image: the whole condition U-Net and the anchor's gate. Per draw and step: the diffusion U-Net.
    """

    config_class = MedSegDiffV2Config
    not_exportable = "its Fourier transforms have no counterpart in ONNX"

    def __init__(self, plan: Plan, config: MedSegDiffV2Config) -> None:
        super().__init__(plan, config)
        if len(self.widths) < 2:
            raise UserError(f"widths {list(self.widths)}: at least 2 widths are needed")
        self.condition = ConditionUNet(plan, self.widths, config.blocks, config.encoder_blocks)
        self.anchor = Anchor(plan.dims, self.widths[0]) if config.anchor else None
        self.network = DiffusionUNet(plan, self.widths, config)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """L_t on everything; where alpha counts training steps, the bracket before it, on the condition U-Net alone."""
        rate, anchor = self.config.learning_rate, ("anchor",) if self.anchor is not None else ()
        everything = Phase("noise", ("condition", *anchor, "network"), rate)
        if self.config.alpha_counts == "timesteps":
            return (everything,)
        return Phase("condition", ("condition",), rate, self.config.interval), everything

    def check_training(self) -> None:
        """A bracket at no timestep at all would leave the condition's segmentation untrained.

        Raises:
            UserError: No timestep is a multiple of alpha.
        """
        c = self.config
        if c.alpha_counts == "timesteps" and c.interval > c.T:
            raise UserError(
                f"alpha={c.interval}: none of T={c.T} timesteps is a multiple of it",
                do=f"Give alpha={c.T} or less, or alpha_counts=training_steps.",
            )

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.mask is not None
        if phase.name == "condition":
            terms = segmentation_loss(self.condition.segment(batch.image).float(), batch.mask)
            return terms["dice"] + self.config.beta * terms["cross_entropy"], detached(terms)
        state = rng.get_state()
        total, log = self.denoising_loss(mask_to_x(batch.mask), batch.mask, self.encode(batch.image), rng)
        if self.config.alpha_counts == "training_steps":
            return total, log
        again = torch.Generator().set_state(state)  # the timesteps that the denoising loss has drawn first
        t = sample_timesteps(len(batch.mask), self.config.T, self.config.p_terminal_timestep, again).to(batch.mask.device)
        bracket = self._bracket(batch.image, batch.mask, t)
        return total + bracket, log | {"bracket": bracket.detach()}

    def _bracket(self, image: Tensor, mask: Tensor, t: Tensor) -> Tensor:
        """[t = 0 mod alpha] (L_dice + beta L_ce) of the condition's segmentation, mean over the elements."""
        logits = self.condition.segment(image).float()
        each = soft_dice_loss(logits.softmax(1), mask) + self.config.beta * cross_entropy(logits, mask)
        return (each * (t % self.config.interval == 0)).mean()

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.anchor is None:
            return self.condition.encode(image)[:1]
        c, f_c = self.condition(image)
        return c, self.anchor(f_c)

    def output(self, x_t: Tensor, t: Tensor, features: Features) -> Tensor:
        assert isinstance(features, tuple)
        c, *gate = features
        return self.network(x_t, t * (1000 / self.schedule.T), c, gate[0] if gate else None).float()
