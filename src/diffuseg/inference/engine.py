"""A model whose networks OpenVINO runs in place of PyTorch, on the processor: the same masks to rounding, in less time.

The networks become graphs as in `diffuseg.inference.export`, which takes some seconds, once; tiles, noise, sampler, statistics
and calibration are the model's own. A graph is compiled for each number of draws that are made at a time.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuseg.device import Precision
from diffuseg.errors import UserError
from diffuseg.inference.export import SAVE, exportable, graphs_of, openvino_package
from diffuseg.inference.model import Model
from diffuseg.methods.base import Loss, MaskMethod, Phase
from diffuseg.timing import timed
from diffuseg.types import Batch

ENGINES = ("pytorch", "openvino")


class Graphs:
    """Encoder and denoiser, compiled by OpenVINO for this processor.

    Args:
        model: Whose networks they are.
        bf16: Whether they compute in bfloat16.

    Raises:
        UserError: The model cannot be exported, or a package is missing.
    """

    def __init__(self, model: Model, bf16: bool) -> None:
        openvino = openvino_package()
        graphs, self.inputs, _ = graphs_of(model)
        self._core = openvino.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # the files do not stay
        self._wishes = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with tempfile.TemporaryDirectory(prefix="diffuseg-") as folder:
            files = {name: SAVE["onnx"](graph, Path(folder) / name)[0] for name, graph in graphs.items()}
            self._networks = {name: self._core.read_model(file) for name, file in files.items()}
        self._compiled = cache(self._compile)

    def run(self, name: str, n: int, inputs: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
        """The outputs of a graph for n draws, or of the encoder for one tile."""
        return tuple(map(torch.from_numpy, self._compiled(name, n)(inputs).to_tuple()))

    @timed("compile")
    def _compile(self, name: str, n: int) -> Any:
        network = self._networks[name].clone()
        shapes = {one.any_name: one.partial_shape for one in network.inputs}
        # OpenVINO 2026.4 loses draws of `distributional` where their number is left free
        network.reshape({key: [n, *list(shape)[1:]] if shape.is_dynamic else shape for key, shape in shapes.items()})
        return self._core.compile_model(network, "CPU", self._wishes)


class Compiled(MaskMethod[Any]):
    """A method that draws with graphs in place of its networks."""

    def __init__(self, method: MaskMethod[Any], graphs: Graphs) -> None:
        super().__init__(method.plan, method.config)
        self.method, self.graphs = method, graphs
        for name in ("generative", "inference_settings", "disclaimer", "default_draws", "default_steps", "default_sampler"):
            setattr(self, name, getattr(method, name))
        if method.generative:
            self.schedule = method.schedule

    @property
    def phases(self) -> tuple[Phase, ...]:
        return ()

    def loss(self, batch: Batch, phase: Phase, rng: torch.Generator) -> Loss:
        raise NotImplementedError("graphs draw, they do not learn")

    def latent(self, generators: Sequence[torch.Generator]) -> Tensor | None:
        return self.method.latent(generators)

    def state(self, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> Tensor:
        return self.method.state(x_t, t, noise)

    def sampling(self, sampler: str | None, steps: int | None) -> tuple[str, int]:
        return self.method.sampling(sampler, steps)

    def evaluations(self, sampler: str, steps: int) -> int:
        return self.method.evaluations(sampler, steps)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        found = [self.graphs.run("encoder", 1, {"image": one.float().numpy()}) for one in image.contiguous().split(1)]
        return found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found, strict=True)))

    def denoise(self, x_t: Tensor | None, t: int, features: tuple[Tensor, ...], z: Tensor | None) -> Tensor:
        if len(features[0]) == 1:  # all draws are of one tile
            return self._denoise(x_t, t, features, z)
        parts = lambda x: [None] * len(features[0]) if x is None else x.split(1)  # each slice of a volume by itself
        each = zip(parts(x_t), zip(*map(parts, features), strict=True), parts(z), strict=True)
        return torch.cat([self._denoise(x, t, f, own) for x, f, own in each])

    def _denoise(self, x_t: Tensor | None, t: int, features: tuple[Tensor, ...], z: Tensor | None) -> Tensor:
        given = {f"features_{i}": one for i, one in enumerate(features)} | {"t": torch.tensor(t)}
        given |= {name: value for name, value in (("x_t", x_t), ("z", z)) if value is not None}
        inputs = {name: given[name].contiguous().numpy() for name in self.graphs.inputs}
        return self.graphs.run("denoiser", 1 if x_t is None else len(x_t), inputs)[0]


def by_engine(model: Model, engine: str, tell: Callable[[str], object] = lambda text: None) -> Model:
    """The same model, with its networks run by an engine, in the number type that they have in PyTorch.

    Args:
        model: On the processor, of one checkpoint.
        engine: "pytorch" changes nothing; "openvino" needs the extra `diffuseg[openvino]`.
        tell: Is told what takes some seconds, before it does.

    Raises:
        UserError: There is no such engine, it cannot run this model, or a package is missing.
    """
    if engine == "pytorch":
        return model
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: not known", do=f"Known are {', '.join(ENGINES)}")
    if model.device.type != "cpu":
        raise UserError(f"--engine {engine} runs on the processor, not on {model.device}", do="Add --device cpu")
    if model.members:
        raise UserError(f"--engine {engine} takes one checkpoint, not {len(model.members)}", do="Leave it out, or name one")
    version = openvino_package().get_version().partition("-")[0]
    method, bf16 = exportable(model), model.precision.dtype == torch.bfloat16
    tell(f"compiling the networks of {model.name} for OpenVINO, which takes some seconds")
    with timed("compile"):
        graphs = Graphs(model, bf16)
    precision = Precision(torch.float32, f"{'bf16' if bf16 else 'fp32'} by OpenVINO {version}")  # PyTorch changes none here
    return replace(model, method=Compiled(method, graphs).eval(), precision=precision)
