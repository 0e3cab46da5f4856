"""The same as onnx_predict.py beside it, by OpenVINO: numpy and openvino alone, no PyTorch.

    diffuseg export MODEL --out EXPORTED --format openvino
    python openvino_predict.py EXPORTED image.npy mask.npy  image [c, *s]: on the plan's grid and normalised, float32
"""

import json
import sys
from pathlib import Path

import numpy as np


def graphs(folder, threads=0, precision="f32"):
    """Encoder and denoiser, each a function of its named inputs. Threads 0: all; precision: f32 or bf16."""
    sys.modules.setdefault("openvino_telemetry", None)  # it would report over the network that OpenVINO is used
    import openvino

    draws, run = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))["draws"], {}
    wishes = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    for name in ("encoder", "denoiser"):
        network = openvino.Core().read_model(Path(folder) / f"{name}.xml")
        shapes = {given.any_name: given.partial_shape for given in network.inputs}
        # OpenVINO 2026.4 loses draws of `distributional` where their number is left free
        network.reshape({name: [draws, *list(s)[1:]] if s.is_dynamic else s for name, s in shapes.items()})
        graph = openvino.Core().compile_model(network, "CPU", wishes)
        run[name] = lambda given, graph=graph: graph(given).to_tuple()
    return run


if __name__ == "__main__":
    from onnx_predict import segment

    exported, source, target = sys.argv[1:]
    labels = json.loads((Path(exported) / "model.json").read_text(encoding="utf-8"))["plan"]["labels"]
    found = segment(exported, np.load(source), run=graphs(exported))
    np.save(target, np.array(sorted(labels.values()), np.uint8)[found.argmax(0)])
