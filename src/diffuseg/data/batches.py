"""Batches of a training: batch n is a pure function of (seed, n, rank), so a resumed run needs no state of the loader."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.data.augment import augment
from diffuseg.data.dataset import Dataset, load_case, load_image, load_raters
from diffuseg.data.plan import Plan
from diffuseg.data.raters import fuse_raters
from diffuseg.data.transforms import GridTransform, central_window, class_indices, content_digest, mask_to_grid, to_grid
from diffuseg.errors import UserError
from diffuseg.text import by
from diffuseg.timing import timed
from diffuseg.types import Batch, Image

FOREGROUND, FOREGROUND_SLICES = 1 / 3, 1 / 2  # share of patches, and of slices, that are centred on foreground
POINTS = 4096  # foreground voxels remembered per class and case


class FullCase(NamedTuple):
    """A whole case: as in its file, and on the plan's grid.

    image [c, *s] normalised, mask [*s] class indices, both on the grid; truth [*s] class indices in native voxels. Of several
    raters, mask and truth are the majority vote, whatever the training learns from; digest: `content_digest` of the image
    """

    native: Image
    image: Float[Tensor, "c *s"]
    mask: Int[Tensor, "*s"]
    transform: GridTransform
    truth: Int[np.ndarray, "*s"]
    digest: str


class _CachedCase(NamedTuple):
    """A training case on the grid, with a margin around what the plan crops.

    image float16 [c, *s], masks uint8 or int16 [m, *s], per mask the voxels [n, d] of each class present; floor: the lowest
    value of the image; start, size: what the plan crops
    """

    image: Tensor
    masks: Tensor
    points: list[list[np.ndarray]]
    floor: float
    start: tuple[int, ...]
    size: tuple[int, ...]


class _Cache:
    """Keeps what comes first until the bytes are used up, and drops nothing: cases come in random order, so which of
    them are kept makes no difference, and one that is dropped for another would have to be read again."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.values: dict[tuple[str, str], object] = {}
        self.lock = threading.Lock()

    def add(self, key: tuple[str, str], value: object, size: int) -> None:
        with self.lock:
            if key not in self.values and self.used + size <= self.limit:
                self.values[key] = value
                self.used += size


