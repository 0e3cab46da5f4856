"""A model as two graphs that run without PyTorch, and what an engine needs to know besides.

    encoder     image [1, c, *patch] -> features_0, ...                 once per tile
    denoiser    x_t [n, k, *patch], t, z [n, nz], features -> x0_hat    once per step, for n draws
    model.json  plan, timesteps as affine steps, sizes

Networks see tiles of the plan's patch alone, so that size is fixed; n is free. One step of the sampler is affine:
x_s = a x0_hat + b x_t + c noise, and `steps` lists (t, a, b, c).
"""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuseg import __version__
from diffuseg.atomic_io import atomic_write, write_json
from diffuseg.config import to_dict
from diffuseg.diffusion.samplers import timesteps
from diffuseg.errors import UserError
from diffuseg.inference.model import Model
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods.base import MaskMethod
from diffuseg.methods.tiles import OVERLAP, SIGMA
from diffuseg.text import did_you_mean

ETA = {"ancestral": 1.0, "ddim": 0.0}  # samplers whose steps are affine in x0_hat, x_t and noise
FORMATS = ("onnx", "openvino")


class Encoder(nn.Module):
    """image -> features, always as a tuple."""

    def __init__(self, method: MaskMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.method.encode(image)
        return features if isinstance(features, tuple) else (features,)


class Denoiser(nn.Module):
    """(x_t, t, z, features) -> x0_hat in [-1, 1]; a method without states takes features alone, one without latent no z."""

    def __init__(self, method: MaskMethod, several: bool, latent: bool) -> None:
        super().__init__()
        self.method, self.several, self.latent = method, several, latent

    def forward(self, *inputs: Tensor) -> Tensor:
        rest = list(inputs)
        x_t, t = (rest.pop(0), rest.pop(0)) if self.method.generative else (None, 0)
        z = rest.pop(0) if self.latent else None
        return self.method.denoise(x_t, t, tuple(rest) if self.several else rest[0], z)  # type: ignore[arg-type]


def export(model: Model, out: Path, fmt: str = "onnx", options: SamplingOptions | None = None) -> list[Path]:
    """Write encoder, denoiser and model.json into a folder.

    Args:
        model: What is exported; weights become float32.
        out: Folder, made if there is none.
        fmt: "onnx" (opset 18), or "openvino" (needs the extra of that name besides).
        options: Draws, steps and sampler that model.json names; None: what the model recommends.

    Returns:
        The files.

    Raises:
        UserError: The method or the sampler cannot be exported, or a package is missing.
    """
    method = exportable(model)
    if fmt not in FORMATS:
        raise UserError(f"--format {fmt}: not known", do=did_you_mean(fmt, [*FORMATS, "monai"]))
    chosen = model.resolve(options or SamplingOptions())
    steps = affine_steps(method, chosen.steps or 1, chosen.sampler or method.default_sampler) if method.generative else []
    graphs, inputs, latent = graphs_of(model)
    out.mkdir(parents=True, exist_ok=True)
    paths = [path for name, graph in graphs.items() for path in SAVE[fmt](graph, out / name)]
    record = {
        "format": fmt, "diffuseg": __version__, "name": model.name, "hash": model.hash, "method": model.meta.get("method"),
        "plan": to_dict(model.plan), "classes": list(model.plan.names), "draws": chosen.draws, "steps": steps,
        "latent": latent, "inputs": inputs, "tiles": {"overlap": OVERLAP, "sigma": SIGMA},
        "not_included": "bringing files to the plan's grid and back, calibration of probabilities and intervals",
    }  # fmt: skip
    write_json(out / "model.json", record)
    return [*paths, out / "model.json"]


def graphs_of(model: Model) -> tuple[dict[str, Any], list[str], int]:
    """Encoder and denoiser as graphs of ONNX, the names of the denoiser's inputs, and the size of z (0: none).

    Raises:
        UserError: The method cannot be exported, or a package is missing.
    """
    method = exportable(model)
    was = method.training, next(method.parameters()).device
    method.eval().to("cpu")
    try:
        return _trace(method)
    finally:
        method.train(was[0]).to(was[1])


def affine_steps(method: MaskMethod, steps: int, sampler: str) -> list[dict[str, int | float]]:
    """The steps of a draw as (t, a, b, c): x_s = a x0_hat + b x_t + c noise.

    Args:
        method: Has the schedule.
        steps: Of a draw.
        sampler: A name in `ETA`.

    Raises:
        UserError: Steps of this sampler are not of this form.
    """
    if sampler not in ETA:
        raise UserError(f"the sampler {sampler} cannot be exported", do=f"Choose --sampler {' or '.join(ETA)}.")
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    found = []
    for t, s in timesteps(method.schedule.T, steps):
        step = lambda x_0, x_t, noise, t=t, s=s: float(method.schedule.posterior(x_0, x_t, t, s, ETA[sampler], noise))
        a, b, c = step(one, zero, zero), step(zero, one, zero), step(zero, zero, one)
        found.append({"t": t, "a": a, "b": b, "c": c if s else 0.0})
    return found


def exportable(model: Model) -> MaskMethod:
    """The method of a model whose networks can leave PyTorch.

    Raises:
        UserError: They cannot.
    """
    method, name = model.method, model.meta.get("method")
    if not isinstance(method, MaskMethod):
        raise UserError(f"{model.name}: {name} learns from image-level labels, whose maps need gradients or a classifier")
    if getattr(method.config, "variance", "fixed") == "learned":
        raise UserError(f"{model.name}: a learned variance cannot be exported")
    if method.not_exportable:
        raise UserError(f"{model.name}: {name} cannot be exported: {method.not_exportable}")
    return method


def _trace(method: MaskMethod) -> tuple[dict[str, Any], list[str], int]:
    """Both graphs, the names of the denoiser's inputs, and the size of z (0: none)."""
    plan, n = method.plan, 2
    image = torch.zeros(1, plan.image_channels, *plan.patch)
    with torch.no_grad():
        encoded = method.encode(image)
    several = isinstance(encoded, tuple)
    features = encoded if several else (encoded,)
    names = [f"features_{i}" for i in range(len(features))]
    example: dict[str, Tensor] = {}
    z = method.latent([torch.Generator().manual_seed(i) for i in range(n)])
    if method.generative:
        example |= {"x_t": torch.zeros(n, plan.classes, *plan.patch), "t": torch.tensor(method.schedule.T)}
    if z is not None:
        example["z"] = z
    example |= dict(zip(names, features, strict=True))
    graphs = {
        "encoder": _graph(Encoder(method).eval(), {"image": image}, names, ()),
        "denoiser": _graph(Denoiser(method, several, z is not None).eval(), example, ["x_0"], ("x_t", "z")),
    }
    return graphs, list(example), 0 if z is None else z.shape[1]


def _graph(network: nn.Module, inputs: dict[str, Tensor], outputs: list[str], batched: tuple[str, ...]) -> Any:
    """One network traced; the first axis of `batched` inputs is free."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise UserError(f"{missing.name} is not installed", do='pip install "diffuseg[export]"') from None
    free = {name: ({0: torch.export.Dim("n", min=1, max=4096)} if name in batched else None) for name in inputs}
    shapes = {"inputs": tuple(free.values())} if isinstance(network, Denoiser) else {"image": None}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with warnings.catch_warnings(), torch.no_grad(), mock.patch.object(F, "scaled_dot_product_attention", _attention):
        warnings.simplefilter("ignore")  # the exporter talks about itself
        return torch.onnx.export(
            network, tuple(inputs.values()), dynamo=True, opset_version=18, input_names=list(inputs), output_names=outputs,
            dynamic_shapes=shapes, verbose=False, optimize=True,
        )  # fmt: skip


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What PyTorch fuses, spelt out: its own operator has no translation for three axes."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def _save_onnx(graph: Any, path: Path) -> list[Path]:
    file = path.with_suffix(".onnx")
    atomic_write(file, graph.model_proto.SerializeToString())
    return [file]


def _save_openvino(graph: Any, path: Path) -> list[Path]:
    openvino_package()  # before anything is written
    (source,) = _save_onnx(graph, path)
    paths = as_openvino(source)
    source.unlink()
    return paths


def as_openvino(source: Path) -> list[Path]:
    """An ONNX file once more, in OpenVINO's own format: .xml and .bin beside it, with weights in float32.

    Raises:
        UserError: OpenVINO is not installed.
    """
    openvino, target = openvino_package(), source.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)
    return [target, source.with_suffix(".bin")]


def openvino_package() -> ModuleType:
    """OpenVINO without the package by which it reports over the network that it is used.

    Raises:
        UserError: It is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    try:
        import openvino
    except ImportError:
        raise UserError("openvino is not installed", do='pip install "diffuseg[openvino]"') from None
    return openvino


SAVE: dict[str, Callable[[Any, Path], list[Path]]] = {"onnx": _save_onnx, "openvino": _save_openvino}
