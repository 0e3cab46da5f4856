"""What a method is: phases for the loop to train, and draws for whoever wants a segmentation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffuseg import scratch
from diffuseg.blocks import blocks
from diffuseg.data.plan import Plan
from diffuseg.diffusion.samplers import SAMPLERS, ModelOutput, check_sampling, timesteps
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.methods.tiles import OVERLAP, Features, Tiling
from diffuseg.timing import timed
from diffuseg.types import Batch

NOISE = 2**22  # values of noise that are made at a time, a multiple of 16
OnDenoised = Callable[[int, Tensor], None] | None
Loss = tuple[Tensor, dict[str, float | Tensor]]  # the scalar to minimise, and what to log


@dataclass(frozen=True)
class Phase:
    """One optimisation step of the loop: the submodules it trains, how often it runs, and its learning rate.

    twice  its loss holds gradients, which are differentiated once more
    """

    name: str
    modules: tuple[str, ...]
    learning_rate: float
    every: int = 1
    betas: tuple[float, float] = (0.9, 0.99)
    twice: bool = False


def setting(default: Any, low: int | float, high: int | float = inf) -> Any:
    """A number (or several) of a config that must lie in [low, high]."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class MethodConfig:
    """Settings that every method has. `widths` left out means the plan's."""

    aliases: ClassVar[dict[str, str]] = {}  # see config.py

    widths: tuple[int, ...] | None = setting(None, 1)
    blocks: int = setting(1, 1)
    learning_rate: float = setting(1e-3, 0)

    def __post_init__(self) -> None:
        for f in fields(self):
            if "range" not in f.metadata:
                continue
            value, (low, high) = getattr(self, f.name), f.metadata["range"]
            values = () if value is None else value if isinstance(value, tuple) else (value,)
            if value == () or not all(low <= number <= high for number in values):
                raise UserError(f"{f.name}={value}: expected {low:g} {'or more' if high == inf else f'to {high:g}'}")


@dataclass(frozen=True)
class MaskConfig(MethodConfig):
    """Settings that every method has that learns from masks."""

    encoder_blocks: int = setting(1, 1)


@dataclass(frozen=True)
class ImageLabel:
    """What an image as a whole shows.

    label        the class, 0 for none of them
    by           who decided it
    scores       class -> score, the highest wins
    evaluations  of the networks
    """

    label: int
    by: str
    scores: dict[str, float]
    evaluations: int


@dataclass(frozen=True)
class DrawOptions:
    """How draws are made, see `Method.draw`; the sampler and the number of steps are filled in."""

    sampler: str
    steps: int
    eta: float | None = None
    chunk: int = 8
    label: int | None = None
    on_denoised: OnDenoised = None
    inside: Bool[np.ndarray, "*s"] | None = None
    overlap: float = OVERLAP


Config = TypeVar("Config", bound=MethodConfig)


