"""What an exact resume needs, in one safetensors file: weights, averages, optimisers and the step. Nothing pickled.

Random streams need no saving: every batch and every phase seeds its own generator from (seed, step).
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffuseg.checkpoint import write_tensors
from diffuseg.config import is_count, is_list, is_number, parse_stored
from diffuseg.errors import UserError

_any_number = lambda value: is_number(value, -math.inf, math.inf)
_bounds = lambda value: (
    value is None
    or (
        isinstance(value, dict)
        and is_list(value.get("cases"), lambda name: isinstance(name, str))
        and (value.get("draws", 0) is None or is_count(value.get("draws"), 1, 10**6))
        and isinstance(value.get("patches"), bool)
    )
)
KINDS = {
    "step": is_count,
    "seconds": lambda value: is_number(value, 0),
    "prepared": lambda value: is_number(value, 0),
    "best": _any_number,
    "waiting": is_count,
    "due": lambda value: isinstance(value, bool),
    "bounds": _bounds,
}
Optimisers = dict[str, torch.optim.Optimizer]


def save_state(path: Path, model: nn.Module, average: nn.Module, optimisers: Optimisers, scalars: dict[str, Any]) -> None:
    """Write everything aside, then rename, so that a kill at any moment leaves the previous state whole.

    Args:
        path: The file.
        model: Its weights.
        average: The averaged weights.
        optimisers: By the names of the modules that they train.
        scalars: What JSON can hold: step, seconds, best score.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in (("model", model), ("average", average)):
        tensors |= {f"{prefix}/{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, entries in optimiser.state_dict()["state"].items():
            tensors |= {
                f"optimiser/{name}/{index}/{k}": torch.as_tensor(v).detach().cpu().contiguous() for k, v in entries.items()
            }
    write_tensors(path, tensors, {"scalars": json.dumps(scalars)})


def load_state(path: Path, model: nn.Module, average: nn.Module, optimisers: Optimisers) -> dict[str, Any]:
    """Restore a training in place; the arguments are those of `save_state`.

    Returns:
        The scalars.

    Raises:
        UserError: The file is damaged, or is not that of this run.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            scalars = parse_stored(file.metadata()["scalars"], KINDS, path, ("step", "seconds", "best"))
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"no readable state of a run ({error})", file=path, do="Start again in another --out") from None
    try:
        _restore(tensors, model, average, optimisers)
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"is no state of this run ({reason})", file=path, do="Start again in another --out") from None
    return scalars


def _restore(tensors: dict[str, Tensor], model: nn.Module, average: nn.Module, optimisers: Optimisers) -> None:
    for prefix, module in (("model", model), ("average", average)):
        module.load_state_dict({k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(prefix + "/")})
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser/{name}/"):
                _, _, index, entry = key.split("/")
                state.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
