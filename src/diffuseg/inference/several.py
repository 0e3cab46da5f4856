"""Several checkpoints as one model, such as the folds of a cross-validation: each draws, and the mean is over all draws.

The weights of one are in memory at a time. Each model draws with the seeds that it would have alone, so the probability is the
mean of what the models give by themselves, and entropy, agreement and volume intervals are those of all draws together.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffuseg.checkpoint import read_meta, weights_hash
from diffuseg.config import from_dict
from diffuseg.data.plan import Plan
from diffuseg.errors import UserError
from diffuseg.inference.checkpoints import NO_MODEL, checkpoints, model_paths, packaged
from diffuseg.inference.model import Model, load
from diffuseg.methods import METHODS
from diffuseg.text import pluralize


def models_and_inputs(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """What of MODEL... INPUT... is a model: the first argument, and all after it that are checkpoints or runs.

    Raises:
        UserError: There is no input left, or the first is no model and a later one is.
    """
    first, *rest = arguments
    models = model_paths(first)
    if models == [first] and not _is_model(first) and any(map(_is_model, rest)):
        raise UserError(NO_MODEL, file=first, do="The model comes first: `diffuseg predict MODEL IMAGES`")
    while rest and (found := checkpoints(rest[0])):
        models += map(str, found)
        rest.pop(0)
    if not rest:
        raise UserError("all arguments are models", do="Name the images after them")
    return models, [Path(item) for item in rest]


def _is_model(argument: str) -> bool:
    return bool(checkpoints(argument)) or argument in packaged()


def load_models(paths: Sequence[Path | str], device: str | None = None, options: Sequence[str] = ()) -> Model:
    """One model, or several as one; see `diffuseg.inference.model.load`.

    Args:
        paths: Checkpoint files, or the name of one packaged model.
        device: "cpu", "cuda", "cuda:N" or "mps"; None: the GPU if there is one.
        options: "key=value" for settings of the method that concern drawing alone.

    Raises:
        UserError: What `load` refuses; models of several methods, settings, plans or classes, one that is given twice, and
            models that learnt from image-level labels.
    """
    if len(paths) == 1:
        return load(paths[0], device, options)
    files = [Path(path) for path in paths]
    headers = [(file, read_meta(file)) for file in files]
    refuse_other_kinds(headers)
    hashes = {file: weights_hash(file) for file in files}
    if len(set(hashes.values())) < len(files):
        twice = next(file for n, file in enumerate(files) if hashes[file] in [hashes[other] for other in files[:n]])
        raise UserError("this model is given twice", file=twice, do="Give each once")
    ordered = sorted(headers, key=lambda pair: (pair[1].get("fold", 0), hashes[pair[0]]))  # in whatever order they are given
    first = load(ordered[0][0], device, options)
    if first.method.supervision != "mask":
        raise UserError(
            f"{first.meta['method']} learnt from image-level labels: several models are not averaged", file=files[0]
        )
    members = [{"name": str(meta.get("name")), "hash": hashes[file], "fold": meta.get("fold")} for file, meta in ordered]
    joint = hashlib.sha256("".join(member["hash"] for member in members).encode()).hexdigest()[:12]
    name = f"{pluralize(len(files), 'model')} such as {first.name}"
    meta = _joint_header([meta for _, meta in ordered]) | {"name": name, "members": members}
    return replace(first, name=name, hash=joint, meta=meta, members=tuple(file for file, _ in ordered))


def refuse_other_kinds(headers: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """Check that models belong together: by method, settings, classes and plan, of which the reasons do not count.

    Args:
        headers: Files with their headers.

    Raises:
        UserError: Two of them do not.
    """
    (first, one), *others = headers
    for file, other in others:
        if other["method"] != one["method"]:
            odd = f"method is {other['method']}, that of {first} {one['method']}"
        else:
            odd = _difference(Plan, other["plan"], one["plan"], ("reasons",), "plan")
            if not odd and other["method"] in METHODS:
                odd = _difference(METHODS[other["method"]].config_class, other["config"], one["config"], (), "settings")
            odd = odd and f"{odd} differ from that of {first}"
        if odd:
            raise UserError(f"its {odd}", file=file, do="Take models of one training plan, such as the folds of a data set")


def _difference(cls: type, one: dict[str, Any], other: dict[str, Any], but: Sequence[str], what: str) -> str:
    """The names of the fields that differ, defaults filled in; "" where none does."""
    before, now = from_dict(cls, one), from_dict(cls, other)
    names = [field.name for field in fields(cls) if field.name not in but]
    odd = [name for name in names if getattr(before, name) != getattr(now, name)]
    if "labels" in odd:
        return f"classes {', '.join(before.labels)}"
    return f"{what} ({', '.join(odd)})" if odd else ""


def _joint_header(headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is true of all: what any of them was trained on was seen in training; a calibration of one is none of all."""
    own = ("calibration", "postprocessing", "recommended", "fold", "amended")
    joint = {key: value for key, value in headers[0].items() if key not in own}
    for side in ("training_cases", "validation_cases"):
        if all(side in header for header in headers):
            joint[side] = {
                f"{header.get('fold')}/{case}": digest for header in headers for case, digest in header[side].items()
            }
    best = [header.get("recommended") for header in headers]
    keys = ("draws", "steps", "sampler")
    if all(best) and len({tuple((each or {})[key] for key in keys) for each in best}) == 1:
        joint["recommended"] = best[0]
    prints = [header.get("fingerprint") for header in headers]
    joint.pop("fingerprint", None)
    if all(prints):
        joint["fingerprint"] = _joint_fingerprint([each for each in prints if each])
    return joint


def _joint_fingerprint(prints: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ranges over the cases of all trainings."""
    joint = dict(prints[0]) | {"cases": max(each["cases"] for each in prints)}
    for key in ("ranges", "volume_ml"):
        names = {name for each in prints for name in each.get(key, {})}
        ends = {name: [each[key][name] for each in prints if name in each.get(key, {})] for name in names}
        joint[key] = {
            name: [min(low for low, _ in found), max(high for _, high in found)] for name, found in sorted(ends.items())
        }
    return joint
