"""Small made-up data sets, so that the demo and the tests need no patient: a pure function of the seed.

A volume is a piece of "brain" in anatomical millimetres (RAS), looked at through a slightly oblique, sometimes flipped
voxel grid:

    tissue      bright and grey matter, folded into each other by a smooth random field
    organ       a bent tube, thick at its anterior end ("head") and thin at its posterior end ("tail"), grey,
                wrapped in a bright layer that is in places too thin to see
    fluid       a dark cleft that runs along the organ on its lateral side, and a dark pool in one corner
    distractor  an ellipsoid of almost the organ's grey, a thin layer in front of the head
    all of it   bent by a smooth random displacement, different in each case

    intensity = scale * rice(bias * blur(mixture by partial volume), noise)

Head and tail have the same intensity, and the border between them is jittered along the tube by random numbers that the
image never sees: no model can know it exactly, and an honest uncertainty is high there and nowhere else inside the organ.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from numpy.random import Generator

from diffuseg.atomic_io import atomic_path, write_json

BRIGHT, GREY, FLUID, DISTRACTOR, ORGAN = range(5)
# One row per channel: T1-like, T2-like (fluid bright), and proton-density-like (little contrast).
CONTRASTS = ((0.85, 0.62, 0.18, 0.60, 0.57), (0.35, 0.55, 0.98, 0.57, 0.60), (0.60, 0.75, 0.66, 0.74, 0.72))
EXTENT = np.array([40.0, 48.0, 36.0])  # mm; other shapes show the same anatomy, scaled to fit


def make_dataset(
    folder: Path | str,
    cases: int = 40,
    shape: tuple[int, int, int] = (40, 48, 36),
    seed: int = 0,
    channels: int = 1,
    test_cases: int = 0,
) -> Path:
    """Write an nnU-Net v2 data set of made-up MR volumes with the labels background, head, tail; returns its folder.

    `test_cases` further volumes go to imagesTs and labelsTs, which training never reads.
    Case i depends only on (seed, i), the shape, and the channels (1 to 3), so the first cases of a larger set are those of a
    smaller one. Files are .nii.gz: images uint16, masks uint8.

    Args:
        folder: Made if it is not there.
        cases: Volumes to train on.
        shape: Voxels along each axis, before a case changes it.
        seed: Of all cases.
        channels: 1 to 3.
        test_cases: Further volumes, in imagesTs and labelsTs.
    """
    import nibabel as nib

    folder = _folders(folder, "Tr", *(["Ts"] if test_cases else []))
    for index in range(cases + test_cases):
        name, part = f"case_{index:03d}", "Tr" if index < cases else "Ts"
        image, mask, affine = volume(seed, index, shape, channels)
        for channel, data in enumerate(image):
            _nifti(nib, data, affine, folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz")
        _nifti(nib, mask, affine, folder / f"labels{part}" / f"{name}.nii.gz")
    names = ("T1", "T2", "PD")[:channels]
    _describe(folder, "synthetic-organ", names, {"background": 0, "head": 1, "tail": 2}, ".nii.gz", cases)
    return folder


def make_pictures(folder: Path | str, cases: int = 12, size: int = 128, seed: int = 0) -> Path:
    """Write an nnU-Net v2 data set of made-up colour pictures (RGB .png) of purple nuclei; returns its folder.

    Masks are 8-bit grey .png with 0 (background) and 1 (nucleus). Case i depends only on (seed, i) and the size in pixels.

    Args:
        folder: Made if it is not there.
        cases: Number of pictures.
        size: Side in pixels.
        seed: Of all pictures.
    """
    from PIL import Image

    folder = _folders(folder, "Tr")
    for index in range(cases):
        name = f"tissue_{index:03d}"
        image, mask = picture(seed, index, size)
        for pixels, file in ((image, f"imagesTr/{name}_0000.png"), (mask, f"labelsTr/{name}.png")):
            with atomic_path(folder / file) as aside:
                Image.fromarray(pixels).save(aside)
    _describe(folder, "synthetic-nuclei", ("R", "G", "B"), {"background": 0, "nucleus": 1}, ".png", cases)
    return folder


def volume(
    seed: int,
    index: int,
    shape: tuple[int, int, int] = (40, 48, 36),
    channels: int = 1,
    border_jitter: float = 1.5,
) -> tuple[UInt16[np.ndarray, "c i j k"], UInt8[np.ndarray, "i j k"], Float[np.ndarray, "4 4"]]:
    """One made-up volume: intensities, mask (0 background, 1 head, 2 tail) and affine (voxel -> RAS mm).

    Args:
        seed: Of the data set.
        index: Number of the case.
        shape: Voxels along each axis.
        channels: 1 to 3.
        border_jitter: Standard deviation of the border between head and tail, in mm.

    Raises:
        ValueError: Channels are not 1 to 3.
    """
    if not 1 <= channels <= len(CONTRASTS):
        raise ValueError(f"channels={channels}: 1 to {len(CONTRASTS)} are there")
    rng = np.random.default_rng([seed, index])
    affine = _affine(rng, shape)
    voxel = float(np.linalg.norm(affine[:3, :3], axis=0).mean())
    scale = float((np.array(shape) / EXTENT).min())
    # Anatomical position of each voxel, before the translation: flips and tilts move the grid, never the anatomy.
    centred = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"), -1)
    position = (centred @ affine[:3, :3].T / scale).astype(np.float32)
    position += np.stack([1.3 * _smooth(rng, shape, 5) for _ in range(3)], -1)

    depths, along = _anatomy(rng, position, shape)
    # Share of the voxel that a surface cuts off, to first order: its depth below that surface in voxels, from 0 to 1.
    share = [np.clip(0.5 + depth * scale / voxel, 0, 1) for depth in depths]
    image = _appearance(rng, share, shape, channels)

    unseen = np.random.default_rng([seed, index, 1])  # not the generator of the image: its pixels cannot tell
    border = 13.0 + border_jitter * unseen.standard_normal() + border_jitter * 0.4 * _smooth(unseen, shape, 3)
    mask = np.where(depths[-1] > 0, np.where(along < border, 1, 2), 0).astype(np.uint8)
    return image, mask, affine


def _affine(rng: Generator, shape: tuple[int, int, int]) -> Float[np.ndarray, "4 4"]:
    """A voxel grid with its own spacing, up to 6 degrees of tilt, one case in three flipped left to right."""
    x, y, z = rng.uniform(-6, 6, 3) * np.pi / 180
    about = lambda angle: (np.cos(angle), np.sin(angle))
    (cx, sx), (cy, sy), (cz, sz) = about(x), about(y), about(z)
    rotation = (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )
    spacing = rng.uniform(0.9, 1.1, 3)
    if rng.random() < 1 / 3:
        spacing[0] = -spacing[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = rng.uniform(-20, 20, 3) - affine[:3, :3] @ (np.array(shape) / 2)
    return affine


def _anatomy(rng: Generator, position: np.ndarray, shape: tuple[int, int, int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Depth (mm, positive inside) below the surface of grey matter, fluid, distractor, organ; arc length along the organ."""
    t = np.linspace(0, 1, 40, dtype=np.float32)  # 0 at the tip of the head
    bend, sag, length = rng.uniform(3, 6), rng.uniform(-2, 3), rng.uniform(27, 32)
    curve = np.stack([bend * (np.sin(np.pi * t) - 0.6), length * (0.42 - t), sag * (2 * t - 1) ** 2 + 2 * t - 2], -1)
    curve = (curve + rng.uniform(-1.5, 1.5, 3)).astype(np.float32)
    thick, thin = rng.uniform(4.6, 5.8), rng.uniform(2.4, 3.2)
    radius = (thin + (thick - thin) * (1 - t) ** 1.5).astype(np.float32)

    flat = position.reshape(-1, 3)
    squared = (flat**2).sum(1)[:, None] - 2 * flat @ curve.T + (curve**2).sum(1)
    below = radius - np.sqrt(np.maximum(squared, 0))
    nearest = below.argmax(1)
    arc = np.concatenate([[0], np.linalg.norm(np.diff(curve, axis=0), axis=1).cumsum()])
    organ, along = below.max(1).reshape(shape), arc[nearest].reshape(shape)

    # The cleft follows the organ at a distance that grows and shrinks; the pool is a half space far from the organ.
    side = curve + np.array([7.5, 1.0, 1.5], np.float32) * rng.uniform(0.9, 1.2)
    squared = (flat**2).sum(1)[:, None] - 2 * flat @ side[::2].T + (side[::2] ** 2).sum(1)
    cleft = (rng.uniform(1.2, 2.0) - np.sqrt(np.maximum(squared, 0).min(1))).reshape(shape)
    pool = position @ np.array([-0.5, 0.3, -0.81], np.float32) - rng.uniform(15, 18) + 1.5 * _smooth(rng, shape, 6)

    axes = rng.uniform([4.0, 3.0, 3.5], [5.5, 4.2, 5.0])
    gap = rng.uniform(0.6, 1.8)
    centre = curve[0] + np.array([0.0, radius[0] + gap + axes[1], rng.uniform(0, 3)])
    ratio = np.sqrt((((position - centre) / axes) ** 2).sum(-1))
    distractor = (1 - ratio) * axes.min()

    # A bright layer parts the organ from other grey matter, here and there too thin to see.
    folds = np.minimum(2.5 * _smooth(rng, shape, 7), -organ - 1.4 - 0.7 * _smooth(rng, shape, 5))
    return [folds, np.maximum(cleft, pool), distractor, organ], along


