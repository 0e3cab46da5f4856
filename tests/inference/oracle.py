"""A method that knows the answer, so that what is around a method can be tested exactly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.device import Precision
from diffuseg.diffusion.samplers import timesteps
from diffuseg.diffusion.schedule import NoiseSchedule
from diffuseg.inference.model import Model
from diffuseg.methods.base import MaskConfig, MaskMethod


@dataclass(frozen=True)
class OracleConfig(MaskConfig):
    """noise 0: probability 1 for the class whose number the intensity is; otherwise mixed with a random map per seed."""

    noise: float = 0.0


class Oracle(MaskMethod):
    """The class of a voxel is its rounded intensity; draws differ by a share of noise that is a function of their seed."""

    default_steps, phases = 2, ()

    def __init__(self, plan: Plan, config: Any) -> None:
        super().__init__(plan, config)
        self.schedule, self.calls = NoiseSchedule.linear(4), []

    def loss(self, batch, phase, rng):
        raise AssertionError("prediction does not train")

    encode = denoise = loss

    @torch.no_grad()
    def draw(self, image: Tensor, seeds: Sequence[int], **options: Any) -> Iterator[Tensor]:
        self.calls.append(options)
        plain = image[0].round().long().clamp(0, self.plan.classes - 1)
        answer = torch.nn.functional.one_hot(plain, self.plan.classes).movedim(-1, 0).float()
        for seed in seeds:
            random = torch.randn(answer.shape, generator=torch.Generator().manual_seed(seed)).softmax(0)
            p = (1 - self.config.noise) * answer + self.config.noise * random
            for t, _ in timesteps(self.schedule.T, options["steps"]) if options.get("on_denoised") else ():
                options["on_denoised"](t, (2 * p - 1)[None] / t)  # the lower the level, the surer
            yield p


class Certain(Oracle):
    """The same for a method without randomness."""

    generative = False


def make_plan(**changes: Any) -> Plan:
    """Intensities 0 and 10 are mapped to classes 0 and 1 (20 to 2), the grid is the file's own, in RAS order."""
    known = {"channels": ("MR",), "labels": {"background": 0, "organ": 3}, "file_ending": ".nii.gz"}
    levels = {"normalisation": ("ct",), "intensity": ({"low": 0.0, "high": 1000.0, "mean": 0.0, "std": 10.0},)}
    return Plan("made", **(known | levels | changes))


def make_model(noise: float = 0.0, method: type[Oracle] = Oracle, **changes: Any) -> Model:
    plan = make_plan(**changes)
    precision = Precision(torch.float32, "fp32, for a test")
    return Model(
        method(plan, OracleConfig(noise=noise)), plan, {"method": "oracle"}, "oracle", "0" * 12, torch.device("cpu"), precision
    )
