"""Out-of-fold predictions: every case of a data set by the model that was not trained on it, all in one folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffuseg.checkpoint import image_digest, read_meta
from diffuseg.data.dataset import Case, Dataset, open_dataset
from diffuseg.errors import UserError
from diffuseg.inference.checkpoints import LAST, checkpoints
from diffuseg.inference.folder import Callbacks, FolderResult, predict_folder
from diffuseg.inference.folds import refuse_other_kind
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.inference.several import refuse_other_kinds
from diffuseg.text import few


@dataclass
class Crossval:
    """What became of the cases, and which cases of the data set no fold has validated on."""

    result: FolderResult = field(default_factory=FolderResult)
    left: list[str] = field(default_factory=list)


def cross_validate(
    run: Path | str,
    dataset: Path | str,
    out: Path | str,
    options: SamplingOptions | None = None,
    device: str | None = None,
    set: Sequence[str] = (),
    overwrite: bool = False,
    name: str = LAST,
    callbacks: Callbacks | None = None,
) -> Crossval:
    """Predict the validation cases of each fold with the model of this fold.

    Args:
        run: Folder with fold_0, fold_1, ..., or the folder of one training.
        dataset: The data set they were trained on.
        out: Folder of all predictions, as `predict_folder` writes them.
        options: How to draw.
        device: As in `load`.
        set: As in `load`.
        overwrite: Do finished cases again.
        name: Which checkpoint of each run.
        callbacks: As in `predict_folder`, of each fold.

    Raises:
        UserError: There is no run; models do not belong together or have other classes than the data set; a case that is to be
            predicted was trained on, was validated on in two folds, is not in the data set, or is another image now.
    """
    files = checkpoints(run, name)
    if not files:
        raise UserError(f"there is no {name} here", file=run, do="Give a finished run, or a folder with fold_0, fold_1, ...")
    headers = [(file, read_meta(file)) for file in files]
    refuse_other_kinds(headers)
    options = replace(options or SamplingOptions(), postprocess=False, anyway=True)
    # Rules were learnt on the very cases. A fold may lack a kind of image that the data set has.
    data = open_dataset(dataset, masks=False)
    chosen: dict[str, Path] = {}
    for file, meta in headers:
        for case in _validated(file, meta, data):
            if case in chosen:
                what = f"case {case} is one that {chosen[case].parent.name} was validated on too"
                raise UserError(what, file=file, do="Give the runs of different folds")
            chosen[case] = file
    found = Crossval(left=[case.id for case in data.cases if case.id not in chosen])
    by_id = {case.id: case for case in data.cases}
    for file in files:
        model = load(file, device, set)
        refuse_other_kind(model, data)
        images = [path for case, own in chosen.items() if own == file for path in by_id[case].images]
        if images:
            _add(found.result, predict_folder(model, images, Path(out), options, overwrite, callbacks=callbacks))
    return found


def _validated(file: Path, meta: dict, data: Dataset) -> list[str]:
    """The cases a training was validated on; its header knows them by the bytes of their images."""
    by_id: dict[str, Case] = {case.id: case for case in data.cases}
    validated = meta.get("validation_cases")
    if not validated:
        raise UserError("does not say what it was validated on", file=file, do="Give checkpoints that `diffuseg train` wrote")
    lost = [case for case in validated if case not in by_id]
    if lost:
        raise UserError(f"validated on cases that are not in {data.folder}: {few(lost)}", file=file, do="Give its data set")
    digests = {case: image_digest(by_id[case].images[0]) for case in validated}
    changed = [case for case in validated if digests[case] != validated[case]]
    if changed:
        raise UserError(f"validated on other images of {few(changed)} than are here", file=file, do="Give its data set")
    trained = set(meta.get("training_cases", {}).values())
    both = [case for case in validated if digests[case] in trained]
    if both:
        raise UserError(f"was trained on cases it was validated on: {few(both)}", file=file)
    return list(validated)


def _add(total: FolderResult, part: FolderResult) -> None:
    for name in ("finished", "skipped", "failed", "needs_review", "outside_training"):
        getattr(total, name).extend(getattr(part, name))
