"""The question of an audit, answered in a sentence from its rows: is diffusion doing anything in this training?

Two rows bear on it. "noise" samples the same weights with noise in place of the noisy mask: does sampling use what diffusion
carries from step to step? "unet" is a U-Net of the same width, trained alike: does it reach as much without diffusion? An
effect is claimed where the 95 % interval of the paired difference in Dice (of the mean of the draws) leaves out zero.
"""

import math
from typing import Any, Literal

Effect = Literal["lower", "higher", "none", "unknown"]
SAMPLING: dict[Effect, str] = {
    "lower": "is used in sampling",
    "higher": "does harm in sampling",
    "none": "makes no difference in sampling that these cases show",
    "unknown": "could not be measured in sampling",
}
UNET: dict[Effect, str] = {
    "lower": "is better than a U-Net of the same width",
    "higher": "is worse than a U-Net of the same width",
    "none": "is neither better nor worse than a U-Net of the same width as far as these cases show",
    "unknown": "could not be compared with a U-Net of the same width",
}


def answer(found: dict[str, Any]) -> str:
    """One sentence about what `audit` found."""
    if found["of"].get("sampler") is None:
        return "In this training diffusion has no part: its method draws no noisy mask."
    parts = []
    for name, words, instead in (
        ("noise", SAMPLING, "with noise in place of the noisy mask"),
        ("unet", UNET, "without diffusion"),
    ):
        if name in found["rows"]:
            change = found["rows"][name]["scores"]["mean"]["difference"]
            parts.append(f"{words[effect(change)]} ({instead} Dice changes by {_figures(change)})")
    if not parts:
        return "In this training diffusion was not examined: neither the row noise nor the row unet was measured."
    left = "" if "unet" in found["rows"] else "; whether a U-Net of the same width does as well, --retrain tells"
    return f"In this training diffusion {' and '.join(parts)}{left}."


def effect(change: dict[str, float | None]) -> Effect:
    """What the interval of a paired difference (mean, low, high) allows to say."""
    low, high = (math.nan if change[key] is None else float(change[key] or 0) for key in ("low", "high"))
    if math.isnan(low) or math.isnan(high):
        return "unknown"
    return "lower" if high < 0 else "higher" if low > 0 else "none"


def _figures(change: dict[str, float | None]) -> str:
    mean, low, high = (math.nan if change[key] is None else float(change[key] or 0) for key in ("mean", "low", "high"))
    if math.isnan(mean):
        return "an unknown amount"
    return f"{mean:+.3f}, no interval" if math.isnan(low) or math.isnan(high) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
