"""A trained model: load it by path or by name, and segment images with it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuseg.checkpoint import image_digest, load_checkpoint, model_hash, seen_in, versions
from diffuseg.data.batches import FullCase
from diffuseg.data.io import read_image
from diffuseg.data.plan import Plan
from diffuseg.data.transforms import GridTransform, maps_to_native
from diffuseg.data.world import outside_training
from diffuseg.device import Precision, choose_device, choose_precision
from diffuseg.diffusion.samplers import timesteps
from diffuseg.errors import UserError
from diffuseg.inference.calibration import Calibration, apply_calibration, read_calibration
from diffuseg.inference.ensemble import Ensemble
from diffuseg.inference.fusion import fusion
from diffuseg.inference.prediction import Prediction
from diffuseg.inference.provenance import cost, grid, scores, volumes
from diffuseg.inference.recorder import DrawRecorder
from diffuseg.inference.sampling import ImageDraws, SamplingOptions, Turn, mirrors, prepare
from diffuseg.methods import Method
from diffuseg.types import Image

NOTICE = "For research only: not a medical device, not to be used for diagnosis or treatment."
Readable = Image | np.ndarray | Path | str | Sequence[Path | str]


@dataclass(frozen=True)
class Model:
    """A method with its weights, and what it needs to know about images.

    name  as packaged, or as its training called it; hash: first 12 hexadecimal digits of the checkpoint's SHA-256
    meta  the checkpoint's header
    members  the checkpoints of several models that draw in turn; the method has the weights of one at a time
    """

    method: Method
    plan: Plan
    meta: dict[str, Any]
    name: str
    hash: str
    device: torch.device
    precision: Precision
    members: tuple[Path, ...] = ()

    def turns(self, options: SamplingOptions) -> list[Turn]:
        """The ways in which these options ask to draw: with each of several models, and from mirrored images."""
        volume = self.plan.dims == 3 or self.plan.orientation is not None
        ways = mirrors(self.plan, volume) if options.mirror else [()]
        return [Turn(member, axes) for member in self.members or (None,) for axes in ways]

    def recommended(self, options: SamplingOptions) -> dict[str, Any] | None:
        """What `diffuseg curve` found for this model, where neither draws nor steps nor another sampler are asked for."""
        best = self.meta.get("recommended")
        free = options.draws is None and options.steps is None and self.method.generative
        return best if best and free and options.sampler in (None, best["sampler"]) else None

    def resolve(self, options: SamplingOptions) -> SamplingOptions:
        """The same options with nothing left open; a deterministic method has a single draw.

        Raises:
            UserError: Fewer than one draw, an unknown sampler or fusion, more steps than the model has levels, a label where
                the model asks for none or of no class of its, or steps to keep where there are none of a mask;
                of a deterministic method a sampler, a fusion or steps.
        """
        best = self.recommended(options)
        if best is not None:
            options = replace(options, draws=best["draws"], steps=best["steps"], sampler=best["sampler"])
        draws = self.method.default_draws if options.draws is None else options.draws
        if draws < 1:
            raise UserError(f"{draws} draws: at least one is needed")
        fusion(options.fuse)
        self._refuse_label(options.label)
        if options.keep_steps and self.method.supervision != "mask":
            raise UserError(f"{self.name} has no steps of a mask to keep", do="Leave out --save-steps")
        if not self.method.generative:
            self._refuse_idle(options)
            return replace(options, draws=1, steps=1, sampler=None, fuse="mean")
        sampler, steps = self.method.sampling(options.sampler, options.steps)
        return replace(options, draws=draws, steps=steps, sampler=sampler)

    def settings(self, options: SamplingOptions | None = None, **changes: Any) -> dict[str, Any]:
        """All that decides a result besides the image, as <case>.json has it.

        Args:
            options: How to draw; what is None is what is recommended for the model, else the method's own.
            changes: Fields of `SamplingOptions`, in place of those of `options`.

        Raises:
            UserError: As `resolve`.
        """
        chosen = self.resolve(replace(options or SamplingOptions(), **changes))
        own = {name: getattr(self.method.config, name) for name in self.method.inference_settings}
        return {
            "model": self.hash,
            "draws": (chosen.draws or 1) * len(self.turns(chosen)),
            "seed": chosen.seed if self.method.generative else None,
            "steps": chosen.steps,
            "sampler": chosen.sampler,
            "fuse": chosen.fuse,
            "label": chosen.label,
            "options": json.loads(
                json.dumps(own | ({"mirror": True} if chosen.mirror else {}))
            ),  # as they will be read again: lists, no tuples
        }

    @cached_property
    def calibration(self) -> Calibration | None:
        """What `diffuseg calibrate` found for this model."""
        return read_calibration(self.meta)

    def prepare(
        self, image: Image | FullCase, options: SamplingOptions | None = None, indices: Sequence[int] | None = None
    ) -> ImageDraws:
        """One image, ready to be drawn from with these options; see `diffuseg.inference.sampling.prepare`."""
        options = self.resolve(options or SamplingOptions())
        return prepare(self.method, image, options, self.device, self.precision, indices, self.turns(options))

    def predict(
        self,
        image: Readable,
        options: SamplingOptions | int | None = None,
        *,
        calibrate: bool = True,
        on_draw: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> Prediction:
        """Segment one case: `model.predict("scan.nii.gz", draws=8, seed=0)`.

        Statistics are made on the model's grid and interpolated back; the mask is what is most probable on the image's own
        voxels. Noise depends on the seed and on the image's intensities, not on its name or on other cases. A model that
        learnt from image-level labels decides what the image shows, unless `label` says so; "background" is an empty mask.

        Args:
            image: A file, files (one per channel), an Image, or an array [*s] or [c, *s]: its voxels are taken for 1 mm, its
                axes for right, anterior, superior.
            options: How to draw, see `SamplingOptions`; a number is that of the draws.
            calibrate: Where the model is calibrated for these settings, temper probabilities and widen volume intervals; mask
                and uncertainty maps are those of the draws either way.
            on_draw: Called with (done, draws) after each draw.
            changes: Fields of `SamplingOptions`, in place of those of `options`.

        Raises:
            UserError: What `settings` refuses, an image that cannot be read, or with other channels or axes than the model's.
        """
        started = time.monotonic()
        given = SamplingOptions(draws=options) if isinstance(options, int) else options or SamplingOptions()
        asked = replace(given, **changes)
        options = self.resolve(asked)
        image, digests = self._image(image), file_digests(image)
        draws = self.prepare(image, options)
        ensemble, fused, recorder = draws.ensemble(), fusion(options.fuse), self._recorder(draws, options)
        for draw in draws.draw(recorder.step if options.keep_steps else None):
            probability = ensemble.add(draw)
            fused.add(probability)
            recorder.draw(probability)
            if on_draw is not None:
                on_draw(ensemble.draws, len(draws.seeds))
        probability = draws.to_native(ensemble.mean)
        if not np.isfinite(probability).all():
            raise UserError(f"{self.name} gives NaN or infinite probabilities", do="Its training went wrong: train it again")
        fuses = options.fuse != "mean"
        chosen = (draws.to_native(fused.shares(ensemble.mean)) if fuses else probability).argmax(0)
        record = volumes(self.plan, chosen, probability, image, draws.transform, ensemble)
        record |= self.settings(options) | recorder.record() | scores(self.plan, ensemble, probability, chosen)
        if calibrate and self.calibration is not None:
            probability = apply_calibration(self.calibration, probability, record)
        record |= self._unlike_training(image, record["volume_ml"], self._values()[chosen])
        record |= self._origin(image, draws) | {"image_digests": digests}
        record |= {"recommended": self.recommended(asked) is not None} | cost(draws)
        record["seconds"] = round(time.monotonic() - started, 2)
        uncertainty = _uncertainty(ensemble, draws.transform)
        return Prediction(self._values()[chosen], probability, uncertainty, image, record, recorder.draws, recorder.steps)

    def _recorder(self, draws: ImageDraws, options: SamplingOptions) -> DrawRecorder:
        """Of what is to be kept; a deterministic method has no noise, so its only step is at level 0."""
        levels = []
        if options.keep_steps and self.method.generative:
            levels = [t for t, _ in timesteps(self.method.schedule.T, self.method.sampling(None, options.steps)[1])]
        elif options.keep_steps:
            levels = [0]
        return DrawRecorder(draws.transform, self._values(), options.keep_draws * len(draws.seeds), levels)

    def _origin(self, image: Image, draws: ImageDraws) -> dict[str, Any]:
        """What a prediction was computed from and by."""
        return {
            "model_name": self.name,
            "method": self.meta.get("method"),
            "labels": self.plan.labels,
            "source": None if image.source is None else str(image.source.absolute()),  # a viewer may be started elsewhere
            "seen_in": seen_in(self.meta, image.source),
            "grid": grid(self.plan, draws),
            "precision": self.precision.reason,
            "device": str(self.device),
            "versions": versions(),
            "notice": NOTICE,
        } | ({"members": self.meta["members"]} if self.members else {})

    def _unlike_training(self, image: Image, volume_ml: dict[str, float], mask: np.ndarray) -> dict[str, Any]:
        """In what image and volumes are unlike all training cases; then the case needs review, however sure the draws are."""
        faults = outside_training(self.meta.get("fingerprint"), image, self.plan, volume_ml, mask)
        return {"outside_training": faults, "needs_review": True, "look_at": True} if faults else {}

    def _refuse_idle(self, options: SamplingOptions) -> None:
        """Refuse what could do nothing in a method without noise."""
        idle = {"sampler": options.sampler, "fuse": None if options.fuse == "mean" else options.fuse}
        for name, value in idle.items():
            if value is not None:
                what = (
                    f"{name} {value!r}: {self.meta.get('method', 'this method')} is deterministic, its draws are all the same"
                )
                raise UserError(what, do=f"Leave out --{name}")
        self.method.sampling(None, options.steps)

    def _refuse_label(self, label: str | None) -> None:
        if label is not None and self.method.supervision == "mask":
            raise UserError(f"label {label!r}: this model learnt from masks and asks for no label")
        if label is not None and label not in self.plan.labels:
            raise UserError(f"unknown label {label!r}", do=f"Known: {', '.join(self.plan.labels)}")

    def _values(self) -> np.ndarray:
        """Label value of each class, in the smallest type that holds them."""
        values = np.array(sorted(self.plan.labels.values()))
        return values.astype(np.uint8 if values.min() >= 0 and values.max() < 256 else np.int32)

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


def file_digests(image: Readable) -> list[str]:
    """What tells the files of a case from other files of the same name, one entry per channel; [] of an image in memory."""
    if isinstance(image, (Image, np.ndarray)):
        return []
    paths = [image] if isinstance(image, (str, Path)) else image
    return [image_digest(Path(path)) for path in paths]


def _uncertainty(ensemble: Ensemble, transform: GridTransform) -> dict[str, np.ndarray]:
    """The maps of the draws by name, on the image's own voxels."""
    maps = ensemble.uncertainty()
    return dict(zip(maps, maps_to_native(torch.stack(list(maps.values())), transform), strict=True))


def _load(path: Path, name: str | None, device: torch.device, options: Sequence[str]) -> Model:
    method, plan, meta = load_checkpoint(path, device, options)
    precision = choose_precision(device)
    return Model(method, plan, meta, name or str(meta.get("name", path.stem)), model_hash(path), device, precision)
