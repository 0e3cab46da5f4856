"""Several processes train as one would on all their batches together."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from diffuseg.train import loop
from diffuseg.types import Batch
from tests.train.tiny import options, start

# A learning rate of nothing leaves the weights, so that Adam's averages are known sums of the gradients of the n batches.
STILL = ("unet", "learning_rate=0", "train.weight_decay=0", "train.clip=0.05", "train.save_every=1")


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_both_batches_together(tmp_path, data):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "diffuseg.cli"]
    arguments = options(data, tmp_path / "two", *STILL, steps=3)
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 3: validation Dice") == 1
    names = {"plan.json", "run.json", "log.csv", "tensorboard", "validation.png"}
    weights = {"best.safetensors", "last.safetensors", "resume.safetensors"}
    assert {p.name for p in (tmp_path / "two").iterdir()} == names | weights
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1

    run = start(data, tmp_path / "one", *STILL, steps=3)
    for _ in range(3):
        pair = [run.batches.batch(run.step, rank, 2) for rank in (0, 1)]
        together = Batch(torch.cat([b.image for b in pair]), torch.cat([b.mask for b in pair]))
        loop.step(run, together, run.step / 3)
        run.step += 1
    state = load_file(tmp_path / "two" / "resume.safetensors")
    (optimiser,) = run.optimisers.values()
    for index, entries in optimiser.state_dict()["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            found = state[f"optimiser/encoder+network/{index}/{key}"]
            assert found.any()
            torch.testing.assert_close(found, entries[key], rtol=1e-3, atol=1e-3 * float(entries[key].abs().max()))
    assert all(torch.equal(v, state[f"model/{k}"]) for k, v in run.method.state_dict().items())
