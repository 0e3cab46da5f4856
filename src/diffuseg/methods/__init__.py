"""One file reads like one paper. METHODS names them; to add one, see docs/extending.md."""

from diffuseg.methods.base import Method, Phase
from diffuseg.methods.registry import METHODS, register_method

__all__ = ["METHODS", "Method", "Phase", "register_method"]
