"""Write into a checkpoint what its training images are like, for one whose training was before that was kept:
`python -m benchmarks.fingerprint CHECKPOINT DATASET`. Only the training cases of its own fold are read."""

import argparse
from pathlib import Path

from diffuseg.checkpoint import amend_meta, model_hash, read_meta
from diffuseg.config import from_dict
from diffuseg.data.dataset import open_dataset
from diffuseg.data.plan import Plan
from diffuseg.data.world import training_fingerprint


def add_fingerprint(checkpoint: Path, dataset: Path) -> None:
    """Measure the training cases that the checkpoint's header names and store their ranges in it; its weights stay."""
    measured, meta = model_hash(checkpoint), read_meta(checkpoint)
    found = training_fingerprint(open_dataset(dataset), list(meta["training_cases"]), from_dict(Plan, meta["plan"]))
    amend_meta(checkpoint, {"fingerprint": found}, measured)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    asked = parser.parse_args()
    add_fingerprint(asked.checkpoint, asked.dataset)
