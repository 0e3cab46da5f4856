"""What things cost, as ratios within one run: `python -m benchmarks.speed` (no data needed, some minutes; `make bench`).

Things to compare take turns, and the ratio is that of their fastest rounds: what else the machine does only adds time.
Rows that are not measured now stay.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.score import RESULTS, environment, replaced
from diffuseg import timing
from diffuseg.atomic_io import write_json
from diffuseg.checkpoint import save_checkpoint
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.device import Precision, choose_precision
from diffuseg.inference.engine import by_engine
from diffuseg.inference.export import as_openvino, export
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods import METHODS, Method
from diffuseg.text import pluralize
from diffuseg.train.compiled import compile_networks
from diffuseg.train.loop import TrainSettings, train
from diffuseg.train.memory import recompute_blocks
from diffuseg.types import Batch, Image

PLAN = Plan("made", ("MR",), {"background": 0, "anterior": 1, "posterior": 2}, ".nii.gz", patch=(40, 56, 40))
ROUNDS = 7
STEPS = 20  # of a training whose waiting is measured
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SHARES = {
    "the network": ("encode", "denoise"),
    "noise and statistics": ("sample", "statistics"),
    "reading and resampling": ("read", "resample", "back"),
    "the digest of the intensities": ("digest",),
    "writing": ("write",),
}
EXPORTED = [("unet", 1, None), ("ssn", 2, None), ("concat", 2, 2), ("cdal", 2, 2), ("distributional", 2, 1)]


DRAWN = [  # (what, method, --set, draws, steps)
    ("1 draw of cDAL in 1 step", "cdal", [], 1, 1),
    ("1 draw of cDAL in 2 steps", "cdal", [], 1, 2),
    ("8 draws of cDAL in 2 steps", "cdal", [], 8, 2),
    ("1 draw of distributional", "distributional", [], 1, 1),
    ("8 draws of distributional", "distributional", [], 8, 1),
    ("32 draws of distributional", "distributional", [], 32, 1),
    ("8 draws of MedSegDiff V1 in 2 steps", "medsegdiff", [], 8, 2),
    ("8 draws of MedSegDiff V1 without coupling in 2 steps", "medsegdiff", ["dce=off"], 8, 2),
    ("8 draws of MedSegDiff V2 in 2 steps", "medsegdiff_v2", [], 8, 2),
]


def build(name: str, settings: list[str] | None = None) -> Method:
    """A method on the hippocampus plan, with its defaults where no settings are given."""
    torch.manual_seed(0)
    return METHODS[name](PLAN, override(METHODS[name].config_class(), settings or []))


def seconds(
    tasks: dict[str, Callable[[], Any]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The fastest of some rounds of each task, after one to warm up; tasks take turns."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            started = clock()
            task()
            found[name].append(clock() - started)
    return {name: min(times[1:]) for name, times in found.items()}


def drawing(only: str = "") -> list[dict[str, Any]]:
    """Draws against one pass of the U-Net, on one image, in the precision that prediction takes here."""
    image, device = torch.randn(1, 36, 50, 35), torch.device("cpu")
    precision = choose_precision(device)

    def draw(method: Method, n: int, steps: int | None) -> Callable[[], Any]:
        def task() -> None:
            with precision.autocast(device):
                list(method.draw(image, range(n), steps=steps))

        return task

    tasks = {what: draw(build(name, sets), n, steps) for what, name, sets, n, steps in DRAWN if only in name}
    times = seconds({"unet": draw(build("unet"), 1, None)} | tasks)
    means = "wall time, over one pass of the U-Net of the same width on the same image"
    return [{"what": what, "ratio": times[what] / times["unet"], "means": means, "seconds": times[what]} for what in tasks]


def number_types(only: str = "") -> list[dict[str, Any]]:
    """A draw and a training step (all phases but the lazy R1) in bf16 against float32, also where it is only emulated."""
    image, device, rows = torch.randn(1, 36, 50, 35), torch.device("cpu"), []
    native = choose_precision(device).dtype == torch.bfloat16
    where = "" if native else ", emulated"

    def draw(name: str, which: str) -> None:
        with choose_precision(device, which).autocast(device):
            list(methods[name].draw(image, range(1)))

    methods = {name: build(name) for name in ("unet", "distributional") if only in name}
    for name in methods:
        times = seconds({which: partial(draw, name, which) for which in ("fp32", "bf16")}, clock=time.process_time)
        rows.append({"what": f"1 draw of {name} in bf16{where}"} | _gain(times))
    for name in ("unet", "cdal"):
        if only in name:
            times = seconds({"fp32": step(name), "bf16": step(name, bf16=True)}, rounds=3, clock=time.process_time)
            rows.append({"what": f"training step of {name} in bf16{where}"} | _gain(times))
    return rows


def _gain(times: dict[str, float]) -> dict[str, Any]:
    """What bf16 saves."""
    means = "processor time in float32 over that in bf16: above 1, bf16 is faster"
    found = {"ratio": times["fp32"] / times["bf16"], "means": means}
    return found | {"seconds": times["bf16"], "seconds_fp32": times["fp32"]}


def training(only: str = "") -> list[dict[str, Any]]:
    """A training step in float32, compiled or with less memory."""
    rows = []
    for name in ("unet", "cdal"):
        if only not in name:
            continue
        ways = {"plain": step(name), "--compile": step(name, compiled=True)}
        ways["--set train.checkpointing=true"] = step(name, checkpointing=True)
        times = seconds(ways, rounds=3, clock=time.process_time)
        for option in list(ways)[1:]:
            row = {"what": f"training step of {name} with `{option}`", "ratio": times[option] / times["plain"]}
            rows.append(row | {"means": "processor time, over that without it", "seconds": times[option]})
    return rows


def step(name: str, bf16: bool = False, compiled: bool = False, checkpointing: bool = False) -> Callable[[], None]:
    """One training step of a method on a made-up batch of two."""
    method = build(name)
    if checkpointing:
        recompute_blocks(method)
    if compiled:
        compile_networks(method, 2, choose_precision(torch.device("cpu"), "fp32"), torch.device("cpu"))
    mask = torch.zeros(2, PLAN.classes, *PLAN.patch)
    mask[:, 0] = 1
    batch = Batch(torch.randn(2, 1, *PLAN.patch), mask)
    optimiser = torch.optim.AdamW(method.parameters())

    def task() -> None:
        for phase in method.phases:
            if phase.name == "r1":
                continue
            for child, module in method.named_children():
                module.requires_grad_(child in phase.modules)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss, _ = method.loss(batch, phase, torch.Generator().manual_seed(0))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return task


def exported(only: str = "") -> list[dict[str, Any]]:
    """An image by the exported graphs and the example that runs them, against PyTorch, for methods that can be exported."""
    image, device = torch.randn(1, 36, 50, 35), torch.device("cpu")
    onnx, openvino = (SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{by}_predict.py"))) for by in ("onnx", "openvino"))
    rows = []
    for name, draws, steps in (row for row in EXPORTED if only in row[0]):
        method = build(name)

        def eager(precision: Precision, method: Method = method, n: int = draws, steps: int | None = steps) -> None:
            with precision.autocast(device):
                list(method.draw(image, range(n), steps=steps))

        tasks = {which: partial(eager, choose_precision(device, which)) for which in ("fp32", "auto")}
        with tempfile.TemporaryDirectory() as place:
            for by, (folder, precision) in _written(method, SamplingOptions(draws=draws, steps=steps), Path(place)).items():
                threads = torch.get_num_threads()
                run = openvino.graphs(folder, threads, precision) if precision else onnx.graphs(folder, threads)
                tasks[by] = partial(onnx.segment, folder, image.numpy(), run=run)
            times = seconds(tasks, rounds=5, clock=time.process_time)
        for by in list(tasks)[2:]:
            means = f"processor time, over PyTorch in float32; over that of `predict` here {times[by] / times['auto']:.2f}"
            what = f"{pluralize(draws, 'draw')} of {name} by {by}"
            rows.append({"what": what, "ratio": times[by] / times["fp32"], "means": means, "seconds": times[by]})
    return rows


def _written(method: Method, options: SamplingOptions, place: Path) -> dict[str, tuple[Path, str]]:
    """A method's graphs in both formats: who runs them -> their folder, and the number type that is asked for."""
    save_checkpoint(place / "model.safetensors", method, {"name": "made"})
    export(load(place / "model.safetensors", "cpu"), place / "onnx", "onnx", options)
    shutil.copytree(place / "onnx", place / "openvino")
    for file in sorted((place / "openvino").glob("*.onnx")):
        as_openvino(file)
    said = json.loads((place / "onnx" / "model.json").read_text())
    write_json(place / "openvino" / "model.json", said | {"format": "openvino"})
    by = {"OpenVINO": (place / "openvino", "f32"), "OpenVINO in bf16": (place / "openvino", "bf16")}
    return {"onnxruntime": (place / "onnx", "")} | by


