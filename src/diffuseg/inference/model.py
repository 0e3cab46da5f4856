"""A trained model: load it by path or by name, and segment images with it."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from diffuseg.blocks import all_finite, largest, take
from diffuseg.checkpoint import image_digest, known_as, load_checkpoint, seen_in, versions
from diffuseg.data.batches import FullCase
from diffuseg.data.dicom import digest
from diffuseg.data.dicom_series import Stack
from diffuseg.data.geometry import warn_once
from diffuseg.data.given import Kind, paths_of, receive
from diffuseg.data.io import read_slide, sources
from diffuseg.data.plan import Plan
from diffuseg.data.region import region_name
from diffuseg.data.slides import Scale, is_slide
from diffuseg.data.transforms import GridTransform, maps_to_native
from diffuseg.device import Precision, choose_device, choose_precision
from diffuseg.diffusion.samplers import timesteps
from diffuseg.errors import UserError
from diffuseg.inference.calibration import Calibration, apply_calibration, contain, digest_of, read_calibration
from diffuseg.inference.checkpoints import file_of, one_model
from diffuseg.inference.ensemble import Ensemble
from diffuseg.inference.fusion import Fusion, fusion
from diffuseg.inference.many import CaseResult, predict_many
from diffuseg.inference.postprocessing import Postprocessing, apply_postprocessing, read_postprocessing
from diffuseg.inference.prediction import Prediction
from diffuseg.inference.provenance import cost, grid, region_record, scores, slide_record, volumes
from diffuseg.inference.recorder import DrawRecorder
from diffuseg.inference.sampling import SCALE, ImageDraws, SamplingOptions, Turn, mirrors, options_of, prepare
from diffuseg.inference.unlike import far_outside, refuse_far, uncalibrated, unlike_training
from diffuseg.methods import Method
from diffuseg.methods.tiles import OVERLAP
from diffuseg.text import did_you_mean, pluralize
from diffuseg.types import Image

NOTICE = "For research only: not a medical device, not to be used for diagnosis or treatment."
MOST_OVERLAP = 0.9  # of neighbouring tiles: 10 times as many along each axis as without any
Readable = Any  # what `diffuseg.data.given` lists: its types are of packages that need not be there


@dataclass(frozen=True)
class ReadCase:
    """A case that is read: its image, what tells its files from others of these names, and what it was given as."""

    image: Image
    digests: list[str]
    kind: Kind


@dataclass(frozen=True)
class Model:
    """A method with its weights, and what it needs to know about images.

    name  as packaged, or as its training called it; hash: of its weights and of what they are used with, see `weights_hash`
    meta  the checkpoint's header
    file_hashes   by which earlier versions called it, the present one first
    members  the checkpoints of several models that draw in turn; the method has the weights of one at a time
    """

    method: Method
    plan: Plan
    meta: dict[str, Any]
    name: str
    hash: str
    device: torch.device
    precision: Precision
    file_hashes: tuple[str, ...] = ()
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
            UserError: Fewer than one draw, an unknown sampler or fusion, more steps than the model has timesteps, a label where
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
        _check_scale(options)
        self._refuse_overlap(options.overlap)
        if options.region is not None and self.method.supervision != "mask":
            raise UserError(f"{self.name} decides what an image shows as a whole", do="Leave out --region")
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
        chosen = self.resolve(options_of(options, changes))
        own = {name: getattr(self.method.config, name) for name in self.method.inference_settings}
        own |= {"mirror": True} if chosen.mirror else {}
        own |= {} if chosen.region is None else {"region": region_name(chosen.region)}
        asked = chosen.scale | {"all_tiles": chosen.all_tiles}
        own |= {name: value for name, value in asked.items() if value}
        own |= {} if chosen.overlap in (None, OVERLAP) else {"overlap": chosen.overlap}
        own |= {"postprocess": False} if self.postprocessing is not None and not chosen.postprocess else {}
        return {
            "model": self.hash,
            "draws": (chosen.draws or 1) * len(self.turns(chosen)),
            "seed": chosen.seed if self.method.generative else None,
            "steps": chosen.steps,
            "sampler": chosen.sampler,
            "fuse": chosen.fuse,
            "label": chosen.label,
            "options": json.loads(json.dumps(own)),  # as they will be read again: lists, no tuples
        }

    def passes(self, options: SamplingOptions) -> int:
        """Evaluations of the network that all draws of one tile take."""
        if not self.method.generative:
            return len(self.turns(options))
        draws, sampler, steps = (self.settings(options)[name] for name in ("draws", "sampler", "steps"))
        return draws * self.method.evaluations(sampler, steps)  # draws of all turns

    @cached_property
    def calibration(self) -> Calibration | None:
        """What `diffuseg calibrate` found for this model."""
        return read_calibration(self.meta)

    @cached_property
    def postprocessing(self) -> Postprocessing | None:
        """What `diffuseg postprocess` found for this model."""
        return read_postprocessing(self.meta, self.plan.names)

    def learnt(self, settings: dict[str, Any]) -> dict[str, str | None]:
        """Identity of what was learnt about the model and is applied with these settings; None where nothing is.

        "calibration" is that of `diffuseg calibrate`, "postprocessing" that of `diffuseg postprocess`, "saliency_calibration"
        that of maps, of methods which have them.
        """
        known = {"calibration": self.calibration, "postprocessing": self.postprocessing}
        used = {key: None if one is None or one.mismatch(settings) else one.id for key, one in known.items()}
        return used | self._saliency()

    def _saliency(self) -> dict[str, str | None]:
        """Identity of the thresholds of maps, of a method that has maps."""
        if self.method.supervision == "mask":
            return {}
        reference = getattr(self.method, "calibration", None)
        return {"saliency_calibration": None if reference is None else digest_of(asdict(reference))}

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
        affine: Any = None,
        spacing: Any = None,
        calibrate: bool = True,
        on_draw: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> Prediction:
        """Segment one case: `model.predict("scan.nii.gz", draws=8, seed=0)`.

        Statistics are made on the model's grid and interpolated back; the mask is what is most probable on the image's own
        voxels. Noise depends on the seed and on the image's intensities, not on its name or on other cases. A model that
        learnt from image-level labels decides what the image shows, unless `label` says so; "background" is an empty mask.

        Args:
            image: A path; paths or images, one per channel; a DICOM folder; an array or tensor; an image of nibabel, SimpleITK
                or MONAI.
            options: How to draw, see `SamplingOptions`; a number is that of the draws.
            affine: Voxel -> mm (RAS) of an array or tensor; else its axes are taken for right, anterior, superior.
            spacing: Size of its voxels in mm per axis, in place of an affine; else 1 mm.
            calibrate: Where the model is calibrated for these settings, temper probabilities and adjust volume intervals; they
                then hold the mask's own volume. Mask and uncertainty maps are those of the draws either way.
            on_draw: Called with (done, draws) after each draw.
            changes: Fields of `SamplingOptions`, in place of those of `options`.

        Raises:
            UserError: What `settings` refuses, an image that cannot be read, or with other channels or axes than the model's,
                and, without `anyway`, one that is far outside of the training.
        """
        started = time.monotonic()
        asked = options_of(options, changes)
        options = self.resolve(asked)
        case = image if isinstance(image, ReadCase) else self.read(image, affine=affine, spacing=spacing, **options.scale)
        image, digests = case.image, case.digests
        far = far_outside(self.meta, self.plan, image, options.region)
        refuse_far([] if options.anyway else far, image)
        draws = self.prepare(image, options)
        ensemble, fused, recorder = self._collect(draws, options, on_draw)
        uncertainty = _uncertainty(ensemble, draws.transform)
        probability = draws.to_native(ensemble.mean)
        if not all_finite(probability):
            raise UserError(f"{self.name} gives NaN or infinite probabilities", do="Its training went wrong: train it again")
        chosen = largest(probability if options.fuse == "mean" else draws.to_native(fused.shares(ensemble.mean)))
        record = self.settings(options) | recorder.record() | scores(self.plan, ensemble, probability, chosen)
        chosen, cleaned = apply_postprocessing(self.postprocessing, chosen, self.plan.names, record)
        record = volumes(self.plan, chosen, probability, image, draws.transform, ensemble) | record | cleaned
        if calibrate:
            probability = self._calibrated(probability, image, record, far)
        mask = take(self._values(), chosen)
        if options.region is not None:
            record |= region_record(draws.transform, record["volume_note"])
        record |= unlike_training(self.meta, self.plan, image, record, mask, far)
        record |= slide_record(image, draws, record["volume_note"]) | self._origin(image, draws, digests)
        record |= {"image_digests": digests, "recommended": self.recommended(asked) is not None} | cost(draws)
        record["seconds"] = round(time.monotonic() - started, 2)
        return Prediction(mask, probability, uncertainty, image, record, recorder.draws, recorder.steps, case.kind)

    def _calibrated(
        self, probability: Float[np.ndarray, "k *s"], image: Image, record: dict[str, Any], far: Sequence[str]
    ) -> Float[np.ndarray, "k *s"]:
        """Probabilities and intervals as the model's calibration has them; raw, of an image far outside of the training."""
        if far:
            record |= uncalibrated(far, record)
        elif self.calibration is not None:
            probability = apply_calibration(self.calibration, probability, record, image.voxel_ml)
        contain(record, image.voxel_ml * math.prod(image.shape))
        return probability

    def _collect(
        self, draws: ImageDraws, options: SamplingOptions, on_draw: Callable[[int, int], None] | None
    ) -> tuple[Ensemble, Fusion, DrawRecorder]:
        """All draws, of which only the statistics are held."""
        ensemble, fused, recorder = draws.ensemble(options.spread), fusion(options.fuse), self._recorder(draws, options)
        for draw in draws.draw(recorder.step if options.keep_steps else None):
            probability = ensemble.add(draw)
            fused.add(probability)
            recorder.draw(probability)
            if on_draw is not None:
                on_draw(ensemble.draws, len(draws.seeds))
            del draw, probability  # before the next one is made
        return ensemble, fused, recorder

    def read(
        self,
        image: Readable,
        *,
        affine: Any = None,
        spacing: Any = None,
        magnification: int | float | None = None,
        mpp: int | float | None = None,
    ) -> ReadCase:
        """A case as `predict` takes it, read and checked; `predict` takes what this returns, too.

        Raises:
            UserError: What cannot be read, is no image, or has NaN or infinite values.
        """
        axes, files = image_axes(self.plan), sources(paths_of(image))
        scale = Scale(magnification, mpp, self.plan.spacing)
        slides = [file for file in files if isinstance(file, Path) and is_slide(file, scale)]
        if slides:
            self._refuse_slides(files)
            return ReadCase(read_slide(slides[0], scale), file_digests(files), "path")
        if scale.asked:
            what = "--magnification and --mpp are for whole slides, and this is none"
            raise UserError(what, file=files[0] if files and isinstance(files[0], Path) else None, do="Leave them out")
        received, kind = receive(files or image, axes, affine, spacing)
        if received.dims > axes:
            what = f"a volume of shape {received.shape}, but the plan is for pictures"
            raise UserError(what, file=received.source, do="Give its slices one by one")
        return ReadCase(received, file_digests(files), kind)

    def predict_many(
        self,
        cases: Any,
        options: SamplingOptions | int | None = None,
        *,
        out: Path | str | None = None,
        **keywords: Any,
    ) -> Iterator[CaseResult]:
        """Segment many cases, one after the other, while the next ones are read and the one before is written.

        `for name, prediction, error in model.predict_many(paths, out="results"): ...`. See `diffuseg.inference.many`.
        """
        return predict_many(self, cases, options, out, keywords)

    def __call__(self, image: Readable, options: SamplingOptions | int | None = None, **changes: Any) -> Any:
        """The mask of one case as the same kind: `model(x)` is `model.predict(x).like_input()`, a step of a MONAI pipeline."""
        return self.predict(image, options, **changes).like_input()

    def __repr__(self) -> str:
        """One line, without weights."""
        classes = ", ".join(self.plan.names[1:])
        return f"Model({self.name!r} ({self.hash}), {self.meta.get('method')}, classes {classes}, on {self.device})"

    def _recorder(self, draws: ImageDraws, options: SamplingOptions) -> DrawRecorder:
        """Of what is to be kept; a deterministic method has no noise, so its only step is at timestep 0."""
        walked = []
        if options.keep_steps and self.method.generative:
            walked = [t for t, _ in timesteps(self.method.schedule.T, self.method.sampling(None, options.steps)[1])]
        elif options.keep_steps:
            walked = [0]
        return DrawRecorder(draws.transform, self._values(), options.keep_draws * len(draws.seeds), walked)

    def _origin(self, image: Image, draws: ImageDraws, digests: Sequence[str]) -> dict[str, Any]:
        """What a prediction was computed from and by."""
        return (
            {
                "model_name": self.name,
                "method": self.meta.get("method"),
                **self._saliency(),
                "labels": self.plan.labels,
                "source": None if image.source is None else str(image.source.absolute()),  # a viewer may be started elsewhere
                "seen_in": seen_in(self.meta, None if isinstance(image.header, Stack) else image.source, *digests[:1]),
                "grid": grid(self.plan, draws),
                "precision": self.precision.reason,
                "device": str(self.device),
                "versions": versions(),
                "notice": NOTICE,
            }
            | ({"members": self.meta["members"]} if self.members else {})
        )

    def _refuse_slides(self, files: Sequence[Path | Stack]) -> None:
        """Refuse a slide of which this model can make nothing, before it is read."""
        channels, file = self.plan.channels, files[0] if isinstance(files[0], Path) else None
        if len(channels) != 3 or image_axes(self.plan) == 3 or self.method.supervision != "mask":
            sees = f"{'volumes' if image_axes(self.plan) == 3 else 'pictures'} of {pluralize(len(channels), 'channel')}"
            what = f"a whole slide is a picture in red, green and blue; {self.name} sees {sees}"
            what += "" if self.method.supervision == "mask" else ", and decides what an image shows as a whole"
            raise UserError(what, file=file)
        if "zscore" in self.plan.normalisation:
            warn_once(file, "this model's plan normalises each image by itself (zscore): the glass of a slide counts too")
        if len(files) > 1:
            raise UserError("a whole slide holds its three colours in one file", file=file, do="Give it alone")

    def _refuse_idle(self, options: SamplingOptions) -> None:
        """Refuse what could do nothing in a method without noise."""
        idle = {"sampler": options.sampler, "fuse": None if options.fuse == "mean" else options.fuse}
        for name, value in idle.items():
            if value is not None:
                what = f"{self.meta.get('method', 'this method')} is deterministic, its draws are all the same"
                raise UserError(f"{name} {value!r}: {what}", do=f"Leave out --{name}")
        self.method.sampling(None, options.steps)
        if (options.draws or 1) > 1:
            what = "would all be the same, as its method is deterministic: one is made"
            warn_once(None, f"{options.draws} draws of {self.name} {what}")

    def _refuse_label(self, label: str | None) -> None:
        if label is not None and self.method.supervision == "mask":
            raise UserError(f"label {label!r}: this model learnt from masks and asks for no label")
        if label is not None and label not in self.plan.labels:
            raise UserError(f"unknown label {label!r}", do=did_you_mean(label, self.plan.labels))

    def _refuse_overlap(self, overlap: float | None) -> None:
        if overlap is not None and self.method.supervision != "mask":
            raise UserError(f"{self.name} sees an image as a whole, without tiles", do="Leave out --overlap")
        if overlap is not None and not 0 <= overlap <= MOST_OVERLAP:
            what = f"overlap {overlap}: a share of the patch from 0 to {MOST_OVERLAP} is expected"
            raise UserError(what, do="Give 0.25 for tiles that overlap by a quarter")

    def _values(self) -> np.ndarray:
        """Label value of each class, in the smallest type that holds them."""
        values = np.array(sorted(self.plan.labels.values()))
        return values.astype(np.uint8 if values.min() >= 0 and values.max() < 256 else np.int32)


