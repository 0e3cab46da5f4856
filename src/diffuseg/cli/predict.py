"""The command `predict`: segment images with a trained model."""

from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuseg import timing
from diffuseg.cli.app import SOME_FAILED, USER_ERROR, Device, app, complain, console, import_libraries, say_aside
from diffuseg.cli.as_json import JSON, print_json
from diffuseg.cli.progress import ProgressBars
from diffuseg.errors import UserError
from diffuseg.text import pluralize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diffuseg.inference.dicom_seg import DicomOut
    from diffuseg.inference.folder import Callbacks, FolderResult
    from diffuseg.inference.model import Model
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.worklist import Share


class Fuse(StrEnum):
    """The names in `diffuseg.inference.fusion.FUSIONS`, without importing it."""

    mean = "mean"
    vote = "vote"
    dice = "dice"
    staple = "staple"


class Engine(StrEnum):
    """What runs the networks, as `diffuseg.inference.engine.ENGINES`."""

    pytorch = "pytorch"
    openvino = "openvino"


class SegKind(StrEnum):
    """Kinds of DICOM segmentation."""

    binary = "binary"
    labelmap = "labelmap"


class ProbType(StrEnum):
    """As what probabilities are stored."""

    float32 = "float32"
    uint8 = "uint8"


Models = Annotated[
    str,
    typer.Argument(
        metavar="MODEL...",
        help="A checkpoint, a run, several of them (RUN/fold_*), or a packaged model such as hippocampus.",
    ),
]
DrawingSet = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the method, as far as it concerns drawing; repeatable.")
]
SameDraws = Annotated[int | None, typer.Option(help="As in predict.", show_default="recommended, or 8")]
SameSteps = Annotated[int | None, typer.Option(help="As in predict.", show_default="the model's")]
SameSampler = Annotated[str | None, typer.Option(help="As in predict.", show_default="the model's")]
SameFuse = Annotated[Fuse, typer.Option(help="As in predict.")]
Mirror = Annotated[
    bool,
    typer.Option("--mirror", help="Also draw from the mirrored image, where the plan allows it: 2, 4 or 8 times the cost."),
]
ProbOption = Annotated[ProbType, typer.Option(help="uint8: probabilities in 255 parts, a quarter of the size.")]
Overlap = Annotated[
    float | None, typer.Option(help="Of neighbouring tiles, as a share of the patch: less is faster.", show_default="0.5")
]
NoPostprocess = Annotated[
    bool, typer.Option("--no-postprocess", help="Leave masks as they are, whatever `diffuseg postprocess` has learnt.")
]
MapOption = Annotated[str | None, typer.Option("--map", help="Kind of saliency map (cdm, cam).", show_default="the model's")]
LabelOption = Annotated[
    str | None, typer.Option(help="What all images are known to show (cdm).", show_default="the model decides")
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        help="Segment a part: 10:60,0:48,5:30 in voxels, or a mask file round whose foreground it lies.",
        show_default="all of the image",
    ),
]
MagnificationOption = Annotated[
    float | None, typer.Option(help="Of whole slides: at which they are read, such as 20.", show_default="as the model's plan")
]
MppOption = Annotated[float | None, typer.Option(help="The same in micrometres per pixel.", show_default="as the model's plan")]
EngineOption = Annotated[
    Engine, typer.Option(help="openvino: faster on a processor, after some seconds of compiling; extra diffuseg[openvino].")
]
Anyway = Annotated[bool, typer.Option("--anyway", help="Also segment images far outside of the training, without calibration.")]
AllTiles = Annotated[bool, typer.Option("--all-tiles", help="Of whole slides: segment the glass too, not the tissue alone.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        help="2/4: the second of four shares of the cases; auto: as SLURM, Kubernetes or torchrun say; claim: always the "
        "next case that nobody has.",
        show_default="all cases",
    ),
]
SeriesOption = Annotated[
    list[str] | None,
    typer.Option(help="A DICOM series: number, UID, part of its description, all; repeatable.", show_default="the only one"),
]
DicomOption = Annotated[
    SegKind | None,
    typer.Option(help="Of DICOM, also write SEG (of this kind), fractional SEG and SR.", show_default="none"),
]
CodesOption = Annotated[
    Path | None, typer.Option(help="JSON with DICOM codes per class, or dataset.json.", show_default="the model's, or tissue")
]