def engine(only: str = "") -> list[dict[str, Any]]:
    """A scan by the packaged model with its networks by OpenVINO, all of the prediction, and when compiling is paid."""
    rng, rows = np.random.default_rng(0), []
    scan = Image(rng.normal(100, 20, (1, 36, 50, 35)).astype(np.float32))
    for kind in ("bf16", "fp32"):
        own = choose_precision(torch.device("cpu"), kind)
        model = replace(load("hippocampus", "cpu"), precision=own)
        started = time.process_time()
        other = by_engine(model, "openvino")
        tasks = {name: partial(one.predict, scan, anyway=True) for name, one in (("PyTorch", model), ("OpenVINO", other))}
        tasks["OpenVINO"]()  # a graph is compiled for the number of draws when it is met
        compiling = time.process_time() - started
        times = seconds(tasks, rounds=5, clock=time.process_time)
        saved = times["PyTorch"] - times["OpenVINO"]
        what = f"`predict hippocampus --engine openvino` in {kind}"
        means = "processor time of a prediction, over that by PyTorch in the same number type"
        rows.append({"what": what, "ratio": times["OpenVINO"] / times["PyTorch"], "means": means, "seconds": times["OpenVINO"]})
        what, means = (
            f"compiling for OpenVINO in {kind}",
            "processor time, over what each scan then saves: scans until it is paid",
        )
        rows.append({"what": what, "ratio": compiling / saved, "means": means, "seconds": compiling})
    return rows


