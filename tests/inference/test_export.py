"""An exported model gives the probabilities of the model, by numpy and onnxruntime or OpenVINO alone."""

import importlib.util
import json
import os
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuseg.atomic_io import write_json
from diffuseg.checkpoint import save_checkpoint
from diffuseg.diffusion.samplers import SAMPLERS, ModelOutput, timesteps
from diffuseg.errors import UserError
from diffuseg.inference.export import SAVE, affine_steps, as_openvino, export
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from tests.contract.test_methods import build

EXAMPLES = {fmt: Path(__file__).parents[2] / f"docs/examples/{fmt}_predict.py" for fmt in ("onnx", "openvino")}


def load(path: Path, name: str, grid: str, *settings: str) -> Model:
    from diffuseg.inference.model import load as load_model

    save_checkpoint(path, build(name, grid, *settings), {"name": "made", "steps_trained": 0})
    return load_model(path, device="cpu")


def example(fmt: str = "onnx"):
    spec = importlib.util.spec_from_file_location(f"{fmt}_predict", EXAMPLES[fmt])
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
FILES = {"onnx": ["encoder.onnx", "denoiser.onnx"], "openvino": ["encoder.xml", "encoder.bin", "denoiser.xml", "denoiser.bin"]}
METHODS = ("unet", "concat", "cdal", "distributional", "ssn")
QUICK = ("distributional", "2d")  # tracing takes longer than all the rest of these tests
CASES = [*((name, grid) for name in METHODS for grid in ("2d", "3d")), ("unet", "many")]


def exported(folder: Path, name: str, grid: str, fmt: str, draws: int = 3) -> Model:
    """A model with its graphs in folder / "out", by the command: a process of its own, as checks of shapes cannot be traced."""
    model = load(folder / "model.safetensors", name, grid)
    wishes = ["--draws", str(draws)] if model.method.generative else []
    said = run("-m", "diffuseg.cli", "export", "model.safetensors", "--out", "out", "--format", fmt, *wishes, home=folder)
    assert [line.split()[0].rpartition("/")[2] for line in said.splitlines()] == [*FILES[fmt], "model.json"]
    return model


def run(*command: str, home: Path) -> str:
    """What a Python says that works at home in this folder, where OpenVINO would write before it reports its use."""
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(home)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert {path.name for path in home.iterdir()} <= {"model.safetensors", "out", "image.npy", "mask.npy"}
    return done.stdout


def check_probabilities(model: Model, folder: Path, draws: int = 3) -> None:
    """Tiled and padded: an image larger than the patch along one axis and smaller along another; `draws` of them."""
    said = json.loads((folder / "model.json").read_text())
    assert said["hash"] == model.hash
    write_json(folder / "model.json", said | {"draws": draws})
    size = [n + d for n, d in zip(model.plan.patch, (5, -3, 2), strict=False)]
    image = torch.randn(model.plan.image_channels, *size, generator=torch.Generator().manual_seed(1))
    expected = torch.stack(list(model.method.draw(image, seeds=range(draws), chunk=8))).mean(0).detach().numpy()
    generators = [torch.Generator().manual_seed(seed) for seed in range(draws)]
    noise = lambda shape: torch.stack([torch.randn(shape[1:], generator=g) for g in generators]).numpy()
    found = example().segment(folder, image.numpy(), noise, example(said["format"]).graphs(folder))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    first, second = np.sort(expected, axis=0)[:-3:-1]
    clear = first - second > 1e-4  # elsewhere the last digit decides
    assert clear.mean() > 0.9 and (found.argmax(0) == expected.argmax(0))[clear].all()


