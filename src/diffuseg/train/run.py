"""`diffuseg.train(...)`, a training from Python."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from diffuseg.config import checked
from diffuseg.errors import UserError, path_of
from diffuseg.text import did_you_mean


def train(dataset: Path | str, out: Path | str, method: str = "distributional", **settings: Any) -> Path:
    """Train a method on one fold of a data set.

    Args:
        dataset: Folder in the nnU-Net v2 raw or the MSD layout.
        out: Folder of the run: checkpoints, logs, pictures.
        method: unet, concat, distributional, cdal, medsegdiff, medsegdiff_v2, cdm or cam.
        settings: The other options of `diffuseg train` by name: steps=2000, fold=1, max_minutes=30, resume=True,
            set=["train.ema=0.99"]; fields of `diffuseg.train.setup.TrainSettings`.

    Returns:
        The path of the best checkpoint, for `diffuseg.load`.

    Raises:
        UserError: As `diffuseg train` refuses.
    """
    from diffuseg.train.loop import TrainSettings
    from diffuseg.train.loop import train as run

    known = [field.name for field in fields(TrainSettings)]
    for name in settings.keys() - set(known):
        raise UserError(f"train has no setting {name!r}", do=did_you_mean(name, known))
    for name in ("plan", "labels", "start"):
        if settings.get(name) is not None:
            settings[name] = path_of(settings[name], name)
    if settings.get("batch") is not None:
        settings["batch"] = str(settings["batch"])
    plain = {name: value for name, value in settings.items() if name not in ("plan", "labels", "start", "log_to", "set")}
    settings |= checked(TrainSettings, plain)
    if not isinstance(settings.get("set", []), list | tuple):
        raise UserError(f"set={settings['set']!r}: expected a list", do='Such as set=["train.ema=0.99"]')
    return run(TrainSettings(path_of(dataset, "a data set"), method, path_of(out, "out"), **settings))
