"""What a method is: phases for the loop to train, and draws for whoever wants a segmentation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.data.plan import Plan
from diffuseg.diffusion.samplers import SAMPLERS, Belief, believed, check_sampling, timesteps
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.errors import UserError
from diffuseg.methods.tiles import Features, Tiling
from diffuseg.types import Batch


@dataclass(frozen=True)
class Phase:
    """One optimisation step of the loop: the submodules it trains, how often it runs, and its learning rate."""

    name: str
    modules: tuple[str, ...]
    learning_rate: float
    every: int = 1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class MethodConfig:
    """Settings that every method has. `widths` left out means the plan's. Refuses numbers outside `ranges`."""

    ranges: ClassVar[dict[str, tuple[float, float]]] = {"widths": (1, inf), "blocks": (1, inf), "learning_rate": (0, inf)}

    widths: tuple[int, ...] | None = None
    blocks: int = 1
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            value = getattr(self, name)
            values = () if value is None else value if isinstance(value, tuple) else (value,)
            if value == () or not all(low <= number <= high for number in values):
                raise UserError(f"{name}={value}: expected {low:g} {'or more' if high == inf else f'to {high:g}'}")


@dataclass(frozen=True)
class MaskConfig(MethodConfig):
    """Settings that every method has that learns from masks."""

    ranges: ClassVar = MethodConfig.ranges | {"encoder_blocks": (1, inf)}

    encoder_blocks: int = 1


@dataclass(frozen=True)
class ImageLabel:
    """What an image as a whole shows: the class (0: none of them), who says so, and each class's score, the highest winning."""

    label: int
    by: str
    scores: dict[str, float]
    evaluations: int


class Method(nn.Module, ABC):
    """A way to learn from batches, in phases, and to draw segmentations of whole images from it.

    supervision  what `loss` needs of a batch: "mask", or "image_label" alone; it also decides how a training is validated
    images       whether it is the images whose distribution is learnt: what augmentation makes up would be learnt as well
    generative   whether draws differ from one another
    drawing      settings that concern drawing alone and may be changed after training
    note         what a user must know about its results; goes into their provenance
    """

    supervision: ClassVar[Literal["mask", "image_label"]] = "mask"
    models_images: ClassVar[bool] = False
    generative: ClassVar[bool] = True
    inference_settings: ClassVar[tuple[str, ...]] = ()
    disclaimer: ClassVar[str] = ""
    config_class: ClassVar[type[MethodConfig]] = MethodConfig
    default_steps: int = 1
    default_sampler: str = "ancestral"
    schedule: NoiseSchedule

    def __init__(self, plan: Plan, config: Any) -> None:
        super().__init__()
        self.plan, self.config = plan, config
        self.widths: tuple[int, ...] = config.widths or plan.widths

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one training step, in order."""

    @abstractmethod
    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float | Tensor]]:
        """The scalar that a phase minimises, and what to log; all randomness comes from `rng`."""

    @abstractmethod
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
        """One probability map per seed, in order, for a whole case on the plan's grid.

        Every draw has generators of its own, so it is the same alone or among others; `chunk` of them are made at a time.
        `on_step(t, x_t)` is told each state. Refuses unknown samplers and step counts.
        """

    def sampling(self, sampler: str | None, steps: int | None) -> tuple[str, int]:
        """Sampler and number of steps of a draw, defaults filled in. Refuses what the method cannot do."""
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
        self,
        evidence: Float[Tensor, "k *s"],
        image: Float[Tensor, "c *s"],
        sampler: str | None = None,
        steps: int | None = None,
    ) -> Float[Tensor, "k *s"]:
        """Probabilities from what one draw of an image says, or the mean of several: itself, unless draws are raw evidence."""
        return evidence


class MaskMethod(Method):
    """A method that learns from masks: the image is encoded once, then x_t is denoised over whole cases of any size.

    Subclasses say how to denoise one tile; drawing, tiling and per-draw randomness are the same for all.
    """

    config_class: ClassVar[type[MethodConfig]] = MaskConfig

    @abstractmethod
    def encode(self, image: Float[Tensor, "b c *s"]) -> Features:
        """What is computed once per image, however many draws and steps follow: a tensor [b, ...], or a tuple of them."""

    @abstractmethod
    def denoise(
        self, x_t: Float[Tensor, "b k *s"] | None, t: int, features: Features, z: Tensor | None
    ) -> Float[Tensor, "b k *s"]:
        """x0_hat in [-1, 1] from the noisy mask at level t; features of one image serve the whole batch."""

    def belief(self, x_t: Tensor, t: int, features: Features, z: Tensor | None) -> tuple[Tensor, ...]:
        """What samplers that draw noise are told: x0_hat and, from a method that has learnt it, v in [0, 1] of its variance.

        v is that of `NoiseSchedule.widening`, one value for each of x_t. All other samplers are told x0_hat alone.
        """
        return (self.denoise(x_t, t, features, z),)

    def latent(self, generators: Sequence[torch.Generator]) -> Tensor | None:
        """A fresh latent per draw, [n, nz], where the method has one."""
        return None

    def state(self, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> Tensor:
        """The state that the network is shown at level t; controls that hide x_t from it say so here."""
        return x_t

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
        on_denoised: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[Float[Tensor, "k *s"]]:
        """As every method's: here the state x_t covers the whole image, and tiles only divide the work of one denoising step.

        So neighbouring tiles share their noise. `on_denoised(t, x0_hat)` is told what the network makes of the states at
        level t: [n, k, *s] of the draws made together, in [-1, 1]; a method without states tells its only answer, at level 0.
        """
        self.eval()
        tiling = Tiling(image, self.plan, self.encode, overlap)
        if not self.generative:
            x_0 = tiling.crop(tiling.denoise(self.denoise, None, 0, None, 1))
            if on_denoised is not None:
                on_denoised(0, x_0)
            probability = to_probability(x_0)[0]
            for _ in seeds:
                yield probability
            return
        name, steps = self.sampling(sampler, steps)
        grid = timesteps(self.schedule.T, steps)
        for start in range(0, len(seeds), chunk):
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + chunk]]
            n, shape = len(generators), (self.plan.classes, *tiling.shape)

            def noise(generators: list[torch.Generator] = generators, shape: tuple[int, ...] = shape) -> Tensor:
                return noise_of(generators, shape).to(image.device)

            def denoiser(
                x_t: Tensor, t: int, generators: list[torch.Generator] = generators, n: int = n, noise: Callable = noise
            ) -> Belief:
                z, x_t = self.latent(generators), self.state(x_t, t, noise)
                z = None if z is None else z.to(image.device)
                if SAMPLERS[name].stochastic:
                    told = tiling.blend(self.belief, x_t, t, z, n)
                else:
                    told = tiling.denoise(self.denoise, x_t, t, z, n)
                if on_denoised is not None:
                    on_denoised(t, tiling.crop(believed(told)[0]))
                return told

            options = {} if eta is None else {"eta": eta}
            x_0 = SAMPLERS[name].function(denoiser, noise(), grid, self.schedule, noise, on_step=on_step, **options)
            yield from to_probability(tiling.crop(x_0))


def noise_of(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Float[Tensor, "n *s"]:
    """Noise of this shape for each draw, from the draw's own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def to_probability(x_0: Float[Tensor, "n k *s"]) -> Float[Tensor, "n k *s"]:
    """Class probabilities from one-hot values in [-1, 1]: to [0, 1], then normalised over the classes."""
    p = ((x_0.float() + 1) / 2).clamp(1e-6, 1)
    return p / p.sum(1, keepdim=True)


