"""What methods that learn from image-level labels share: the label of an image, saliency maps, and masks made of them."""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.config import current_name, from_dict
from diffuseg.errors import UserError
from diffuseg.methods.base import DrawOptions, ImageLabel, Method, MethodConfig, noise_of
from diffuseg.methods.weak.binarize import Binarization, logistic_mask, normalized_saliency, smoothed

# Intensities of the plan -> about [-1, 1]: what "unit" has already, and z-scores within 3 deviations.
SCALE = {"unit": 1.0, "zscore": 1 / 3, "ct": 1 / 3}
BINARIZATION_SETTINGS = {f.name for f in fields(Binarization)} - {"smooth"} | {"decide"}  # they do not change a map
FIXED_DRAWS = 2  # draws of the maps that decide what an image shows, or that a calibration is made of; always the same


@dataclass(frozen=True)
class WeakConfig(Binarization, MethodConfig):
    """How a map becomes a mask, besides what every method has."""

    aliases: ClassVar = {"threshold=negatives": "threshold=null_quantile"}


Settings = TypeVar("Settings", bound=WeakConfig)


@dataclass(frozen=True)
class SaliencyCalibration:
    """What maps say of training images whose labels are known: no mask is read. See inference/saliency_calibration.py.

    settings             of these maps; it says nothing of maps with others
    null_threshold       class -> the value that most voxels of images without any class are below
    detection_threshold  class -> the largest normalized saliency from which on an image is taken to show the class
    images               how many were looked at
    """

    aliases: ClassVar = {"how": "settings", "border": "null_threshold", "peak": "detection_threshold"}

    settings: dict[str, Any]
    null_threshold: dict[str, float]
    detection_threshold: dict[str, float]
    images: int

    @classmethod
    def read(cls, entry: dict[str, Any], config_class: type) -> "SaliencyCalibration":
        """From a checkpoint's header, with present or former names; one made with an option that is gone fits no maps."""
        stored = from_dict(cls, entry, "references.")
        settings = dict(item for pair in stored.settings.items() if (item := current_name(config_class, *pair)) is not None)
        return cls(settings, stored.null_threshold, stored.detection_threshold, stored.images)


def own_settings(config: type[MethodConfig]) -> tuple[str, ...]:
    """The settings that this class adds to those of every method: its method may change them after training."""
    common = {f.name for f in fields(MethodConfig)}
    return tuple(f.name for f in fields(config) if f.name not in common)


