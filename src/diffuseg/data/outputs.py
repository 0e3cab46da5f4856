"""The names of what `predict` writes for a case, so that whoever looks at a folder knows results from images and masks.

<case><ending>          mask
<case>_prob<ending>     probability of the foreground classes; .png: <case>_prob_<class>.png where there are several
<case>_entropy<ending>  uncertainty
<case>_draws<ending>    mask of each draw, where they were kept; .png: <case>_draws.tif, since a .png holds one plane
<case>_steps<ending>    the first draw step by step, where they were kept; .png: <case>_steps.tif
<case>_preview.png      of pictures: the image with the mask in colours, to be looked at and by nothing else
<case>.json             the record, whose presence says that the case is finished
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffuseg.data import io
from diffuseg.data.layout import list_files, read_json
from diffuseg.data.pictures import class_suffixes
from diffuseg.errors import UserError

SETTINGS = ("model", "draws", "seed", "steps", "sampler", "fuse", "label", "options")  # what makes two results differ
BEFORE: dict[str, Any] = {"fuse": "mean", "label": None, "options": {}}  # what those were before there was a choice
KEPT = ("draws", "steps")  # what is written only where it is asked for
PREVIEW = "preview"
SIDECAR = re.compile(
    r"(.+?)_((prob|entropy|expected_entropy|mutual_information|variance)(_.+)?|draws|steps|preview)"
)  # beside a mask


def sidecar_name(case: str, what: str, ending: str) -> str:
    """The name of a file beside a mask.

    Args:
        case: Name of the case.
        what: "prob", "entropy", "draws", "steps", "preview", or "prob_<class>".
        ending: Of the mask, such as ".nii.gz".
    """
    if what == PREVIEW:
        return f"{case}_{what}.png"
    return f"{case}_{what}{'.tif' if what in KEPT and ending == '.png' else ending}"


def probability_names(labels: dict[str, int], ending: str) -> list[str]:
    """What the files of the probabilities are called: "prob", or one name per foreground class of several in a .png."""
    if len(labels) == 2 or ending != ".png":
        return ["prob"]
    return [f"prob_{suffix}" for suffix in class_suffixes(labels)]


def stored_as_one(record: dict[str, Any], ending: str) -> float:
    """What a file of probabilities of this case holds where one is 1; `read_planes` applies the slope of NIfTI by itself."""
    if ending in io.NIFTI:
        return 1.0
    return 255.0 if record.get("prob_dtype") == "uint8" else 65535.0 if ending == ".png" else 1.0


def is_record(content: Any) -> bool:
    """Whether the content of a JSON file is a record of this program; those of its first days lack some settings."""
    return isinstance(content, dict) and set(SETTINGS) - set(BEFORE) <= set(content)


def record_of(folder: Path, case: str) -> dict[str, Any]:
    """What stands in <case>.json of a folder, whoever wrote it; {} without it."""
    try:
        found = read_json(folder / f"{case}.json")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def is_sidecar(name: str, cases: Collection[str]) -> bool:
    """Whether a name without its ending is that of a file beside the mask of one of these cases."""
    match = SIDECAR.fullmatch(name)
    return match is not None and match[1] in cases


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records in a folder by case, sorted; other JSON files are passed over."""
    found = {}
    for path in list_files(folder, dangling=True):
        if path.suffix == ".json":
            try:
                content = read_json(path)
            except UserError:
                continue
            if is_record(content):
                found[path.stem] = content
    return found


def without_results(paths: list[Path]) -> list[Path]:
    """Image files of one folder without those that this program wrote there: masks and maps beside a record."""
    known = records(paths[0].parent) if paths else {}

    def is_result(path: Path) -> bool:
        name = io.case_of(path, io.ending_of(path))
        if name in known and path.name != Path(str(known[name].get("source"))).name:
            return True
        parts = name.split("_")
        return any(
            parts[i] in ("prob", "entropy", PREVIEW, *KEPT) and "_".join(parts[:i]) in known for i in range(1, len(parts))
        )

    return [path for path in paths if not is_result(path)]
