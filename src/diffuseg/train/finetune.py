"""Start a training from the weights of another one: what fits is kept, the rest is new, and the header says both."""

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from diffuseg.checkpoint import read_meta, weights_hash
from diffuseg.errors import UserError
from diffuseg.methods import Method
from diffuseg.text import few

_log = logging.getLogger("diffuseg")


def start_from(method: Method, checkpoint: Path) -> None:
    """Give a method the weights of a checkpoint whose names and shapes are its own; the others stay as they were drawn.

    Args:
        method: Freshly built; of the same or another method, plan and classes than the checkpoint's.
        checkpoint: A checkpoint of this library.

    Raises:
        UserError: No weight of the checkpoint fits.
    """
    before = read_meta(checkpoint)["plan"].get("channels", [])  # refuses what is no checkpoint
    if sorted(before) == sorted(method.plan.channels) and list(before) != list(method.plan.channels):
        what = f"its channels are {', '.join(before)}, here {', '.join(method.plan.channels)}"
        raise UserError(what, file=checkpoint, do="Name the channels in its order: weights of each would meet those of another")
    own, stored = method.state_dict(), load_file(checkpoint)
    kept = {name: stored[name].to(value) for name, value in own.items() if name in stored and stored[name].shape == value.shape}
    if not any(value.ndim > 1 for value in kept.values()):  # a bias that fits is chance
        raise UserError("no weight fits this method and plan", file=checkpoint, do="Give a checkpoint of the same method")
    method.load_state_dict(own | kept)
    new = sorted({name.rpartition(".")[0] for name in own.keys() - kept.keys()})
    _log.warning("%s: %d of %d tensors kept; new: %s", checkpoint, len(kept), len(own), few(new) or "none")


def history(checkpoint: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """What the header of the new training says of the old one; its training cases count as cases of both.

    An image that the new training has in both parts, under two names, is no matter of the old one: its warning is enough.

    Args:
        checkpoint: Where the training starts.
        provenance: Of the new training.

    Raises:
        UserError: The checkpoint was trained on a case that the new training validates on.
    """
    meta = read_meta(checkpoint)
    cases: dict[str, str] = meta.get("training_cases", {})
    met = set(cases.values()) - set(provenance["training_cases"].values())
    seen = sorted(case for case, digest in provenance["validation_cases"].items() if digest in met)
    if seen:
        what = f"{checkpoint} was trained on {len(seen)} of the validation cases ({seen[0]})"
        raise UserError(what, do="Give the fold that it was trained with; of copies of an image under several names keep one")
    before = {"model": weights_hash(checkpoint), "steps_trained": meta.get("steps_trained"), "before": meta.get("from")}
    return {"from": before, "training_cases": cases | provenance["training_cases"]}
