"""Segment medical images with conditional diffusion models, with an honest uncertainty. For research only.

    model = diffuseg.load("hippocampus")            # a checkpoint, or the name of a packaged model
    p = model.predict("SCAN.nii.gz", draws=8)       # or an array, a tensor, an image of nibabel, SimpleITK or MONAI
    p.mask, p.probability, p.uncertainty["entropy"], p.provenance["volume_ml_90"]
    p.like_input(), p.plot(), p.save("results")
    for case in model.predict_many(paths, out="results"): ...

    diffuseg.plan("DATASET")                        # what a training would do, and why
    diffuseg.train("DATASET", "RUN", method="unet") # the path of the best checkpoint
    diffuseg.predict("RUN/best.safetensors", "SCAN.nii.gz")
    diffuseg.evaluate("PRED", "LABELS", "EVAL")

The command line, `diffuseg --help`, does the same. Everything is imported on first use: `import diffuseg` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuseg.api import evaluate, plan, predict
    from diffuseg.errors import UserError
    from diffuseg.inference.model import Model, load
    from diffuseg.inference.prediction import Prediction
    from diffuseg.train.run import train
    from diffuseg.types import Image

__version__ = "0.1.0"
__all__ = [
    "Image",
    "Model",
    "Prediction",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "plan",
    "predict",
    "train",
]

_WHERE = {
    "Image": "diffuseg.types",
    "Prediction": "diffuseg.inference.prediction",
    "UserError": "diffuseg.errors",
    "Model": "diffuseg.inference.model",
    "load": "diffuseg.inference.model",
    "plan": "diffuseg.api",
    "predict": "diffuseg.api",
    "evaluate": "diffuseg.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import diffuseg` and `diffuseg --help` cost nothing."""
    if name == "train":  # the package of this name, which can be called
        return importlib.import_module("diffuseg.train")
    if name not in _WHERE:
        raise AttributeError(f"module 'diffuseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "importlib"})