@app.command()
def predict(
    model: Models,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, or folders with images; DICOM folders.")],
    out: Annotated[Path, typer.Option(help="Folder for masks, probabilities, entropy and a .json per case.")],
    draws: Annotated[
        int | None,
        typer.Option(help="Segmentations drawn per case; their spread is the uncertainty.", show_default="recommended, or 8"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps per draw.", show_default="the model's")] = None,
    sampler: Annotated[str | None, typer.Option(help="ancestral, ddim, ...", show_default="the model's")] = None,
    map_: MapOption = None,
    fuse: Annotated[Fuse, typer.Option(help="How the draws make one mask; probabilities are always their mean.")] = Fuse.mean,
    label: LabelOption = None,
    set_: DrawingSet = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also do cases that are already finished.")] = False,
    save_draws: Annotated[bool, typer.Option("--save-draws", help="Also write the mask of each draw.")] = False,
    save_steps: Annotated[bool, typer.Option("--save-steps", help="Also write the first draw step by step.")] = False,
    prob_dtype: ProbOption = ProbType.float32,
    no_prob: Annotated[bool, typer.Option("--no-prob", help="Write no probabilities: the largest files by far.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time went.")] = False,
    series: SeriesOption = None,
    dicom_out: DicomOption = None,
    codes: CodesOption = None,
    as_json: Annotated[bool, JSON] = False,
    mirror: Mirror = False,
    overlap: Overlap = None,
    no_postprocess: NoPostprocess = False,
    region: RegionOption = None,
    magnification: MagnificationOption = None,
    mpp: MppOption = None,
    all_tiles: AllTiles = False,
    shard: ShardOption = None,
    anyway: Anyway = False,
    engine: EngineOption = Engine.pytorch,
) -> None:
    """Segment images in their own geometry, with uncertainty. Exit code 3: some cases failed, the others are kept."""
    import_libraries()
    from diffuseg.inference.claims import read_share
    from diffuseg.inference.folder import predict_folder
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.several import load_models

    _check_prob(no_prob, prob_dtype)
    share = read_share(shard, overwrite)
    options = SamplingOptions(draws, steps, sampler, seed, fuse.value, label, save_draws, save_steps, mirror,
        postprocess=not no_postprocess, region=region, overlap=overlap, magnification=magnification, mpp=mpp,
        all_tiles=all_tiles, anyway=anyway)  # fmt: skip
    models, inputs = _told_apart(model, inputs)
    loaded = load_models(models, device, [*(set_ or []), *([f"map={map_}"] if map_ else [])])
    with timing.profile(typer.echo if profile else None), ExitStack() as shown:
        loaded = _run_by(loaded, engine)
        bars = shown.enter_context(ProgressBars(console(stderr=True), loaded.passes(options)))
        told, said = _callbacks(bars, partial(_announce, loaded, options, share))
        result = predict_folder(
            loaded, inputs, out, options, overwrite, probabilities=not no_prob, prob_dtype=prob_dtype.value,
            series=series or (), dicom=_dicom_out(loaded, dicom_out, codes), share=share, callbacks=told,
        )  # fmt: skip
    _end(loaded, result, out, share, said)


def _told_apart(model: str, inputs: list[Path]) -> tuple[list[str], list[Path]]:
    """Models and images among the arguments; all of them are there."""
    from diffuseg.inference.folder import refuse_missing
    from diffuseg.inference.several import models_and_inputs

    models, images = models_and_inputs([model, *map(str, inputs)])
    refuse_missing(images)
    return models, images


def _run_by(loaded: "Model", engine: Engine) -> "Model":
    """The model, with its networks run as was asked for."""
    from diffuseg.inference.engine import by_engine

    return by_engine(loaded, engine.value, say_aside)


def _callbacks(bars: ProgressBars, announce: "Callable[[], None]") -> "tuple[Callbacks, dict[str, list[str]]]":
    """What is told of the progress, and what was said of large and far images before their draws."""
    from diffuseg.inference.folder import Callbacks

    said: dict[str, list[str]] = {}
    done = lambda case, record: bars.say(_found(case, record))
    return Callbacks(bars.case, bars.draw, done, partial(_shout, said), partial(bars.aside, announce)), said


def _check_prob(no_prob: bool, prob_dtype: ProbType) -> None:
    """Refuse a type of probabilities that are not written."""
    if no_prob and prob_dtype is not ProbType.float32:
        raise UserError(f"--prob-dtype {prob_dtype.value} and --no-prob: no probabilities are written", do="Leave one out")


def _end(loaded: "Model", result: "FolderResult", out: Path, share: "Share | None", said: dict[str, list[str]]) -> None:
    """What became of the cases, and the exit code."""
    for case, reason in result.skipped:
        typer.echo(f"skipped {case}: {reason}")
    tell(result, out, said)
    if share is not None:
        typer.echo(share.then(out))
    print_json({"model": loaded.name, "hash": loaded.hash, "out": str(out)} | asdict(result))
    if result.failed:
        raise typer.Exit(SOME_FAILED if result.finished or result.skipped or share is not None else USER_ERROR)


def _dicom_out(loaded: "Model", kind: SegKind | None, codes: Path | None) -> "DicomOut | None":
    """What to write as DICOM; codes that are given come before those of the model."""
    from diffuseg.inference.dicom_codes import read_codes
    from diffuseg.inference.dicom_seg import DicomOut

    if codes is not None and kind is None:
        raise UserError("--codes goes with --dicom-out")
    known = loaded.meta.get("codes", {}) if codes is None else read_codes(codes)
    return None if kind is None else DicomOut(kind.value, known)


def _announce(loaded: "Model", options: "SamplingOptions", share: "Share | None") -> None:
    """Which model, with what it recommends and has learnt of itself, and which of the cases."""
    from diffuseg.config import warn_renamed

    if options.sampler and loaded.method.supervision == "image_label":
        known = loaded.method.sampling(options.sampler, None)[0]
        warn_renamed("--sampler", f"--sampler {options.sampler}", f"--map {known}")
    typer.echo(f"{loaded.name} ({loaded.hash}) on {loaded.device}, {loaded.precision.reason}")
    best = loaded.recommended(options)
    if best is not None:
        what = f"draws {best['draws']}, steps {best['steps']}: recommended by `diffuseg curve`"
        typer.echo(f"{what} (fold {best['fold']}, {pluralize(best['cases'], 'case')}); --draws and --steps choose otherwise")
    if loaded.members or options.mirror:
        turns, one = len(loaded.turns(options)), loaded.resolve(options).draws
        what = f"{pluralize(len(loaded.members) or 1, 'model')}{', mirrored images too' if options.mirror else ''}"
        typer.echo(f"{what}: {turns} times the cost, {turns} x {one} draws")
    if loaded.calibration is not None:
        typer.echo(loaded.calibration.announce(loaded.settings(options)))
    if loaded.postprocessing is not None:
        typer.echo(loaded.postprocessing.announce(loaded.settings(options)))
    if share is not None:
        typer.echo(share.announce())


def tell(result: "FolderResult", out: Path, said: "Mapping[str, Sequence[str]] | None" = None) -> None:
    """Which cases failed, which a person should look at, and how many there are.

    Args:
        result: Of the cases.
        out: Folder of the results.
        said: In what a case is unlike the training, as far as it was said before its draws.
    """
    from diffuseg.data.layout import read_json
    from diffuseg.inference.model import NOTICE
    from diffuseg.inference.wording import review_reason, unlike_text

    for case, reason in result.failed:
        complain(f"failed {case}: {reason}")
    for case, faults in result.outside_training:
        new = [fault for fault in faults if not fault.startswith(tuple((said or {}).get(case, ())))]
        if new:
            complain(f"Warning: {case} is unlike the images of the training: {unlike_text(new, str(out / f'{case}.json'))}")
    for case, _ in result.needs_review:
        typer.echo(f"{case} needs review by a person: {review_reason(read_json(out / f'{case}.json'))}")
    counts = {"finished": result.finished, "skipped": result.skipped, "failed": result.failed}
    counted = ", ".join(f"{len(cases)} {what}" for what, cases in counts.items() if cases) or "no case"
    typer.echo(f"{out}: {counted}. {NOTICE}")


def _shout(said: dict[str, list[str]], case: str, faults: list[str]) -> None:
    """Before minutes of work on an image that is not what the model was made for; what is said is kept in `said`."""
    said[case] = faults
    large = any(fault.startswith("extent") for fault in faults)
    what = "larger than the images of the training: this takes long, and" if large else "far outside of the training:"
    complain(f"Warning: {case} is {what} its mask may mean nothing. {'; '.join(faults)}. Ctrl-C stops it")


def _found(case: str, record: dict[str, Any]) -> str:
    """One line about a finished case: volumes of three classes, or as many as fit, and whether a training met it."""
    from diffuseg.inference.wording import amounts

    met = record.get("seen_in") in ("training", "validation")
    seen = f"; this image was in the {record['seen_in']} of the model" if met else ""
    room, found = console().width - len(case) - len(seen) - len(", and 99 more: "), amounts(record)
    shown = [text for n, text in enumerate(found) if n < 3 or len(", ".join(found[: n + 1])) <= room]
    more = f", and {len(found) - len(shown)} more" if len(shown) < len(found) else ""
    return f"{case}: {', '.join(shown)}{more}{seen}"
