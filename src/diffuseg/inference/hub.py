"""Models on the Hugging Face Hub, the extra `diffuseg[hub]`: a checkpoint and its model card, there and back."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffuseg.atomic_io import atomic_write
from diffuseg.checkpoint import copy_without_names, load_checkpoint
from diffuseg.errors import UserError
from diffuseg.inference.card import card_of
from diffuseg.inference.checkpoints import BEST, model_file
from diffuseg.inference.info import describe

T = TypeVar("T")
WEIGHTS, CARD = "model.safetensors", "README.md"  # there; here they are called as those of a run
LARGEST = 2**33  # bytes that are fetched, at most

USAGE = """    diffuseg pull {repo}
    diffuseg predict {folder} SCAN --out results"""


def push(model: str, repo: str, card: Path | None = None, public: bool = False) -> str:
    """Put a model into a repository, which is made, private, where there is none. Names of its cases do not go with it.

    Args:
        model: A checkpoint, a run, or the name of a packaged model.
        repo: OWNER/NAME.
        card: The model card; without one that which lies beside the checkpoint (.md), else one that is made of its header.
        public: Whether all may see a repository that is made.

    Returns:
        Its address.

    Raises:
        UserError: No such model or card, or the hub refuses.
    """
    api, file = _hub().HfApi(), model_file(model)
    with tempfile.TemporaryDirectory() as place:
        load_checkpoint(file)  # nothing is published that could not be pulled
        copy_without_names(file, Path(place) / WEIGHTS)
        usage = USAGE.format(repo=repo, folder=repo.rpartition("/")[2])
        atomic_write(Path(place) / CARD, card_of(file, usage, card))
        address = _asked(repo, lambda: api.create_repo(repo, private=not public, exist_ok=True))
        message = f"diffuseg {describe(file)['method']}"
        _asked(repo, lambda: api.upload_folder(repo_id=repo, folder_path=place, commit_message=message))
    return str(address)


def pull(repo: str, out: Path | None = None, revision: str | None = None) -> Path:
    """Fetch a model into a folder that is not there yet. It is looked at as any stranger's file before it has its name.

    Args:
        repo: OWNER/NAME.
        out: The folder; its own name where left out.
        revision: A branch, tag or commit.

    Returns:
        The checkpoint.

    Raises:
        UserError: There is such a folder, the hub refuses, or what it has is no model, or not of this version.
    """
    hub, out = _hub(), out or Path(repo.rpartition("/")[2])
    if out.exists():
        raise UserError("is there already", file=out, do="Give another --out")
    names = [WEIGHTS, CARD]
    sizes = {one.path: one.size for one in _asked(repo, lambda: hub.HfApi().get_paths_info(repo, names, revision=revision))}
    if WEIGHTS not in sizes:
        raise UserError(f"there is no {WEIGHTS} in it: not a model of diffuseg", file=repo)
    if sum(sizes.values()) > LARGEST:
        raise UserError(f"{sum(sizes.values())} bytes: models have {LARGEST} at most", file=repo)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".pull-") as place:
        for name in sizes:
            _asked(repo, lambda name=name: hub.hf_hub_download(repo, name, revision=revision, local_dir=place))
        load_checkpoint(Path(place) / WEIGHTS)
        made = Path(place) / "model"
        made.mkdir()
        for name, ending in ((WEIGHTS, ".safetensors"), (CARD, ".md")):
            if name in sizes:
                shutil.move(Path(place) / name, made / Path(BEST).with_suffix(ending))
        made.rename(out)
    return out / BEST


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("huggingface_hub is not installed", do="pip install 'diffuseg[hub]'") from None
    return huggingface_hub


def _asked(repo: str, ask: Callable[[], T]) -> T:
    """What the hub answers; whatever it refuses for, or that it is not reached, in one line."""
    try:
        return ask()
    except Exception as error:  # of several libraries beneath it
        reason = " ".join(str(error).split())[:300]
        do = "Is the name right, are you online, and logged in (`hf auth login`)?"
        raise UserError(f"the hub says {type(error).__name__}: {reason}", file=repo, do=do) from None
