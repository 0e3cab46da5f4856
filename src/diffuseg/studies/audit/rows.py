"""The rows of an audit: the run itself, its weights sampled otherwise, and trainings that leave something out.

Sampled otherwise, the same weights tell what the noisy mask, the steps and the latent are worth in sampling. Trainings of the
same length tell what they are worth in training, and what a U-Net of the same width does instead.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch

from diffuseg.config import from_dict, override
from diffuseg.methods import METHODS, Method
from diffuseg.methods.ablations import CONTROLS
from diffuseg.methods.base import MaskMethod
from diffuseg.text import pluralize

MEMBERS = 5  # of an ensemble
DROPOUT = 0.1
SAME = ("widths", "blocks", "encoder_blocks", "learning_rate")  # what a U-Net of the same size takes over from the run


@dataclass(frozen=True)
class Training:
    """A method, its settings and those of its training (key=value, as --set has them), and a seed."""

    method: str
    wishes: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Row:
    """One line of the table.

    name, what  short, and in words
    draws       of a case
    steps       denoising steps of each
    sampling    how the weights are drawn from: "" as they are; "noise", "other_case", "latent", "dropout" or "members"
    trainings   what has to be trained for it; () for the run's own weights
    """

    name: str
    what: str
    draws: int
    steps: int
    sampling: str = ""
    trainings: tuple[Training, ...] = ()

    @property
    def calls(self) -> int:
        """Network calls for a case, and tile."""
        return self.draws * self.steps


def sampled_rows(method: Method, draws: int, steps: int) -> list[Row]:
    """The run itself, and what can be asked of its weights without training; `draws` and `steps` are those of the run."""
    rows = [Row("run", "the run itself", draws, steps)]
    if not method.generative:
        return rows
    rows.append(Row("noise", "x_t replaced by noise at every step", draws, steps, "noise"))
    rows.append(Row("other_case", "x_t made from the mask of another case", draws, steps, "other_case"))
    for other in sorted({1, min(4 * steps, method.schedule.T)} - {steps}):
        rows.append(Row(f"steps_{other}", pluralize(other, "denoising step"), draws, other))
    if isinstance(method, MaskMethod) and method.latent([torch.Generator()]) is not None:
        rows.append(Row("latent", "one latent for all draws and steps", draws, steps, "latent"))
    return rows


def trained_rows(record: dict[str, Any], method: Method, draws: int, steps: int) -> list[Row]:
    """What has to be trained; the first row is the run once more.

    Args:
        record: The run.json of the run.
        method: Of the run.
        draws: Of the run.
        steps: Denoising steps of the run.
    """
    name, seed = record["method"], record["seed"]
    recipe = tuple(f"train.{key}={json.dumps(value)}" for key, value in record["train"].items())
    own = tuple(f"{key}={json.dumps(value)}" for key, value in record["config"].items()) + recipe
    same = {key: record["config"][key] for key in SAME if key in record["config"]} | {"widths": list(method.widths)}
    unet = tuple(f"{key}={json.dumps(value)}" for key, value in same.items()) + recipe
    rows = [Row("again", "the run once more, as long as the rows below", draws, steps, "", (Training(name, own, seed),))]
    if method.generative:
        rows.append(Row("unet", "no diffusion: a U-Net of the same width", 1, 1, "", (Training("unet", unet, seed),)))
    for control, (what, settings) in CONTROLS.get(name, {}).items():
        config = from_dict(METHODS[name].config_class, record["config"])
        if override(config, settings.split()) != config:
            trainings = (Training(name, (*own, *settings.split()), seed),)
            rows.append(Row(control, what, draws, steps, "", trainings))
    members = tuple(Training("unet", unet, seed + number) for number in range(MEMBERS))
    rows.append(Row("ensemble", f"{MEMBERS} U-Nets of different seeds, a draw each", MEMBERS, 1, "members", members))
    dropped = (Training("unet", (*unet, f"dropout={DROPOUT}"), seed),)
    what = f"a U-Net with dropout {DROPOUT} in sampling too, as many calls as the run"
    return [*rows, Row("dropout", what, max(draws * steps, 2), 1, "dropout", dropped)]
