"""DICOM among the inputs of a prediction: each series that is meant becomes a case."""

from collections.abc import Sequence
from pathlib import Path

from diffuseg.data.dicom import case_name, group_paths, holds_series, open_series
from diffuseg.data.dicom_series import Stack
from diffuseg.data.io import ENDINGS, NIFTI
from diffuseg.data.layout import list_files
from diffuseg.errors import UserError
from diffuseg.text import pluralize


def dicom_cases(
    inputs: Sequence[Path], channels: int, series: Sequence[str], failed: list[tuple[str, str]] | None = None
) -> tuple[dict[str, tuple[Stack, ...]], list[Path]]:
    """Cases from the DICOM folders and files among the inputs, and the other inputs.

    With as many `series` as the model has channels they are the channels of one case; else each is a case. With a list
    `failed`, (name, reason) of a folder that is refused goes there, if there are other inputs.

    Args:
        inputs: Files and folders.
        channels: How many the model has.
        series: Which ones: UID, number or a part of the description; ("all",) are all.
        failed: Takes what is refused; None: it is raised.

    Raises:
        UserError: What `open_series` refuses, another number of series than channels, `series` without DICOM, and a folder
            that has pictures beside DICOM files.
    """
    ours = [path for path in inputs if _is_dicom(path, bool(series))]
    if series and not ours:
        raise UserError("--series chooses a DICOM series, and there is none among the inputs", file=inputs[0])
    found: dict[str, tuple[Stack, ...]] = {}
    for group in group_paths(ours):
        folder = group[0] if group[0].is_dir() else group[0].parent
        whole = group[0].is_dir() or len(group) > 1
        try:
            cases = _cases(open_series(group, series), folder, whole, channels, series)
        except UserError as fault:
            if failed is None or len(group) == len(inputs):
                raise
            failed.append((folder.resolve().name, str(fault)))
            continue
        for name, stacks in cases.items():
            if name in found:
                what = f"the same case, {name}, as {found[name][0].place}"
                raise UserError(what, file=stacks[0].place, do="Give one of them at a time")
            found[name] = stacks
    return found, [path for path in inputs if path not in ours]


def _cases(
    stacks: list[Stack], folder: Path, whole: bool, channels: int, series: Sequence[str]
) -> dict[str, tuple[Stack, ...]]:
    """The chosen images of one folder by case; whole: all of the folder was meant, and not a single file of it."""
    if len(series) > 1 and channels > 1:
        if len(stacks) != channels:
            what = f"{pluralize(len(stacks), 'series', 'series')} for a model with {channels} channels"
            raise UserError(what, file=folder, do="Give one --series per channel, in their order")
        return {case_name(stacks[0], folder, False): tuple(stacks)}
    found: dict[str, tuple[Stack, ...]] = {}
    for stack in stacks:
        single = not whole and len(stack.files) == 1 and len(stacks) == 1
        name = case_name(stack, stack.files[0] if single else folder, len(stacks) > 1)
        if name in found:
            raise UserError(f"the same case as {found[name][0].files[0]}", file=stack.files[0], do="Give one of them at a time")
        found[name] = (stack,)
    return found


def _is_dicom(path: Path, chosen: bool) -> bool:
    """Whether an input is DICOM: a file by its content; a folder if it has no other images, or if a series is asked for."""
    if not path.is_dir():
        return not path.name.lower().endswith(ENDINGS) and holds_series(path)
    images = [file.name for file in list_files(path) if file.name.lower().endswith(ENDINGS)]
    if not images or chosen:
        return holds_series(path)
    if any(name.lower().endswith(NIFTI) for name in images) or not any(holds_series(file) for file in list_files(path)):
        return False
    what = f"there are DICOM files and other images in it, such as {images[0]}"
    raise UserError(what, file=path, do="Give the files that are meant, or choose a DICOM series by --series")
