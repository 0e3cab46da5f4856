"""Which checkpoint a name means: every command and function that takes a model follows the same rule.

A file is itself, a folder that a training wrote is its best checkpoint, a folder with fold_0, fold_1, ... is the best ones of
these, and any other name is that of a packaged model.
"""

from importlib.resources import files
from pathlib import Path

from diffuseg.errors import UserError, path_of
from diffuseg.text import did_you_mean

BEST, LAST = "best.safetensors", "last.safetensors"
NO_MODEL = "neither a checkpoint, nor a run, nor the name of a packaged model"


def checkpoints(item: Path | str, name: str = BEST) -> list[Path]:
    """The checkpoints that a path means: a file, that of a run, or of all runs RUN/fold_*; none where it is no model.

    Args:
        item: A path.
        name: Of the checkpoint in a run.
    """
    path = Path(item)
    if path.is_file():
        return [path] if path.suffix == ".safetensors" else []
    if (path / name).is_file():
        return [path / name]
    folds = sorted(path.glob("fold_*"), key=lambda fold: (len(fold.name), fold.name)) if path.is_dir() else []
    return [fold / name for fold in folds if (fold / name).is_file()]


def packaged() -> list[str]:
    """Names of the models that come with the package."""
    folder = files("diffuseg") / "models"
    if not folder.is_dir():
        return []
    return sorted(item.name.removesuffix(".safetensors") for item in folder.iterdir() if item.name.endswith(".safetensors"))


def model_paths(name: str) -> list[str]:
    """What `load_models` takes for one argument: the checkpoints that it means, or itself, as it may name a packaged model."""
    return [str(path) for path in checkpoints(name)] or [name]


def one_model(name: Path | str) -> str:
    """The checkpoint file that a name means, or the name of a packaged model.

    Args:
        name: A file, which is not opened here, a run, or the name of a packaged model.

    Raises:
        UserError: It is none of these, or several models.
    """
    name = str(path_of(name, "a model", "Give a checkpoint, a run, or the name of a packaged model"))
    found = checkpoints(name)
    _refuse_several(name, found)
    if found or Path(name).is_file():
        return str(found[0] if found else name)
    if str(name) in packaged():
        return str(name)
    raise no_model(name)


def run_folder(name: Path | str) -> Path:
    """The folder of one training: itself, or that of a checkpoint in it.

    Raises:
        UserError: It holds several trainings.
    """
    found = checkpoints(name, LAST)
    _refuse_several(name, found)
    return found[0].parent if found else Path(name)


def _refuse_several(name: Path | str, found: list[Path]) -> None:
    if len(found) > 1:
        raise UserError(f"{len(found)} models, and one is asked for", file=name, do=f"Give one, such as {found[0].parent}")


def no_model(name: Path | str) -> UserError:
    """The fault of a name that means no model, with what may have been meant."""
    path, known = Path(name), packaged()
    unfinished = checkpoints(path, LAST) if path.is_dir() else []
    if unfinished:
        return UserError(
            f"no validation of this training is done, so there is no {BEST}", file=name, do=f"Give {unfinished[0]}"
        )
    inside = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if inside:
        return UserError(NO_MODEL, file=name, do=f"Give the file, such as {inside[0]}")
    return UserError(NO_MODEL, file=name, do=did_you_mean(str(name), known, "Packaged models"))


def model_file(name: Path | str) -> Path:
    """The file of one model: a checkpoint, that of a run, or that of a packaged model.

    Raises:
        UserError: It is none of these, or several.
    """
    return file_of(one_model(name))


def file_of(found: str) -> Path:
    """The file of what `one_model` found."""
    return Path(found) if Path(found).is_file() else Path(str(files("diffuseg"))) / "models" / f"{found}.safetensors"
