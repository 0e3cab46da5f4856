"""The loop, its checkpoints and what it shows.

The package can be called, because `diffuseg.train(dataset, out)` and the package have one name: it calls `train.run.train`.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, dataset: Path | str, out: Path | str, method: str = "distributional", **settings: Any) -> Path:
        """Train a method on one fold of a data set, see `diffuseg.train.run.train`; returns the path of the best checkpoint."""
        from diffuseg.train.run import train

        return train(dataset, out, method, **settings)


sys.modules[__name__].__class__ = _Callable
