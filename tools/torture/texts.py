"""Broken texts: descriptions, plans, records, tables and checkpoints of strangers are taken, or refused in a sentence."""

import dataclasses
import functools
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np

from diffuseg.errors import UserError
from tools.torture.child import Tally, torture
from tools.torture.mutate import broken, other_json, other_table

Job = Callable[[random.Random, Path], Any]
TINY = ["plan.patch=8,8,8", "plan.widths=4,8", "plan.batch=2"]


def run(count: int, work: Path, only: str = "", seed: int = 0) -> Iterator[Tally]:
    """So many broken texts of each kind whose name holds a word."""
    return (torture("texts", kind, _trial(kind, make(), seed), count) for kind, make in jobs(work).items() if only in kind)


def _trial(kind: str, job: Job, seed: int) -> Callable[[int, Path], Any]:
    return lambda number, place: job(random.Random(f"{kind}/{seed}/{number}"), place)


def jobs(work: Path) -> dict[str, Callable[[], Job]]:
    """What is done with a broken text, by the kind of text; `work` is a folder for what they need, made when it is."""
    import diffuseg.train.loop  # torch is imported once, and not by each child  # noqa: F401

    data, results, trained = (functools.cache(functools.partial(make, work)) for make in (_data, _results, _run))
    return {
        "dataset.json": lambda: functools.partial(_dataset, data()),
        "splits_final.json": lambda: functools.partial(_splits, data()),
        "image_labels.csv": lambda: functools.partial(_labels, data()),
        "patients.csv": lambda: functools.partial(_patients, data()),
        "plan.json": lambda: functools.partial(_plan, trained(data())),
        "run.json": lambda: _resume(data(), trained(data())),
        "<case>.json": lambda: functools.partial(_record, results()),
        "shards/list.json": lambda: functools.partial(_list, results()),
        "checkpoint": lambda: functools.partial(_checkpoint, trained(data()) / "best.safetensors"),
        "resume.safetensors": lambda: _resumed(data(), trained(data())),
    }


def _data(work: Path) -> Path:
    from diffuseg.data.synthetic import make_dataset

    folder = make_dataset(work / "data", cases=4, shape=(10, 12, 9))
    description = json.loads((folder / "dataset.json").read_text())
    cases = [path.name.removesuffix("_0000.nii.gz") for path in sorted((folder / "imagesTr").iterdir())]
    description |= {"patients": {case: f"p{n // 2}" for n, case in enumerate(cases)}, "licence": "none"}
    classes = [name for name in description["labels"] if name != "background"]
    description["codes"] = {name: ["10200004", "SCT", "Liver"] for name in classes}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "splits_final.json").write_text(json.dumps([{"train": cases[:2], "val": cases[2:]}]))
    return folder


