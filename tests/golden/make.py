"""What the library computes and writes, as files to hold later versions against: a refactoring changes none of them.

`python -m tests.golden.make [name ...]` writes them anew, all or by name: draws, losses, packaged, checkpoints, written,
help. `tests/golden/test_golden.py` calls the same functions and compares.

draws        of freshly built networks, so the order of their layers counts as well; `draws/<method>.npz`
losses       20 steps of all phases in order, 5 with other settings; `losses/<method>.npz`
packaged     predictions of the model that comes with the package; `packaged.npz`
checkpoints  draws of checkpoints of a former version, `checkpoints/<method>.safetensors`; these files are written once and
             kept, as they are the proof that old ones load: delete one to have it made anew
written      keys of JSON files, columns of tables and names of files that the commands write; `written.json`
help         `help/<command>.txt`, without the spaces at the ends of lines

All on one thread in fp32 without autocast. Each .npz says on what machine it was made.
"""

import csv
import dataclasses
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
import typer
from safetensors import safe_open
from typer.testing import CliRunner

# All that is imported of the library: a module that moves is mended here and nowhere else.
import diffuseg
from diffuseg.checkpoint import load_checkpoint, save_checkpoint
from diffuseg.cli import app
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.data.synthetic import make_dataset
from diffuseg.device import Precision
from diffuseg.diffusion.samplers import SAMPLERS
from diffuseg.methods import METHODS
from diffuseg.methods.weak.cdm import MAPS
from diffuseg.types import Batch

HERE = Path(__file__).parent
SEEDS, STEPS, FEW = (0, 1, 2, 3), 20, 5
GRIDS = {"2d": (2, 1, 2, (16, 16), (19, 14)), "3d": (3, 2, 3, (8, 8, 8), (9, 7, 8))}  # dims, channels, classes, patch, image
CHEAP = {
    "concat": ["T=50"],
    "distributional": ["T=3"],
    "cdal": ["latent=8", "latent_width=16", "discriminator_widths=8,8,16", "adversarial=0.1"],
    "medsegdiff": ["filter_size=4"],
    "medsegdiff_v2": ["alpha=2"],
    "cdm": ["T=50", "decide=present", "classifier_widths=8,16"],
    "cam": ["decide=present"],
}
VARIANTS = {  # further settings that are drawn from and trained with, in 2-D
    "unet": [["dropout=0.2"]],
    "distributional": [["T=1"], ["noise=false"], ["latent=0", "distance=crps"]],
    "cdal": [["x_t=noise"], ["adversarial=0"]],
    "medsegdiff": [["predict=eps", "variance=learned", "recycle=0"], ["dce=released", "calibration=1"]],
    "medsegdiff_v2": [["predict=eps", "variance=learned", "recycle=0"], ["recycle=0.5"]],
    "cdm": [["decide=classifier"], ["decide=auto"], ["predict=eps", "variance=learned", "label_dropout=0.5"]],
    "cam": [["decide=classifier"]] + [[f"map={name}"] for name in ("gradcam", "gradcam++", "scorecam")],
}
SHELL = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
Arrays = dict[str, np.ndarray]


@contextmanager
def steady() -> Iterator[None]:
    """One thread, and the global generator as it was afterwards: what is computed is the same alone and among other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def machine() -> str:
    """What has to be equal for floating point numbers to be: PyTorch, its kernels, and the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    read = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(read.get("flags", "").split())
    found = {
        "torch": torch.__version__,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "flags": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"}),
        "processor": read.get("model name", platform.processor()),
    }
    return json.dumps(found)


def build(name: str, grid: str, *settings: str) -> Any:
    """A tiny network of seeded weights; its last layers start near zero and are shaken, or nothing would be compared."""
    dims, channels, classes, patch, _ = GRIDS[grid]
    plan = Plan(
        dataset="golden",
        channels=tuple(f"c{i}" for i in range(channels)),
        labels={"background": 0} | {f"class{i}": i for i in range(1, classes)},
        file_ending=".nii.gz",
        dims=dims,
        normalisation=("zscore",) * channels,
        patch=patch,
        widths=(8, 16),
    )
    torch.manual_seed(0)
    method = METHODS[name](plan, override(METHODS[name].config_class(), CHEAP.get(name, []) + list(settings)))
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


