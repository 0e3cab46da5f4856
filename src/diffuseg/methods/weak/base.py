"""What methods that learn from image-level labels share: a verdict on the image, maps as evidence, and the cut to a mask."""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.errors import UserError
from diffuseg.methods.base import ImageLabel, Method, MethodConfig, noise_of
from diffuseg.methods.weak.binarize import Cut, cut, evidence, softened
from diffuseg.methods.weak.sensitivity import OnStep

# Intensities of the plan -> about [-1, 1]: what "unit" has already, and z-scores within 3 deviations.
SCALE = {"unit": 1.0, "zscore": 1 / 3, "ct": 1 / 3}
AFTERWARDS = {f.name for f in fields(Cut)} - {"smooth"} | {"decide"}  # settings that do not change a map
NOISES = 2  # draws of the maps that decide what an image shows, or that a reference is made of; always the same


@dataclass(frozen=True)
class WeakConfig(Cut, MethodConfig):
    """How a map becomes a mask, besides what every method has."""

    ranges: ClassVar = MethodConfig.ranges | {"smooth": (0, 100), "quantile": (0, 1), "fixed": (0, 1)}


@dataclass(frozen=True)
class Reference:
    """What maps say of training images whose labels are known: no mask is read. See inference/reference.py.

    how      settings of these maps; with others they say nothing
    border   class -> the value that most voxels of images without any class are below, see `saliency.evidence`
    peak     class -> the largest evidence from which on an image is taken to show the class
    images   how many were looked at
    """

    how: dict[str, Any]
    border: dict[str, float]
    peak: dict[str, float]
    images: int


def free_settings(config: type[MethodConfig]) -> tuple[str, ...]:
    """The settings that this class adds to those of every method: its method may change them after training."""
    always = {f.name for f in fields(MethodConfig)}
    return tuple(f.name for f in fields(config) if f.name not in always)


