"""Trainings of a few steps on a few voxels."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.train.settings import TrainSettings
from diffuseg.train.setup import TrainState, set_up

PLAN = ["plan.patch=8,8,8", "plan.widths=4,8", "plan.batch=2"]
METHOD = {
    "unet": [],
    "distributional": ["light_widths=4,4", "latent_width=8"],
    "concat": ["T=20", "steps=2"],
    "cdal": ["discriminator_widths=4,4,8", "latent=4", "latent_width=8", "adversarial=0.1"],
}


def settings(data: Path, out: Path, method: str = "unet", *wishes: str, steps: int = 4, **changes: Any) -> TrainSettings:
    fixed: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
    return TrainSettings(data, method, out, steps=steps, set=[*PLAN, *METHOD[method], *wishes], **(fixed | changes))


def start(data: Path, out: Path, method: str = "unet", *wishes: str, **changes: Any) -> TrainState:
    return set_up(settings(data, out, method, *wishes, **changes))


def options(data: Path, out: Path, method: str = "unet", *wishes: str, steps: int = 4) -> list[str]:
    """The same as `settings` for the shell."""
    chosen = [part for wish in [*PLAN, *METHOD[method], *wishes] for part in ("--set", wish)]
    fixed = ["--device", "cpu", "--precision", "fp32"]
    return ["train", str(data), "--out", str(out), "--method", method, "--steps", str(steps), *fixed, *chosen]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result: Any, *says: str) -> None:
    """One line that says it, exit code 2, nothing of Python."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(text in result.stderr for text in says), result.stderr
    assert "Traceback" not in result.output


def same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