def image(grid: str) -> torch.Tensor:
    """The image that is drawn of: larger than the patch along some axes, smaller along others."""
    _, channels, _, _, size = GRIDS[grid]
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(11))


def drawn(method: Any, grid: str, seeds: tuple[int, ...] = SEEDS, **how: Any) -> np.ndarray:
    """The draws of these seeds; of methods without masks their conclusion is the last one."""
    x = image(grid)
    with torch.no_grad():  # pytest's wrappers of checked functions take the decorator off generators
        maps = torch.stack(list(method.draw(x, seeds=list(seeds), **how)))
        if method.supervision == "image_label":
            maps = torch.cat([maps, method.finalize_draw(maps.mean(0), x, how.get("sampler"), how.get("steps"))[None]])
    return maps.float().numpy()


def draws(name: str) -> Arrays:
    """Draws of one method: as it does by itself, by each sampler or kind of map, and with other settings."""
    found = {}
    for grid in GRIDS:
        method = build(name, grid)
        found[f"{grid}/default"] = drawn(method, grid)
        if name == "cdm":
            found |= {f"{grid}/{kind}": drawn(method, grid, sampler=kind, steps=3) for kind in MAPS}
        elif method.generative and method.schedule.T > 1:
            found |= {f"{grid}/{kind}": drawn(method, grid, sampler=kind, steps=3) for kind in SAMPLERS}
            found[f"{grid}/eta=0.5"] = drawn(method, grid, (0, 1), sampler="ancestral", steps=3, eta=0.5)
    for settings in VARIANTS.get(name, []):
        found[f"2d/{','.join(settings)}"] = drawn(build(name, "2d", *settings), "2d", (0, 1))
    return found


def batch_of(method: Any, n: int = 3) -> Batch:
    """A batch of noise, with masks of noise or a label for each image."""
    plan, rng = method.plan, torch.Generator().manual_seed(12)
    x = torch.randn(n, plan.image_channels, *plan.patch, generator=rng)
    if method.supervision == "image_label":
        return Batch(x, label=torch.arange(n) % plan.classes)
    index = torch.randint(0, plan.classes, (n, *plan.patch), generator=rng)
    return Batch(x, F.one_hot(index, plan.classes).movedim(-1, 1).float())


def curve(method: Any, steps: int = STEPS) -> np.ndarray:
    """The losses [step, phase] of a short training: all phases in order, AdamW, generators seeded by the step."""
    method.train()
    batch, optimisers, losses = batch_of(method), {}, []
    for phase in method.phases:
        parameters = [p for module in phase.modules for p in method.get_submodule(module).parameters()]
        optimisers.setdefault(phase.modules, torch.optim.AdamW(parameters, phase.learning_rate, phase.betas))
    for step in range(steps):
        losses.append([])
        for phase in method.phases:
            for child, module in method.named_children():
                module.requires_grad_(child in phase.modules)
            torch.manual_seed(step)  # for dropout
            loss, _ = method.loss(batch, phase, torch.Generator().manual_seed(step))
            optimisers[phase.modules].zero_grad(set_to_none=True)
            loss.backward()
            optimisers[phase.modules].step()
            losses[-1].append(float(loss.detach()))
    return np.array(losses, np.float64)


def losses(name: str) -> Arrays:
    """Loss curves of one method."""
    found = {grid: curve(build(name, grid)) for grid in GRIDS}
    return found | {f"2d/{','.join(wish)}": curve(build(name, "2d", *wish), FEW) for wish in VARIANTS.get(name, [])}


