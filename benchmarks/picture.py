"""Draw the first picture of the README from a case of `make demo`, which is made-up data.

    diffuseg predict demo/run/last.safetensors demo/data/imagesTs --out demo/drawn --save-draws
    python -m benchmarks.picture demo/drawn case_041 --labels demo/data/labelsTs --out docs/first_picture.png

Left to right: the image, three of the draws, the probability of one class, and the volumes with their intervals.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.data.io import read_image, read_mask, read_planes
from diffuseg.drawing import OKABE_ITO, View, colours_of, figure_of, png_of

SHOWN = 3  # draws


def picture(folder: Path, case: str, labels: Path, shown: str) -> bytes:
    """One row of panels as PNG.

    Args:
        folder: What `predict --save-draws` wrote.
        case: Which case of it.
        labels: Masks of the truth, for the volumes.
        shown: The class whose probability is drawn.

    Returns:
        The PNG.
    """
    record = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))
    classes = {name: value for name, value in record["labels"].items() if value}
    image, mask = read_image(Path(record["source"])), read_mask(folder / f"{case}.nii.gz").data[0]
    draws, probability = (read_planes(folder / f"{case}_{kind}.nii.gz").data for kind in ("draws", "prob"))
    truth = read_mask(labels / f"{case}.nii.gz")
    view, colours = View(mask, mask, image.spacing), colours_of(sorted(classes.values()))
    figure, axes = figure_of(1, SHOWN + 3, (13.0, 2.9))
    line = axes[0]
    for axis in line[:-2]:
        view.background(axis, image.data)
    line[0].set_title("image", fontsize=10)
    for number, axis in enumerate(line[1:-2]):
        view.outline(axis, np.round(draws[number * len(draws) // SHOWN]).astype(int), colours, "solid")
        axis.set_title(f"draw {number * len(draws) // SHOWN + 1} of {len(draws)}", fontsize=10)
    view.map(line[-2], probability[list(classes).index(shown)], "cividis", 1.0)
    for axis in line[:-1]:
        view.zoom(axis)
        axis.set_axis_off()
    line[-2].set_title(f"probability of {shown}", fontsize=10)
    _volumes(
        line[-1], record, {name: float((truth.data[0] == value).sum()) * truth.voxel_ml for name, value in classes.items()}
    )
    return png_of(figure)


def voxel_ml(image: Any) -> float:
    """The volume of a voxel in ml."""
    return abs(float(np.linalg.det(np.asarray(image.affine)[:3, :3]))) / 1000


def _volumes(axis: Any, record: dict[str, Any], true: dict[str, float]) -> None:
    """Volume, interval and truth of each class."""
    for row, (name, (low, high)) in enumerate(record["volume_ml_90"].items()):
        axis.plot([low, high], [row, row], color=OKABE_ITO[row], linewidth=6, solid_capstyle="butt")
        axis.plot(record["volume_ml"][name], row, "o", color="black", label="mask" if row == 0 else None)
        axis.plot(true[name], row, "x", color="black", markersize=8, label="truth" if row == 0 else None)
    axis.set_yticks(range(len(true)), list(true))
    axis.set_ylim(-0.5, len(true) - 0.1)
    axis.set_xlim(left=0)
    axis.tick_params(labelsize=8)
    axis.set_title("ml, 90 % of draws", fontsize=10)
    axis.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("case")
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--shown", default="head")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.write_bytes(picture(asked.folder, asked.case, asked.labels, asked.shown))
    print(f"{asked.out}: {asked.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
