"""An exported model gives the probabilities of the model, by numpy and onnxruntime alone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuseg.checkpoint import save_checkpoint
from diffuseg.diffusion.samplers import SAMPLERS, ModelOutput, timesteps
from diffuseg.errors import UserError
from diffuseg.inference.export import affine_steps, export
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from tests.contract.test_methods import build

EXAMPLE = Path(__file__).parents[2] / "docs/examples/onnx_predict.py"


def load(path: Path, name: str, grid: str, *settings: str) -> Model:
    from diffuseg.inference.model import load as load_model

    save_checkpoint(path, build(name, grid, *settings), {"name": "made", "steps_trained": 0})
    return load_model(path, device="cpu")


def example():
    spec = importlib.util.spec_from_file_location("onnx_predict", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cdal", "concat"])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_affine_steps_walk_as_the_sampler_does(name, sampler):
    method = build(name, "2d")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 4, generator=generator)
    denoiser = lambda x_t, t: ModelOutput((0.3 * x_t + 0.01 * t).clamp(-1, 1))
    fixed = torch.randn(1, 2, 4, 4, generator=generator)
    expected = SAMPLERS[sampler](denoiser, x, timesteps(method.schedule.T, 3), method.schedule, lambda: fixed)
    for step in affine_steps(method, 3, sampler):
        x = step["a"] * denoiser(x, step["t"]).x_0 + step["b"] * x + step["c"] * fixed
    torch.testing.assert_close(x, expected.to(x), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(UserError, match="image-level labels"):
        export(load(tmp_path / "a.safetensors", "cam", "2d"), tmp_path / "out")
    with pytest.raises(UserError, match="dpm"):
        export(
            load(tmp_path / "b.safetensors", "concat", "2d"),
            tmp_path / "out",
            "onnx",
            SamplingOptions(sampler="dpm-solver++(2m)", steps=3),
        )
    with pytest.raises(UserError, match="learned variance"):
        model = load(tmp_path / "c.safetensors", "medsegdiff", "2d", "predict=eps", "variance=learned", "recycle=0")
        export(model, tmp_path / "out")
    for name in ("medsegdiff", "medsegdiff_v2"):
        with pytest.raises(UserError, match=f"{name} cannot be exported: .*Fourier"):
            export(load(tmp_path / f"{name}.safetensors", name, "2d"), tmp_path / "out")
    with pytest.raises(UserError, match="--format tflite"):
        export(load(tmp_path / "d.safetensors", "unet", "2d"), tmp_path / "out", "tflite")
    assert not (tmp_path / "out").exists()


SLOW = pytest.mark.slow
FILES = ["encoder.onnx", "denoiser.onnx", "model.json"]


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("distributional", "2d"),
        pytest.param("unet", "3d", marks=SLOW),
        pytest.param("unet", "many", marks=SLOW),
        pytest.param("cdal", "3d", marks=SLOW),
        pytest.param("concat", "2d", marks=SLOW),
        pytest.param("ssn", "3d", marks=SLOW),
    ],
)
def test_an_engine_gives_the_probabilities_of_the_model(name, grid, tmp_path):
    """Tiled and padded: an image larger than the patch along one axis and smaller along another."""
    pytest.importorskip("onnxruntime")
    model = load(tmp_path / "model.safetensors", name, grid)
    draws = 3 if model.method.generative else 1
    wishes = ["--draws", str(draws)] if draws > 1 else []
    command = ["export", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "out"), *wishes]
    # a process of its own: checks of shapes cannot be traced
    done = subprocess.run([sys.executable, "-m", "diffuseg.cli", *command], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [line.split()[0].rpartition("/")[2] for line in done.stdout.splitlines()] == FILES
    said = json.loads((tmp_path / "out/model.json").read_text())
    size = [n + d for n, d in zip(model.plan.patch, (5, -3, 2), strict=False)]
    image = torch.randn(model.plan.image_channels, *size, generator=torch.Generator().manual_seed(1))
    expected = torch.stack(list(model.method.draw(image, seeds=range(draws), chunk=8))).mean(0)
    generators = [torch.Generator().manual_seed(seed) for seed in range(draws)]
    noise = lambda shape: torch.stack([torch.randn(shape[1:], generator=g) for g in generators]).numpy()
    found = example().segment(tmp_path / "out", image.numpy(), noise)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-3)
    assert (found.argmax(0) == expected.detach().numpy().argmax(0)).mean() > 0.999 and said["hash"] == model.hash


def test_the_example_needs_neither_pytorch_nor_this_library():
    text = EXAMPLE.read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"numpy", "onnxruntime", *sys.stdlib_module_names}
