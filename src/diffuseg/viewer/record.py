"""Records as the page may rely on them: what is of another kind than `predict` writes is left out, and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffuseg.config import is_list, is_map, is_number
from diffuseg.data import io
from diffuseg.data.label_values import label_values
from diffuseg.data.layout import list_files, read_json
from diffuseg.data.outputs import BEFORE, SETTINGS, records, sidecar_name
from diffuseg.errors import UserError

MOST = 10_000  # draws or steps of a case


def valid_record(record: dict[str, Any], file: Path) -> tuple[dict[str, Any], list[str]]:
    """A record without its odd parts, and a line that names these; its labels by rising value.

    Raises:
        UserError: Its labels are no classes: without them nothing can be shown.
    """
    labels = label_values(record, file)
    odd = [key for key, fits in KINDS.items() if record.get(key) is not None and not fits(record[key])]
    kept = {key: value for key, value in record.items() if key not in odd} | {"labels": labels}
    return kept, [f"Not shown, since its record is odd there: {', '.join(odd)}."] if odd else []


def unreadable_records(folder: Path) -> dict[str, UserError]:
    """Cases of a folder that have results, but no record that can be read: by name, why."""
    known = records(folder)
    names = [path.stem for path in list_files(folder, dangling=True) if path.suffix == ".json" and path.stem not in known]
    named = [name for name in names if any((folder / sidecar_name(name, "entropy", end)).exists() for end in io.LOSSLESS)]
    return {name: _fault(folder / f"{name}.json") for name in named}


def _fault(file: Path) -> UserError:
    try:
        content = read_json(file)
    except UserError as fault:
        return fault
    lacking = [key for key in SETTINGS if key not in BEFORE and key not in content] if isinstance(content, dict) else []
    what = f"it lacks {', '.join(lacking)}" if lacking else "it holds no object { ... }"
    return UserError(f"no record of a case: {what}", file=file, do="Predict the case again")


def _numbers(value: Any) -> bool:
    return is_map(value, is_number)


def _intervals(value: Any) -> bool:
    return is_map(value, lambda pair: is_list(pair, is_number, 2))


def _kept(value: Any) -> bool:
    draws, timesteps = (value.get("draws", 0), value.get("steps", [])) if isinstance(value, dict) else (None, None)
    whole = isinstance(draws, int) and 0 <= draws <= MOST
    return whole and isinstance(timesteps, list) and len(timesteps) <= MOST and all(map(is_number, timesteps))


def _calibration(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("widening", {}), dict)


KINDS: dict[str, Callable[[Any], bool]] = {
    "volume_ml": _numbers,
    "volume_ml_90": _intervals,
    "calibration": _calibration,
    "volume_note": lambda value: isinstance(value, str),
    "uncertainty_score": is_number,
    "review_threshold": is_number,
    "doubt": is_number,  # the former names of these two
    "look_at_threshold": is_number,
    "outside_training": lambda value: isinstance(value, list) and all(isinstance(line, str) for line in value),
    "grid": lambda value: isinstance(value, dict) and isinstance(value.get("shape"), list),
    "kept": _kept,
    "slide": lambda value: isinstance(value, dict),
    "source": lambda value: isinstance(value, str),
}
