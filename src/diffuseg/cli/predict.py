"""Commands that use a trained model: `predict`, `curve`, `calibrate`."""

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuseg import timing
from diffuseg.cli.app import (
    SOME_FAILED,
    USER_ERROR,
    OneModel,
    app,
    beside,
    complain,
    console,
    import_libraries,
    refuse_unwritable,
)
from diffuseg.cli.as_json import JSON, print_json
from diffuseg.cli.progress import ProgressBars
from diffuseg.errors import UserError
from diffuseg.text import pluralize

if TYPE_CHECKING:
    from diffuseg.inference.dicom_seg import DicomOut
    from diffuseg.inference.folder import FolderResult
    from diffuseg.inference.model import Model
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.worklist import Share


class Fuse(StrEnum):
    """The names in `diffuseg.inference.fusion.FUSIONS`, without importing it."""

    mean = "mean"
    vote = "vote"
    dice = "dice"
    staple = "staple"


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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="a GPU if there is one")] = None,
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
) -> None:
    """Segment images in their own geometry, with uncertainty. Exit code 3: some cases failed, the others are kept."""
    import_libraries()
    from diffuseg.inference.claims import read_share
    from diffuseg.inference.folder import Callbacks, predict_folder, refuse_missing
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.several import load_models, models_and_inputs

    if no_prob and prob_dtype is not ProbType.float32:
        raise UserError(f"--prob-dtype {prob_dtype.value} and --no-prob: no probabilities are written", do="Leave one out")
    share = read_share(shard, overwrite)
    options = SamplingOptions(draws, steps, sampler, seed, fuse.value, label, save_draws, save_steps, mirror,
        postprocess=not no_postprocess, region=region, overlap=overlap, magnification=magnification, mpp=mpp,
        all_tiles=all_tiles, anyway=anyway)  # fmt: skip
    models, inputs = models_and_inputs([model, *map(str, inputs)])
    refuse_missing(inputs)
    loaded = load_models(models, device, [*(set_ or []), *([f"map={map_}"] if map_ else [])])
    with timing.profile(typer.echo if profile else None), ProgressBars(console(stderr=True), loaded.passes(options)) as bars:
        told = Callbacks(bars.case, bars.draw, lambda case, record: bars.say(_found(case, record)), _shout,
            lambda: bars.aside(partial(_announce, loaded, options, share)))  # fmt: skip
        result = predict_folder(
            loaded, inputs, out, options, overwrite, probabilities=not no_prob, prob_dtype=prob_dtype.value,
            series=series or (), dicom=_dicom_out(loaded, dicom_out, codes), share=share, callbacks=told,
        )  # fmt: skip
    _end(loaded, result, out, share)


def _end(loaded: "Model", result: "FolderResult", out: Path, share: "Share | None") -> None:
    """What became of the cases, and the exit code."""
    for case, reason in result.skipped:
        typer.echo(f"skipped {case}: {reason}")
    tell(result, out)
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


def tell(result: "FolderResult", out: Path) -> None:
    """Which cases failed, which a person should look at, and how many there are."""
    from diffuseg.inference.model import NOTICE

    for case, reason in result.failed:
        complain(f"failed {case}: {reason}")
    for case, faults in result.outside_training:
        complain(f"Warning: {case} is unlike the images of the training: {'; '.join(faults)}")
    for case, score in result.needs_review:
        typer.echo(
            f"{case} needs review by a person: its draws expect a Dice of {1 - score:.3f} (uncertainty score {score:.3f})"
        )
    counts = {"finished": result.finished, "skipped": result.skipped, "failed": result.failed}
    counted = ", ".join(f"{len(cases)} {what}" for what, cases in counts.items() if cases) or "no case"
    typer.echo(f"{out}: {counted}. {NOTICE}")


def _shout(case: str, faults: list[str]) -> None:
    """Before minutes of work on an image that is not what the model was made for."""
    large = any(fault.startswith("extent") for fault in faults)
    what = "larger than the images of the training: this takes long, and" if large else "far outside of the training:"
    complain(f"Warning: {case} is {what} its mask may mean nothing. {'; '.join(faults)}. Ctrl-C stops it")


def _found(case: str, record: dict[str, Any]) -> str:
    """One line about a finished case: volumes of three classes, or as many as fit, and whether a training met it."""
    from diffuseg.inference.provenance import amounts

    met = record.get("seen_in") in ("training", "validation")
    seen = f"; this image was in the {record['seen_in']} of the model" if met else ""
    room, found = console().width - len(case) - len(seen) - len(", and 99 more: "), amounts(record)
    shown = [text for n, text in enumerate(found) if n < 3 or len(", ".join(found[: n + 1])) <= room]
    more = f", and {len(found) - len(shown)} more" if len(shown) < len(found) else ""
    return f"{case}: {', '.join(shown)}{more}{seen}"