def packaged() -> Arrays:
    """What the packaged model makes of a made-up volume of whole numbers: its noise hangs on them, to the last bit."""
    rng, shape = np.random.default_rng(13), (24, 32, 28)
    volume = np.kron(rng.integers(0, 400, [n // 4 for n in shape]), np.ones((4, 4, 4), int)) + rng.integers(0, 60, shape)
    i, j, k = np.indices(shape)
    volume[(i - 12) ** 2 * 4 + (j - 16) ** 2 + (k - 14) ** 2 * 4 < 150] += 500
    model = dataclasses.replace(diffuseg.load("hippocampus", "cpu"), precision=Precision(torch.float32, "fp32"))
    found = {}
    for seed in (0, 1):
        p = model.predict(volume.astype(np.float32), draws=2, seed=seed, keep_draws=True)
        found |= {f"{seed}/mask": p.mask, f"{seed}/draws": p.draws}
        found |= {f"{seed}/probability": p.probability[:, ::3, ::3, ::3].astype(np.float32)}
        found |= {f"{seed}/entropy": p.uncertainty["entropy"][::3, ::3, ::3].astype(np.float32)}
    return found


def checkpoints(name: str) -> Arrays:
    """Draws of a stored checkpoint."""
    method, plan, meta = load_checkpoint(HERE / f"checkpoints/{name}.safetensors")
    assert (meta["method"], meta["name"], plan.dataset) == (name, f"golden/{name}", "golden")
    return {"2d": drawn(method, "2d", (0, 1), **({"steps": min(3, method.schedule.T)} if method.generative else {}))}


def make_checkpoint(name: str) -> None:
    """Write a checkpoint, where there is none."""
    path = HERE / f"checkpoints/{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        save_checkpoint(path, build(name, "2d"), {"name": f"golden/{name}", "steps_trained": 0}, torch.float16)


def call(*arguments: object) -> str:
    """What a command prints; it has to succeed."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], env=SHELL)
    assert done.exit_code == 0, f"{arguments}: {done.output}\n{done.exception!r}"
    return done.output


def keys(value: Any, where: str = "") -> list[str]:
    """All keys of a JSON value as sorted dotted paths; "[]" stands for the items of a list."""
    if isinstance(value, dict):
        below = [keys(item, f"{where}.{key}" if where else key) for key, item in value.items()]
        return sorted({path for paths in below for path in paths} | {f"{where}.{key}" if where else key for key in value})
    if isinstance(value, list):
        return sorted({path for item in value for path in keys(item, f"{where}[]")})
    return []


def read_keys(path: Path) -> list[str]:
    return keys(json.loads(path.read_text()))


def columns(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file))


def names(folder: Path) -> list[str]:
    """The files below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def header_keys(path: Path) -> list[str]:
    """Keys of a checkpoint's header; digests of its cases stay out of it, their names not."""
    with safe_open(path, "pt") as file:
        found = file.metadata()
    return sorted(found) + keys(json.loads(found["diffuseg"]))


def make_rated(folder: Path) -> Path:
    """A made-up data set of small pictures that four raters marked."""
    rng, labels = np.random.default_rng(14), {"background": 0, "nodule": 1}
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(6):
        name = f"p{number // 2}_{number}"
        PIL.Image.fromarray(rng.integers(0, 255, (12, 10), np.uint8)).save(folder / f"imagesTr/{name}_0000.png")
        for rater in range(1, 5):
            mask, (top, left) = np.zeros((12, 10), np.uint8), rng.integers(1, 4, 2)
            mask[top : top + 5, left : left + 4] = 1
            PIL.Image.fromarray(mask).save(folder / f"labelsTr/{name}_rater{rater}.png")
    said = {"name": "rated", "channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".png", "raters": 4}
    (folder / "dataset.json").write_text(json.dumps(said | {"patient_pattern": "^p[0-9]"}))
    return folder


def train(data: Path, out: Path, patch: str) -> Path:
    """A training of a few steps by the command."""
    wishes = [f"plan.patch={patch}", "plan.widths=4,8", "plan.batch=2", "T=20", "steps=2", "train.validation_cases=1"]
    chosen = [part for wish in wishes for part in ("--set", wish)]
    call("train", data, "--out", out, "--method", "concat", "--steps", 3, "--device", "cpu", "--precision", "fp32", *chosen)
    return out / "best.safetensors"


def written() -> dict[str, list[str]]:
    """Keys, columns and file names of what train, predict, evaluate, compare and ambiguity write for made-up data."""
    with tempfile.TemporaryDirectory() as place:
        return written_into(Path(place))


def written_into(place: Path) -> dict[str, list[str]]:
    data = make_dataset(place / "data", cases=6, shape=(10, 12, 9), test_cases=3)
    model = train(data, place / "run", "8,8,8")
    cpu = ("--device", "cpu")
    found = {"train: files": [n for n in names(place / "run") if "events" not in n], "train: header": header_keys(model)}
    for seed, kept in ((0, ["--save-draws", "--save-steps"]), (1, [])):
        arguments = ("--draws", 2, "--steps", 2, "--seed", seed, *kept, *cpu)
        call("predict", model, data / "imagesTs", "--out", place / f"out{seed}", *arguments)
        found[f"predict {' '.join(kept)}".strip() + ": files"] = names(place / f"out{seed}")
        case = next(n for n in names(place / f"out{seed}") if re.fullmatch(r"case_\d+\.json", n))
        found[f"predict {' '.join(kept)}".strip() + f": {case}"] = read_keys(place / f"out{seed}" / case)
    call("evaluate", place / "out0", data / "labelsTs", "--out", place / "scores0")
    shutil.copytree(place / "scores0", place / "scores1")
    found["evaluate: files"] = names(place / "scores0")
    found["evaluate: cases.csv"] = columns(place / "scores0/cases.csv")
    found["evaluate: summary.json"] = read_keys(place / "scores0/summary.json")
    call("compare", place / "scores0", place / "scores1", "--out", place / "compared")
    found["compare: comparison.json"] = read_keys(place / "compared/comparison.json")
    rated = make_rated(place / "rated")
    reader = train(rated, place / "reader", "8,8")
    call("ambiguity", reader, rated, "--out", place / "ambiguity", "--draws", 4, "--steps", 2, *cpu)
    found["ambiguity: files"] = names(place / "ambiguity")
    found["ambiguity: cases.csv"] = columns(place / "ambiguity/cases.csv")
    found["ambiguity: summary.json"] = read_keys(place / "ambiguity/summary.json")
    return found


def commands() -> list[str]:
    """All commands; "diffuseg" is the one that they belong to."""
    return ["diffuseg", *typer.main.get_command(app).commands]  # type: ignore[attr-defined]


def help_of(command: str) -> str:
    """What `--help` prints in 100 columns without colour."""
    chosen = [] if command == "diffuseg" else [command]
    with mock.patch("typer.rich_utils.MAX_WIDTH", 100), mock.patch("typer.rich_utils.FORCE_TERMINAL", None):
        done = CliRunner().invoke(app, [*chosen, "--help"], env=SHELL, prog_name="diffuseg", color=False)
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.output.strip().splitlines()) + "\n"


def save(path: Path, arrays: Arrays) -> None:
    """Arrays, and on what machine they were made."""
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, machine=np.array(machine()), **arrays)


def write_each(folder: str, compute: Callable[[str], Arrays]) -> None:
    for name in METHODS:
        save(HERE / folder / f"{name}.npz", compute(name))


def write_checkpoints() -> None:
    for name in METHODS:
        make_checkpoint(name)
    write_each("checkpoints", checkpoints)


def write_help() -> None:
    (HERE / "help").mkdir(exist_ok=True)
    for old in (HERE / "help").glob("*.txt"):
        old.unlink()
    for command in commands():
        (HERE / f"help/{command}.txt").write_text(help_of(command), encoding="utf-8")


WRITE: dict[str, Callable[[], Any]] = {
    "draws": lambda: write_each("draws", draws),
    "losses": lambda: write_each("losses", losses),
    "packaged": lambda: save(HERE / "packaged.npz", packaged()),
    "checkpoints": write_checkpoints,
    "written": lambda: (HERE / "written.json").write_text(json.dumps(written(), indent=1) + "\n", encoding="utf-8"),
    "help": write_help,
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or WRITE:
        with steady():
            WRITE[chosen]()
        print(f"{chosen}: written")
