"""CDM: masks from image-level labels by a class-conditional diffusion model of the image (Hu et al., MICCAI 2023).

A diffusion model learns p(image | class) from images and the class of each. What then depends on the class in its
denoising of one image is where the class is: the sensitivity of x0_hat to the condition, from "object" y1 to "none" y0.
Notation: x_0 the image, y its class, f(y) the embedding, levels t = 1..T.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.diffusion.parameterization import target, to_x0
from diffuseg.diffusion.schedule import SCHEDULES
from diffuseg.methods.base import Method, MethodConfig, Phase, draw_levels, randn_like
from diffuseg.methods.losses import squared_error
from diffuseg.networks.conditional import ClassConditionalUNet
from diffuseg.types import Batch

# Intensities of the plan -> about [-1, 1]: what "unit" has already, and z-scores within 3 deviations.
SCALE = {"unit": 1.0, "zscore": 1 / 3, "ct": 1 / 3}
LEVELS = (0.35, 0.5, 0.65)  # noise levels of a map, as shares of T
HELD_OUT_LEVELS = 8  # noise levels at which an image is judged in validation


@dataclass(frozen=True)
class CDMConfig(MethodConfig):
    """Every choice of the method by name; docs/methods/cdm.md says what the paper and its code choose.

    T, schedule, predict   levels, how they are spread, and what the network outputs
    label_dropout          share of images that are shown without their label, so that the model is also unconditional
    attention_levels       levels of the U-Net with self-attention; its bottom always has it
    """

    T: int = 1000
    schedule: Literal["linear", "cosine"] = "cosine"
    predict: Literal["eps", "x0", "v"] = "v"
    label_dropout: float = 0.1
    attention_levels: tuple[int, ...] = ()
    dropout: float = 0.0


class CDM(Method):
    """eps_theta(x_t, t, f(y)) over images; masks come out of how much f(y) matters, where."""

    supervision: ClassVar[Literal["mask", "image_label"]] = "image_label"
    config_class = CDMConfig
    config: CDMConfig
    scale: Tensor

    def __init__(self, plan: Plan, config: CDMConfig) -> None:
        super().__init__(plan, config)
        self.schedule = SCHEDULES[config.schedule](config.T)
        self.network = ClassConditionalUNet(
            plan.dims, plan.image_channels, plan.classes, self.widths, config.blocks, config.attention_levels, config.dropout
        )
        near = 2 * plan.context + 1
        scale = [SCALE[how] for how in plan.normalisation for _ in range(near)]
        self.register_buffer("scale", torch.tensor(scale).reshape(-1, *[1] * plan.dims), persistent=False)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("network", ("network",), self.config.learning_rate),)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        """|| target - output ||^2 at uniform levels, the label hidden from a share of the images."""
        assert batch.label is not None
        x_0 = batch.image * self.scale
        t = draw_levels(len(x_0), self.schedule.T, hardest=0.0, rng=rng).to(x_0.device)
        noise = randn_like(x_0, rng)
        hidden = torch.rand(len(x_0), generator=rng).to(x_0.device) < self.config.label_dropout
        label = torch.where(hidden, self.network.no_label, batch.label)
        error = self.error(x_0, t, noise, label).mean()
        return error, {"mse": error.detach()}

    def error(
        self, x_0: Float[Tensor, "b c *s"], t: Int[Tensor, " b"], noise: Float[Tensor, "b c *s"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Mean squared error of what the network outputs for x_t under a label, per element."""
        output = self.output(self.schedule.q_sample(x_0, t, noise), t, self.network.embed(label))
        return squared_error(output, target(self.config.predict, x_0, noise, self.schedule.at(t, x_0)))

    @torch.no_grad()
    def held_out(self, image: Float[Tensor, "c *s"], seed: int) -> Float[Tensor, " k"]:
        """The denoising error of an image under each class: mean over levels, with the same noise for all classes."""
        self.eval()
        n, k = HELD_OUT_LEVELS, self.plan.classes
        x_0 = (image * self.scale).expand(n, *image.shape)
        t = ((torch.arange(n, device=image.device) + 0.5) * self.schedule.T / n).long() + 1
        noise = randn_like(x_0, torch.Generator().manual_seed(seed))
        return torch.stack([self.error(x_0, t, noise, torch.full_like(t, y)).mean() for y in range(k)])

    def output(self, x_t: Float[Tensor, "b c *s"], t: Int[Tensor, " b"], e: Float[Tensor, "b e"]) -> Float[Tensor, "b c *s"]:
        """What the network says about x_t under an embedding: noise, image, or v; float32."""
        return self.network(x_t, t * (1000 / self.schedule.T), e).float()

    def x0_hat(self, x_t: Float[Tensor, "b c *s"], t: Int[Tensor, " b"], e: Float[Tensor, "b e"]) -> Float[Tensor, "b c *s"]:
        """The image that the network sees in x_t under an embedding, in the scaled intensities."""
        return to_x0(self.config.predict, self.output(x_t, t, e), x_t, self.schedule.at(t, x_t))

    @torch.no_grad()
    def draw(
        self,
        image: Float[Tensor, "c *s"],
        seeds: Sequence[int],
        steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        overlap: float = 0.5,
        chunk: int = 8,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[Float[Tensor, "k *s"]]:
        """x0_hat under y1 minus x0_hat under y0 from one x_t, at several levels, each of unit size, averaged."""
        self.eval()
        for seed in seeds:
            rng = torch.Generator().manual_seed(int(seed))
            x_0 = (image * self.scale)[None]
            total = torch.zeros_like(x_0[0, 0])
            for share in LEVELS:
                t = torch.full((2,), round(share * self.schedule.T), device=x_0.device)
                x_t = self.schedule.q_sample(x_0, int(t[0]), randn_like(x_0, rng)).expand(2, *x_0.shape[1:])
                one, none = self.x0_hat(x_t, t, self.network.embed(torch.tensor([1, 0], device=x_0.device)))
                difference = (one - none).mean(0)
                total += difference / difference.square().mean().sqrt().clamp(min=1e-12)
            p = torch.zeros(self.plan.classes, *total.shape, device=total.device)
            p[1] = (total / total.max().clamp(min=1e-12)).clamp(0, 1)
            p[0] = 1 - p[1]
            yield p