class WeakMethod(Method):
    """A method without masks. Subclasses say what an image shows (`judge`), and where (`saliency`).

    A draw is evidence: one half where the class makes no difference. `conclude` cuts the mean of the draws. `reference`, where
    there is one, gives all images one border and one peak, as long as maps are made with the same settings.
    """

    supervision: ClassVar[Literal["mask", "image_label"]] = "image_label"
    disclaimer = "probabilities are a logistic function of a map, one half at its threshold: they are not calibrated"
    scale: Tensor
    reference: Reference | None = None

    def keep_scale(self) -> None:
        """Remember what brings the plan's intensities to about [-1, 1], per channel; not part of the weights."""
        plan = self.plan
        scale = [SCALE[how] for how in plan.normalisation for _ in range(2 * plan.context + 1)]
        self.register_buffer("scale", torch.tensor(scale).reshape(-1, *[1] * plan.dims), persistent=False)

    @abstractmethod
    def class_errors(self, image: Float[Tensor, "c *s"], seed: int) -> Float[Tensor, " k"]:
        """How badly each class fits an image that was not trained on, lower is better; noise comes from the seed alone."""

    @abstractmethod
    def classify_image(self, image: Float[Tensor, "c *s"]) -> ImageLabel:
        """What the image as a whole shows, a function of the image alone."""

    @abstractmethod
    def saliency(
        self, x_0: Float[Tensor, "n c *s"], y: int, name: str, steps: int, noise: Callable[[], Tensor], on_step: OnStep = None
    ) -> Float[Tensor, "n *s"]:
        """Raw maps of n draws of one scaled image for class y: higher where it is; `noise` makes noise like x_0."""

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
        label: int | None = None,
    ) -> Iterator[Float[Tensor, "k *s"]]:
        """Evidence for the class that the image shows, see `saliency.evidence`; `conclude` makes a mask of their mean.

        `label` is that class, 0 for none of them; None: the method decides. The whole image is seen at once and nothing is
        random but the seeds' noise: `overlap` and `eta` change nothing. Refuses volumes where it learnt from pictures.
        """
        self.eval()
        self.refuse_slices(image)
        name, steps = self.sampling(sampler, steps)
        y = self.classify_image(image).label if label is None else label
        maps, border = None, self.border(y, name, steps)
        if y:
            maps = self.maps(image, seeds, y, name, steps, chunk, on_step)
        for _ in seeds:
            p = torch.zeros(self.plan.classes, *image.shape[1:], device=image.device)
            if maps is not None:
                p[y] = evidence(next(maps), border)
            p[0] = 1 - p[1:].sum(0)
            yield p

    def maps(
        self, image: Float[Tensor, "c *s"], seeds: Sequence[int], y: int, name: str, steps: int, chunk: int = 8,
        on_step: OnStep = None,
    ) -> Iterator[Float[Tensor, "*s"]]:  # fmt: skip
        """The raw maps of class y, one per seed; without autocast: differences in bf16 would be rounding errors."""
        x_0 = (image * self.scale)[None]
        for start in range(0, len(seeds), chunk):
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + chunk]]
            n = len(generators)

            def noise(generators: list[torch.Generator] = generators) -> Tensor:
                return noise_of(generators, image.shape).to(image.device)

            with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
                found = self.saliency(x_0.expand(n, *image.shape), y, name, steps, noise, on_step)
            yield from found

    def mean_map(self, image: Float[Tensor, "c *s"], y: int, name: str, steps: int) -> Float[Tensor, "*s"]:
        """The raw map of class y, a function of the image alone: noise comes from fixed seeds. Refuses what `draw` refuses."""
        self.eval()
        self.refuse_slices(image)
        return torch.stack(list(self.maps(image, range(NOISES), y, name, steps))).mean(0)

    def how(self, name: str, steps: int) -> dict[str, Any]:
        """All that decides a map besides image and noise, as JSON has it."""
        free = {field: getattr(self.config, field) for field in self.inference_settings if field not in AFTERWARDS}
        return json.loads(json.dumps(free | {"map": name, "steps": steps}))

    def border(self, y: int, name: str, steps: int) -> float | None:
        """Where maps of class y end in images without it; None if that is not known for maps that are made like this."""
        if self.reference is None or self.reference.how != self.how(name, steps):
            return None
        return self.reference.border.get(self.plan.names[y])

    def peak(self, m: Float[Tensor, "*s"], border: float) -> float:
        """The largest evidence of a map, smoothed as before a cut: in (-1, 1), about one half at the border."""
        return float(softened(evidence(m, border), self.config.smooth).max())

    def classify_by_map(self, image: Float[Tensor, "c *s"]) -> ImageLabel | None:
        """The class whose map stands out most, if any does more than in most images without it; None without a reference."""
        name, steps = self.sampling(None, None)
        scores = {self.plan.names[0]: 0.0}
        for y, shown in list(enumerate(self.plan.names))[1:]:
            border = self.border(y, name, steps)
            if border is None or self.reference is None:
                return None
            peak = self.peak(self.mean_map(image, y, name, steps), border)
            scores[shown] = math.log(max(peak, 1e-6) / self.reference.peak[shown])
        label = max(range(self.plan.classes), key=lambda y: scores[self.plan.names[y]])
        return ImageLabel(label, "map", scores, NOISES * self.evaluations(name, steps) * (self.plan.classes - 1))

    def finalize_draw(
        self,
        evidence: Float[Tensor, "k *s"],
        image: Float[Tensor, "c *s"],
        sampler: str | None = None,
        steps: int | None = None,
    ) -> Float[Tensor, "k *s"]:
        """From evidence of this sampler to what is like a probability, one half at the threshold: see `saliency.cut`."""
        y = 1 + int(evidence[1:].flatten(1).amax(1).argmax())
        result = torch.zeros_like(evidence)
        if evidence[y].any():
            bordered = self.border(y, *self.sampling(sampler, steps)) is not None
            result[y] = cut(evidence[y], self.config, image, bordered)
        result[0] = 1 - result[y]
        return result

    def refuse_slices(self, image: Tensor) -> None:
        """Refuse a volume where the method learnt what whole pictures show."""
        if image.ndim != 1 + self.plan.dims:
            raise UserError("a volume, but the model learnt what whole pictures show", do="Give its slices as pictures")
