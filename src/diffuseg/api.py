"""What a notebook calls by `diffuseg.`: thin functions over the modules that do the work. `train` stands in `train/run.py`."""

from pathlib import Path
from typing import Any

from diffuseg.data.plan import Plan
from diffuseg.errors import path_of
from diffuseg.evaluation.metrics import Empty
from diffuseg.inference.model import Model, load
from diffuseg.inference.prediction import Prediction
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.reports.evaluation import Evaluation

FOLDERS = "Give folders of files; masks in memory are compared by diffuseg.evaluation.metrics"


def plan(dataset: Path | str, image_labels: bool = False, **settings: Any) -> Plan:
    """How a training on a data set would go; `plan.reasons` says why, and `data.plan.save_plan` writes it for `train`.

    Args:
        dataset: Folder in the nnU-Net v2 raw or the MSD layout.
        image_labels: For methods that learn from image-level labels: masks are not read.
        settings: Settings of the plan that are taken as they are, such as dims=2.

    Raises:
        UserError: A folder that is no data set, unknown settings, and settings that do not fit one another.
    """
    from diffuseg.data.dataset import open_dataset
    from diffuseg.data.plan import fingerprint, make_plan

    data = open_dataset(path_of(dataset, "a data set"), masks=not image_labels)
    return make_plan(data, fingerprint(data), **settings)


def predict(
    model: Model | Path | str,
    image: Any,
    options: SamplingOptions | int | None = None,
    *,
    device: str | None = None,
    **keywords: Any,
) -> Prediction:
    """Segment one case. For several, `load` the model once and use its `predict` or `predict_many`.

    Args:
        model: A checkpoint, the name of a packaged model, or a model that is loaded.
        image: What `Model.predict` takes.
        options: How to draw; a number is that of the draws.
        device: "cpu", "cuda", "cuda:N" or "mps", of a model that is to be loaded.
        keywords: Further arguments of `Model.predict`, such as draws=8, affine=...

    Raises:
        UserError: As `load` and `Model.predict`.
    """
    return (model if isinstance(model, Model) else load(model, device)).predict(image, options, **keywords)


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    out: Path | str | None = None,
    *,
    empty: Empty = "nan",
    nsd_tolerance: float = 1.0,
    images: Path | str | None = None,
) -> Evaluation:
    """Compare a folder of predictions with a folder of masks; `.summary` and `.rows` of what it returns are the numbers.

    Args:
        predictions: Folder with predicted masks.
        labels: Folder with masks of the same names.
        out: Folder for cases.csv and summary.json; None: nothing is written.
        empty: The score of a class that is in neither mask: "nan" (none), "one" or "zero".
        nsd_tolerance: Tolerance of the normalised surface Dice in mm.
        images: Folder with the images, for pictures.

    Raises:
        UserError: As `diffuseg.reports.evaluate.evaluate`.
    """
    from diffuseg.reports.evaluate import evaluate as evaluate_folders

    predicted, drawn = path_of(predictions, "predictions", FOLDERS), path_of(labels, "labels", FOLDERS)
    to, scans = (given if given is None else path_of(given, what) for given, what in ((out, "out"), (images, "images")))
    return evaluate_folders(predicted, drawn, to, empty, nsd_tolerance, scans)
