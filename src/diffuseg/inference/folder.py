"""Predictions to files, case after case: what is finished stays finished, and a bad case does not stop the others."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffuseg.atomic_io import check_writable
from diffuseg.data import io
from diffuseg.data.dicom_series import Stack
from diffuseg.data.geometry import warn_once
from diffuseg.data.inventory import name_unused, refuse_dangling
from diffuseg.data.layout import list_files, read_json
from diffuseg.data.outputs import BEFORE, KEPT, PREVIEW, is_record, sidecar_name, without_results
from diffuseg.data.pictures import LOSSLESS
from diffuseg.errors import UserError
from diffuseg.inference.calibration import calibration_of
from diffuseg.inference.dicom_seg import DicomOut, lacks_dicom, refuse_dicom_out, replace_dicom
from diffuseg.inference.model import Model, ReadCase, file_digests
from diffuseg.inference.postprocessing import postprocessing_of
from diffuseg.inference.prediction import ending_for, save
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.inference.series import dicom_cases
from diffuseg.inference.unlike import REASON, announced
from diffuseg.inference.wording import needs_review
from diffuseg.inference.worklist import Share, turns
from diffuseg.text import few, pluralize

_log = logging.getLogger("diffuseg")


@dataclass
class FolderResult:
    """What became of the cases of a folder.

    Attributes:
        finished: Names of the cases that are done.
        skipped: (name, reason) of those that were done before.
        failed: (name, reason) of those that failed.
        needs_review: (name, uncertainty score) of the cases that a human should look at, by falling score.
        outside_training: (name, in what) of the cases that are unlike all cases of the training.
    """

    finished: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    needs_review: list[tuple[str, float]] = field(default_factory=list)
    outside_training: list[tuple[str, list[str]]] = field(default_factory=list)


def find_cases(
    inputs: Sequence[Path], channels: int, series: Sequence[str] = (), failed: list[tuple[str, str]] | None = None
) -> dict[str, tuple[Path, ...] | tuple[Stack, ...]]:
    """Files by case, from files and folders: <case>_0000<ending>, <case>_0001<ending>, ... are the channels of one case.

    A name without such a number, or with a number that the model has no channel for, is a case of its own. A DICOM folder is
    its image series.

    Args:
        inputs: Files and folders.
        channels: How many the model has.
        series: Which DICOM series; see `dicom_cases`.
        failed: Takes DICOM folders that are refused; see `dicom_cases`.

    Raises:
        UserError: An input is not there, a file is of an unknown kind, a folder has no image, or two inputs are one case.
    """
    dicom, inputs = dicom_cases(inputs, channels, series, failed)
    stems: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for path in dict.fromkeys(file for item in inputs for file in _files(item)):
        ending = io.ending_of(path)
        match = re.fullmatch(r"(.+)_(\d{4})", io.case_of(path, ending))
        stem, number = (match[1], int(match[2])) if match else (io.case_of(path, ending), -1)
        stems.setdefault((path.parent, stem, ending), {})[number] = path
    found: dict[str, tuple[Path, ...] | tuple[Stack, ...]] = {**dicom}
    for (_, stem, ending), parts in sorted(stems.items()):
        if max(parts) < channels and -1 not in parts:
            groups = {stem: tuple(parts[number] for number in sorted(parts))}
        else:
            groups = {io.case_of(path, ending): (path,) for path in parts.values()}
            if {0, 1} <= set(parts) <= set(range(8)):  # more than that are cases that are numbered
                what = f"each is taken for an image of its own, as the model has {pluralize(channels, 'channel')}"
                warn_once(None, f"{few(sorted(path.name for path in parts.values()))}: {what}")
        for case, paths in groups.items():
            if case in found:
                raise UserError(f"the same case as {found[case][0]}", file=paths[0], do="Give one of them at a time")
            found[case] = paths
    return found


@dataclass(frozen=True)
class Callbacks:
    """What is called while a folder is segmented.

    on_case  (case, number, cases) before each case; on_draw: (done, draws) after each draw
    on_done  (case, record) after each case that was finished now
    on_start () before the first case, when no input is refused that would end the work
    on_large (case, in what) before the draws of a case that is larger than those of the training, or far outside of it
    """

    on_case: Callable[[str, int, int], None] = lambda case, number, cases: None
    on_draw: Callable[[int, int], None] = lambda done, draws: None
    on_done: Callable[[str, dict[str, Any]], None] = lambda case, record: None
    on_large: Callable[[str, list[str]], None] = lambda case, faults: None
    on_start: Callable[[], None] = lambda: None


def predict_folder(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    options: SamplingOptions | None = None,
    overwrite: bool = False,
    *,
    probabilities: bool = True,
    prob_dtype: str = "float32",
    series: Sequence[str] = (),
    dicom: DicomOut | None = None,
    share: Share | None = None,
    callbacks: Callbacks | None = None,
) -> FolderResult:
    """Segment files and folders into a folder, see `save`.

    A case that fails is reported with its reason and the others go on. A case that is finished without the draws or steps
    that are now to be kept is done again, and what it had stays.

    Args:
        model: What segments them.
        inputs: Files and folders, as `find_cases` takes them; `options`: how to draw.
        out: Folder of the results; `overwrite`: do finished cases again.
        probabilities: Write them: the largest files by far; `prob_dtype`: as "float32", or "uint8" in 255 parts.
        series: Which DICOM series of a folder: UID, number or a part of the description of each, or "all".
        dicom: Also write results of DICOM series as DICOM, see `save_dicom`.
        share: Which of the cases this process does, where several share them; None: all.
        callbacks: What is told of the progress.

    Raises:
        UserError: Before any work: settings or inputs that are refused, an out folder that cannot be written, results that
            would overwrite an input or each other, and processes that share a folder but not a list of cases and settings.
    """
    options, out, callbacks = options or SamplingOptions(), Path(out), callbacks or Callbacks()
    settings, result = model.settings(options), FolderResult()
    cases = find_cases([Path(item) for item in inputs], len(model.plan.channels), series, result.failed)
    refuse_dicom_out(dicom, cases, model.plan.labels, out)
    _refuse_collisions(cases, out)
    check_writable(out)
    callbacks.on_start()

    def segment(case: str, paths: Sequence[Path | Stack]) -> None:
        kind = prob_dtype if probabilities else None
        skipped = None if overwrite else _finished(model, out, case, paths, settings, _to_keep(options), kind)
        if skipped is not None and not lacks_dicom(dicom, out, case, paths[0], probabilities):
            result.skipped.append((case, skipped))
            return
        ending = ending_for(paths[0])
        keep = _to_keep(options) | (set() if overwrite else _kept(out, case, ending))
        keep_all = replace(options, keep_draws="draws" in keep, keep_steps="steps" in keep, spread=False)
        prediction = model.predict(_read(model, case, paths, options, callbacks), keep_all, on_draw=callbacks.on_draw)
        replace_dicom(prediction, out, case, dicom, probabilities)
        save(prediction, out, case, ending, probabilities, prob_dtype)
        result.finished.append(case)
        callbacks.on_done(case, prediction.provenance)

    for case, number, total in turns(cases, out, settings, share, result.failed):
        callbacks.on_case(case, number, total)
        _attempt(case, cases[case], segment, result)
    return review(result, out)


def _read(model: Model, case: str, paths: Sequence[Path | Stack], options: SamplingOptions, callbacks: Callbacks) -> ReadCase:
    """A case, named before its draws where these take long, or where it is far outside of the training and not refused."""
    read = model.read(paths, **options.scale)
    large = announced(model.meta, model.plan, read.image, options.region, options.anyway)
    if large:
        callbacks.on_large(case, large)
    return read


def _attempt(
    case: str, paths: Sequence[Path | Stack], segment: Callable[[str, Sequence[Path | Stack]], None], result: FolderResult
) -> None:
    """Whatever is wrong with one case, the next may be fine."""
    try:
        segment(case, paths)
    except UserError as fault:
        result.failed.append((case, str(fault)))
    except Exception as error:
        _log.debug("%s", case, exc_info=True)
        result.failed.append((case, f"{paths[0]}: {type(error).__name__}: {error}"))


def review(result: FolderResult, out: Path) -> FolderResult:
    """The same result, in which stands which of its cases a person should look at, by their records."""
    done = [*result.finished, *(case for case, _ in result.skipped)]
    records = {case: read_json(out / f"{case}.json") for case in done}
    result.outside_training = [(case, faults) for case, record in records.items() if (faults := record.get("outside_training"))]
    result.needs_review = _needs_review(records)
    return result


def _to_keep(options: SamplingOptions) -> set[str]:
    return {name for name, keep in zip(KEPT, (options.keep_draws, options.keep_steps), strict=True) if keep}


def _needs_review(records: dict[str, dict[str, Any]]) -> list[tuple[str, float]]:
    """Cases that a human should look at, with their uncertainty scores; `doubt` is what these were called."""
    score = lambda record: float(record.get("uncertainty_score", record.get("doubt")))
    found = [(case, score(record)) for case, record in records.items() if needs_review(record)]
    return sorted(found, key=lambda item: -item[1])


def refuse_missing(inputs: Sequence[Path]) -> None:
    """Look for inputs that are not there.

    Raises:
        UserError: There is one, or a link to nowhere.
    """
    for item in inputs:
        refuse_dangling([item])
        if not (item.is_dir() or item.is_file()):
            raise UserError("no such file or folder", file=item)


def _files(item: Path) -> list[Path]:
    refuse_missing([item])
    if not item.is_dir():
        io.ending_of(item)
        return [item]
    images = _images(item)
    if not images:
        folders = [path for path in sorted(item.iterdir()) if path.is_dir() and not path.name.startswith("labels")]
        below = [path.name for path in folders if _images(path)]
        do = f"There are some in {few(below)}: name the folder." if below else f"Known endings: {' '.join(io.ENDINGS)}"
        raise UserError("there is no image in this folder", file=item, do=do)
    return images


def _images(folder: Path) -> list[Path]:
    files = list_files(folder)
    images = [path for path in files if path.name.lower().endswith(io.ENDINGS)]
    if images:
        name_unused(folder, [*images, *_without_images(folder)], "as their kind is not known, or they are a folder")
    return without_results(images)


def _without_images(folder: Path) -> list[Path]:
    """The folders in a folder that hold no image to predict: masks, results, and what else there is."""
    below = [path for path in folder.iterdir() if path.is_dir()]
    images = {
        path: [each for each in list_files(path, dangling=True) if each.name.lower().endswith(io.ENDINGS)] for path in below
    }
    return [path for path in below if path.name.startswith("labels") or not without_results(images[path])]


def _finished(
    model: Model,
    out: Path,
    case: str,
    paths: Sequence[Path | Stack],
    settings: dict[str, Any],
    keep: set[str],
    prob_dtype: str | None,
) -> str | None:
    """Why a case need not be done again; None where it has to be. `prob_dtype` is None where no probabilities are asked for.

    Refuses to touch what some other program wrote, and the result of another image of the same name.
    """
    ending = ending_for(paths[0])
    record, mask = out / f"{case}.json", out / (case + ending)
    if not record.exists():
        if mask.exists() and not (out / sidecar_name(case, "entropy", ending)).exists():
            raise UserError("is there, but no result of this program", file=mask, do="Choose another folder, or --overwrite")
        return None
    before = read_json(record)
    if not is_record(before):
        raise UserError("is there, but no result of this program", file=record, do="Choose another folder, or --overwrite")
    if not mask.exists():
        return None  # somebody took it away
    before = BEFORE | before
    if before.get("image_digests", []) not in ([], file_digests(paths)):  # records of earlier versions have none
        what = f"is the result of another image of this name ({before['source']})"
        raise UserError(what, file=record, do="Choose another folder, or --overwrite")
    changed = _changed(model, before, settings)
    done = "already finished" + f" with --anyway: {REASON}, its intervals are raw" * bool(before.get("anyway"))
    if not changed:
        there = before.get("prob_dtype", "float32") if before.get("probabilities", True) else None
        lacking = prob_dtype not in (None, there)
        return done if keep <= _kept(out, case, ending) and not lacking else None
    return f"already finished with other settings ({'; '.join(changed)}); --overwrite does it again"


def _changed(model: Model, before: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """In what a finished case differs from what it would be now: weights, settings, and what was learnt about the weights."""
    applied = {"calibration": calibration_of(before), "postprocessing": postprocessing_of(before)}
    now, then = settings | model.learnt(settings), before | applied
    if before.get("anyway"):  # no calibration is applied to such an image, whatever the model has
        then["calibration"] = now["calibration"]
    files = model.file_hashes
    if "saliency_calibration" in now and "saliency_calibration" not in before:  # an earlier version: known by its file alone
        then["saliency_calibration"], files = now["saliency_calibration"], files[:1]
    if then["model"] in files:
        then["model"] = now["model"]
    name = lambda value: "none" if value is None else value
    return [f"{key} {name(then[key])}, not {name(value)}" for key, value in now.items() if then[key] != value]


def _kept(out: Path, case: str, ending: str) -> set[str]:
    """What of draws and steps a finished case has: its record names them, and they are still there."""
    record = out / f"{case}.json"
    named = read_json(record).get("kept", {}) if record.exists() else {}
    return {what for what in KEPT if what in named and (out / sidecar_name(case, what, ending)).exists()}


def _refuse_collisions(cases: dict[str, tuple[Path, ...] | tuple[Stack, ...]], out: Path) -> None:
    files = lambda path: path.files if isinstance(path, Stack) else (path,)
    inputs = {file.resolve() for paths in cases.values() for path in paths for file in files(path)}
    for case, paths in cases.items():
        ending = ending_for(paths[0])
        written = ["prob", "entropy", *KEPT, *([PREVIEW] if ending in LOSSLESS else [])]
        for name in (case + ending, *(sidecar_name(case, what, ending) for what in written)):
            if (out / name).resolve() in inputs:
                raise UserError("a result would take the place of this input", file=out / name, do="Choose another --out")
            other = io.case_of(name, io.ending_of(name))
            if other != case and other in cases:
                what = f"cases {case} and {other} would both write {name}"
                raise UserError(what, file=out, do="Do them one by one, each with its own --out")
