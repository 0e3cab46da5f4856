"""A checkpoint is one safetensors file: weights, and in its header the method, plan, classes and where it came from."""

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from diffuseg.atomic_io import atomic_path
from diffuseg.config import current_name, from_dict, is_count, is_list, is_map, is_number, override, parse_stored, to_dict
from diffuseg.data.plan import Plan, check_plan
from diffuseg.errors import UserError
from diffuseg.methods import METHODS, Method
from diffuseg.methods.weak.base import SaliencyCalibration, WeakMethod

FORMAT = "diffuseg-1"
LARGEST = 10**6  # whole number among a method's settings: levels of noise are thousands at most

_name = lambda value: isinstance(value, str)
_names = lambda value: is_map(value, _name)
_range = lambda value: is_list(value, is_number, 2)
_ranges = lambda value: is_map(value, _range)
_part = lambda value: value is None or isinstance(value, dict)
_fingerprint = lambda value: (
    value is None
    or (
        isinstance(value, dict)
        and is_count(value.get("cases", 1))
        and all(_ranges(value.get(k, {})) for k in ("ranges", "volume_ml"))
    )
)
_best = lambda value: (
    value is None
    or (
        isinstance(value, dict)
        and {"draws", "steps", "sampler"} <= value.keys()
        and all(is_count(value[key], 1, 10**4) for key in ("draws", "steps"))
        and isinstance(value["sampler"], str | None)
    )
)
_calibration = lambda value: value is None or (isinstance(value, dict) and is_map(value.get("widening", {}), _part))
_rule = lambda value: isinstance(value, dict) and all(_name(value.get(key)) for key in ("what", "of"))
_rules = lambda value: (
    value is None
    or (isinstance(value, dict) and is_list(value.get("rules"), _rule) and isinstance(value.get("settings"), dict))
)
_small = lambda value: isinstance(value, bool) or not isinstance(value, int) or is_count(value, -LARGEST, LARGEST)
_bounded = lambda value: is_map(value, _small)
KINDS = {  # of what a header holds, where code relies on it; a header may be a stranger's
    "method": _name,
    "plan": lambda value: isinstance(value, dict) and {"dataset", "channels", "labels", "file_ending"} <= value.keys(),
    "config": lambda value: isinstance(value, dict) and _bounded(value),
    "classes": lambda value: is_map(value, is_count),
    "fold": lambda value: value is None or is_count(value),
    "training_cases": _names,
    "validation_cases": _names,
    "steps_trained": lambda value: value is None or is_count(value),
    "seconds": lambda value: value is None or is_number(value),
    "amended": lambda value: is_list(value, _name),
    "versions": _part,
    "from": _part,
    "validation": _part,
    "codes": _part,
    "fingerprint": _fingerprint,
    "recommended": _best,
    "calibration": _calibration,
    "postprocessing": _rules,
    "references": lambda value: is_list(value, lambda one: isinstance(one, dict)),
    "members": lambda value: isinstance(value, list),
}