def starting(only: str = "") -> list[dict[str, Any]]:
    """The answer to --help against the bare start of Python."""
    run = lambda *arguments: lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    times = seconds({"help": run("-m", "diffuseg.cli", "--help"), "python": run("-c", "pass")})
    row = {"what": "`diffuseg --help`", "ratio": times["help"] / times["python"], "means": "over the bare start of Python"}
    return [row | {"seconds": times["help"]}]


def first_mask(scan: str) -> list[dict[str, Any]]:
    """Processor time from nothing to the first mask of the packaged model, and that of importing torch, taking turns."""
    spent: dict[str, list[float]] = {"mask": [], "spinning": [], "torch": []}
    for _ in range(5):
        with tempfile.TemporaryDirectory() as out:
            command = ("-m", "diffuseg.cli", "predict", "hippocampus", scan, "--out", out, "--overwrite")
            tasks = {"mask": (command, "PASSIVE"), "spinning": (command, "ACTIVE")}
            tasks["torch"] = (("-c", "import torch"), "PASSIVE")
            for name, (asked, waiting) in tasks.items():
                own = os.environ | {"OMP_WAIT_POLICY": waiting}
                unheard = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                process = subprocess.Popen([sys.executable, *asked], env=own, **unheard)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                if process.returncode:
                    raise SystemExit(f"{asked}: ended with {process.returncode}")
                spent[name].append(usage.ru_utime + usage.ru_stime)
    mask, spun, torch_alone = (median(spent[name]) for name in spent)
    means = f"processor time, over that of `import torch` alone: {mask:.1f} s and {torch_alone:.1f} s on this machine"
    what = "`diffuseg predict hippocampus SCAN`, one scan"
    rows = [{"what": what, "ratio": mask / torch_alone, "means": means + "; medians of five", "seconds": mask}]
    means = "processor time, over that of threads which sleep while they wait; a busy machine"
    return [*rows, {"what": "the same with threads that spin", "ratio": spun / mask, "means": means, "seconds": spun}]


def shares(dataset: Path) -> list[dict[str, Any]]:
    """Where trainings wait, and on hippocampus where the time of a prediction by the packaged model goes, by `timing`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("unet", "distributional"):
            with timing.profile(print) as spent:
                own = {"steps": STEPS, "validate_every": STEPS, "set": ["train.validation_cases=2"]}
                train(TrainSettings(dataset, name, Path(folder) / name, **own))
            wait, steps = spent["wait for data"], sum(spent[part] for part in ("wait for data", "loss", "backward", "update"))
            row = {"what": f"waiting for data in a training of {name}, {dataset.name}", "ratio": wait / steps, "seconds": wait}
            rows.append(row | {"means": f"wall time, over that of the first {STEPS} steps, their cases not yet in memory"})
        if dataset.name == "hippocampus":
            rows += _shares_of_prediction(dataset, Path(folder))
    return rows


def _shares_of_prediction(dataset: Path, folder: Path) -> list[dict[str, Any]]:
    cases, rows = sorted((dataset / "imagesTr").iterdir())[:20], []
    with timing.profile(print) as spent:
        predict_folder(load("hippocampus", "cpu"), cases, folder / "predicted")
    for what, parts in SHARES.items():
        took, whole = sum(spent.get(part, 0.0) for part in parts), sum(spent.values())
        row = {"what": f"{what} in `diffuseg predict hippocampus`", "ratio": took / whole, "seconds": took}
        rows.append(row | {"means": f"wall time, over all of it: {pluralize(len(cases), 'case')}"})
    return rows


PARTS = {
    "drawing": drawing,
    "number_types": number_types,
    "training": training,
    "starting": starting,
    "exported": exported,
    "engine": engine,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a method: measure it alone, its draws or another part, and keep the other rows")
    parser.add_argument("--part", choices=PARTS, default=None, help="measure this part alone and keep the other rows")
    parser.add_argument("--first-mask", metavar="SCAN", help="measure from the start to its mask alone and keep the other rows")
    parser.add_argument("--shares", metavar="DATASET", type=Path, help="measure where the time goes alone, on this data set")
    parser.add_argument("--busy", action="store_true", help="say in the results that the machine did other work")
    asked = parser.parse_args()
    scan, file = asked.first_mask, RESULTS / "speed.json"
    before = json.loads(file.read_text())
    if scan or asked.shares:
        found = first_mask(scan) if scan else shares(asked.shares)
    elif asked.part or asked.only is not None:
        found = PARTS[asked.part or "drawing"](asked.only or "")
    else:
        found = [row for part in PARTS.values() for row in part()]
    where = environment() | ({"other_work": True} if asked.busy else {})
    rows = [row | {"environment": where} for row in found]
    before["rows"] = replaced(before["rows"], rows, ("what",))
    file.write_text(json.dumps(before, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))
