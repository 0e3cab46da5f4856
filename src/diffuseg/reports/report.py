"""One page that shows an evaluation: HTML with everything inside it, readable without a network, in print, in any colour."""

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import atomic_write
from diffuseg.data.io import ENDINGS, ending_of, grid_fault, read_image, read_mask
from diffuseg.data.layout import list_files
from diffuseg.data.outputs import record_of
from diffuseg.data.raters import fuse_raters, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS
from diffuseg.reports.evaluate import images_beside
from diffuseg.reports.figures import case_figure
from diffuseg.reports.plots import dot_plot
from diffuseg.reports.summary import ALL, Evaluation, body, headings, notes
from diffuseg.text import pluralize
from diffuseg.types import Image

RECORDED = {
    "model_name": "Model",
    "method": "Method",
    "model": "Checkpoint",
    "draws": "Draws",
    "steps": "Steps",
    "sampler": "Sampler",
    "fuse": "Fusion",
    "seed": "Seed",
    "device": "Device",
}
PLOTTED = ("dice", "hd95", "nsd", "volume_error")


def write_page(out: Path, evaluation: Evaluation, pictures: Sequence[tuple[str, bytes]], how: dict[str, Any]) -> Path:
    """Write the page to the file `out` and return it: summary, every case as a dot, pictures (title, PNG), how it was made.

    `how` is shown as a table: what was run, on what, with which model and seeds. Refuses an unwritable place.
    """
    made = {key: value if isinstance(value, str) else json.dumps(value) for key, value in how.items()}
    made |= {
        "Empty masks": evaluation.summary["rule"]["means"],
        "Tolerance of NSD": f"{evaluation.summary['nsd_tolerance_mm']:g} mm",
        "Intervals": "{confidence:.0%}, {method}, {resamples} resamples, {over}".format(**evaluation.summary["interval"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in evaluation.summary["versions"].items()),
    }
    text = page(
        "report.html",
        evaluation=evaluation,
        headings=headings(evaluation),
        body=body(evaluation),
        notes=notes(evaluation),
        plot=dot_plot({_title(key): _dots(evaluation, key) for key in PLOTTED}),
        pictures=[(title, base64.b64encode(png).decode()) for title, png in pictures],
        metrics={key: (_title(key), metric.digits) for key, metric in METRICS.items()},
        isfinite=math.isfinite,
        how=made,
    )
    atomic_write(out, text)
    return out


def page(template: str, **content: Any) -> str:
    """One of the templates beside this file, filled in; whatever is put into it is escaped unless the template says `safe`."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return (
        jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .get_template(template)
        .render(pluralize=pluralize, **content)
    )


def case_pictures(evaluation: Evaluation, images: Path | None = None) -> list[tuple[str, bytes]]:
    """Pictures of the worst, the median and the best case by Dice (mean of classes), as (title, PNG).

    Images are looked for in the folder `images` or, without one, where the data set of the labels keeps them; probability
    and entropy beside the prediction. What is not found or does not fit is left out of the picture.
    """
    scores = {case: value for case, value in evaluation.per_case("dice").items() if math.isfinite(value)}
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    if not ranked:
        return []
    chosen = {ranked[0]: "Worst", ranked[len(ranked) // 2]: "Median", ranked[-1]: "Best"}
    pictures = []
    for case, which in chosen.items():
        labels, files = evaluation.labels, evaluation.truths[case]
        truth = read_raters(files)
        mask, probability, entropy = with_maps(case, evaluation.predictions[case], len(labels) + 1)
        image = fitting(image_of(images or images_beside(files[0].parent), case), mask)
        title = f"{which} case: {case}, Dice {scores[case]:.3f}"
        scan = None if image is None else image.data
        png = case_figure(scan, fuse_raters(truth.data), mask.data[0], probability, entropy, title, truth.spacing, labels)
        pictures.append((title, png))
    return pictures


def made_by(folder: Path, cases: Sequence[str]) -> dict[str, str]:
    """Model, draws, steps and seed of predictions, as the records beside them tell; several values where cases differ."""
    found: dict[str, list[str]] = {}
    for case in cases:
        record = record_of(folder, case)
        for key, title in RECORDED.items():
            if record.get(key) is not None:
                found.setdefault(title, []).append(str(record[key]))
    return {title: ", ".join(dict.fromkeys(values)) for title, values in found.items()}


def stacked(pictures: Sequence[bytes]) -> bytes:
    """PNG pictures below one another as one PNG."""
    from PIL import Image as Picture

    parts = [Picture.open(io.BytesIO(png)).convert("RGB") for png in pictures]
    whole = Picture.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    content = io.BytesIO()
    whole.save(content, "png")
    return content.getvalue()


def image_of(folder: Path, case: str) -> Path | None:
    """The image of a case, or its first channel."""
    names = {f"{case}{number}{ending}" for number in ("", "_0000") for ending in ENDINGS}
    return next((path for path in list_files(folder) if path.name in names), None)


def with_maps(case: str, file: Path, classes: int) -> tuple[Image, np.ndarray | None, np.ndarray | None]:
    """A mask, and the probability of its foreground [*s] and entropy [*s] in nats, as predict wrote them beside it.

    In a .png, which holds fractions of 1 in 16 bits, there is a file per class, and entropy is a part of its maximum.
    """
    mask, ending = read_mask(file), ending_of(file)
    named = [path for path in list_files(file.parent) if path.name.lower().endswith(ending)]
    parts = [fitting(path, mask) for path in named if path.name.startswith(f"{case}_prob")]
    entropy = fitting(file.with_name(f"{case}_entropy{ending}"), mask)
    one, top = (65535, math.log(classes)) if ending == ".png" else (1, 1.0)
    there = [part.data.sum(0) / one for part in parts if part is not None]
    return mask, np.sum(there, axis=0) if there else None, None if entropy is None else entropy.data[0] / one * top


def fitting(file: Path | None, mask: Image) -> Image | None:
    """The image in a file, if it is there, can be read and lies on the grid of the mask."""
    if file is None or not file.is_file():
        return None
    try:
        return on_grid_of(mask, file)
    except UserError:
        return None  # the picture shows what there is; the faults of an image are not those of the evaluation


def on_grid_of(mask: Image, file: Path) -> Image:
    """The image in a file; refuses what cannot be read, or lies on another grid than the mask."""
    image = read_image(file)
    fault = grid_fault(mask, image)
    if fault is not None:
        raise UserError(f"its {fault} (of the mask)", file=file)
    return image


def _title(key: str) -> str:
    metric = METRICS[key]
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _dots(evaluation: Evaluation, key: str) -> dict[str, tuple[list[float], tuple[float, float, float]]]:
    found = {}
    for name, entry in evaluation.summary["classes"].items():
        values = [row.score.values[key] for row in evaluation.rows if row.label == name]
        found[name] = (values, (entry[key]["mean"], entry[key]["low"], entry[key]["high"]))
    if len(found) > 1:
        entry = evaluation.summary["overall"][key]
        found[ALL] = (list(evaluation.per_case(key).values()), (entry["mean"], entry["low"], entry["high"]))
    return found