def _check_scale(options: SamplingOptions) -> None:
    """Refuse sizes of pixels that are none, or two of them."""
    asked = {name: value for name, value in options.scale.items() if value is not None}
    for name, value in asked.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g}", do="It is above 0")
    if len(asked) == len(SCALE):
        raise UserError("--magnification and --mpp: one says what the other does", do="Leave one of them out")


def image_axes(plan: Plan) -> int:
    """Spatial axes of the images that a plan is for, 2 or 3: a 2-D network may look at volumes slice by slice."""
    return 3 if plan.dims == 3 or plan.orientation is not None or len(plan.spacing or ()) == 3 else 2


def load(path: Path | str, device: str | None = None, options: Sequence[str] = ()) -> Model:
    """A model from a checkpoint file, a run (its best checkpoint), or the name of one that comes with the package.

    Args:
        path: Such as "run/best.safetensors", "run" or "hippocampus".
        device: "cpu", "cuda", "cuda:N" or "mps"; None: the GPU if there is one.
        options: "key=value" for settings of the method that concern drawing alone.

    Raises:
        UserError: No checkpoint, run or known name, several models, no such device, or a setting that a training has fixed.
    """
    where = choose_device(device)
    name = one_model(path)
    return _load(file_of(name), None if Path(name).is_file() else name, where, options)


def file_digests(image: Readable) -> list[str]:
    """What tells the files of a case from other files of the same name, one entry per channel; [] of an image in memory."""
    return [digest(path) if isinstance(path, Stack) else image_digest(path) for path in sources(paths_of(image))]


def _uncertainty(ensemble: Ensemble, transform: GridTransform) -> dict[str, np.ndarray]:
    """The maps of the draws by name, on the image's own voxels."""
    return {name: maps_to_native(grid[None], transform)[0] for name, grid in ensemble.uncertainty().items()}


def _load(path: Path, name: str | None, device: torch.device, options: Sequence[str]) -> Model:
    method, plan, meta = load_checkpoint(path, device, options)
    precision = choose_precision(device)
    own, *files = known_as(path)
    return Model(method, plan, meta, name or str(meta.get("name", path.stem)), own, device, precision, tuple(files))
