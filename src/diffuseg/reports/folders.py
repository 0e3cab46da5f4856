"""Where the files of an evaluation are: masks of predictions, masks of raters, images."""

from collections.abc import Collection
from pathlib import Path

from diffuseg.data.inventory import refuse_twins
from diffuseg.data.io import ENDINGS, LOSSLESS, case_of, ending_of, grid_fault, read_image
from diffuseg.data.label_values import ignore_value
from diffuseg.data.layout import list_files, read_json
from diffuseg.data.outputs import is_sidecar, records
from diffuseg.data.raters import rater_count, rater_files
from diffuseg.errors import UserError
from diffuseg.types import Image


def masks_in(folder: Path) -> dict[str, Path]:
    """Mask files by case.

    Raises:
        UserError: There is no such folder, no mask in it, or two files of one case.
    """
    if not folder.is_dir():
        raise UserError("no such folder", file=folder)
    files = [path for path in list_files(folder) if path.name.lower().endswith(LOSSLESS)]
    if not files:
        raise UserError("there is no mask in this folder", file=folder, do=f"Expected <case> with {' '.join(LOSSLESS)}")
    refuse_twins(files)
    return dict(sorted((case_of(path, ending_of(path)), path) for path in files))


def truths_in(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The masks of each case: those of its raters, if there are any and dataset.json beside the folder tells of them.

    What `predict` writes beside a mask is the mask of no case.

    Raises:
        UserError: There is no such folder, or no mask in it.
    """
    description = folder.resolve().parent / "dataset.json"
    extra = read_json(description) if description.is_file() else {}
    raters = rater_count(extra, description) if isinstance(extra, dict) else 0
    rated = rater_files(list_files(folder), LOSSLESS[0], raters) if raters else {}
    masks = {} if rated else masks_in(folder)
    return dict(sorted(rated.items())) or {case: (path,) for case, path in masks.items() if not is_sidecar(case, masks)}


def refuse_swapped(predictions: Path, labels: Path, truths: Collection[str]) -> None:
    """Refuse labels that `predict` has written, where the predictions are of no model: it is the other way round.

    Args:
        predictions: Folder with predicted masks.
        labels: Folder with masks of the same names.
        truths: Cases that there is a mask of in `labels`.

    Raises:
        UserError: There are records of predictions beside the labels, and none beside the predictions.
    """
    if set(records(labels)) & set(truths) and not records(predictions):
        what = f"the two folders look swapped: the records of `predict` lie here, and none in {predictions}"
        do = "The predictions come first: `diffuseg evaluate PREDICTIONS LABELS`. To measure against these, copy only masks"
        raise UserError(what, file=labels, do=do)


def ignored_label(labels_dir: Path) -> int | None:
    """The value of voxels that nobody has annotated, from dataset.json beside the labels; None where there is none."""
    description = labels_dir.resolve().parent / "dataset.json"
    extra = read_json(description) if description.is_file() else {}
    return ignore_value(extra, description) if extra else None


def images_beside(labels_dir: Path) -> Path:
    """Where the data set of a folder of labels keeps its images: beside it, imagesTs of labelsTs."""
    folder = labels_dir.resolve()
    return folder.with_name(folder.name.replace("labels", "images") if "labels" in folder.name else "images")


def image_of(folder: Path, case: str) -> Path | None:
    """The image of a case, or its first channel."""
    names = {f"{case}{number}{ending}" for number in ("", "_0000") for ending in ENDINGS}
    return next((path for path in list_files(folder) if path.name in names), None)


def mask_of(folder: Path, case: str) -> Path | None:
    """The mask of a case, of one annotator."""
    return next((path for path in list_files(folder) if path.name in {case + ending for ending in LOSSLESS}), None)


def images_to_labels(folder: Path) -> Path:
    """Where a data set keeps the masks of a folder of images: beside it, labelsTs of imagesTs."""
    return folder.with_name(folder.name.replace("images", "labels"))


def read_on_grid_of(mask: Image, file: Path) -> Image:
    """The image in a file.

    Raises:
        UserError: It cannot be read, or lies on another grid than the mask.
    """
    image = read_image(file)
    fault = grid_fault(mask, image)
    if fault is not None:
        raise UserError(f"its {fault} (of the mask)", file=file)
    return image
