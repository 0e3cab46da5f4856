"""What a prediction keeps to be looked at: the mask of every draw, and the steps in which the first draw came about.

Draws come one by one; of each only its mask stays, one byte per voxel, and of each step the probability of the foreground
in percent, one byte per voxel too. The probabilities themselves are never held together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from torch import Tensor

from diffuseg import scratch
from diffuseg.blocks import blocks, copy, largest, take
from diffuseg.data.dataset import evenly_spaced
from diffuseg.data.transforms import GridTransform, to_native
from diffuseg.methods.base import x_to_probability

MOST_STEPS = 16  # of a draw; of more steps so many are kept, evenly spread, with the first and the last


class DrawRecorder:
    """Takes in draws and steps on the model's grid, and holds what was asked for on the image's own voxels.

    values  label value of each class, in the type of the masks
    draws   [n, *s] label values of the n draws that are to be kept; None where n is 0
    timesteps  t of each step that is kept, falling; chosen from those of a draw, which are none where steps are not kept
    steps   [steps, *s] probability of the foreground in percent, step after step; None where there are no timesteps
    """

    def __init__(self, transform: GridTransform, values: Num[np.ndarray, " k"], draws: int, timesteps: Sequence[int]) -> None:
        self._transform, self._values = transform, values
        self._drawn, self._seen = 0, set[int]()
        self.timesteps = evenly_spaced(list(timesteps), MOST_STEPS)
        self.draws = scratch.zeros((draws, *transform.native), values.dtype) if draws else None
        self.steps = scratch.zeros((len(self.timesteps), *transform.native), np.uint8) if self.timesteps else None

    def draw(self, probability: Float[Tensor, "k *s"]) -> None:
        """Take in one draw: its mask is the class that is most probable after the way back to the image's voxels."""
        if self.draws is not None:
            copy(take(self._values, largest(to_native(probability, self._transform))), self.draws[self._drawn])
            self._drawn += 1

    def step(self, t: int, x_0: Float[Tensor, "n k *s"]) -> None:
        """Take in x0_hat in [-1, 1] at timestep t of draws made together; the first draw of the first ones is kept."""
        if self.steps is not None and t in self.timesteps and t not in self._seen:
            background = to_native(x_to_probability(x_0[:1])[0, :1], self._transform)[0]
            step = self.steps[self.timesteps.index(t)]
            for part in blocks(step.shape):
                step[part] = np.rint(100 * (1 - background[part])).clip(0, 100)
            self._seen.add(t)

    def record(self) -> dict[str, Any]:
        """What goes into <case>.json: how many draws are kept, and the timesteps of the steps; nothing where none are."""
        kept = {"draws": 0 if self.draws is None else len(self.draws), "steps": self.timesteps}
        return {"kept": {name: value for name, value in kept.items() if value}} if any(kept.values()) else {}
