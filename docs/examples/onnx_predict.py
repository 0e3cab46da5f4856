"""Segment an image with an exported model: numpy and onnxruntime (or OpenVINO) alone, no PyTorch.

    diffuseg export MODEL --out EXPORTED                    with --format openvino for OpenVINO
    python onnx_predict.py EXPORTED image.npy mask.npy      image [c, *s]: on the plan's grid and normalised, float32
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np


def windows(size, patch, overlap):
    """Evenly spread windows of `patch` that cover `size`."""
    axes = []
    for n, p in zip(size, patch, strict=True):
        count = 1 if n <= p else math.ceil((n - p) / max(p * (1 - overlap), 1)) + 1
        axes.append([slice(s, s + p) for s in (round(i * (n - p) / max(count - 1, 1)) for i in range(count))])
    return list(itertools.product(*axes))


def tile_weights(patch, sigma):
    """Weights that trust a tile's centre."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (sigma * n)) ** 2) for n in patch]
    return np.maximum(np.prod(np.meshgrid(*axes, indexing="ij"), axis=0), 1e-3).astype(np.float32)


def graphs(folder, threads=0, precision="f32"):
    """Encoder and denoiser, each a function of its named inputs. Threads 0: all; precision, of OpenVINO alone: f32 or bf16."""
    run, said = {}, described(folder)
    for name in ("encoder", "denoiser"):
        path = Path(folder) / name
        if said["format"] == "openvino":
            sys.modules.setdefault("openvino_telemetry", None)  # it would report over the network that OpenVINO is used
            import openvino

            wishes = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
            network = openvino.Core().read_model(path.with_suffix(".xml"))
            shapes = {given.any_name: given.partial_shape for given in network.inputs}
            # OpenVINO 2026.4 loses draws of `distributional` where their number is left free
            network.reshape({name: [said["draws"], *list(s)[1:]] if s.is_dynamic else s for name, s in shapes.items()})
            graph = openvino.Core().compile_model(network, "CPU", wishes)
            run[name] = lambda given, graph=graph: graph(given).to_tuple()
        else:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), options)
            run[name] = lambda given, session=session: session.run(None, given)
    return run


def described(folder):
    """What model.json says."""
    return json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))


def segment(folder, image, noise=None, run=None):
    """Class probabilities [k, *s]; `noise(shape)` makes the noise of all draws, `run` are `graphs` that are loaded already."""
    said, run, generator = described(folder), run or graphs(folder), np.random.default_rng(0)
    noise = noise or (lambda shape: generator.standard_normal(shape, dtype=np.float32))
    patch, k, n = said["plan"]["patch"], len(said["classes"]), said["draws"]
    missing = [max(p - s, 0) for p, s in zip(patch, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0)] + [(m // 2, m - m // 2) for m in missing], constant_values=image.min())
    places, weight = windows(padded.shape[1:], patch, said["tiles"]["overlap"]), tile_weights(patch, said["tiles"]["sigma"])
    features = [run["encoder"]({"image": padded[(None, slice(None), *place)]}) for place in places]
    x = noise((n, k, *padded.shape[1:])) if said["steps"] else None
    for step in said["steps"] or [{"t": 0, "a": 1.0, "b": 0.0, "c": 0.0}]:
        z = noise((n, said["latent"])) if said["latent"] else None
        x_0, total = np.zeros((n, k, *padded.shape[1:]), np.float32), 0 * padded[0]
        for place, known in zip(places, features, strict=True):
            given = {"t": np.array(step["t"]), "z": z, **{f"features_{i}": f for i, f in enumerate(known)}}
            if x is not None:
                given["x_t"] = np.ascontiguousarray(x[(slice(None), slice(None), *place)])
            (tile,) = run["denoiser"]({name: given[name] for name in said["inputs"]})
            x_0[(slice(None), slice(None), *place)] += tile * weight
            total[place] += weight
        x_0 /= total
        x = step["a"] * x_0 + (0 if x is None else step["b"] * x) + (step["c"] * noise(x_0.shape) if step["c"] else 0)
        x = x.astype(np.float32)
    x = x[(..., *(slice(m // 2, m // 2 + s) for m, s in zip(missing, image.shape[1:], strict=True)))]
    p = np.clip((x + 1) / 2, 1e-6, 1)
    return (p / p.sum(1, keepdims=True)).mean(0)


if __name__ == "__main__":
    exported, source, target = sys.argv[1:]
    values = described(exported)["plan"]["labels"].values()
    np.save(target, np.array(sorted(values), np.uint8)[segment(exported, np.load(source)).argmax(0)])