def _results(work: Path) -> Path:
    """Results of two cases, of two processes, with the masks that they are measured against."""
    from diffuseg.inference.folder import predict_folder
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.shards import Shard
    from diffuseg.reports.evaluate import evaluate
    from tests.inference.oracle import make_model

    (work / "scans").mkdir()
    (work / "labels").mkdir()
    for number in range(2):
        voxels = np.random.default_rng(number).integers(0, 2, (5, 4, 3)).astype(np.float32)
        nib.save(nib.Nifti1Image(10 * voxels, np.eye(4)), work / "scans" / f"case{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image((3 * voxels).astype(np.uint8), np.eye(4)), work / "labels" / f"case{number}.nii.gz")
    for share in (Shard(1, 2), Shard(2, 2)):
        predict_folder(make_model(noise=0.5), [work / "scans"], work / "results", SamplingOptions(draws=2), share=share)
    evaluate(work / "results", work / "labels", None)  # what it imports is not left to each child
    return work / "results"


def _run(work: Path, data: Path) -> Path:
    from diffuseg.train.loop import TrainSettings, train

    wishes = [*TINY, "T=10", "steps=2"]
    settings = TrainSettings(data, "concat", work / "run", steps=2, set=wishes, device="cpu", precision="fp32")
    train(settings)
    return work / "run"


def _linked(data: Path, place: Path) -> Path:
    """A data set of its own over the same images."""
    for path in data.iterdir():
        (place / path.name).symlink_to(path)
    return place


def _put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _dataset(data: Path, rng: random.Random, place: Path) -> None:
    from diffuseg.data.dataset import check_patient_leakage, open_dataset
    from diffuseg.data.plan import fingerprint, make_plan
    from diffuseg.inference.dicom_codes import check_codes, read_codes

    content = json.loads((data / "dataset.json").read_text())
    if rng.random() < 0.4:  # as in the MSD
        names = sorted(path.name for path in (data / "labelsTr").iterdir())
        image = lambda name: f"imagesTr/{name.replace('.nii.gz', '_0000.nii.gz')}"
        content["modality"] = content.pop("channel_names")
        content["training"] = [{"image": image(name), "label": f"labelsTr/{name}"} for name in names]
    if rng.random() < 0.2:
        content |= {"patient_pattern": "[0-9]+", "raters": 2, "patients": None}
    _put(_linked(data, place) / "dataset.json", other_json(content, rng))
    dataset = open_dataset(place)
    check_patient_leakage(dataset)
    if "codes" in dataset.extra:
        check_codes(read_codes(place / "dataset.json"), dataset.labels)
    if rng.random() < 0.1:
        make_plan(dataset, fingerprint(dataset))


def _splits(data: Path, rng: random.Random, place: Path) -> None:
    from diffuseg.data.dataset import check_patient_leakage, open_dataset

    content = json.loads((data / "splits_final.json").read_text())
    _put(_linked(data, place) / "splits_final.json", other_json(content, rng))
    check_patient_leakage(open_dataset(place))


def _cases(data: Path) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in (data / "labelsTr").iterdir())


def _labels(data: Path, rng: random.Random, place: Path) -> None:
    from diffuseg.data.dataset import open_dataset
    from diffuseg.data.labels import read_labels

    dataset = open_dataset(data, masks=False)
    names = list(dataset.labels)
    rows = ["case,label", *(f"{case},{names[n % 2]}" for n, case in enumerate(_cases(data)))]
    if rng.random() < 0.5:
        rows = [",".join(["case", *names[1:]])] + [",".join([case, "1", *["0"] * (len(names) - 2)]) for case in _cases(data)]
    _put(place / "labels.csv", other_table("\n".join(rows), rng))
    read_labels(dataset, place / "labels.csv")


def _patients(data: Path, rng: random.Random, place: Path) -> None:
    from diffuseg.data.dataset import check_patient_leakage, open_dataset

    content = json.loads((data / "dataset.json").read_text())
    _put(_linked(data, place) / "dataset.json", json.dumps(content | {"patients": None}).encode())
    rows = ["case,patient", *(f"{case},p{n}" for n, case in enumerate(_cases(data)))]
    _put(place / "patients.csv", other_table("\n".join(rows), rng))
    check_patient_leakage(open_dataset(place))


def _plan(run: Path, rng: random.Random, place: Path) -> None:
    from diffuseg.data.plan import explain, load_plan
    from diffuseg.methods import METHODS

    _put(place / "plan.json", other_json(json.loads((run / "plan.json").read_text()), rng))
    plan = load_plan(place / "plan.json")
    explain(plan)
    METHODS["unet"](plan, METHODS["unet"].config_class())


def _state_of(data: Path, out: Path, resume: bool = False) -> Any:
    from diffuseg.train.setup import TrainSettings, set_up

    wishes = [*TINY, "T=10", "steps=2"]
    return set_up(TrainSettings(data, "concat", out, steps=2, set=wishes, device="cpu", precision="fp32", resume=resume))


def _resume(data: Path, run: Path) -> Job:
    """A run is taken up again with another run.json."""
    from diffuseg.train import setup

    taken: list[Any] = []
    with mock.patch.object(setup, "reserve_folder", lambda *given: taken.extend(given)):
        _state_of(data, run, resume=True)
    settings, *others = taken

    def job(rng: random.Random, place: Path) -> None:
        _put(place / "run.json", other_json(json.loads((run / "run.json").read_text()), rng))
        (place / "resume.safetensors").touch()
        setup.reserve_folder(dataclasses.replace(settings, out=place), *others)

    return job


