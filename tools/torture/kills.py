"""Trainings, predictions and merges that are killed at random moments, taken up again, and compared with undisturbed ones."""

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.torture.child import Tally

WISHES = ["plan.patch=8,8,8", "plan.widths=4,8", "plan.batch=2", "T=10", "steps=2", "train.save_every=2"]


def run(count: int, work: Path, only: str = "", seed: int = 0) -> Iterator[Tally]:
    """So many kills of each kind of work whose name holds a word."""
    from diffuseg.data.synthetic import make_dataset

    data = make_dataset(work / "data", cases=4, shape=(10, 12, 9), test_cases=6)
    _spared(lambda: _train(data, work / "model"), "the model")
    trained = lambda out: _train(data, out)
    predicted = lambda out: _predict(work / "model" / "best.safetensors", data / "imagesTs", out)
    _spared(lambda: _predict_shards(work / "model" / "best.safetensors", data / "imagesTs", work), "the shards")
    merged = lambda out: _merge(work, out)
    kinds = {"train": (trained, _trained), "predict": (predicted, _written), "merge": (merged, _written)}
    return (_tortured(kind, *how, count, work / kind, seed) for kind, how in kinds.items() if only in kind)


def _tortured(
    kind: str, work: Callable[[Path], Any], result: Callable[[Path], Any], count: int, place: Path, seed: int
) -> Tally:
    """Kill a piece of work at random moments of its usual time, each in a folder of its own, and do it again to its end."""
    tally, rng = Tally("kills", kind), random.Random(f"{kind}/{seed}")
    seconds = [_spared(lambda: work(place / "whole"), kind), _spared(lambda: work(place / "second"), kind)]
    expected = result(place / "whole")
    assert result(place / "second") == expected, f"{kind}: two undisturbed runs differ"
    for number in range(count):
        out = place / str(number)
        killed = _killed(lambda out=out: work(out), rng.uniform(0, min(seconds)))
        tally.mutants += 1
        torn = _torn(out)
        started = time.perf_counter()
        status = _status(lambda out=out: work(out))
        tally.seconds = max(tally.seconds, time.perf_counter() - started)
        if torn or status or result(out) != expected:
            why = torn or (f"taken up again it ended with {status}" if status else "the result is another one")
            tally.faults.append(f"{number} ({'killed' if killed else 'finished'}): {why}")
        else:
            tally.results += 1
        shutil.rmtree(out)
    return tally


def _torn(out: Path) -> str:
    """A visible file of a killed process that cannot be read."""
    from safetensors import safe_open

    from diffuseg.data.io import read_image

    for path in sorted(out.rglob("*")) if out.exists() else ():
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
            elif path.name.endswith(".nii.gz"):
                read_image(path)
        except Exception as error:
            return f"{path.name} is torn: {error}"
    return ""


def _trained(out: Path) -> Any:
    """Weights of the checkpoints and the rows of the log, without times."""
    import csv
    import hashlib

    from safetensors import safe_open

    found = {}
    for name in ("best", "last"):
        digest = hashlib.sha256()
        with safe_open(out / f"{name}.safetensors", "pt") as file:
            for key in sorted(file.keys()):
                digest.update(key.encode() + file.get_tensor(key).numpy().tobytes())
        found[name] = digest.hexdigest()
    with (out / "log.csv").open() as lines:
        rows = [{key: value for key, value in row.items() if "second" not in key} for row in csv.DictReader(lines)]
    return found | {"log": rows}


def _written(out: Path) -> Any:
    """Every visible file, records without times."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            content = path.read_bytes()
            if path.suffix == ".json":
                record = json.loads(content)
                content = json.dumps({key: value for key, value in record.items() if key != "seconds"}).encode()
            found[str(path.relative_to(out))] = content
    return found


def _train(data: Path, out: Path) -> None:
    from diffuseg.train.loop import TrainSettings, train

    fixed: dict[str, Any] = {"device": "cpu", "precision": "fp32", "validate_every": 3}
    train(TrainSettings(data, "concat", out, steps=6, set=WISHES, resume=(out / "run.json").exists(), **fixed))


def _predict(model: Path, images: Path, out: Path, share: Any = None) -> None:
    from diffuseg.inference.folder import predict_folder
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions

    done = predict_folder(load(model, "cpu"), [images], out, SamplingOptions(draws=2, steps=2), share=share)
    assert not done.failed, done.failed


def _predict_shards(model: Path, images: Path, work: Path) -> None:
    from diffuseg.inference.shards import Shard

    for index in (1, 2):
        _predict(model, images, work / f"shard{index}", Shard(index, 2))


def _merge(work: Path, out: Path) -> None:
    from diffuseg.inference.merge import merge

    merge(out, [work / "shard1", work / "shard2"])


def _fork(work: Callable[[], Any]) -> int:
    """A child process that does the work; its status is 0 if it got to the end."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if "TORTURE_SHOW" not in os.environ:
            os.dup2(1, 2)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _status(work: Callable[[], Any]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])


def _spared(work: Callable[[], Any], what: str) -> float:
    """Do the work undisturbed; its seconds."""
    started = time.perf_counter()
    assert _status(work) == 0, f"{what}: fails undisturbed"
    return time.perf_counter() - started


def _killed(work: Callable[[], Any], after: float) -> bool:
    """Kill the work after so many seconds; whether that came before its end."""
    pid = _fork(work)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
