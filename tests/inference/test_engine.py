"""Networks that OpenVINO runs draw what PyTorch draws."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diffuseg.checkpoint import save_checkpoint
from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference.engine import Compiled, Graphs, by_engine
from diffuseg.inference.model import load
from tests.contract.test_methods import build

ROOT = Path(__file__).parents[2]
NEEDED = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openvino", "onnx", "onnxscript")), reason="the extra openvino is not installed"
)
DRAWS = """
import sys
import torch
from diffuseg.checkpoint import save_checkpoint
from diffuseg.device import Precision
from dataclasses import replace
from diffuseg.inference.engine import by_engine
from diffuseg.inference.model import load
from tests.contract.test_methods import build

name, grid, *size = sys.argv[2:]
save_checkpoint(sys.argv[1], build(name, grid), {"name": "made"})
model = replace(load(sys.argv[1], "cpu"), precision=Precision(torch.float32, "fp32"))
torch.set_num_threads(1)
other = by_engine(model, "openvino")
graphs = other.method.graphs
wishes = [graphs._compiled("encoder", 1).get_property(f"INFERENCE_{name}") for name in ("NUM_THREADS", "PRECISION_HINT")]
assert wishes[0] == 1 and str(wishes[1]) == "<Type: 'float32'>", wishes
assert other.precision.reason.startswith("fp32 by OpenVINO 20") and other.hash == model.hash
assert other.settings() == model.settings()
image = torch.randn(model.plan.image_channels, *map(int, size), generator=torch.Generator().manual_seed(1))
for seeds in (range(3), range(1)) if model.method.generative else (range(1),):
    both = [torch.stack(list(one.method.draw(image, seeds, chunk=2))) for one in (model, other)]
    torch.testing.assert_close(*both, atol=1e-3, rtol=0)
    print(float((both[0] - both[1]).abs().max()), float(both[0].std()))
"""
CASES = [  # larger than the patch along one axis and smaller along another; a volume that a 2-D network sees in slices
    *((name, "2d", (25, 21)) for name in ("unet", "concat", "cdal", "distributional", "ssn")),
    *((name, "3d", (13, 9, 11)) for name in ("unet", "concat", "cdal", "distributional", "ssn")),
    ("unet", "2d", (25, 21, 3)),
    ("distributional", "2d", (25, 21, 3)),
]
QUICK = ("distributional", "2d", (25, 21, 3))  # tracing takes longer than all the rest


@NEEDED
@pytest.mark.parametrize(
    ("name", "grid", "size"), [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.slow) for case in CASES]
)
def test_draws_are_those_of_pytorch(name, grid, size, tmp_path):
    """In a process of its own, as checks of shapes cannot be traced; 3 draws, two of them together, and one."""
    command = [sys.executable, "-c", DRAWS, tmp_path / "model.safetensors", name, grid, *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        difference, spread = map(float, line.split())
        assert difference < 1e-3 and spread > 0.01, "the draws are no constants"
    assert len(done.stdout.splitlines()) == (1 if name == "unet" else 2)


def made(folder: Path, name: str = "distributional", grid: str = "3d") -> Path:
    save_checkpoint(folder / "model.safetensors", build(name, grid), {"name": "made"})
    return folder / "model.safetensors"


@NEEDED
def test_by_the_command_the_mask_is_the_same_and_the_record_says_what_made_it(tmp_path):
    model = made(tmp_path)
    rng = np.random.default_rng(0)
    for channel in range(2):
        image = nib.Nifti1Image(rng.normal(size=(10, 12, 9)).astype(np.float32), np.eye(4))
        nib.save(image, tmp_path / f"a_000{channel}.nii.gz")
    found = {}
    for engine in ("pytorch", "openvino"):
        out = tmp_path / engine
        asked = ["--out", out, "--draws", "3", "--engine", engine, "--profile"]
        command = ["predict", model, *sorted(tmp_path.glob("a_*.nii.gz")), *asked]
        done = subprocess.run(
            [sys.executable, "-m", "diffuseg", *map(str, command)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        compiling = "compiling the networks of made for OpenVINO, which takes some seconds\n"
        assert done.stderr.startswith(compiling) == (engine == "openvino"), "before anything else, as it is silent meanwhile"
        assert (" compile " in done.stdout) == (engine == "openvino") and compiling not in done.stdout
        found[engine] = np.asarray(nib.load(out / "a.nii.gz").dataobj), json.loads((out / "a.json").read_text())
    (mask, record), (other, by) = found["pytorch"], found["openvino"]
    assert (mask == other).mean() > 0.97 and len(np.unique(mask)) > 1
    assert " by OpenVINO 20" in by["precision"] and "OpenVINO" not in record["precision"]
    same = ("model", "draws", "seed", "steps", "sampler", "options")
    assert {key: by[key] for key in same} == {key: record[key] for key in same}


def test_refusals(tmp_path, monkeypatch):
    model = load(made(tmp_path), "cpu")
    assert by_engine(model, "pytorch") is model
    with pytest.raises(UserError, match=r"--engine tensorrt: not known. Known are pytorch, openvino"):
        by_engine(model, "tensorrt")
    with pytest.raises(UserError, match="one checkpoint, not 2"):
        by_engine(replace(model, members=(tmp_path, tmp_path)), "openvino")
    with pytest.raises(UserError, match=r"runs on the processor, not on cuda.*--device cpu"):
        by_engine(replace(model, device=torch.device("cuda")), "openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = CliRunner().invoke(
        app, ["predict", str(made(tmp_path)), str(tmp_path), "--out", str(tmp_path / "out"), "--engine", "openvino"]
    )
    assert done.exit_code == 2 and 'pip install "diffuseg[openvino]"' in done.stderr and not (tmp_path / "out").exists()
    assert "compiling" not in done.stderr


def test_all_but_the_networks_is_the_method_s_own():
    method = build("concat", "2d")
    for name, answer in (("state", torch.ones(2)), ("latent", torch.ones(1, 3)), ("sampling", ("ddim", 7)), ("evaluations", 9)):
        setattr(method, name, lambda *_, answer=answer: answer)
    other = Compiled(method, Graphs.__new__(Graphs))
    own = ("generative", "inference_settings", "disclaimer", "default_draws", "default_steps", "default_sampler", "schedule")
    assert all(getattr(other, name) is getattr(method, name) for name in (*own, "plan", "config"))
    torch.testing.assert_close(other.state(torch.zeros(2), 1, lambda: torch.zeros(2)), torch.ones(2))
    torch.testing.assert_close(other.latent([torch.Generator()]), torch.ones(1, 3))
    assert (other.sampling(None, None), other.evaluations("ddim", 2)) == (("ddim", 7), 9)


@NEEDED
@pytest.mark.parametrize(("name", "said"), [("cam", "image-level labels"), ("medsegdiff", "Fourier")])
def test_what_cannot_be_exported_cannot_be_run(name, said, tmp_path):
    with pytest.raises(UserError, match=said):
        by_engine(load(made(tmp_path, name, "2d"), "cpu"), "openvino")
