"""Put a trained checkpoint into the package under a name, in half precision: `python -m benchmarks.release CHECKPOINT NAME`."""

import argparse
from pathlib import Path

import torch

from diffuseg.checkpoint import load_checkpoint, save_checkpoint

MODELS = Path(__file__).resolve().parent.parent / "src" / "diffuseg" / "models"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("name")
    asked = parser.parse_args()
    method, _, meta = load_checkpoint(asked.checkpoint)
    save_checkpoint(MODELS / f"{asked.name}.safetensors", method, meta | {"name": asked.name}, torch.float16)
