"""A trained model: load it by path or by name, and segment images with it."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuseg.checkpoint import image_digest, load_checkpoint, model_hash, seen_in, versions
from diffuseg.data.io import read_image
from diffuseg.data.plan import Plan
from diffuseg.data.transforms import GridTransform, maps_to_native, to_grid, to_native
from diffuseg.device import Precision, choose_device, choose_precision
from diffuseg.diffusion.samplers import timesteps
from diffuseg.errors import UserError
from diffuseg.evaluation.selective import expected_dice_loss
from diffuseg.inference.calibration import Calibration, calibration_record, read_calibration
from diffuseg.inference.ensemble import Ensemble, interval
from diffuseg.inference.fusion import fusion
from diffuseg.inference.prediction import Prediction
from diffuseg.inference.recorder import DrawRecorder
from diffuseg.methods import Method
from diffuseg.methods.base import ImageLabel
from diffuseg.types import Image, voxel_ml

NOTICE = "For research only: not a medical device, not to be used for diagnosis or treatment."
STATE_BYTES = 2**28  # of the noisy masks that are denoised together; a sampler holds a few such tensors
DRAWS = 8  # per image, where nobody says otherwise
Readable = Image | np.ndarray | Path | str | Sequence[Path | str]


@dataclass(frozen=True)
class Model:
    """A method with its weights, and what it needs to know about images.

    name  as packaged, or as its training called it; hash: first 12 hexadecimal digits of the checkpoint's SHA-256
    meta  the checkpoint's header
    """

    method: Method
    plan: Plan
    meta: dict[str, Any]
    name: str
    hash: str
    device: torch.device
    precision: Precision

    def recommended(self, draws: int | None, steps: int | None, sampler: str | None) -> dict[str, Any] | None:
        """What `diffuseg curve` found for this model, where neither draws nor steps nor another sampler are asked for."""
        found = self.meta.get("recommended")
        free = draws is None and steps is None and self.method.generative
        return found if found and free and sampler in (None, found["sampler"]) else None

    def settings(
        self,
        draws: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        fuse: str = "mean",
        label: str | None = None,
    ) -> dict[str, Any]:
        """All that decides a result besides the image, defaults filled in; a deterministic method has a single draw.

        Defaults are what is recommended for the model, else 8 draws with the method's own steps and sampler. Refuses fewer
        than one draw, an unknown sampler or fusion, more steps than the model has levels, and a label that `predict` refuses.
        """
        best = self.recommended(draws, steps, sampler)
        if best is not None:
            draws, steps, sampler = best["draws"], best["steps"], best["sampler"]
        draws = DRAWS if draws is None else draws
        if draws < 1:
            raise UserError(f"{draws} draws: at least one is needed")
        fusion(fuse)
        self._refuse_label(label)
        chosen = {name: getattr(self.method.config, name) for name in self.method.inference_settings}
        rest = {"label": label, "options": json.loads(json.dumps(chosen))}  # as they will be read again: lists, no tuples
        if not self.method.generative:
            return {"model": self.hash, "draws": 1, "seed": None, "steps": 1, "sampler": None, "fuse": "mean"} | rest
        sampler, steps = self.method.sampling(sampler, steps)
        return {"model": self.hash, "draws": draws, "seed": seed, "steps": steps, "sampler": sampler, "fuse": fuse} | rest

    @cached_property
    def calibration(self) -> Calibration | None:
        """What `diffuseg calibrate` found for this model."""
        return read_calibration(self.meta)

    def predict(
        self,
        image: Readable,
        draws: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        on_draw: Callable[[int, int], None] | None = None,
        fuse: str = "mean",
        calibrate: bool = True,
        keep_draws: bool = False,
        keep_steps: bool = False,
        label: str | None = None,
    ) -> Prediction:
        """Segment one case, given as a file, files (one per channel), an Image, or an array [*s] or [c, *s].

        An array has no geometry: its voxels are taken for 1 mm, its axes for right, anterior, superior. Statistics are
        made on the model's grid and interpolated back; the mask is the largest of the probabilities on the image's own
        voxels, or of the votes, the best expected Dice or STAPLE's decision: `fuse` "vote", "dice" or "staple". Noise
        depends on the seed and on the image's intensities, not on its name or on other cases. `on_draw(done, draws)` is told
        of each draw. Where the model is calibrated for these settings, probabilities are tempered and volume intervals
        widened, unless `calibrate` is off; mask and uncertainty maps are those of the draws either way, and the provenance
        says what was done.
        `keep_draws` and `keep_steps` keep the mask of each draw and the steps of the first one: one byte per voxel each.
        A model that learnt from image-level labels decides what the image shows, unless `label`, one of its classes, says so:
        "background" is an empty mask. Its draws are evidence, and the mask is made of their mean.
        Refuses what `settings` refuses, images that cannot be read, and images with other channels or axes than the model's.
        """
        started = time.monotonic()
        asked = self.settings(draws, seed, steps, sampler, fuse, label)
        if keep_steps and self.method.supervision != "mask":
            raise UserError(f"{self.name} has no steps of a mask to keep", do="Leave out --save-steps")
        image, digests = self._image(image), file_digests(image)
        x, transform = to_grid(image, self.plan)
        digest = content_digest(image, transform)
        seeds = [draw_seed(seed, digest, i) for i in range(asked["draws"])]
        conclude = lambda evidence: self.method.finalize_draw(evidence, x, asked["sampler"], asked["steps"])
        ensemble, fused = Ensemble(conclude), fusion(asked["fuse"])
        levels = self._levels(asked["steps"]) if keep_steps else []
        kept = DrawRecorder(transform, self._values(), keep_draws * len(seeds), levels)
        how = {"steps": asked["steps"], "sampler": asked["sampler"], "chunk": self.together(x.shape[1:])}
        how |= {"on_denoised": kept.step} if keep_steps else {}
        with self.precision.autocast(self.device):
            verdict = self._verdict(x.to(self.device), label)
            how |= {} if verdict is None else {"label": verdict.label}
            for p in self.method.draw(x.to(self.device), seeds, **how):
                concluded = ensemble.add(p)
                fused.add(concluded)
                kept.draw(concluded)
                if on_draw is not None:
                    on_draw(ensemble.draws, len(seeds))
        probability = to_native(ensemble.mean, transform)
        if not np.isfinite(probability).all():
            raise UserError(f"{self.name} gives NaN or infinite probabilities", do="Its training went wrong: train it again")
        shares = probability if asked["fuse"] == "mean" else to_native(fused.shares(ensemble.mean), transform)
        chosen = shares.argmax(0)
        mask = self._values()[chosen]
        provenance = self._volumes(mask, probability, image, transform, ensemble) | asked | kept.record()
        provenance["agreement"] = self._by_class(ensemble.agreement())
        provenance["doubt"] = round(expected_dice_loss(probability, chosen), 6)
        if calibrate and self.calibration is not None:
            probability = self._calibrate(self.calibration, probability, provenance)
        provenance |= self._provenance(image, transform, x.shape[1:]) | {"image_digests": digests}
        provenance["recommended"] = self.recommended(draws, steps, sampler) is not None
        provenance["seeds"] = seeds if self.method.generative else []
        provenance |= self._cost(asked, verdict)
        provenance["seconds"] = round(time.monotonic() - started, 2)
        uncertainty = self._uncertainty(ensemble, transform)
        return Prediction(mask, probability, uncertainty, image, provenance, kept.draws, kept.steps)

    def _uncertainty(self, ensemble: Ensemble, transform: GridTransform) -> dict[str, np.ndarray]:
        """The maps of the draws by name, on the image's own voxels."""
        maps = ensemble.uncertainty()
        return dict(zip(maps, maps_to_native(torch.stack(list(maps.values())), transform), strict=True))

    def _by_class(self, values: Sequence[float | None]) -> dict[str, float | None]:
        """Foreground classes by name; values are in the order of the classes, background first."""
        pairs = list(zip(self.plan.names, values, strict=True))[1:]
        return {name: None if value is None else round(value, 6) for name, value in pairs}

    def _refuse_label(self, label: str | None) -> None:
        if label is not None and self.method.supervision == "mask":
            raise UserError(f"label {label!r}: this model learnt from masks and asks for no label")
        if label is not None and label not in self.plan.labels:
            raise UserError(f"unknown label {label!r}", do=f"Known: {', '.join(self.plan.labels)}")

    def _verdict(self, x: torch.Tensor, label: str | None) -> ImageLabel | None:
        """What the image shows, as told or as the method decides; None where the method needs no such decision."""
        if label is None:
            return self.method.classify_image(x)
        return ImageLabel(self.plan.names.index(label), "as told", {}, 0)

    def _cost(self, asked: dict[str, Any], verdict: ImageLabel | None) -> dict[str, Any]:
        """Evaluations of the network, per tile, and what was decided about the image as a whole."""
        each = self.method.evaluations(asked["sampler"], asked["steps"]) if self.method.generative else 1
        if verdict is None:
            return {"network_evaluations": asked["draws"] * each}
        name = self.plan.names[verdict.label]
        shown = {"label": name, "decided_by": verdict.by, "scores": verdict.scores, "network_evaluations": verdict.evaluations}
        drawn = asked["draws"] * each if verdict.label else 0  # nothing to look for
        return {"image_label": shown, "network_evaluations": verdict.evaluations + drawn, "note": self.method.disclaimer}

    def _calibrate(self, calibration: Calibration, probability: np.ndarray, provenance: dict[str, Any]) -> np.ndarray:
        """Tempered probabilities; provenance gets wider intervals and a verdict. Neither where the settings are others."""
        mismatch = calibration.mismatch(provenance)
        provenance |= calibration_record(calibration, provenance["doubt"], mismatch)
        if mismatch:
            return probability
        if calibration.widening:
            raw, names = provenance["volume_ml_90"], ", ".join(calibration.widening)
            provenance["volume_ml_90"], provenance["volume_ml_90_raw"] = calibration.widen(raw), raw
            wider = f"in volume_ml_90 widened as {calibration.where} ask for ({names})"
            provenance["volume_note"] += f" (volume_ml_90_raw), {wider}"
        return calibration.temper(probability)

    def together(self, grid: Sequence[int]) -> int:
        """How many draws are made at a time: 8, or fewer of a large image; the result is the same."""
        return max(1, min(8, STATE_BYTES // (4 * self.plan.classes * math.prod(grid))))

    def _values(self) -> np.ndarray:
        """Label value of each class, in the smallest type that holds them."""
        values = np.array(sorted(self.plan.labels.values()))
        return values.astype(np.uint8 if values.min() >= 0 and values.max() < 256 else np.int32)

    def _levels(self, steps: int) -> list[int]:
        """The levels t at which a draw asks the network; a deterministic method has no noise, so it asks at 0."""
        return [t for t, _ in timesteps(self.method.schedule.T, steps)] if self.method.generative else [0]

    def _image(self, image: Readable) -> Image:
        if isinstance(image, np.ndarray):
            image = self._array(image)
        elif not isinstance(image, Image):
            return read_image(image)
        if not np.isfinite(image.data).all():
            raise UserError("there are NaN or infinite values in the image", file=image.source, do="Replace them")
        return image

    def _array(self, array: np.ndarray) -> Image:
        volumes = self.plan.dims == 3 or self.plan.orientation is not None or len(self.plan.spacing or ()) == 3
        axes = 3 if volumes else 2
        if array.dtype.kind not in "biuf" or array.ndim not in (axes, axes + 1) or array.size == 0:
            what = f"an array of shape {array.shape} and type {array.dtype}"
            raise UserError(what, do=f"This model takes real numbers with {axes} axes, or channels and {axes} axes")
        return Image(array[None] if array.ndim == axes else array)

    def _volumes(
        self, mask: np.ndarray, native: np.ndarray, image: Image, transform: GridTransform, ensemble: Ensemble
    ) -> dict[str, Any]:
        """Per foreground class: ml of the mask, and the 90 % interval of the draws' own masks.

        Draws are counted on the model's grid. Interpolating back changes the volume of what is small or thin, so each count is
        taken as many times as the mean's mask is larger on the image's own voxels: without resampling, exactly once.
        """
        voxel, grid_voxel = voxel_ml(image.affine, image.dims), voxel_ml(transform.grid_affine, image.dims)
        names = self.plan.names
        volume = {n: round(int((mask == self.plan.labels[n]).sum()) * voxel, 6) for n in names[1:]}
        own, grid = (np.bincount(p.argmax(0).ravel(), minlength=len(names)) for p in (native, ensemble.mean.cpu().numpy()))
        scale = [a * voxel / (b * grid_voxel) if a and b else 1.0 for a, b in zip(own.tolist(), grid.tolist(), strict=True)]
        counts = zip(names, zip(*ensemble.counts, strict=True), scale, strict=True)
        spread = {n: [round(ml, 6) for ml in interval([c * grid_voxel * s for c in many])] for n, many, s in counts}
        note = "5th to 95th percentile of the volumes of the single draws"
        if ensemble.draws == 1:
            note = "a single draw: the interval is a point and says nothing about uncertainty"
        if image.dims == 2:
            note += "; a picture has no thickness, 1 mm is assumed"
        return {"volume_ml": volume, "volume_ml_90": {n: spread[n] for n in names[1:]}, "volume_note": note}

    def _provenance(self, image: Image, transform: GridTransform, grid: Sequence[int]) -> dict[str, Any]:
        spacing = np.linalg.norm(transform.grid_affine[:3, : image.dims], axis=0).round(6).tolist()
        return {
            "model_name": self.name,
            "method": self.meta.get("method"),
            "labels": self.plan.labels,
            "source": None if image.source is None else str(image.source.absolute()),  # a viewer may be started elsewhere
            "seen_in": seen_in(self.meta, image.source),
            "grid": {"shape": list(grid), "spacing_mm": spacing, "orientation": self.plan.orientation},
            "precision": self.precision.reason,
            "device": str(self.device),
            "versions": versions(),
            "notice": NOTICE,
        }


def load(path: Path | str, device: str | None = None, options: Sequence[str] = ()) -> Model:
    """A model from a checkpoint file, or from the name of one that comes with the package ("hippocampus").

    device "cpu", "cuda" or "cuda:N"; left out, the GPU if there is one. options: "key=value" for settings of the method that
    concern drawing alone. Refuses unknown names (the message lists those there are), files that are not checkpoints, devices
    that are not there, and settings that a training has fixed.
    """
    where = choose_device(device)
    if Path(path).is_file():
        return _load(Path(path), None, where, options)
    known = packaged()
    if str(path) in known:
        with as_file(files("diffuseg") / "models" / f"{path}.safetensors") as file:
            return _load(file, str(path), where, options)
    if Path(path).is_dir():
        raise UserError("this is a folder", file=path, do=f"Give a checkpoint in it, such as {Path(path) / 'best.safetensors'}")
    names = f"Packaged models: {', '.join(known) or 'none'}"
    raise UserError("neither a checkpoint file nor the name of a packaged model", file=path, do=names)


def packaged() -> list[str]:
    """Names of the models that come with the package."""
    folder = files("diffuseg") / "models"
    if not folder.is_dir():
        return []
    return sorted(item.name.removesuffix(".safetensors") for item in folder.iterdir() if item.name.endswith(".safetensors"))


def content_digest(image: Image, transform: GridTransform) -> str:
    """A digest of the intensities of an image, as read, and of its size on the model's grid.

    Values are sorted: an image that is stored turned or flipped gives the same noise on the grid. What is read is exact,
    unlike what is resampled, whose last bits differ between processors.
    """
    values = np.sort(image.data.astype(np.float32).reshape(len(image.data), -1) + 0.0, axis=1)  # + 0: no -0
    return hashlib.sha256(repr((values.shape, transform.grid)).encode() + values.tobytes()).hexdigest()


def file_digests(image: Readable) -> list[str]:
    """What tells the files of a case from other files of the same name, one entry per channel; [] of an image in memory."""
    if isinstance(image, (Image, np.ndarray)):
        return []
    paths = [image] if isinstance(image, (str, Path)) else image
    return [image_digest(Path(path)) for path in paths]


def draw_seed(seed: int, digest: str, i: int) -> int:
    """The seed of draw i of one image: independent of the other draws and of other images. 48 bits, exact in any JSON."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{digest}/{i}".encode()).digest()[:6], "big")


def _load(path: Path, name: str | None, device: torch.device, options: Sequence[str]) -> Model:
    method, plan, meta = load_checkpoint(path, device, options)
    precision = choose_precision(device)
    return Model(method, plan, meta, name or str(meta.get("name", path.stem)), model_hash(path), device, precision)
