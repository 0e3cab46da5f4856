"""From an image to its draws: the one loop behind predictions, validation, studies and benchmarks.

image -> the method's grid -> a digest of its content -> one seed per draw -> draws, in chunks -> native voxels. The seed of
draw i is a function of the seed that was asked for, of the digest and of i alone: whoever draws from an image with the same
options gets the draws that `Model.predict` makes.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks, copy
from diffuseg.checkpoint import load_weights
from diffuseg.config import checked
from diffuseg.data.batches import FullCase
from diffuseg.data.names import tells_sides
from diffuseg.data.plan import Plan
from diffuseg.data.region import box_of, cut, tissue_on_grid
from diffuseg.data.slides import Slide
from diffuseg.data.transforms import GridTransform, content_digest, to_grid, to_native
from diffuseg.device import Precision
from diffuseg.errors import UserError
from diffuseg.inference.ensemble import Ensemble
from diffuseg.methods import Method
from diffuseg.methods.base import ImageLabel
from diffuseg.types import Image

STATE_BYTES = 2**33  # of the noisy masks that are denoised together, in files; a sampler holds a few such tensors
GPU_BYTES = 2**27  # the same in the memory of a GPU
CPU = torch.device("cpu")
CHUNK = 8  # draws that are made together, at most
SCALE = ("magnification", "mpp")  # options that say at which size of a pixel a whole slide is read
OnDenoised = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class SamplingOptions:
    """How an image is drawn from; `Model.settings` fills in what is None.

    Attributes:
        draws: Number of draws; None: what is recommended for the model, else the method's own.
        steps: Denoising steps of a draw; None: recommended, else the method's own.
        sampler: Name of the sampler, of CDM the kind of map; None: recommended, else the method's own.
        seed: Same seed, same draws.
        fuse: How the draws make one mask: "mean", "vote", "dice" or "staple".
        label: The class that the image is known to show, for methods that learn from image-level labels.
        keep_draws: Keep the mask of each draw, one byte per voxel.
        keep_steps: Keep the steps of the first draw, one byte per voxel.
        spread: Keep what tells apart the kinds of uncertainty: expected entropy, mutual information and variance. Without them
            there is the entropy alone, and less memory is needed.
        postprocess: Clean the mask by the rules that `diffuseg postprocess` has learnt about the model, if it has.
        region: Segment a part of the image alone: "10:60,0:48,5:30", voxels of the axes of its file, or the path of a mask on
            its grid, of which the box round the foreground is taken with half a patch round it. Outside all is background.
        mirror: Draw as often again from the image mirrored along each axis, and each pair of axes, that the plan's flips allow.
        magnification: At which a whole slide is read, such as 20; None: as `mpp`, else as the plan's spacing has it.
        mpp: The same in micrometres per pixel.
        all_tiles: Segment the glass of a whole slide too, which else is background.
        overlap: Of neighbouring tiles at least, as a share of the patch, in [0, 0.9]; None: `diffuseg.methods.tiles.OVERLAP`.
        anyway: Segment an image that is far outside of the training too, without the model's calibration.
    """

    draws: int | None = None
    steps: int | None = None
    sampler: str | None = None
    seed: int = 0
    fuse: str = "mean"
    label: str | None = None
    keep_draws: bool = False
    keep_steps: bool = False
    mirror: bool = False
    spread: bool = True
    postprocess: bool = True
    region: str | None = None
    magnification: int | float | None = None
    mpp: int | float | None = None
    all_tiles: bool = False
    overlap: int | float | None = None
    anyway: bool = False

    @property
    def scale(self) -> dict[str, int | float | None]:
        """At which size of a pixel a whole slide is read, by the names of SCALE."""
        return {name: getattr(self, name) for name in SCALE}


def options_of(given: object, changes: dict[str, Any]) -> SamplingOptions:
    """The options that were asked for in Python.

    Args:
        given: `SamplingOptions`, a number of draws, or None.
        changes: Fields of these, in place of its own.

    Raises:
        UserError: Anything else, or a field or a type that there is not.
    """
    if given is None or isinstance(given, SamplingOptions):
        options = given or SamplingOptions()
    elif hasattr(given, "__index__"):
        options = SamplingOptions(**checked(SamplingOptions, {"draws": given}))
    else:
        do = "Name them: predict(image, draws=8, steps=10)"
        raise UserError(f"options are SamplingOptions or a number of draws, not {type(given).__name__}", do=do)
    return replace(options, **checked(SamplingOptions, changes))


@dataclass(frozen=True)
class Turn:
    """One way to draw from an image: with the weights of which checkpoint, and mirrored along which axes of the grid.

    weights  None: those that the method has
    """

    weights: Path | None = None
    mirror: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageDraws:
    """One image, ready to be drawn from.

    Attributes:
        method: What draws.
        x: [c, *s] the image on the method's grid.
        transform: Between the image's own voxels and the grid.
        seeds: The seed of each draw.
        steps: Denoising steps; None: the method's own.
        sampler: Name of the sampler; None: the method's own.
        device: Where the method is.
        label: What the image shows, where the method decides that first.
        precision: Number type of the networks; None: as it is outside.
        turns: Ways to draw, one after the other, each with as many of the seeds; mirrored draws are mirrored back.
        inside: Of a whole slide: where there is tissue, on the grid; None is all.
        overlap: Of neighbouring tiles, as a share of the patch; None: as it is without being asked for.
    """

    method: Method
    x: Float[Tensor, "c *s"]
    transform: GridTransform
    seeds: tuple[int, ...]
    steps: int | None
    sampler: str | None
    device: torch.device
    label: ImageLabel | None = None
    precision: Precision | None = None
    turns: tuple[Turn, ...] = (Turn(),)
    inside: Bool[np.ndarray, "*s"] | None = None
    overlap: float | None = None

    def draw(self, on_denoised: OnDenoised | None = None) -> Iterator[Float[Tensor, "k *s"]]:
        """Make the draws, one map per seed, on the grid.

        Args:
            on_denoised: Called with (t, x0_hat) at each step of the draws that are made together; of several turns, the first.

        Returns:
            Probabilities; of a method that learnt from image-level labels saliency maps, see `finalize`.
        """
        options: dict[str, Any] = {} if self.label is None else {"label": self.label.label}
        options |= {} if on_denoised is None else {"on_denoised": on_denoised}
        options |= {} if self.overlap is None else {"overlap": self.overlap}
        chunk = draws_at_a_time(self.method.plan, self.x.shape[1:], self.device)
        image, each, weights = self.x.to(self.device), len(self.seeds) // len(self.turns), None
        for number, turn in enumerate(self.turns):
            if turn.weights is not None and turn.weights != weights:
                load_weights(turn.weights, self.method)
                weights = turn.weights
            seeds = self.seeds[number * each : (number + 1) * each]
            axes = tuple(1 + axis for axis in turn.mirror)
            seen = flipped(image, axes)
            options |= {} if self.inside is None else {"inside": np.flip(self.inside, turn.mirror)}
            maps = iter(self.method.draw(seen, seeds, steps=self.steps, sampler=self.sampler, chunk=chunk, **options))
            for _ in seeds:
                yield self._next(maps, axes)  # no name holds a draw while the next one is made
            options.pop("on_denoised", None)

    def _next(self, maps: Iterator[Tensor], axes: tuple[int, ...]) -> Tensor:
        with _autocast(self.precision, self.device):
            return flipped(next(maps), axes)

    def finalize(self, draw: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
        """Probabilities from a draw, or from the mean of several."""
        return self.method.finalize_draw(draw, self.x, self.sampler, self.steps)

    def ensemble(self, spread: bool = True) -> Ensemble:
        """An empty ensemble for these draws; `spread` as in `SamplingOptions`."""
        return Ensemble(self.finalize, spread)

    def to_native(self, maps: Float[Tensor, "k *s"]) -> Float[np.ndarray, "k *n"]:
        """Probabilities on the image's own voxels."""
        return to_native(maps, self.transform)


