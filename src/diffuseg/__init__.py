"""Segment medical images with conditional diffusion models, with an honest uncertainty."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuseg.errors import UserError
    from diffuseg.inference.model import Model, load
    from diffuseg.inference.prediction import Prediction
    from diffuseg.types import Image

__version__ = "0.1.0"
__all__ = ["Image", "Model", "Prediction", "UserError", "__version__", "load"]

_WHERE = {
    "Image": "diffuseg.types",
    "Prediction": "diffuseg.inference.prediction",
    "UserError": "diffuseg.errors",
    "Model": "diffuseg.inference.model",
    "load": "diffuseg.inference.model",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import diffuseg` and `diffuseg --help` cost nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module 'diffuseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