@app.command()
def curve(
    model: OneModel,
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on: validation cases of a fold are measured.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for curve.csv, .json, .png.", show_default="curve, beside the model")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps, such as 1,2,4.", show_default="powers of two")] = "",
    draws: Annotated[str, typer.Option(help="Numbers of draws.")] = "1,2,4,8",
    fold: Annotated[int | None, typer.Option(help="Fold to measure on.", show_default="the model's")] = None,
    cases: Annotated[int, typer.Option(min=0, help="So many of its cases, spread evenly; 0: all.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="ancestral, ddim, ...", show_default="the model's")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="a GPU if there is one")] = None,
    store: Annotated[bool, typer.Option(help="Write the recommended setting into the checkpoint, beside its weights.")] = True,
    calibrate_too: Annotated[
        bool, typer.Option("--calibrate", help="Then calibrate the model for what is recommended.")
    ] = False,
) -> None:
    """Measure Dice, calibration, time and memory over steps x draws, and recommend the cheapest good setting."""
    from diffuseg.checkpoint import amend_meta
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.curve import measure_curve, table, write_curve

    model = one_model(model)
    if calibrate_too and not (store and Path(model).is_file()):
        raise UserError(
            "--calibrate needs a checkpoint to write to", do="Leave out --no-store, or give a checkpoint of your own"
        )
    out = out or beside(model, "curve")
    refuse_unwritable(out, model if store else None)
    loaded = load(model, device)
    with ProgressBars(console(stderr=True)) as bars:
        options, counts = SamplingOptions(sampler=sampler), (_numbers("--steps", steps), _numbers("--draws", draws))
        found = measure_curve(loaded, dataset, *counts, options, fold, cases, bars.measured)
    console().print(table(found))
    for path in write_curve(found, out):
        typer.echo(f"written: {path}")
    if store and Path(model).is_file():
        amend_meta(Path(model), {"recommended": found.recommendation()}, loaded.hash)
        typer.echo(f"{model}: remembers the recommended setting")
        again = load(model, device)
        fits = again.calibration is not None and not again.calibration.mismatch(again.settings())
        if again.calibration is not None and not calibrate_too:
            typer.echo(again.calibration.announce(again.settings()))
        if not fits and not calibrate_too:
            typer.echo(f"to calibrate it for the recommended setting: diffuseg calibrate {model} {dataset}")
        if calibrate_too:
            calibrate(model, dataset, None, fold=fold, cases=cases, device=device)


@app.command()
def calibrate(
    model: OneModel,
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on: validation cases of a fold are used.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for calibration.json and plots.", show_default="calibration, beside the model")
    ] = None,
    draws: SameDraws = None,
    steps: SameSteps = None,
    sampler: SameSampler = None,
    fuse: SameFuse = Fuse.mean,
    fold: Annotated[int | None, typer.Option(help="Fold to learn from.", show_default="the model's")] = None,
    cases: Annotated[int, typer.Option(min=0, help="So many of its cases, spread evenly; 0: all.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="a GPU if there is one")] = None,
    store: Annotated[bool, typer.Option(help="Write what is learnt into the checkpoint, beside its weights.")] = True,
    like: Annotated[
        Path | None,
        typer.Option(help="Predictions of the images it will be used on, another scanner's say: cases like these count more."),
    ] = None,
) -> None:
    """Learn a temperature, honest volume intervals and which cases a human should look at; predict then uses them."""
    from diffuseg.checkpoint import amend_meta
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.calibrate import measure_calibration
    from diffuseg.studies.calibrate_files import tables, write_calibration

    model = one_model(model)
    out = out or beside(model, "calibration")
    refuse_unwritable(out, model if store else None)
    loaded = load(model, device)
    with ProgressBars(console(stderr=True)) as bars:
        options = SamplingOptions(draws, steps, sampler, fuse=fuse.value)
        found = measure_calibration(loaded, dataset, options, fold, cases, bars.measured, like)
    console().print(*tables(found), sep="\n")
    for path in write_calibration(found, loaded.hash, out):
        typer.echo(f"written: {path}")
    if store and Path(model).is_file():
        amend_meta(Path(model), {"calibration": asdict(found.calibration)}, loaded.hash)
        typer.echo(f"{model}: remembers what was learnt, for the same draws, steps, sampler and fusion")
        missed = found.calibration.mismatch(loaded.settings())
        if missed:
            complain(f"Warning: predict does not use it unless it is told the same: learnt with {missed}")


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} {text}: expected whole numbers, such as 1,2,4") from None
