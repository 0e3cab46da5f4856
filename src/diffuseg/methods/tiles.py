"""Whole cases through a network of limited size: tiles that divide the work of one denoising step, and nothing else."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks, extremes
from diffuseg.data.batches import slice_stack
from diffuseg.data.plan import Plan
from diffuseg.diffusion.samplers import ModelOutput
from diffuseg.pulse import beat
from diffuseg.timing import timed

Features = Tensor | tuple[Tensor, ...]  # what a method makes of an image once: one tensor, or several of any sizes

OVERLAP = 0.5  # of neighbouring windows, as a share of the patch
SIGMA = 0.125  # of the weights of a tile, as a share of the patch
FEATURES_KEPT = 2**29  # bytes of image features kept between steps; beyond that they are computed again
SLICES = 32  # slices of a volume that a 2-D network sees at a time


class Tiling:
    """One case [c, *s] on the plan's grid, cut for a network: overlapping windows with Gaussian weights.

    Neighbouring windows share `overlap` of the patch, or more. For a 2-D network on a volume the slices are the batch, each
    with its neighbours as channels (2.5-D).
    States and results are whole-image tensors [n, k, *shape], `shape` being the padded spatial shape. Features of the image
    are kept where it is denoised several times (`again`), up to FEATURES_KEPT; else those of a tile live as long as its turn.
    Windows without a voxel of `inside` are passed over; where no other lies, all is background.
    """

    def __init__(
        self,
        image: Float[Tensor, "c *s"],
        plan: Plan,
        encode: Callable[[Tensor], Features],
        again: bool = True,
        inside: Bool[np.ndarray, "*s"] | None = None,
        overlap: float = OVERLAP,
    ) -> None:
        self.plan, self.encode, self.again = plan, encode, again
        self.sliced = plan.dims == 2 and image.ndim == 4
        self.image, self.native = image, image.shape[1:]
        sides = [n for axis, n in enumerate(self.native) if not (self.sliced and axis == plan.slice_axis)]
        self.missing = [max(p - n, 0) for p, n in zip(plan.patch, sides, strict=True)]
        self.offset = [m // 2 for m in self.missing]
        self.plane = tuple(n + m for n, m in zip(sides, self.missing, strict=True))
        self.slices = self.native[plan.slice_axis] if self.sliced else 1
        self.shape = (self.slices, *self.plane) if self.sliced else self.plane
        self.darkest = float(extremes(image.cpu().numpy())[0]) if any(self.missing) else 0.0
        self.windows = list(windows(self.plane, plan.patch, overlap))
        self.asked = [True] * len(self.windows) if inside is None else asked_windows(inside, plan.patch, overlap)
        self.seen = None if all(self.asked) else self._seen()
        self.weight = gaussian(plan.patch).to(image.device)
        self._features: dict[tuple, Features] = {}
        self._kept = 0

    @timed("denoise")
    def denoise(
        self, predict_x0: Callable[..., ModelOutput], x_t: Tensor | None, t: int, z: Tensor | None, n: int
    ) -> ModelOutput:
        """One denoising of the whole image: x0_hat (and v) [n, k, *shape], blended over the tiles.

        Args:
            predict_x0: (x_t, t, features, z) of a tile -> `ModelOutput`.
            x_t: States [n, k, *shape]; None of a method that has none.
            t: Timestep of all of them.
            z: [n, nz], serves all tiles of a draw.
            n: Number of draws.
        """
        m, plane = self.slices, self.plane
        state = None if x_t is None else self._split(x_t)
        totals: list[Tensor] = []
        single = len(self.windows) == 1  # it is its own mean
        weights = None if single else Weights(plane, self.plan.patch, self.weight)
        kept = Pages()
        for window in itertools.compress(self.windows, self.asked):
            _divide(totals, weights, window[0].start)
            if weights is not None:
                weights.add(window)
            for start in range(0, m, SLICES):
                part = slice(start, min(start + SLICES, m))
                features = self._encoded(part, window)
                count = part.stop - part.start
                if count > 1 and n > 1:
                    features = _each(features, lambda f: f.repeat(n, *[1] * (f.ndim - 1)))
                tile = None if state is None else state[(slice(None), part, slice(None), *window)].flatten(0, 1)
                latent = None if z is None else z.repeat_interleave(count, dim=0)
                maps = [output for output in predict_x0(tile, t, features, latent) if output is not None]
                totals = totals or [scratch.tensor((n, m, f.shape[1], *plane), self.image.device) for f in maps]
                for total, one in zip(totals, maps, strict=True):
                    one = one.float().unflatten(0, (n, count))
                    total[(slice(None), part, slice(None), *window)] += one if single else one * self.weight
                beat(n * count / (m * sum(self.asked)))
                kept.add(totals, part, window)
        _divide(totals, weights, plane[0])
        output = ModelOutput(*map(self._join, totals))
        self.hide(self.crop(output.x_0), 1.0, -1.0)
        return output

    def hide(self, x: Float[Tensor, "n k *s"], background: float, other: float) -> Float[Tensor, "n k *s"]:
        """Put values of background and of the other classes where no tile lies, in place; returns x."""
        if self.seen is None:
            return x
        for part in blocks(self.native):
            hidden = torch.from_numpy(~self.seen[part]).to(x.device)
            x[:, :, part].masked_fill_(hidden, other)
            x[:, 0, part].masked_fill_(hidden, background)
        return x

    def crop(self, x: Float[Tensor, "n k *shape"]) -> Float[Tensor, "n k *s"]:
        """Without the padding, in the axis order of the image."""
        start = [0, *self.offset] if self.sliced else self.offset
        native = list(self.native)
        if self.sliced:
            native.insert(0, native.pop(self.plan.slice_axis))
        x = x[(..., *(slice(o, o + s) for o, s in zip(start, native, strict=True)))]
        return x.movedim(2, 2 + self.plan.slice_axis) if self.sliced else x

    def _split(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.sliced else x[:, None]

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.sliced else x[:, 0]

    def _seen(self) -> Bool[np.ndarray, "*s"]:
        """Where tiles lie, on the image without padding."""
        found = scratch.zeros(self.native, bool)
        for window in itertools.compress(self.windows, self.asked):
            found[_unpadded(window, self.offset)] = True
            scratch.release()
        return found

    def _cut(self, part: slice, window: tuple[slice, ...]) -> Float[Tensor, "m c *patch"]:
        """The image in a window, of a volume that is seen in slices some of them; as dark as its darkest voxel beyond it."""
        inside = [slice(None) if m else w for m, w in zip(self.missing, window, strict=True)]
        if self.sliced:
            inside.insert(self.plan.slice_axis, slice(None))
        image = self.image[(slice(None), *inside)]
        tile = slice_stack(image, self.plan, range(part.start, part.stop)) if self.sliced else image[None]
        padding = [v for m in reversed(self.missing) for v in (m // 2, m - m // 2)]
        return F.pad(tile, padding, value=self.darkest) if any(padding) else tile

    def _encoded(self, part: slice, window: tuple[slice, ...]) -> Features:
        key = (part.start, *((w.start, w.stop) for w in window))
        if key in self._features:
            return self._features[key]
        with timed("encode"):
            features = self.encode(self._cut(part, window))
        size = sum(f.numel() * f.element_size() for f in (features if isinstance(features, tuple) else (features,)))
        if self.again and self._kept + size <= FEATURES_KEPT:
            self._features[key] = features
            self._kept += size
        return features


class Weights:
    """The sum of the weights of tiles that come in the order of `windows`, for the rows of the first axis that are open."""

    def __init__(self, plane: Sequence[int], patch: Sequence[int], weight: Float[Tensor, "*patch"]) -> None:
        self._weight, self._row = weight, 0
        self._open = scratch.tensor((min(patch[0], plane[0]), *plane[1:]), weight.device)

    def add(self, window: tuple[slice, ...]) -> None:
        """Take in one tile, whose first row is the first open one."""
        self._open[(slice(None), *window[1:])] += self._weight

    def until(self, row: int) -> Iterator[tuple[slice, Tensor]]:
        """The rows before this one with their weights, a block at a time; they are closed by it, once all were taken."""
        count = min(row - self._row, len(self._open))  # beyond these no tile lies
        if count <= 0:
            return
        rest = len(self._open) - count
        for part in blocks((count, *self._open.shape[1:])):
            yield slice(self._row + part.start, self._row + part.stop), self._open[part]
        for start in range(0, rest, count):  # no row is written before it was read
            moved = slice(start, min(start + count, rest))
            self._open[moved] = self._open[moved.start + count : moved.stop + count]
            scratch.release()
        self._open[rest:] = 0
        self._row = row


def _divide(totals: list[Tensor], weights: Weights | None, row: int) -> None:
    """Make means of the rows before this one, which no further tile reaches; nothing where there are no weights."""
    for rows, weight in () if weights is None else weights.until(row):
        weight = torch.where(weight > 0, weight, 1.0)  # 0 where no tile lies
        for total in totals:
            total[:, :, :, rows] /= weight


class Pages:
    """The pages of states and results on which tiles lie, taken out of memory once they are many.

    Tiles along the last axis lie on the same pages where rows are short, so what counts is what a tile adds to them. Pages that
    were taken out in the middle of such a row of tiles come back with its next tile and are not counted again: of one row they
    are as many as it has at most, and the next row counts in full.
    """

    def __init__(self) -> None:
        self._row: list[int] = []
        self._first = self._size = 0

    def add(self, totals: Sequence[Tensor], part: slice, window: tuple[slice, ...]) -> None:
        """Take in one tile that was added to totals [n, m, k, *plane]; `part` is of their slices."""
        row, last = [part.start, *(w.start for w in window[:-1])], window[-1]
        if row != self._row:
            self._row, self._first, self._size = row, last.start, 0
        along = (slice(None), part, slice(None), *window[:-1], slice(self._first, last.stop))
        size = 2 * sum(pages(total[along]) for total in totals)  # x_t too
        scratch.release(size - self._size)
        self._size = size


def pages(part: Float[Tensor, "*n h w"]) -> int:
    """About how many bytes of pages a part of a large array lies on: short rows share a page, long ones have some each."""
    *n, h, w = part.shape
    size = part.element_size()
    return math.prod(n) * h * min(part.stride(-2) * size, w * size + scratch.PAGE)


def _each(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return tuple(map(change, features)) if isinstance(features, tuple) else change(features)


def windows(size: tuple[int, ...], patch: tuple[int, ...], overlap: float) -> itertools.product:
    """Windows of `patch` that cover `size`, evenly spread, overlapping by at least `overlap` of the patch.

    Args:
        size: Voxels per axis of what is covered.
        patch: Voxels per axis.
        overlap: Share of the patch, in [0, 1).
    """
    axes = []
    for n, p in zip(size, patch, strict=True):
        count = 1 if n <= p else math.ceil((n - p) / max(p * (1 - overlap), 1)) + 1
        starts = [0] if count == 1 else [round(i * (n - p) / (count - 1)) for i in range(count)]
        axes.append([slice(s, s + p) for s in starts])
    return itertools.product(*axes)


def asked_windows(inside: Bool[np.ndarray, "*s"], patch: tuple[int, ...], overlap: float = OVERLAP) -> list[bool]:
    """Which of the windows of an image, in their order, hold a voxel of what is asked for.

    Args:
        inside: What is asked for, on the image as it is.
        patch: Voxels per axis, of as many axes.
        overlap: As in `windows`.
    """
    missing = [max(p - n, 0) for p, n in zip(patch, inside.shape, strict=True)]
    plane, offset = tuple(n + m for n, m in zip(inside.shape, missing, strict=True)), [m // 2 for m in missing]
    found = []
    for window in windows(plane, patch, overlap):
        found.append(bool(inside[_unpadded(window, offset)].any()))
        scratch.release()
    return found


def _unpadded(window: Sequence[slice], offset: Sequence[int]) -> tuple[slice, ...]:
    """A window of a padded image on the image itself."""
    return tuple(slice(max(w.start - o, 0), w.stop - o) for w, o in zip(window, offset, strict=True))


def gaussian(patch: tuple[int, ...]) -> Float[Tensor, "*patch"]:
    """Weights that trust a tile's centre: a Gaussian whose sigma is SIGMA of the patch, at least 1e-3 at the corner."""
    weight = torch.ones(())
    for n in patch:
        x = (torch.arange(n) - (n - 1) / 2) / (SIGMA * n)
        weight = weight[..., None] * torch.exp(-0.5 * x.square())
    return weight.clamp(min=1e-3)