@pytest.mark.parametrize(("name", "grid"), [pytest.param(*case, marks=[] if case == QUICK else SLOW) for case in CASES])
def test_graphs_give_the_probabilities_of_the_model(name, grid, tmp_path):
    """By onnxruntime, and by OpenVINO in its own format; as many draws as were asked for, and another number of them."""
    pytest.importorskip("onnxruntime")
    model = exported(tmp_path, name, grid, "onnx")
    check_probabilities(model, tmp_path / "out")
    if find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    graphs = [path for file in FILES["onnx"] for path in as_openvino(tmp_path / "out" / file)]
    assert [path.name for path in graphs] == FILES["openvino"]
    said = json.loads((tmp_path / "out/model.json").read_text())
    write_json(tmp_path / "out/model.json", said | {"format": "openvino"})
    for draws in (3, 1) if model.method.generative else (1,):
        check_probabilities(model, tmp_path / "out", draws)
    assert sys.modules["openvino_telemetry"] is None
    np.save(tmp_path / "image.npy", np.zeros((model.plan.image_channels, *model.plan.patch), np.float32))
    for file in EXAMPLES.values():
        run(str(file), "out", "image.npy", "mask.npy", home=tmp_path)
        mask = np.load(tmp_path / "mask.npy")
        assert mask.shape == model.plan.patch and set(np.unique(mask)) <= set(model.plan.labels.values())
        (tmp_path / "mask.npy").unlink()


@SLOW
@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_the_format_of_openvino_is_written(tmp_path):
    check_probabilities(exported(tmp_path, "ssn", "2d", "openvino"), tmp_path / "out")


def test_without_openvino_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="openvino is not installed"):
        SAVE["openvino"](None, tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


def described(folder: Path, steps: int, **more: object) -> None:
    """A model.json whose steps pass on the noise alone, with tiles of 4 x 4."""
    said = {"plan": {"patch": [4, 4]}, "classes": ["a", "b"], "draws": 2, "latent": 3, "inputs": ["x_t", "t", "z"]}
    walk = [{"t": t, "a": 0.0, "b": 0.0, "c": 1.0} for t in range(steps, 0, -1)]
    write_json(folder / "model.json", said | {"steps": walk, "tiles": {"overlap": 0.5, "sigma": 0.125}} | more)


def test_noise_of_the_example_is_new_in_each_step(tmp_path):
    described(tmp_path, steps=2)
    met: list[float] = []

    def denoiser(given):
        met.extend((*given["x_t"].flatten()[:8], *given["z"].flatten()))
        return (given["x_t"],)

    example().segment(tmp_path, np.zeros((1, 4, 4), np.float32), run={"encoder": lambda given: [], "denoiser": denoiser})
    assert len(met) == len(set(met)) == 2 * (8 + 6)


@pytest.mark.parametrize(("side", "tiles", "encoded"), [(4, 1, 1), (8, 9, 9), (20, 81, 3 * 81)])
def test_the_example_keeps_features_of_a_few_tiles(side, tiles, encoded, tmp_path):
    """Of an image of many tiles they are made anew in each step, so that memory does not grow with the image."""
    described(tmp_path, steps=3, inputs=["x_t", "features_0"])
    image = np.arange(side * side, dtype=np.float32).reshape(1, side, side)
    made: list[weakref.ref[np.ndarray]] = []
    seen: list[np.ndarray] = []
    kept: list[int] = []

    def encoder(given):
        features = given["image"] + 1
        made.append(weakref.ref(features))
        return [features]

    def denoiser(given):
        seen.append(given["features_0"].copy())
        kept.append(sum(one() is not None for one in made))
        return (given["x_t"],)

    example().segment(tmp_path, image, run={"encoder": encoder, "denoiser": denoiser})
    assert len(made) == encoded and max(kept) <= min(tiles, 17)
    parts = [image[:, i : i + 4, j : j + 4] + 1 for i in range(0, side - 3, 2) for j in range(0, side - 3, 2)]
    np.testing.assert_array_equal(np.concatenate(seen), 3 * parts)


@pytest.mark.parametrize("fmt", EXAMPLES)
def test_the_examples_need_neither_pytorch_nor_this_library(fmt):
    lines = EXAMPLES[fmt].read_text().splitlines()
    words = [line.split() for line in lines]
    imported = {line[1].split(".")[0] for line in words if line[:1] in (["import"], ["from"])}
    engines = {"onnx": {"onnxruntime"}, "openvino": {"openvino", "onnx_predict"}}
    assert imported <= {"numpy", *engines[fmt], *sys.stdlib_module_names}
    assert len(lines) <= 60
