"""A folder that is a data set already: `train` takes it as it is, and what its dataset.json names is not lost."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuseg.data.convert.pairing import Pairing
from diffuseg.data.label_values import label_values
from diffuseg.data.layout import open_dataset, read_json
from diffuseg.errors import UserError


def refuse_dataset(source: Path) -> None:
    """Refuse a folder that `train` takes as it is: nothing has to be made of it.

    Raises:
        UserError: It is one.
    """
    if not (source / "dataset.json").is_file():
        return
    try:
        open_dataset(source)
    except UserError:
        return  # of what is no data set one can be made
    do = f"`diffuseg train {shlex.quote(str(source))} --out RUN` takes it as it is, and `predict` its imagesTr or imagesTs"
    raise UserError("is a data set already", file=source, do=do)


def known_labels(source: Path) -> tuple[str, ...]:
    """The classes that a dataset.json in the folder names, as `--labels` takes them; () where none are named."""
    try:
        named = label_values(_extra(source), source / "dataset.json")
    except UserError:
        return ()
    return tuple(f"{name}={value}" for name, value in named.items() if value)


def with_known_channels(pairing: Pairing, source: Path) -> Pairing:
    """The same pairing, its channels called as a dataset.json in the folder calls their numbers."""
    extra = _extra(source)
    names = extra.get("channel_names", extra.get("modality"))
    called = {f"{number:>04}": str(name) for number, name in names.items()} if isinstance(names, dict) else {}
    return replace(pairing, channels=tuple(called.get(tag, tag) for tag in pairing.channels))


def _extra(source: Path) -> dict[str, Any]:
    """The dataset.json of a folder; nothing where there is none that can be read."""
    try:
        found = read_json(source / "dataset.json")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