def flipped(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A tensor mirrored along some of its axes."""
    if not axes or x.device.type != "cpu":
        return x.flip(axes) if axes else x
    found = scratch.tensor(x.shape)
    copy(np.flip(x.numpy(), axes), found.numpy())
    return found


def prepare(
    method: Method,
    image: Image | FullCase,
    options: SamplingOptions,
    device: torch.device,
    precision: Precision | None = None,
    indices: Sequence[int] | None = None,
    turns: Sequence[Turn] = (Turn(),),
) -> ImageDraws:
    """Bring an image to the method's grid, give each draw its seed, and see what the image shows.

    Args:
        method: What draws.
        image: As in its file, or a case that is on the grid already.
        options: Their steps and sampler, where they are None, are the method's own; no draws are one draw.
        device: Where the method is.
        precision: Number type of the networks; None: as it is outside.
        indices: Which of the draws; None: all.
        turns: Ways to draw; each makes these draws, with the same seeds.

    Raises:
        UserError: The image has other channels or axes than the method's plan.
    """
    if isinstance(image, FullCase):
        x, transform, digest = image.image, image.transform, image.digest
    else:
        x, transform = to_grid(image, method.plan)
        digest = content_digest(image, transform)
        if options.region is not None:
            x, transform = cut(x, transform, box_of(options.region, image, method.plan, transform), image.source)
    inside = None if isinstance(image, FullCase) else _inside(image, transform, options.all_tiles)
    indices = range(options.draws or 1) if indices is None else indices
    seeds = tuple(draw_seed(options.seed, digest, i) for i in indices)
    with _autocast(precision, device):
        label = _image_label(method, x.to(device), options.label)
    seeds, ways, how = seeds * len(turns), tuple(turns), (options.steps, options.sampler)
    return ImageDraws(method, x, transform, seeds, *how, device, label, precision, ways, inside, options.overlap)


def _inside(image: Image, transform: GridTransform, all_tiles: bool) -> Bool[np.ndarray, "*s"] | None:
    """Where a whole slide has tissue, on the grid; None of other images, and where all is asked for.

    Raises:
        UserError: There is none, or all is asked for of another image.
    """
    if all_tiles and not isinstance(image.header, Slide):
        what = "--all-tiles is for whole slides, and this is none: all of it is segmented"
        raise UserError(what, file=image.source, do="Leave it out")
    if all_tiles or not isinstance(image.header, Slide):
        return None
    found = tissue_on_grid(image.header.tissue, transform)
    if not any(bool(found[part].any()) for part in blocks(found.shape)):
        raise UserError("no tissue was found, nothing but glass", file=image.source, do="--all-tiles segments all of it")
    return found


def mirrors(plan: Plan, volume: bool) -> list[tuple[int, ...]]:
    """The sets of axes of the grid along which an image may be mirrored, the empty one first: plan.flips, combined.

    Where names of labels tell left from right, the axis between the two is not among them, whatever the plan says.

    Args:
        plan: Its flips count the axes of a patch, which has none along the slices of a volume that a 2-D network sees.
        volume: Whether images have three axes.

    Raises:
        UserError: There is no such axis.
    """
    axes = [axis for axis in range(3 if volume else 2) if plan.dims == 3 or not volume or axis != plan.slice_axis]
    sided = bool(tells_sides(name for name, value in plan.labels.items() if value))
    across = [axis for axis in axes if plan.orientation is None or plan.orientation[axis] in "LR"] if sided else []
    allowed = sorted({axes[flip] for flip in plan.flips} - set(across))
    if not allowed:
        why = plan.reasons.get("flips", "its plan has no flips")
        raise UserError(f"--mirror: this model's images may not be mirrored ({why.rstrip('.')})", do="Leave it out")
    return [chosen for n in range(len(allowed) + 1) for chosen in itertools.combinations(allowed, n)]


def draw_seed(seed: int, digest: str, i: int) -> int:
    """The seed of draw i of one image: independent of the other draws and of other images. 48 bits, exact in any JSON.

    Args:
        seed: Of the options.
        digest: Of the image, `content_digest`.
        i: Number of the draw, from 0.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{digest}/{i}".encode()).digest()[:6], "big")


def draws_at_a_time(plan: Plan, grid: Sequence[int], device: torch.device = CPU) -> int:
    """How many draws are made at a time: 8, or fewer of a large image; the result is the same.

    The image is encoded once for them, tile by tile, so that more of them cost less.

    Args:
        plan: Its classes count.
        grid: Voxels per axis.
        device: Where they are made; a GPU's memory is smaller than files.
    """
    most = STATE_BYTES if device.type == "cpu" else GPU_BYTES
    return max(1, min(CHUNK, most // (4 * plan.classes * math.prod(grid))))


def _image_label(method: Method, x: Tensor, name: str | None) -> ImageLabel | None:
    """What the image shows, as told or as the method decides; None where the method needs no such decision."""
    if name is None:
        return method.classify_image(x)
    return ImageLabel(method.plan.names.index(name), "as told", {}, 0)


def _autocast(precision: Precision | None, device: torch.device) -> AbstractContextManager:
    return nullcontext() if precision is None else precision.autocast(device)
