"""Segment an image with an exported model: numpy and onnxruntime alone, no PyTorch.

    diffuseg export MODEL --out EXPORTED
    python onnx_predict.py EXPORTED image.npy mask.npy      image [c, *s]: on the plan's grid and normalised, float32
"""

import itertools
import json
import os
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np


def graphs(folder, threads=0):
    """Encoder and denoiser, each a function of its named inputs. Threads 0: all."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would report over the network that it is used
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    graph = lambda name: partial(ort.InferenceSession(Path(folder) / f"{name}.onnx", options).run, None)
    return {name: graph(name) for name in ("encoder", "denoiser")}


def segment(folder, image, noise=None, run=None):
    """Class probabilities [k, *s]; `noise(shape)` makes the noise of all draws, `run` are `graphs` that are loaded already."""
    said, run = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8")), run or graphs(folder)
    noise = noise or partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
    patch, tiles, axes = said["plan"]["patch"], said["tiles"], []
    missing = [max(p - s, 0) for p, s in zip(patch, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0)] + [(m // 2, m - m // 2) for m in missing], constant_values=image.min())
    for n, p in zip(padded.shape[1:], patch, strict=True):  # tiles are evenly spread and overlap
        count = 1 if n == p else int(np.ceil((n - p) / max(p * (1 - tiles["overlap"]), 1))) + 1
        axes.append([slice(s, s + p) for s in (round(i * (n - p) / max(count - 1, 1)) for i in range(count))])
    places = [(..., *place) for place in itertools.product(*axes)]
    fall = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (tiles["sigma"] * p)) ** 2) for p in patch]
    weight = np.maximum(np.prod(np.meshgrid(*fall, indexing="ij"), axis=0), 1e-3).astype(np.float32)  # trusts the centre
    encode = lru_cache(16)(lambda i: run["encoder"]({"image": padded[None][places[i]]}))  # of more tiles it is done again
    shape = (said["draws"], len(said["classes"]), *padded.shape[1:])
    x = noise(shape)
    for step in said["steps"] or [{"t": 0, "a": 1.0, "b": 0.0, "c": 0.0}]:
        z, x_0, total = noise((shape[0], said["latent"])), np.zeros(shape, np.float32), np.zeros(shape[2:], np.float32)
        for i, place in enumerate(places):
            given = {"x_t": np.ascontiguousarray(x[place]), "t": np.array(step["t"]), "z": z}
            given |= {f"features_{j}": features for j, features in enumerate(encode(i))}
            x_0[place] += weight * run["denoiser"]({name: given[name] for name in said["inputs"]})[0]
            total[place] += weight
        x = step["a"] * x_0 / total + step["b"] * x + (step["c"] * noise(shape) if step["c"] else 0)
    x = x[(..., *(slice(m // 2, m // 2 + s) for m, s in zip(missing, image.shape[1:], strict=True)))]
    p = np.clip((x + 1) / 2, 1e-6, 1)
    return (p / p.sum(1, keepdims=True)).mean(0)


if __name__ == "__main__":
    exported, source, target = sys.argv[1:]
    labels = json.loads((Path(exported) / "model.json").read_text(encoding="utf-8"))["plan"]["labels"]
    np.save(target, np.array(sorted(labels.values()), np.uint8)[segment(exported, np.load(source)).argmax(0)])