def mask_to_x(mask: Float[Tensor, "b k *s"]) -> Float[Tensor, "b k *s"]:
    """One-hot {0, 1} to the data range {-1, 1} of the diffusion."""
    return 2 * mask - 1


def sample_timesteps(b: int, T: int, hardest: float, rng: torch.Generator) -> Tensor:
    """Levels t in 1..T of a batch: uniform, except that a share `hardest` of the elements is set to T."""
    t = torch.randint(1, T + 1, (b,), generator=rng)
    return torch.where(torch.rand(b, generator=rng) < hardest, T, t)


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Noise of x's shape from a CPU generator, so that every device trains on the same numbers."""
    return torch.randn(x.shape, generator=rng).to(x)


def recycled(
    x_t: Float[Tensor, "b k *s"],
    t: Tensor,
    noise: Float[Tensor, "b k *s"],
    schedule: NoiseSchedule,
    share: float,
    answer: Callable[[Tensor, Tensor], Belief],
    rng: torch.Generator,
) -> Float[Tensor, "b k *s"]:
    """In a `share` of batches x_t below level T comes from the model's own prediction (recycling; Fu et al. 2023).

    Sampling reaches t < T from pure noise through the model's own x0_hat, never from the true mask: one jump of the sampler
    from `answer(x_T, T)`, without gradient. Elements at level T stay as they are.
    """
    T = schedule.T
    if not (share and torch.rand((), generator=rng) < share and bool((t < T).any())):
        return x_t
    with torch.no_grad():
        x_T, levels = randn_like(x_t, rng), torch.full_like(t, T)
        x_0, v = believed(answer(x_T, levels))
        own = schedule.posterior(x_0, x_T, levels, t.clamp(max=T - 1), 1.0, noise, v)
    return torch.where((t < T).reshape(-1, *[1] * (x_t.ndim - 1)), own, x_t)