class Batches:
    """Training patches, and whole cases for validation, of some cases of a data set.

    Each pass over the cases is a new permutation, shared out between the ranks. A third of the patches is centred on a
    random foreground voxel, each class with an equal chance; of 2-D slices from volumes a half. Of several raters, each
    patch has the mask of one drawn at random, or of all by the fusion that the plan says. Prepared cases are kept in memory,
    up to `cache_bytes`. A case that cannot be read is a UserError that names the file.

    With `labels`, the class of each case, masks are not read at all: a batch has labels instead, and whole images, each in
    the middle of its patch. Refuses images that do not fit into the patch, as part of an image may not show its label.
    """

    def __init__(
        self, dataset: Dataset, case_ids: Sequence[str], plan: Plan, seed: int = 0, cache_bytes: int = 4 * 2**30,
        labels: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        if not case_ids:
            raise ValueError("no case to make batches of")
        by_id = {case.id: case for case in dataset.cases}
        self.dataset, self.plan, self.seed, self.labels = dataset, plan, seed, labels
        self.cases = {case_id: by_id[case_id] for case_id in case_ids}
        self.waited = self.total = 0.0
        self._cache = _Cache(cache_bytes)

    def of(self, case_ids: Sequence[str]) -> "Batches":
        """The same for other cases of the data set, in the same memory."""
        other = Batches(self.dataset, case_ids, self.plan, self.seed, labels=self.labels)
        other._cache = self._cache
        return other

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step: image [b, c, *patch], mask one-hot [b, k, *patch]; 2.5-D: neighbouring slices as channels.

        Args:
            step: Number of the training step.
            rank: Of this process.
            world: Number of processes.
        """
        first = (step * world + rank) * self.plan.batch
        cases = [self._case_at(first + element) for element in range(self.plan.batch)]
        if self.labels is not None:
            seen = [self._labelled(case, step, rank, element) for element, case in enumerate(cases)]
            return Batch(torch.stack(seen), label=torch.tensor([self.labels[case] for case in cases]), cases=tuple(cases))
        pairs = [self._sample(case, step, rank, element) for element, case in enumerate(cases)]
        images, masks = zip(*pairs, strict=True)
        if self.plan.raters == "all":
            return self._rated(step, rank, cases, list(images), list(masks))
        return Batch(torch.stack(images), torch.stack(masks), cases=tuple(cases))

    def _rated(self, step: int, rank: int, cases: list[str], images: list[Tensor], masks: list[Tensor]) -> Batch:
        """A batch with the masks of all raters, and that of one of them at random as `mask`."""
        counts = {len(mask) // self.plan.classes for mask in masks}
        if len(counts) > 1:
            what = f"raters=all: cases have masks of {min(counts)} to {max(counts)} raters"
            raise UserError(what, do="Give plan.raters=random, which takes one of them at a time")
        raters = torch.stack(masks).unflatten(1, (-1, self.plan.classes))
        rng = np.random.default_rng([self.seed, step, rank, self.plan.batch])
        one = torch.from_numpy(rng.integers(raters.shape[1], size=len(raters)))
        return Batch(torch.stack(images), raters[torch.arange(len(raters)), one], cases=tuple(cases), raters=raters)

    def iterate(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches start..stop-1; the next one is made in a thread meanwhile.

        Adds to `waited` the seconds that the consumer spent waiting for a batch, and to `total` all seconds.

        Args:
            start: The first step.
            stop: The step after the last.
            rank: Of this process.
            world: Number of processes.
        """
        # One thread of computation for the loader: it shall not fight the training for the cores.
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            ahead = thread.submit(self.batch, start, rank, world) if start < stop else None
            for step in range(start, stop):
                started = time.perf_counter()
                assert ahead is not None
                with timed("wait for data"):
                    batch = ahead.result()
                self.waited += time.perf_counter() - started
                ahead = thread.submit(self.batch, step + 1, rank, world) if step + 1 < stop else None
                yield batch
                self.total += time.perf_counter() - started

    def whole(self, case_id: str) -> FullCase:
        """A whole case in its native geometry and on the plan's grid."""
        key = ("whole", case_id)
        if key in self._cache.values:
            return self._cache.values[key]  # type: ignore[return-value]
        native, mask = load_case(self.dataset, self.cases[case_id])
        image, transform = to_grid(native, self.plan)
        on_grid, truth = mask_to_grid(mask, self.plan, transform), class_indices(mask, self.plan)
        whole = FullCase(native, image, on_grid, transform, truth, content_digest(native, transform))
        self._cache.add(key, whole, native.data.nbytes + whole.truth.nbytes + 4 * image.numel() + 8 * whole.mask.numel())
        return whole

    def image(self, case_id: str) -> Float[Tensor, "c *s"]:
        """A whole image on the plan's grid, without its mask."""
        key = ("image", case_id)
        if key in self._cache.values:
            return self._cache.values[key].float()  # type: ignore[attr-defined]
        image = to_grid(load_image(self.dataset, self.cases[case_id]), self.plan)[0].half()
        self._cache.add(key, image, 2 * image.numel())
        return image.float()

    def _prepared(self, case_id: str) -> _CachedCase:
        key = ("patches", case_id)
        if key in self._cache.values:
            return self._cache.values[key]  # type: ignore[return-value]
        native, masks = load_raters(self.dataset, self.cases[case_id])
        plan = self.plan
        margin = _margin(max(plan.patch), plan)
        wide = plan if plan.crop is None else replace(plan, crop=tuple(n + 2 * margin for n in plan.crop))
        image, transform = to_grid(native, wide)
        data = masks.data if plan.raters in ("random", "all") else fuse_raters(masks.data, plan.raters)[None]
        classes = [mask_to_grid(replace(masks, data=mask[None]), plan, transform).numpy() for mask in data]
        start, size = central_window(image.shape[1:], plan.crop)
        small = torch.from_numpy(np.stack(classes).astype(np.uint8 if plan.classes < 256 else np.int16))
        points = [[p for k in range(1, plan.classes) if len(p := _points(c == k, start, size))] for c in classes]
        prepared = _CachedCase(image.half(), small, points, float(image.min()), start, size)
        point_bytes = sum(p.nbytes for of_mask in points for p in of_mask)
        self._cache.add(key, prepared, 2 * image.numel() + small.numel() * small.element_size() + point_bytes)
        return prepared

    def _case_at(self, position: int) -> str:
        names = list(self.cases)
        lap, place = divmod(position, len(names))
        order = np.random.default_rng([self.seed, lap]).permutation(len(names))
        return names[int(order[place])]

    def _labelled(self, case_id: str, step: int, rank: int, element: int) -> Tensor:
        rng = np.random.default_rng([self.seed, step, rank, element])
        image, plan = self.image(case_id), self.plan
        sizes, file = tuple(image.shape[1:]), self.cases[case_id].images[0]
        if len(sizes) != plan.dims:
            do = "Give dims=3, or the slices as pictures, each with its own label"
            raise UserError("the label of a volume says nothing about one of its slices", file=file, do=do)
        if any(n > p for n, p in zip(sizes, plan.patch, strict=True)):
            what = f"{by(sizes)} voxels on the plan's grid, the patch has {by(plan.patch)}: its label is about the whole image"
            raise UserError(what, file=file, do="Give a larger --set plan.patch, or a coarser grid with --set plan.spacing")
        margin = [_margin(p, plan) for p in plan.patch]
        starts = [_start(n, p, None, rng) - m for n, p, m in zip(sizes, plan.patch, margin, strict=True)]
        image = _crop(image, starts, [p + 2 * m for p, m in zip(plan.patch, margin, strict=True)], float(image.min()))
        return augment(image, image[:0], plan, rng)[0]

    def _sample(self, case_id: str, step: int, rank: int, element: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, step, rank, element])
        case, plan = self._prepared(case_id), self.plan
        rater = int(rng.integers(len(case.masks))) if len(case.masks) > 1 else 0
        image, points = case.image, case.points[rater]
        mask = case.masks if plan.raters == "all" else case.masks[rater : rater + 1]
        sliced = plan.dims == 2 and mask.ndim == 4
        centre = None
        if points and rng.random() < (FOREGROUND_SLICES if sliced else FOREGROUND):
            voxels = points[rng.integers(len(points))]
            centre = voxels[rng.integers(len(voxels))].tolist()
        first, size = list(case.start), list(case.size)
        if sliced:
            axis = plan.slice_axis
            low, depth = first.pop(axis), size.pop(axis)
            z = low + int(rng.integers(depth)) if centre is None else centre.pop(axis)
            image, mask = _slices(image, plan, [z])[0], mask.select(1 + axis, z)
        starts = [
            low + _start(size[axis], side, None if centre is None else centre[axis] - low, rng)
            for axis, (low, side) in enumerate(zip(first, plan.patch, strict=True))
        ]
        # A region somewhat larger than the patch, so that rotations turn in what is really there.
        margin = [_margin(p, plan) for p in plan.patch]
        starts = [s - m for s, m in zip(starts, margin, strict=True)]
        sizes = [p + 2 * m for p, m in zip(plan.patch, margin, strict=True)]
        image = _crop(image.float() if sliced else image, starts, sizes, case.floor).float()
        classes = _crop(mask, starts, sizes, 0.0).long()
        ignored = plan.ignore is not None
        one_hot = torch.zeros(len(mask), plan.classes + ignored, *sizes).scatter_(1, classes[:, None], 1.0)
        image, one_hot = augment(image, one_hot.flatten(0, 1), plan, rng, len(mask))
        return image, one_hot[: plan.classes] if ignored else one_hot  # with "ignore" there is one mask