class WeakMethod(Method[Settings]):
    """A method without masks. Subclasses say what an image shows (`classify_image`), and where (`saliency`).

    A draw is a normalized saliency map: one half where the class makes no difference. `finalize_draw` makes a mask of the mean
    of the draws. `calibration`, where there is one, gives all images one threshold, as long as maps are made with the same
    settings.
    """

    supervision: ClassVar[Literal["mask", "image_label"]] = "image_label"
    disclaimer = "probabilities are a logistic function of a map, one half at its threshold: they are not calibrated"
    scale: Tensor
    calibration: SaliencyCalibration | None = None

    def register_scale(self) -> None:
        """Remember what brings the plan's intensities to about [-1, 1], per channel; not part of the weights."""
        plan = self.plan
        scale = [SCALE[how] for how in plan.normalisation for _ in range(2 * plan.context + 1)]
        self.register_buffer("scale", torch.tensor(scale).reshape(-1, *[1] * plan.dims), persistent=False)

    @abstractmethod
    def class_errors(self, image: Float[Tensor, "c *s"], seed: int) -> Float[Tensor, " k"]:
        """How badly each class fits an image that was not trained on, lower is better; noise comes from the seed alone.

        Args:
            image: On the plan's grid.
            seed: Of the noise.
        """

    @abstractmethod
    def classify_image(self, image: Float[Tensor, "c *s"]) -> ImageLabel:
        """What the image as a whole shows, a function of the image alone."""

    @abstractmethod
    def saliency(
        self, x_0: Float[Tensor, "n c *s"], y: int, name: str, steps: int, noise: Callable[[], Tensor]
    ) -> Float[Tensor, "n *s"]:
        """Raw maps of n draws of one image for a class: higher where it is.

        Args:
            x_0: The image times `scale`, once per draw.
            y: Index of the class.
            name: Kind of map.
            steps: Of a draw.
            noise: Makes noise like x_0.
        """

    def _draws(self, image: Tensor, seeds: Sequence[int], options: DrawOptions) -> Iterator[Tensor]:
        """The whole image is seen at once and nothing is random but the seeds' noise; without a label the method decides."""
        self.refuse_slices(image)
        name, steps = options.sampler, options.steps
        y = self.classify_image(image).label if options.label is None else options.label
        null_threshold = self.null_threshold(y, name, steps)
        maps = self.maps(image, seeds, y, name, steps, options.chunk) if y else None
        for _ in seeds:
            p = torch.zeros(self.plan.classes, *image.shape[1:], device=image.device)
            if maps is not None:
                p[y] = normalized_saliency(next(maps), null_threshold)
            p[0] = 1 - p[1:].sum(0)
            yield p

    def maps(
        self, image: Float[Tensor, "c *s"], seeds: Sequence[int], y: int, name: str, steps: int, chunk: int = 8
    ) -> Iterator[Float[Tensor, "*s"]]:
        """The raw maps of class y, one per seed; without autocast: differences in bf16 would be rounding errors.

        Args:
            image: On the plan's grid.
            seeds: One per map.
            y: Index of the class.
            name: Kind of map.
            steps: Of a draw.
            chunk: Maps that are made at a time.
        """
        x_0 = (image * self.scale)[None]
        for start in range(0, len(seeds), chunk):
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + chunk]]
            n = len(generators)

            def noise(generators: list[torch.Generator] = generators) -> Tensor:
                return noise_of(generators, image.shape).to(image.device)

            with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
                maps = self.saliency(x_0.expand(n, *image.shape), y, name, steps, noise)
            yield from maps

    def mean_map(self, image: Float[Tensor, "c *s"], y: int, name: str, steps: int) -> Float[Tensor, "*s"]:
        """The raw map of class y, a function of the image alone: noise comes from fixed seeds.

        Args:
            image: On the plan's grid.
            y: Index of the class.
            name: Kind of map.
            steps: Of a draw.
        """
        self.eval()
        self.refuse_slices(image)
        return torch.stack(list(self.maps(image, range(FIXED_DRAWS), y, name, steps))).mean(0)

    def map_settings(self, name: str, steps: int) -> dict[str, Any]:
        """All that decides a map besides image and noise, as JSON has it."""
        free = {key: getattr(self.config, key) for key in self.inference_settings if key not in BINARIZATION_SETTINGS}
        return json.loads(json.dumps(free | {"map": name, "steps": steps}))

    def null_threshold(self, y: int, name: str, steps: int) -> float | None:
        """The threshold of maps of class y: where they end in images without it. None if it is not known for maps of these
        settings.
        """
        if self.calibration is None or self.calibration.settings != self.map_settings(name, steps):
            return None
        return self.calibration.null_threshold.get(self.plan.names[y])

    def largest_saliency(self, m: Float[Tensor, "*s"], null_threshold: float) -> float:
        """The largest normalized saliency of a map, smoothed as before a cut: in (-1, 1), about one half at the threshold."""
        return float(smoothed(normalized_saliency(m, null_threshold), self.config.smooth).max())

    def classify_by_map(self, image: Float[Tensor, "c *s"]) -> ImageLabel | None:
        """The class whose map stands out most, if any does more than in most images without it; None without a calibration."""
        name, steps = self.sampling(None, None)
        scores = {self.plan.names[0]: 0.0}
        for y, shown in list(enumerate(self.plan.names))[1:]:
            null_threshold = self.null_threshold(y, name, steps)
            if null_threshold is None or self.calibration is None:
                return None
            largest = self.largest_saliency(self.mean_map(image, y, name, steps), null_threshold)
            scores[shown] = math.log(max(largest, 1e-6) / self.calibration.detection_threshold[shown])
        label = max(range(self.plan.classes), key=lambda y: scores[self.plan.names[y]])
        return ImageLabel(label, "map", scores, FIXED_DRAWS * self.evaluations(name, steps) * (self.plan.classes - 1))

    def image_label(self, scores: Float[Tensor, " k"], by: str, evaluations: int) -> ImageLabel:
        """The class with the highest score; with "present" the highest but for none of them.

        Args:
            scores: Of the classes, [k]; the highest wins.
            by: What made them.
            evaluations: Of the networks.
        """
        label = 1 + int(scores[1:].argmax()) if by == "present" else int(scores.argmax())
        return ImageLabel(label, by, dict(zip(self.plan.names, scores.tolist(), strict=True)), evaluations)

    def finalize_draw(
        self, draw: Float[Tensor, "k *s"], image: Tensor, sampler: str | None = None, steps: int | None = None
    ) -> Float[Tensor, "k *s"]:
        """From normalized saliency to what is like a probability, one half at the threshold: see `logistic_mask`."""
        y = 1 + int(draw[1:].flatten(1).amax(1).argmax())
        result = torch.zeros_like(draw)
        if draw[y].any():
            calibrated = self.null_threshold(y, *self.sampling(sampler, steps)) is not None
            result[y] = logistic_mask(draw[y], self.config, image, calibrated)
        result[0] = 1 - result[y]
        return result

    def refuse_slices(self, image: Tensor) -> None:
        """Check that an image is a picture where the method learnt what whole pictures show.

        Raises:
            UserError: It is a volume.
        """
        if image.ndim != 1 + self.plan.dims:
            raise UserError("a volume, but the model learnt what whole pictures show", do="Give its slices as pictures")