def _record(results: Path, rng: random.Random, place: Path) -> None:
    """Every reader of records: finished cases, the page, the measures, the merge."""
    from diffuseg.reports.evaluate import evaluate
    from diffuseg.viewer.cases import find_cases

    folder = _copied(results, place)
    _put(folder / "case0.json", other_json(json.loads((results / "case0.json").read_text()), rng))
    shown = lambda: json.dumps([case.describe() for case in find_cases(folder)])
    measured = lambda: evaluate(folder, results.parent / "labels", None)
    readers = [shown, measured, lambda: _again(folder, results.parent / "scans"), lambda: _merged(folder)]
    _each(*rng.sample(readers, 2))


def _list(results: Path, rng: random.Random, place: Path) -> None:
    folder = _copied(results, place)
    content = json.loads((results / "shards" / "list.json").read_text())
    _put(folder / "shards" / "list.json", other_json(content, rng))
    if rng.random() < 0.3:
        (folder / "shards" / "failed").mkdir(exist_ok=True)
        _put(folder / "shards" / "failed" / "case0.json", other_json({"reason": "broken"}, rng))
        (folder / "case0.json").unlink()
    _each(lambda: _merged(folder), lambda: _again(folder, results.parent / "scans"))


def _copied(results: Path, place: Path) -> Path:
    return Path(shutil.copytree(results, place / "out"))


def _merged(folder: Path) -> None:
    from diffuseg.inference.merge import merge

    merge(folder)


def _again(folder: Path, scans: Path) -> None:
    from diffuseg.inference.folder import predict_folder
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.shards import Shard
    from tests.inference.oracle import make_model

    done = predict_folder(make_model(noise=0.5), [scans], folder, SamplingOptions(draws=2), share=Shard(1, 2))
    for case, reason in done.failed:
        if "Error: " in reason:
            raise AssertionError(f"{case}: {reason}")


def _each(*readers: Callable[[], Any]) -> None:
    """All of them; refused if the last of them that refuse does."""
    refusal: UserError | None = None
    for reader in readers:
        try:
            reader()
        except UserError as fault:
            refusal = fault
    if refusal is not None:
        raise refusal


def other_header(raw: bytes, key: str, rng: random.Random) -> bytes:
    """A safetensors file with other values in its metadata, other claims about its tensors, or broken as a file."""
    size = struct.unpack("<Q", raw[:8])[0]
    header, way = json.loads(raw[8 : 8 + size]), rng.random()
    if way < 0.15:
        return broken(raw, rng)
    if way < 0.25:  # what it says of its tensors
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name] = header[name] | {"shape": rng.choice(([10**6, 10**6], [10**12], [0], [-1], None, "x"))}
    elif way < 0.3:
        header["__metadata__"] = rng.choice(({"format": "x"}, {}, {"format": header["__metadata__"].get("format", "")}))
    else:
        content = json.loads(header["__metadata__"][key])
        header["__metadata__"][key] = other_json(content, rng).decode("utf-8", "replace")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def _checkpoint(checkpoint: Path, rng: random.Random, place: Path) -> None:
    from diffuseg.inference.info import describe
    from diffuseg.inference.model import load

    path = place / "x.safetensors"
    path.write_bytes(other_header(checkpoint.read_bytes(), "diffuseg", rng))

    def use() -> None:
        model = load(path, "cpu")
        asked = model.settings()
        if rng.random() < 0.3 and asked["steps"] <= 20 and asked["draws"] <= 20:
            shape = (9, 10, 8)[: 3 if model.plan.dims == 3 or model.plan.orientation is not None else 2]
            voxels = np.random.default_rng(0).normal(size=(len(model.plan.channels), *shape)).astype(np.float32)
            model.predict(voxels, spacing=(1.0,) * len(shape))

    _each(lambda: json.dumps(describe(path)), use)


def _resumed(data: Path, run: Path) -> Job:
    """A run is taken up again with another state."""
    from diffuseg.train.loop import _restore
    from diffuseg.train.state import load_state

    state, raw = _state_of(data, run, resume=True), (run / "resume.safetensors").read_bytes()

    def job(rng: random.Random, place: Path) -> None:
        path = place / "resume.safetensors"
        path.write_bytes(other_header(raw, "scalars", rng))
        _restore(state, load_state(path, state.method, state.average, state.optimisers))

    return job
