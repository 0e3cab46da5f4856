"""What can be left out of a method to see whether it is worth anything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffuseg.data.plan import Plan
from diffuseg.errors import UserError
from diffuseg.methods.cdal import CDAL, CDALConfig
from diffuseg.methods.training import randn_like

_NO_RECYCLING = ("no recycling: x_t in training always from the true mask", "recycle=0")

# method -> name -> (what, settings as --set has them). `diffuseg audit --retrain` trains each of them once more; a method
# without an entry has no control of its own.
CONTROLS: dict[str, dict[str, tuple[str, str]]] = {
    "cdal": {
        "x_noise": ("x_t is pure noise in training and sampling", "x_t=noise"),
        "x_other": ("x_t in training from another case's mask, no recycling", "x_t=other_case recycle=0"),
        "no_recycling": _NO_RECYCLING,
        "no_latent": ("no latent", "latent=0"),
        "no_adversary": ("no adversary", "adversarial=0"),
    },
    "medsegdiff": {
        "no_encoding": ("no dynamic conditional encoding", "dce=off"),
        "no_parser": ("no FF-Parser", "ff_parser=false"),
        "no_recycling": _NO_RECYCLING,
    },
    "medsegdiff_v2": {
        "no_anchor": ("no anchor condition", "anchor=false"),
        "no_former": ("no SS-Former", "ss_former=false"),
        "no_recycling": _NO_RECYCLING,
    },
}


@dataclass(frozen=True)
class AblatedCDALConfig(CDALConfig):
    """As cDAL's, and what x_t is replaced by.

    x_t   "noise": pure noise in training and sampling; "other_case": another case's noised mask in training, which needs
          recycle=0, as recycling would replace that mask again
    """

    x_t: Literal["diffusion", "noise", "other_case"] = "diffusion"


class AblatedCDAL(CDAL[AblatedCDALConfig]):
    """Diffusion in a few steps: a generator learns them against a discriminator of real and generated masks (cDAL).

    With the controls that hide the mask in x_t from its generator.
    """

    config_class = AblatedCDALConfig

    def __init__(self, plan: Plan, config: AblatedCDALConfig) -> None:
        super().__init__(plan, config)
        if config.x_t == "other_case" and config.recycle:
            raise UserError("x_t=other_case: recycling takes no mask at all into x_t", do="Give recycle=0 too.")
        if config.x_t == "other_case" and plan.batch < 2:
            raise UserError("x_t=other_case: a batch of one has no other case", do="Give plan.batch=2 or more.")

    def _training_input(self, x_0: Tensor, t: Tensor, image: Tensor, features: Tensor, rng: torch.Generator) -> Tensor:
        if self.config.x_t == "noise":
            return randn_like(x_0, rng)
        if self.config.x_t == "other_case":
            x_0 = x_0.roll(1, dims=0)
        return super()._training_input(x_0, t, image, features, rng)

    def state(self, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> Tensor:
        return noise() if self.config.x_t == "noise" else x_t
