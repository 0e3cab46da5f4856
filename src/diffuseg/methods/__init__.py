"""One file reads like one paper. METHODS names them; to add one, copy concat.py and add a line here."""

from diffuseg.methods.base import Method, Phase
from diffuseg.methods.cdal import CDAL
from diffuseg.methods.concat import Concat
from diffuseg.methods.medsegdiff import MedSegDiff
from diffuseg.methods.medsegdiff_v2 import MedSegDiffV2
from diffuseg.methods.unet import UNetMethod
from diffuseg.methods.weak.cam import CAM
from diffuseg.methods.weak.cdm import CDM

METHODS: dict[str, type[Method]] = {
    "unet": UNetMethod,
    "concat": Concat,
    "cdal": CDAL,
    "medsegdiff": MedSegDiff,
    "medsegdiff_v2": MedSegDiffV2,
    "cdm": CDM,
    "cam": CAM,
}

__all__ = ["METHODS", "Method", "Phase"]
