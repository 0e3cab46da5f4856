"""What is known of a model without loading its weights: the header of its checkpoint, in the words of a user."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from diffuseg.checkpoint import read_meta, weights_hash
from diffuseg.methods import METHODS

PLAN = ("dims", "context", "orientation", "spacing", "crop", "patch", "normalisation", "slice_axis", "raters", "ignore")


def describe(path: Path, name: str | None = None) -> dict[str, Any]:
    """Method, classes, channels, plan, training, recommended draws, calibration, licence of a checkpoint, as JSON has it.

    Args:
        path: The checkpoint.
        name: Of a packaged model, in place of the one that its training gave it.

    Raises:
        UserError: Not a checkpoint of ours.
    """
    meta = read_meta(path)
    plan, method = meta["plan"], METHODS.get(meta["method"])
    card = path.with_suffix(".md")
    return {
        "name": name or str(meta.get("name", path.stem)),
        "file": str(path),
        "hash": weights_hash(path),
        "method": meta["method"],
        "classes": meta["classes"],
        "channels": plan["channels"],
        "plan": {key: plan.get(key) for key in PLAN},
        "settings": meta["config"],
        "parameters": _parameters(path),
        "draws": {
            "default": {"draws": method.default_draws if method else None, "steps": meta["config"].get("steps")},
            "recommended": meta.get("recommended"),
        },
        "calibration": meta.get("calibration"),
        "postprocessing": meta.get("postprocessing"),
        "training": _training(meta, plan),
        "fingerprint": meta.get("fingerprint"),
        "licence": meta.get("dataset_licence", "unknown"),
        "reference": meta.get("dataset_reference"),
        "model_card": str(card) if card.is_file() else None,
    }


def _training(meta: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """What it was trained on, how long, and by which versions."""
    return {
        "dataset": plan["dataset"],
        "fold": meta.get("fold"),
        "seed": meta.get("seed"),
        "steps": meta.get("steps_trained"),
        "seconds": meta.get("seconds"),
        "training_cases": len(meta["training_cases"]) if "training_cases" in meta else None,
        "validation_cases": len(meta["validation_cases"]) if "validation_cases" in meta else None,
        "validation": meta.get("validation"),
        "started_from": meta.get("from"),
        "versions": meta.get("versions", {}),
    }


def _parameters(path: Path) -> int:
    """Numbers in the file: weights, and what is stored beside them."""
    total = 0
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (no dictionary)
            count = 1
            for n in file.get_slice(key).get_shape():
                count *= n
            total += count
    return total