def _appearance(rng: Generator, share: list[np.ndarray], shape: tuple[int, int, int], channels: int) -> np.ndarray:
    """Intensities [c, *s] of tissues that cover one another: contrast, texture, blur, bias field, scale, Rician noise."""
    from scipy.ndimage import gaussian_filter

    bias = np.exp(0.15 * _smooth(rng, shape, 3))
    scale = np.exp(rng.uniform(np.log(100), np.log(3000)))
    image = np.empty((channels, *shape), np.uint16)
    for channel in range(channels):
        contrast = np.array(CONTRASTS[channel]) + 0.015 * rng.standard_normal(5)
        clean = np.full(shape, contrast[BRIGHT], np.float32)
        for tissue, cover in zip((GREY, FLUID, DISTRACTOR, ORGAN), share, strict=True):
            clean += cover * (contrast[tissue] - clean)
        clean = gaussian_filter(clean + 0.02 * _smooth(rng, shape, 9), 0.5, mode="nearest") * bias
        noise = rng.uniform(0.025, 0.045) * rng.standard_normal((2, *shape))
        image[channel] = np.rint(scale * np.hypot(clean + noise[0], noise[1]))
    return image


def picture(seed: int, index: int, size: int = 128) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """One made-up tissue picture in colour and its mask (1 where a nucleus is)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([seed, index])
    shape = (size, size)
    cover = np.zeros(shape)
    rows, columns = np.mgrid[:size, :size]
    wobble = 0.25 * _smooth(rng, shape, max(size // 6, 2))
    for _ in range(max(round(size * size / 450), 1)):
        centre, axes, angle = rng.uniform(0, size, 2), rng.uniform(4, 8, 2), rng.uniform(0, np.pi)
        y, x = rows - centre[0], columns - centre[1]
        along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        depth = (1 + wobble - np.hypot(along / axes[0], across / axes[1])) * axes.min()
        cover = np.maximum(cover, np.clip(0.5 + depth, 0, 1))
    mask = (cover > 0.5).astype(np.uint8)

    tissue, chromatin = _smooth(rng, shape, max(size // 10, 2)), _smooth(rng, shape, max(size // 3, 2))
    # Optical densities of the two stains add up; light decays with their sum (Beer and Lambert).
    eosin = 0.35 + 0.12 * tissue
    haematoxylin = cover * (0.75 + 0.15 * chromatin + 0.1 * rng.standard_normal()) + 0.05
    stains = np.array([[0.07, 0.99, 0.11], [0.65, 0.70, 0.29]]) * rng.uniform(0.85, 1.15, (2, 1))
    light = np.exp(-np.maximum(eosin, 0)[..., None] * stains[0] - np.maximum(haematoxylin, 0)[..., None] * stains[1])
    light = gaussian_filter(light, (0.7, 0.7, 0)) + 0.02 * rng.standard_normal((size, size, 3))
    return np.rint(245 * np.clip(light, 0, 1)).astype(np.uint8), mask


def _smooth(rng: Generator, shape: tuple[int, ...], nodes: int) -> np.ndarray:
    """A smooth random field of about unit variance: cubic interpolation of normal numbers at `nodes` points per axis."""
    from scipy.ndimage import zoom

    values = rng.standard_normal((nodes,) * len(shape)).astype(np.float32)
    for size in shape:  # axis by axis: the first axis is interpolated and goes to the end
        weights = np.asarray(zoom(np.eye(nodes, dtype=np.float32), (size / nodes, 1), order=3, mode="nearest"))
        values = np.tensordot(values, weights, (0, 1))
    return values


def _folders(folder: Path | str, *parts: str) -> Path:
    folder = Path(folder)
    for part in parts:
        for what in ("images", "labels"):
            (folder / f"{what}{part}").mkdir(parents=True, exist_ok=True)
    return folder


def _nifti(nib, data: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as aside:
        nib.save(image, aside)


def _describe(folder: Path, name: str, channels: tuple[str, ...], labels: dict[str, int], ending: str, cases: int) -> None:
    description = {
        "name": name,
        "description": "made by diffuseg.data.synthetic; no patient, no licence",
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ending,
    }
    write_json(folder / "dataset.json", description)