class Method(nn.Module, ABC, Generic[Config]):
    """A way to learn from batches, in phases, and to draw segmentations of whole images from it.

    supervision         what `loss` needs of a batch: "mask", or "image_label" alone; it also decides how it is validated
    models_images       whether it learns the distribution of images: what augmentation makes up would be learnt as well
    generative          whether draws differ from one another
    inference_settings  settings that concern drawing alone and may be changed after training
    disclaimer          what a user must know about its results; goes into their provenance
    not_exportable      why its networks cannot leave PyTorch, where they cannot
    """

    supervision: ClassVar[Literal["mask", "image_label"]] = "mask"
    models_images: ClassVar[bool] = False
    generative: ClassVar[bool] = True
    inference_settings: ClassVar[tuple[str, ...]] = ()
    disclaimer: ClassVar[str] = ""
    not_exportable: ClassVar[str] = ""
    config_class: ClassVar[type[MethodConfig]] = MethodConfig
    default_draws: ClassVar[int] = 8
    default_steps: int = 1
    default_sampler: str = "ancestral"
    schedule: NoiseSchedule
    config: Config

    def __init__(self, plan: Plan, config: Config) -> None:
        super().__init__()
        self.plan, self.config = plan, config
        self.widths: tuple[int, ...] = config.widths or plan.widths

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one training step, in order; one that trains `network` where a method says nothing else."""
        return (Phase("network", ("network",), self.config.learning_rate),)

    def check_training(self) -> None:
        """Refuse settings that a checkpoint of before may have, but that do not train what they name.

        Raises:
            UserError: these settings are not worth a training.
        """

    @abstractmethod
    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        """The scalar that `phase`, one of `phases`, minimises, and what to log.

        Args:
            batch: Images [b, c, *s] and one-hot masks [b, k, *s], or labels [b], by `supervision`.
            rng: Source of all randomness, on the CPU.
        """

    def draw(
        self,
        image: Float[Tensor, "c *s"],
        seeds: Sequence[int],
        steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        chunk: int = 8,
        label: int | None = None,
        on_denoised: OnDenoised = None,
        inside: Bool[np.ndarray, "*s"] | None = None,
        overlap: float = OVERLAP,
    ) -> Iterator[Float[Tensor, "k *s"]]:
        """One probability map per seed, in order, for a whole case on the plan's grid.

        Every draw has generators of its own, so it is the same alone or among others.

        Args:
            steps: denoising steps; None: the method's default.
            sampler: a name in SAMPLERS; of a method that learns from image-level labels the kind of map.
            eta: scale of the noise in each step (0: DDIM, 1: DDPM), for samplers that have it.
            chunk: draws that are made at a time.
            label: the class that the image shows, 0 for none; only for methods that learn from image-level labels.
            on_denoised: receives (t, x0_hat [n, k, *s] in [-1, 1]) of the draws made together at each timestep, and must copy
                what it keeps; a method without states calls it once, at t = 0.
            inside: of a picture what is looked at: tiles without a pixel of it are background; None is all; only for methods
                that learn from masks.
            overlap: of neighbouring tiles, as a share of the patch, in [0, 1); only for methods that learn from masks.

        Raises:
            UserError: an unknown sampler, or steps that the method does not have.
        """
        self.eval()
        name, count = self.sampling(sampler, steps)
        return self._draws(image, seeds, DrawOptions(name, count, eta, chunk, label, on_denoised, inside, overlap))

    @abstractmethod
    def _draws(self, image: Tensor, seeds: Sequence[int], options: DrawOptions) -> Iterator[Tensor]:
        """What `draw` yields."""

    def sampling(self, sampler: str | None, steps: int | None) -> tuple[str, int]:
        """Sampler and number of steps of a draw, defaults filled in.

        Raises:
            UserError: The method does not have them.
        """
        if not self.generative:
            if sampler not in (None, self.default_sampler):
                raise UserError(f"sampler {sampler!r}: this method is deterministic and has none", do="Leave it out")
            if steps not in (None, 1):
                raise UserError(f"steps {steps}: this method is deterministic, it has one", do="Leave it out")
            return self.default_sampler, 1
        if self.schedule.T == 1 and sampler not in (None, self.default_sampler) and sampler in SAMPLERS:
            what = f"sampler {sampler!r}: this method draws in one step, whatever the sampler"
            raise UserError(what, do="Leave it out")
        name, n = sampler or self.default_sampler, self.default_steps if steps is None else steps
        check_sampling(self.schedule, n, name)
        return name, n

    def evaluations(self, sampler: str, steps: int) -> int:
        """Evaluations of the network that a draw of one tile costs."""
        return steps

    def classify_image(self, image: Float[Tensor, "c *s"]) -> ImageLabel | None:
        """What the image as a whole shows, where a method decides that first; None where it does not."""
        return None

    def finalize_draw(
        self, draw: Float[Tensor, "k *s"], image: Tensor, sampler: str | None = None, steps: int | None = None
    ) -> Float[Tensor, "k *s"]:
        """Probabilities from one draw of an image, or the mean of several: itself, unless draws are saliency maps."""
        return draw


class MaskMethod(Method[Config]):
    """A method that learns from masks: the image is encoded once, then x_t is denoised over whole cases of any size.

    Subclasses say how to denoise one tile; drawing, tiling and per-draw randomness are the same for all.
    """

    config_class: ClassVar[type[MethodConfig]] = MaskConfig

    @abstractmethod
    def encode(self, image: Float[Tensor, "b c *s"]) -> Features:
        """What is computed once per image, however many draws and steps follow: a tensor [b, ...], or a tuple of them."""

    @abstractmethod
    def denoise(self, x_t: Float[Tensor, "b k *s"] | None, t: int, features: Any, z: Tensor | None) -> Float[Tensor, "b k *s"]:
        """x0_hat in [-1, 1] from the noisy mask at timestep t; x_t is None of a method that is not generative.

        `features` are what `encode` made, those of one image for the whole batch, and `z` is what `latent` made.
        """

    def predict_x0(self, x_t: Tensor | None, t: int, features: Features, z: Tensor | None) -> ModelOutput:
        """`denoise`, and v from a method that has learnt a variance."""
        return ModelOutput(self.denoise(x_t, t, features, z))

    def latent(self, generators: Sequence[torch.Generator]) -> Tensor | None:
        """A fresh latent per draw, [n, nz], where the method has one."""
        return None

    def state(self, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> Tensor:
        """The state that the network is shown at timestep t; controls that hide x_t from it say so here."""
        return x_t

    @torch.no_grad()
    def _draws(self, image: Tensor, seeds: Sequence[int], options: DrawOptions) -> Iterator[Tensor]:
        """The state x_t covers the whole image, and tiles only divide the work of one denoising step.

        So neighbouring tiles share their noise.
        """
        again = self.generative and (options.steps > 1 or len(seeds) > options.chunk)
        tiling = Tiling(image, self.plan, self.encode, again, options.inside, options.overlap)
        if not self.generative:
            x_0 = tiling.crop(tiling.denoise(self.predict_x0, None, 0, None, 1).x_0)
            if options.on_denoised is not None:
                options.on_denoised(0, x_0)
            yield from tiling.hide(_to_probability(x_0), 1.0, 0.0).expand(len(seeds), *x_0.shape[1:])
            return
        for start in range(0, len(seeds), options.chunk):
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + options.chunk]]
            yield from tiling.hide(_to_probability(tiling.crop(self._sample(tiling, generators, options))), 1.0, 0.0)

    @timed("sample")
    def _sample(self, tiling: Tiling, generators: Sequence[torch.Generator], options: DrawOptions) -> Tensor:
        """x_0 [n, k, *shape] of draws that are made together."""
        device, shape = tiling.image.device, (self.plan.classes, *tiling.shape)

        def noise() -> Tensor:
            return noise_of(generators, shape).to(device)

        def denoiser(x_t: Tensor, t: int) -> ModelOutput:
            z, x_t = self.latent(generators), self.state(x_t, t, noise)
            output = tiling.denoise(self.predict_x0, x_t, t, None if z is None else z.to(device), len(generators))
            if options.on_denoised is not None:
                options.on_denoised(t, tiling.crop(output.x_0))
            return output

        grid, sampler = timesteps(self.schedule.T, options.steps), SAMPLERS[options.sampler]
        if options.eta is None:  # written out: keywords by ** would hold the first state until the end
            return sampler(denoiser, noise(), grid, self.schedule, noise)
        return sampler(denoiser, noise(), grid, self.schedule, noise, options.eta)


def noise_of(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Float[Tensor, "n *s"]:
    """Noise of this shape for each draw, from the draw's own generator."""
    found = scratch.tensor((len(generators), *shape))
    for one, generator in zip(found.flatten(1), generators, strict=True):
        for start, stop in _pieces(len(one)):
            torch.randn(stop - start, generator=generator, out=one[start:stop])
            scratch.release()
    return found


def _pieces(n: int) -> Iterator[tuple[int, int]]:
    """Parts of n values; PyTorch makes sixteen at a time, and the last sixteen anew, so each part gets what the whole would."""
    start = 0
    while n - start >= 2 * NOISE:
        yield start, start + NOISE
        start += NOISE
    yield start, n


def x_to_probability(x_0: Float[Tensor, "n k *s"]) -> Float[Tensor, "n k *s"]:
    """Class probabilities from one-hot values in [-1, 1]: to [0, 1], then normalised over the classes."""
    return _to_probability(x_0.float().clone())


def _to_probability(x_0: Float[Tensor, "n k *s"]) -> Float[Tensor, "n k *s"]:
    """The same in the place of x_0."""
    for part in blocks(x_0.shape[2:]):
        p = x_0[:, :, part]
        p.add_(1).div_(2).clamp_(1e-6, 1)
        p /= p.sum(1, keepdim=True)
    return x_0


def mask_to_x(mask: Float[Tensor, "b k *s"]) -> Float[Tensor, "b k *s"]:
    """One-hot {0, 1} to the data range {-1, 1} of the diffusion."""
    return 2 * mask - 1