def slice_stack(image: Float[Tensor, "c x y z"], plan: Plan, chosen: Sequence[int] | None = None) -> Float[Tensor, "n m h w"]:
    """Slices of a volume along plan.slice_axis, all or the chosen ones, each with plan.context neighbours on either side.

    Channels are in the order (c0 z-1, c0 z, c0 z+1, c1 z-1, ...), m = c * (2 * context + 1); at the ends of the volume the
    last slice is repeated.

    Args:
        image: A volume on the grid.
        plan: Its axis and context.
        chosen: Numbers of slices; None: all.
    """
    return _slices(image, plan, range(image.shape[1 + plan.slice_axis]) if chosen is None else chosen)


def _slices(image: Tensor, plan: Plan, chosen: Sequence[int]) -> Tensor:
    depth = image.shape[1 + plan.slice_axis]
    near = torch.arange(-plan.context, plan.context + 1)
    index = (torch.tensor(list(chosen))[:, None] + near).clamp(0, depth - 1).to(image.device)
    planes = image.movedim(1 + plan.slice_axis, 1)[:, index.flatten()]  # [c, n * near, h, w]
    return planes.unflatten(1, tuple(index.shape)).movedim(1, 0).flatten(1, 2)


def _margin(side: int, plan: Plan) -> int:
    """Voxels beyond a patch's side that a random rotation may turn in."""
    return -(-side // 8) if plan.turns else 0


def _points(mask: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Some of the voxels of a mask that lie in a window, evenly spread."""
    window = mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
    flat = np.flatnonzero(window)
    flat = flat[:: max(1, -(-len(flat) // POINTS))]
    wide = np.int16 if max(mask.shape) < 2**15 else np.int32
    return (np.stack(np.unravel_index(flat, window.shape), 1) + np.array(start)).astype(wide)


def _start(size: int, patch: int, centre: int | None, rng: np.random.Generator) -> int:
    """First voxel of a patch along one axis: in the middle if the case fits into it, else random or about a voxel."""
    if size <= patch:
        return -((patch - size) // 2)
    if centre is None:
        return int(rng.integers(size - patch + 1))
    return min(max(centre - patch // 2, 0), size - patch)


def _crop(x: Tensor, starts: Sequence[int], sizes: Sequence[int], fill: float) -> Tensor:
    """x[:, start : start + size] along each axis; what lies outside of x is `fill`."""
    result = x.new_full((len(x), *sizes), fill)
    source, target = [slice(None)], [slice(None)]
    for start, size, n in zip(starts, sizes, x.shape[1:], strict=True):
        low, high = max(start, 0), min(start + size, n)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    result[tuple(target)] = x[tuple(source)]
    return result