def image_digest(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of an image file: how a checkpoint remembers its cases."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def seen_in(meta: dict[str, Any], image: Path | None, digest: str | None = None) -> str:
    """Where the training with this header met an image file, its first one: "training", "validation", "neither" or "unknown".

    Bytes are compared: another file of the same examination, or of the same patient, is not recognised. A file that is not
    there any more is "unknown".

    Args:
        meta: The header of a checkpoint.
        image: A file; None: there is none, which is "unknown".
        digest: `image_digest` of the file, where it is known.
    """
    if image is None or "training_cases" not in meta or not image.is_file():
        return "unknown"
    digest = digest or image_digest(image)
    sides = {side: meta.get(f"{side}_cases", {}).values() for side in ("training", "validation")}
    return next((side for side, digests in sides.items() if digest in digests), "neither")


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    from importlib.metadata import version

    return {name: version(name) for name in ("diffuseg", "torch", "numpy", "monai")}


def save_checkpoint(path: Path, method: Method, meta: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a method's weights with everything `load_checkpoint` needs; aside, then renamed.

    Args:
        path: The file.
        method: A method of `METHODS`.
        meta: More entries of the header.
        dtype: As what weights are stored; float16 halves the file. They are float32 again when loaded.
    """
    name = next(n for n, c in METHODS.items() if type(method) is c)
    header = {
        "method": name,
        "config": to_dict(method.config),
        "plan": to_dict(method.plan),
        "classes": method.plan.labels,
        "versions": versions(),
    } | meta
    _write(path, {k: v.detach().to("cpu", dtype).contiguous() for k, v in method.state_dict().items()}, header)


def _write(path: Path, weights: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    write_tensors(path, weights, {"format": FORMAT, "diffuseg": json.dumps(header)})


def copy_without_names(path: Path, to: Path) -> None:
    """Write a checkpoint again with the hashes of its cases and not their names, which may be those of people.

    Raises:
        UserError: not a checkpoint of ours.
    """
    header = read_meta(path)
    cases = {side: header[side] for side in ("training_cases", "validation_cases") if side in header}
    _write(to, load_file(path), header | {side: {one: one for one in sorted(of.values())} for side, of in cases.items()})


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; aside, then renamed. Refuses a place that cannot be written, or is full."""
    with atomic_path(path) as aside:
        try:
            save_file(tensors, aside, metadata=metadata)
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from None


def amend_meta(path: Path, entries: dict[str, Any], measured: str) -> None:
    """Set entries of a checkpoint's header; its weights, and so the model's identity, stay as they are.

    Written aside, then renamed. The hash of the file changes; the header's "amended" lists those that it had before.

    Args:
        path: the file.
        entries: key -> value of the header.
        measured: the hash of the model that the entries are about, of its weights or of the file.

    Raises:
        UserError: not a checkpoint of ours, or one that has changed since it was measured.
    """
    before = model_hash(path) if path.is_file() else ""
    if before and measured not in (before, weights_hash(path)):
        what = "has changed while it was measured: the result is not written into it"
        raise UserError(what, file=path, do="Run the command again, when no training writes to this file")
    header = read_meta(path)
    header |= entries | {"amended": [*header.get("amended", []), before]}
    _write(path, load_file(path), header)


def read_meta(path: Path) -> dict[str, Any]:
    """The header of a checkpoint, without its weights.

    Raises:
        UserError: not a checkpoint of ours.
    """
    if not path.is_file():
        raise UserError("no such checkpoint", file=path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"not a readable safetensors file ({error})", file=path) from None
    if metadata.get("format") != FORMAT:
        raise UserError("not a diffuseg checkpoint", file=path, do="Give a file that `diffuseg train` wrote.")
    return parse_stored(metadata.get("diffuseg", ""), KINDS, path, ("method", "plan", "config", "classes"))


def is_finished(path: Path) -> bool:
    """Whether a checkpoint is there and its training was at its end: `last.safetensors` is written on the way too."""
    return path.is_file() and bool(read_meta(path).get("finished", True))


def load_checkpoint(
    path: Path | str, device: torch.device | str = "cpu", options: Sequence[str] = ()
) -> tuple[Method, Plan, dict[str, Any]]:
    """The method with its weights (in evaluation mode), its plan, and its header.

    Args:
        path: the file.
        device: where the method goes.
        options: "key=value" for `Method.inference_settings`.

    Raises:
        UserError: not a checkpoint of ours, or one of another version; an option that the training has fixed.
    """
    path = Path(path)
    meta = read_meta(path)
    if meta["method"] not in METHODS:
        raise UserError(f"made by a method this version does not know: {meta['method']}", file=path)
    cls = METHODS[meta["method"]]
    plan = from_dict(Plan, meta["plan"], "plan.")
    try:
        check_plan(plan)
    except UserError as fault:
        raise UserError(str(fault), file=path) from None
    config = override(from_dict(cls.config_class, meta["config"], "config.", path), list(options))
    for option in options:
        key, _, value = option.partition("=")
        current = current_name(cls.config_class, key, value)
        if current is not None and current[0] not in cls.inference_settings:
            may = f"Free are: {', '.join(cls.inference_settings) or 'none of this method'}"
            raise UserError(f"{option}: this was fixed when the model was trained", file=path, do=may)
    with _no_more_than(path):
        method = cls(plan, config)
    try:
        method.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except RuntimeError as error:
        what = f"weights do not fit the method ({str(error).splitlines()[0]})"
        raise UserError(what, file=path, do="Another version made it: train it again, or use that version") from None
    if isinstance(method, WeakMethod):
        settings = method.map_settings(*method.sampling(None, None))
        stored = [SaliencyCalibration.read(entry, cls.config_class) for entry in meta.get("references", [])]
        method.calibration = next((calibration for calibration in stored if calibration.settings == settings), None)
    return method.to(device).eval(), plan, meta


@contextmanager
def _no_more_than(path: Path) -> Iterator[None]:
    """While it is entered, no parameters are made beyond those that the file holds: its header may claim any number.

    A parameter is counted before anything is written to it, so before memory is taken.
    """
    with safe_open(path, "pt") as file:
        held = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118 (not a dict)
    thread, made = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        made[0], made[1] = made[0] + 1, made[1] + parameter.numel()
        if made[0] > 2 * len(held) + 100 or made[1] > 2 * sum(held) + 10**6:  # some are made and thrown away
            raise UserError("its plan and settings ask for more weights than it holds", file=path, do="Copy or train it again")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError, OverflowError, IndexError, MemoryError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(f"its plan and settings make no method ({reason})", file=path, do="Train it again") from None
    finally:
        hook.remove()


def load_weights(path: Path, method: Method) -> None:
    """Put the weights of another checkpoint into a method of the same kind, one tensor at a time.

    Raises:
        UserError: the checkpoint has other tensors.
    """
    state = method.state_dict()
    with safe_open(path, "pt") as file:
        if set(file.keys()) != set(state):
            raise UserError("its weights do not fit the method of the other models", file=path)
        for name, tensor in state.items():
            tensor.copy_(file.get_tensor(name))


def model_hash(path: Path | str) -> str:
    """First 12 hexadecimal digits of the file's SHA-256, which other entries of its header change too."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def weights_hash(path: Path | str) -> str:
    """What tells a model from others: 12 hexadecimal digits of its method, settings, plan and weights.

    What was learnt about the model later (recommended settings, calibration) is not in it.

    Raises:
        UserError: not a checkpoint of ours.
    """
    meta = read_meta(Path(path))
    plan = {key: value for key, value in meta["plan"].items() if key != "reasons"}
    digest = hashlib.sha256(json.dumps([meta["method"], meta["config"], plan], sort_keys=True).encode())
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def known_as(path: Path) -> tuple[str, ...]:
    """The hash of a checkpoint's weights, then those of the file by which earlier versions called the same weights."""
    return (weights_hash(path), model_hash(path), *read_meta(path).get("amended", []))
