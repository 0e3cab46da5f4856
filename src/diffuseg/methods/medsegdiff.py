"""MedSegDiff: diffusion with dynamic conditional encoding and a Fourier feature parser (Wu et al., MIDL 2023; V1).

Two encoders, one for the image I and one for the noisy mask x_t, are summed and decoded:

    eps_theta(x_t, I, t) = D((E_t^I + E_t^x, t), t)                                        (eq. 2)

At the two middle stages the mask's features m_x, cleaned of noise in the frequency plane, say where the image's m_I matter:

    M = F(m_x),  M' = A . M,  m_x' = F^-1(M')                                              (eqs. 4-6)
    A(m_I, m_x') = (LN(m_I) * LN(m_x')) * m_I                                              (eq. 3)

docs/methods/medsegdiff.md compares paper, released code and this file.
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
from diffuseg.methods.training import DenoisingConfig, MaskDenoising, annotated, randn_like, squared_error
from diffuseg.networks.blocks import ChannelNorm, Norm, TimeEmbedding, conv, crop, halve, in_float32, pad_to_multiple
from diffuseg.networks.frequency import FFParser, fitting
from diffuseg.networks.stages import Bottom, Decoder, Encoder
from diffuseg.types import Batch

# S, B and L halve the image 4, 5 and 6 times; blocks per stage begin as ResNet-34's. The widths are ours, chosen so that
# the parameters come near the published 13, 25 and 41 million: the paper does not give them.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "S": ((32, 64, 128, 192, 256), (3, 4, 6, 3, 2)),
    "B": ((32, 64, 128, 192, 256, 384), (3, 4, 6, 3, 3, 2)),
    "L": ((32, 64, 128, 192, 256, 320, 384), (3, 4, 6, 3, 3, 3, 2)),
}


@dataclass(frozen=True)
class MedSegDiffConfig(DenoisingConfig):
    """V1's choices by name.

    size          "tiny": the plan's widths; "S", "B" or "L", the published sizes (`widths` given by hand come first), with
                  blocks of their own in the encoders
    dce           "residual": m_I + gamma A(m_I, m_x), gamma starts at zero; "published": A(m_I, m_x) in place of m_I, eq. 3;
                  "released": m_I times a spatial and a channel gate made of m_x; "off": two encoders and their sum
    ff_parser     whether m_x passes the filter first (with dce "off" there is nothing to filter)
    filter_size   reference frequencies per axis of the filter, even; at most as many as the patch has at that stage
    skips         what the decoder is given beside the bottom: the features of both branches, summed, or the "mask"'s
    image_time    whether the image's encoder is told t too, in every block (E_t^I of eq. 2); then all of it is computed again
                  at each step, and nothing is kept from one to the next
    calibration   weight of the squared error of a segmentation made of the image branch (released: 10); 0: no such head.
                  It is trained beside and never mixed into a draw
    """

    size: Literal["tiny", "S", "B", "L"] = "tiny"
    dce: Literal["residual", "published", "released", "off"] = "residual"
    ff_parser: bool = True
    filter_size: int = setting(16, 2)
    skips: Literal["both", "mask"] = "both"
    image_time: bool = False
    calibration: float = setting(0.0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter_size % 2:
            raise UserError(f"filter_size={self.filter_size}: expected an even number")
        if self.size != "tiny" and self.encoder_blocks != 1:
            raise UserError(f"encoder_blocks={self.encoder_blocks}: size={self.size} has its own", do="Leave one of them out.")


class DynamicConditionalEncoding(nn.Module):
    """A(m_I, m_x) = (LN(m_I) * LN(m_x)) * m_I (eq. 3), alone or added to m_I with a gain per channel that starts at zero."""

    def __init__(self, dims: int, channels: int, parser: nn.Module, residual: bool) -> None:
        super().__init__()
        self.parser = parser
        self.norm_I, self.norm_x = ChannelNorm(channels), ChannelNorm(channels)
        self.gamma = nn.Parameter(torch.zeros(channels, *[1] * dims)) if residual else None

    def forward(self, m_I: Float[Tensor, "n c *s"], m_x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        A = (self.norm_I(m_I) * self.norm_x(self.parser(m_x))) * m_I
        return A if self.gamma is None else m_I + self.gamma * A


class ReleasedGate(nn.Module):
    """The released code's coupling: m_I * s * g, s one map and g one number per channel, both linear in the filtered m_x."""

    def __init__(self, dims: int, channels: int, parser: nn.Module) -> None:
        super().__init__()
        self.parser = parser
        self.project, self.space = conv(dims, channels, channels, kernel=1), conv(dims, channels, 1, kernel=1)

    def forward(self, m_I: Float[Tensor, "n c *s"], m_x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        h = self.parser(self.project(m_x))
        return m_I * self.space(h) * h.mean(tuple(range(2, h.ndim)), keepdim=True)


def middle(stages: int) -> tuple[int, ...]:
    """The two middle ones of so many stages; of one stage, that one."""
    first = (stages - 1) // 2
    return tuple(k for k in (first, first + 1) if k < stages)


class TwinEncoderUNet(nn.Module):
    """D((E^I + E^x, t), t): an encoder for the image, one for the noisy mask, a shared last stage, a plain decoder.

    `encode(image)` gives what does not depend on x_t: the image branch up to and including its first coupled stage (all
    of it without coupling), one tensor per stage. The image branch has no t of its own unless `image_time`; from the first
    coupling on m_x brings it. With `image_time` all of the branch depends on t, and `encode` gives the padded image.
    Any spatial size is accepted: it is padded to a multiple of 2**stages and the result is cropped.
    """

    def __init__(self, plan: Plan, widths: Sequence[int], blocks: Sequence[int], c: MedSegDiffConfig) -> None:
        super().__init__()
        dims, classes, time = plan.dims, plan.classes, 4 * widths[0]
        self.stages, self.skips = len(widths) - 1, c.skips  # stages that each branch has for itself
        self.time = TimeEmbedding(widths[0], time)
        self.image = Encoder(dims, plan.image_channels, widths[:-1], blocks[:-1], time if c.image_time else 0)
        self.mask = Encoder(dims, classes, widths[:-1], blocks[:-1], time)
        self.couplings = nn.ModuleDict()
        padded = [n + -n % 2**self.stages for n in plan.patch]
        for k in middle(self.stages) if c.dce != "off" else ():
            size = fitting(c.filter_size, [n // 2**k for n in padded])
            parser = FFParser(widths[k], size) if c.ff_parser else nn.Identity()
            if c.dce == "released":
                self.couplings[str(k)] = ReleasedGate(dims, widths[k], parser)
            else:
                self.couplings[str(k)] = DynamicConditionalEncoding(dims, widths[k], parser, c.dce == "residual")
        self.uncoupled = 0 if c.image_time else min((int(k) + 1 for k in self.couplings), default=self.stages)
        self.bottom = Bottom(dims, widths[-2], widths[-1], blocks[-1], time)
        self.decoder = Decoder(dims, widths, c.blocks, time)
        self.norm, self.last = Norm(widths[0]), conv(dims, widths[0], c.outputs(classes), zero=True)
        self.exact = c.predict == "eps"
        self.calibration = nn.ModuleList(conv(dims, w, classes, kernel=1) for w in widths[:-1] if c.calibration)

    def encode(self, image: Float[Tensor, "b c *s"]) -> tuple[Tensor, ...]:
        """Image features of the stages that no x_t has touched yet, at padded sizes."""
        m_I, features = pad_to_multiple(image, 2**self.stages), []
        if not self.uncoupled:
            return (m_I,)
        for k in range(self.uncoupled):
            m_I = self.image.stage(k, m_I)
            features.append(m_I)
        return tuple(features)

    def forward(
        self, x_t: Float[Tensor, "b k *s"], t: Float[Tensor, " b"], features: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b o *s"], list[Tensor]]:
        """The output, and the image branch's features of every stage; features of one image serve the whole batch."""
        time, m_x, m_I = self.time(t), pad_to_multiple(x_t, 2**self.stages), features[0]
        skips, branch = [], []
        if not self.uncoupled:
            m_I = m_I.expand(x_t.shape[0], *m_I.shape[1:])
        for k in range(self.stages):
            m_x = self.mask.stage(k, m_x, time)
            m_I = features[k] if k < self.uncoupled else self.image.stage(k, m_I, time if not self.uncoupled else None)
            if str(k) in self.couplings:
                m_I = self.couplings[str(k)](m_I, m_x)
            branch.append(m_I)
            skips.append(m_x + m_I if self.skips == "both" else m_x)
        h = self.decoder(self.bottom(halve(m_I + m_x), time), skips, time)
        h = F.silu(self.norm(h))
        h = in_float32(self.last, h) if self.exact else self.last(h)
        return crop(h, x_t.shape[2:]), branch

    def calibrate(self, branch: Sequence[Tensor], size: Sequence[int]) -> Float[Tensor, "b k *s"]:
        """Logits of the image branch alone: a linear map of each stage, enlarged and summed.

        Args:
            branch: Features of the image branch, one per stage, full resolution first.
            size: Voxels per axis of the result.
        """
        total = torch.zeros((), device=branch[0].device)
        for head, m_I in zip(self.calibration, branch, strict=True):
            total = total + F.interpolate(head(m_I).float(), size=branch[0].shape[2:], mode="nearest")
        return crop(total, size)


class MedSegDiff(MaskDenoising[MedSegDiffConfig]):
    """Diffusion in many steps: at each, features of the image are filtered and coupled to those of the noisy mask (version 1).

    Per draw and step: the mask's branch, the image's branch from the first coupled stage on, and the decoder.
    """

    config_class = MedSegDiffConfig
    not_exportable = "its Fourier transforms have no counterpart in ONNX"

    def __init__(self, plan: Plan, config: MedSegDiffConfig) -> None:
        super().__init__(plan, config)
        blocks = [config.encoder_blocks] * (len(self.widths) - 1) + [2]
        if config.size != "tiny":
            widths, blocks = SIZES[config.size]
            self.widths = config.widths or widths
        if len(self.widths) != len(blocks) or len(blocks) < 2:
            wants = f"{len(blocks)} widths" if config.size != "tiny" else "at least 2 widths"
            raise UserError(f"widths {list(self.widths)}: size {config.size!r} needs {wants}")
        self.network = TwinEncoderUNet(plan, self.widths, blocks, config)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.mask is not None
        x_0, features = mask_to_x(batch.mask), self.encode(batch.image)
        total, log = self.denoising_loss(x_0, batch.mask, features, rng)
        if self.config.calibration:
            # The image branch beside noise alone, t = T: what it makes of the image without the mask.
            T = torch.full((len(x_0),), self.config.T, device=x_0.device)
            _, branch = self._network(randn_like(x_0, rng), T, features)
            segmentation = self.network.calibrate(branch, x_0.shape[2:]).softmax(1)
            log["calibration"] = squared_error(segmentation, batch.mask, annotated(batch.mask)).mean()
            total = total + self.config.calibration * log["calibration"]
        return total, {name: torch.as_tensor(value).detach() for name, value in log.items()}

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.network.encode(image)

    def output(self, x_t: Tensor, t: Tensor, features: Features) -> Tensor:
        return self._network(x_t, t, features)[0].float()

    def _network(self, x_t: Tensor, t: Tensor, features: Features) -> tuple[Tensor, list[Tensor]]:
        assert isinstance(features, tuple)
        return self.network(x_t, t * (1000 / self.schedule.T), features)
