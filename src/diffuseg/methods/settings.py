"""The settings of a dataclass with their types, defaults and meanings: what `--set` takes.

Meanings stand in the docstring of the class, or of one above it: a line that begins with one or more names of fields, two
spaces and the meaning, which lines that are indented further continue.
"""

import re
import typing
from dataclasses import MISSING, asdict, dataclass, fields
from inspect import getdoc
from math import isfinite
from typing import Any

from diffuseg.config import type_words

COMMON = {  # what means the same wherever it is, and what docstrings leave to the name
    "widths": "channels per stage of the network; null: the plan's",
    "blocks": "residual blocks per stage",
    "encoder_blocks": "residual blocks per stage of the image's encoder",
    "learning_rate": "largest learning rate; it rises at the start and falls as a cosine",
    "discriminator_learning_rate": "the same of the discriminator",
    "classifier_learning_rate": "the same of the classifier",
    "dice": "weight of the soft Dice loss",
    "cross_entropy": "weight of the cross-entropy",
    "dropout": "share of activations that are dropped in training",
    "T": "timesteps of the diffusion",
    "schedule": "how noise grows over the timesteps",
    "steps": "denoising steps of a draw, where none are given; of the plan: steps of a training",
    "sampler": "sampler of a draw, where none is given",
    "latent_width": "width of the network that maps the latent",
    "latent_depth": "layers of the network that maps the latent",
    "pyramid": "whether the smaller images, too, are shown to the encoder",
    "attention_levels": "stages of the U-Net with self-attention",
    "attention_level": "stage whose features make the attention map",
    "discriminator_widths": "channels per block of the discriminator",
    "discriminator_image": "whether the discriminator sees the image",
    "betas": "of Adam",
    "band_pass": "whether the frequency filter is a band pass",
    "quantile": "the quantile of threshold=quantile",
    "fixed": "the threshold of threshold=fixed",
    "map": "kind of saliency map",
    "layer": "stages of the classifier whose activations are looked at, 0 for all",
    "weight_decay": "of AdamW",
    "save_every": "steps between resume points",
    "log_every": "steps between lines of log.csv",
    "dataset": "name of the data set",
    "channels": "names of the channels",
    "labels": "class -> value in a mask",
    "file_ending": "of the images",
    "batch": "patches per training step",
    "reasons": "why each setting of the plan is what it is",
}


@dataclass(frozen=True)
class Setting:
    """One setting: what --set calls it, its default, its type as text, and what it means."""

    name: str
    default: Any
    type: str
    meaning: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def settings_of(cls: type, prefix: str = "") -> list[Setting]:
    """The settings of a dataclass in the order of its fields.

    Args:
        cls: A config of a method, the plan, or the config of the training.
        prefix: Stands before each name: "plan." or "train.".
    """
    hints, meanings = typing.get_type_hints(cls), meanings_of(cls)
    found = []
    for field in fields(cls):
        default = field.default if field.default is not MISSING else None
        if field.default_factory is not MISSING:
            default = field.default_factory()
        type_, (low, high) = type_words(hints[field.name]), field.metadata.get("range", (None, None))
        if low is not None:
            type_ += f", {low:g} to {high:g}" if isfinite(high) else f", {low:g} or more"
        found.append(Setting(prefix + field.name, default, type_, meanings.get(field.name, COMMON.get(field.name, ""))))
    return found


def meanings_of(cls: type) -> dict[str, str]:
    """Field -> what the docstrings of a class and of those above it say of it."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        names = set(getattr(one, "__dataclass_fields__", ()))
        current: list[str] = []
        for line in (getdoc(one) or "").splitlines() if "__doc__" in vars(one) and names else ():
            match = re.match(r"(\w[\w, ]*?)(?:  +|: )(\S.*)", line)
            listed = re.split(r", | and ", match[1].strip()) if match else []
            if match and set(listed) <= names:
                current = listed
                found |= dict.fromkeys(listed, match[2])
            elif line.startswith("  ") and current:
                found |= {name: f"{found[name]} {line.strip()}" for name in current}
            else:
                current = []
    return found
