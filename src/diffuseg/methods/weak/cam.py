"""Class activation maps: the baselines that a weakly supervised diffusion model has to beat, from a plain classifier.

With S the score of the class, A_k the activations of a layer, g_k = dS/dA_k, and sums over positions:

gradcam     ReLU(sum_k w_k A_k), w_k the mean of g_k                                          (Selvaraju et al. 2017)
gradcam++   the same, w_k = sum alpha_k ReLU(g_k), alpha_k = g_k^2 / (2 g_k^2 + g_k^3 sum A_k)  (Chattopadhay et al. 2018)
layercam    ReLU(sum_k ReLU(g_k) A_k), weights per position                                     (Jiang et al. 2021)
scorecam    ReLU(sum_k w_k A_k), w_k = p(class | the image where A_k is high, dark elsewhere)   (Wang et al. 2020)

alpha_k as MONAI has it: its factor exp(S), a constant, goes with the normalisation. S is the class's log-odds, its logit
minus the log of the sum of the others' exponentials: unlike a logit it does not change when all logits are shifted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.data.transforms import LINEAR
from diffuseg.errors import UserError
from diffuseg.methods.base import ImageLabel, Loss, Phase
from diffuseg.methods.weak.base import WeakConfig, WeakMethod, own_settings
from diffuseg.networks.blocks import crop
from diffuseg.networks.classifier import Classifier
from diffuseg.text import pluralize
from diffuseg.types import Batch

TOGETHER = 32  # masked images that ScoreCAM classifies at a time


@dataclass(frozen=True)
class CAMConfig(WeakConfig):
    """Which map, of which layer: the activations after that many stages of the classifier, 0 for all of them.

    The classifier has the plan's widths and is trained with cross-entropy.

    decide   who says what the image shows: the classifier, or "present": it shows an object
    """

    map: Literal["gradcam", "gradcam++", "layercam", "scorecam"] = "layercam"
    layer: int = 0
    decide: Literal["classifier", "present"] = "classifier"


class CAM(WeakMethod[CAMConfig]):
    """Learns from image-level labels, no masks: a classifier, and a map of where it looked."""

    generative: ClassVar[bool] = False
    config_class = CAMConfig
    inference_settings = own_settings(CAMConfig)

    def __init__(self, plan: Plan, config: CAMConfig) -> None:
        super().__init__(plan, config)
        if not 0 <= config.layer <= len(self.widths):
            raise UserError(f"layer={config.layer}: the classifier has {pluralize(len(self.widths), 'stage')}")
        self.layer = config.layer or len(self.widths)
        self.classifier = Classifier(plan.dims, plan.image_channels, plan.classes, self.widths, config.blocks)
        self.register_scale()

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("classifier", ("classifier",), self.config.learning_rate),)

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        assert batch.label is not None
        logits = self.classifier(batch.image * self.scale).float()
        right = (logits.argmax(1) == batch.label).float().mean()
        return F.cross_entropy(logits, batch.label.long()), {"right": right}

    @torch.no_grad()
    def class_errors(self, image: Float[Tensor, "c *s"], seed: int) -> Float[Tensor, " k"]:
        """-log p of each class."""
        self.eval()
        return -self.classifier((image * self.scale)[None]).float().log_softmax(1)[0]

    def classify_image(self, image: Float[Tensor, "c *s"]) -> ImageLabel:
        self.refuse_slices(image)
        return self.image_label(-self.class_errors(image, 0), self.config.decide, 1)

    def sampling(self, sampler: str | None, steps: int | None) -> tuple[str, int]:
        return self.config.map, 1

    def evaluations(self, sampler: str, steps: int) -> int:
        return 1 + (self.widths[self.layer - 1] if self.config.map == "scorecam" else 0)

    def saliency(
        self, x_0: Float[Tensor, "n c *s"], y: int, name: str, steps: int, noise: Callable[[], Tensor]
    ) -> Float[Tensor, "n *s"]:
        x = x_0[:1]  # nothing is random: all draws are one
        with torch.enable_grad():
            A = self.classifier.upto(x, self.layer).detach().requires_grad_()
            logits = self.classifier.onward(A, self.layer)
            others = [k for k in range(self.plan.classes) if k != y]
            g = torch.autograd.grad((logits[:, y] - logits[:, others].logsumexp(1)).sum(), A)[0]
        A = A.detach()
        weights = self.scores(x, A, y) if name == "scorecam" else WEIGHTS[name](A, g)
        cam = F.relu((weights * A).sum(1, keepdim=True))
        return self.enlarged(cam, x)[:, 0].expand(len(x_0), *x.shape[2:])

    def enlarged(self, h: Float[Tensor, "b w *h"], x: Float[Tensor, "n c *s"]) -> Float[Tensor, "b w *s"]:
        """Activations at the image's resolution, without the padding of the network."""
        padded = [n + -n % self.classifier.multiple for n in x.shape[2:]]
        return crop(F.interpolate(h, size=padded, mode=LINEAR[self.plan.dims], align_corners=False), x.shape[2:])

    def scores(self, x: Float[Tensor, "1 c *s"], A: Float[Tensor, "1 w *h"], y: int) -> Float[Tensor, "1 w *one"]:
        """p(y | image seen through each activation): outside it the image is as dark as its darkest pixel."""
        seen = self.enlarged(A, x)[0]
        low, high = (f(seen.flatten(1), 1).reshape(-1, *[1] * self.plan.dims) for f in (torch.amin, torch.amax))
        through = ((seen - low) / (high - low).clamp(min=1e-12))[:, None]
        dark = x.amin()
        parts = (dark + (x - dark) * part for part in through.split(TOGETHER))
        p = torch.cat([self.classifier(part).softmax(1)[:, y] for part in parts])
        return p.reshape(1, -1, *[1] * self.plan.dims)


def _plus_plus(A: Tensor, g: Tensor) -> Tensor:
    axes = tuple(range(2, A.ndim))
    below = 2 * g.square() + (g**3 * A).sum(axes, keepdim=True)
    alpha = g.square() / torch.where(below != 0, below, 1.0)
    return (alpha * F.relu(g)).sum(axes, keepdim=True)


WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": lambda A, g: g.mean(tuple(range(2, g.ndim)), keepdim=True),
    "gradcam++": _plus_plus,
    "layercam": lambda A, g: F.relu(g),
}
