"""All folds of a data set, one training after the other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from diffuseg.data.dataset import open_dataset, splits
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.text import did_you_mean
from diffuseg.train.loop import train
from diffuseg.train.settings import TrainSettings


def train_folds(settings: TrainSettings, on_fold: Callable[[int, int], None] | None = None) -> list[Path]:
    """Train every fold, each into OUT/fold_<k>, as `train` would alone; steps and minutes are those of each fold.

    With `resume`, folds that were begun go on where they were, and those after them start.

    Args:
        settings: Their fold does not count.
        on_fold: Called with (fold, folds) before each.

    Returns:
        The checkpoint of each fold that validated best.

    Raises:
        UserError: As `train`; without `resume` an out folder that has a fold already, before anything is trained.
    """
    if settings.method not in METHODS:
        raise UserError(f"unknown method {settings.method!r}", do=did_you_mean(settings.method, METHODS))
    count = len(splits(open_dataset(settings.dataset, masks=METHODS[settings.method].supervision == "mask")))
    folders = [settings.out / f"fold_{fold}" for fold in range(count)]
    begun = [folder for folder in folders if (folder / "run.json").exists()]
    if begun and not settings.resume:
        raise UserError("already holds a run", file=begun[0], do="Give --resume to continue it, or another --out.")
    if settings.resume and not begun:
        raise UserError("there is no fold to resume", file=settings.out, do="Leave out --resume to start")
    best = []
    for fold, folder in enumerate(folders):
        if on_fold is not None:
            on_fold(fold, count)
        best.append(train(replace(settings, fold=fold, out=folder, resume=folder in begun)))
    return best
