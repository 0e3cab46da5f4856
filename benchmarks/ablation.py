"""What each measure of cDAL is worth: short trainings, judged on cases set aside from the training fold.

Every fifth case of the fold's training list judges, the others train; the fold's validation cases are neither trained on nor
scored (the plan's fingerprint, taken over all labelled cases, sees them), so that nothing is chosen on them.
`python -m benchmarks.ablation DATASET WORK` continues where it was stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.score import RESULTS, environment, score, write
from diffuseg.checkpoint import is_finished
from diffuseg.data.dataset import open_dataset, splits
from diffuseg.train.loop import TrainSettings, train

TABLE = RESULTS / "cdal_ablation.json"
BASE = "T=2 steps=8 discriminator_every=1"  # what every row starts from; as many steps as there are levels
NAIVE = "recycle=0 p_terminal_timestep=0 adversarial=0"
VARIANTS: list[tuple[str, str, str]] = [  # (name, what, --set)
    ("unet", "U-Net of the same width", ""),
    ("ours", "cDAL, the base of this table", ""),
    ("plain", "no adversary", "adversarial=0"),
    ("naive", "no recycling, timesteps uniform, no adversary", NAIVE),
    ("eps", "harder schedule", "input_scale=0.5"),
    ("four", "four timesteps", "T=4"),
    ("mse", "squared error alone, otherwise naive", f"{NAIVE} mse=1 dice=0 cross_entropy=0"),
    ("half", "half of the batches recycled", "recycle=0.5"),
    ("uniform", "timesteps uniform", "p_terminal_timestep=0"),
    ("noise", "x_t replaced by pure noise", "x_t=noise"),
    ("leaking", "no recycling", "recycle=0"),
    ("other", "no recycling, x_t of another case", "recycle=0 x_t=other_case"),
    ("nolatent", "no latent", "latent=0"),
    ("label_kept", "no recycling, attention on the label, in training only", "recycle=0 attention=label"),
    ("input_kept", "no recycling, attention on the image features, in training and sampling", "recycle=0 attention=input"),
    ("input", "attention on the image features, in training and sampling", "attention=input"),
    ("strong", "adversary five times as strong", "adversarial=0.1"),
    ("eight", "eight timesteps", "T=8"),
    ("one", "one level", "T=1"),
]


def inner_split(dataset: Path, work: Path, fold: int) -> Path:
    """The data set by links, with one fold: that fold's training list divided once more."""
    folder = work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for item in dataset.iterdir():
        if item.name != "splits_final.json" and not (folder / item.name).exists():
            (folder / item.name).symlink_to(item.resolve())
    cases = splits(open_dataset(dataset))[fold]["train"]
    judged = cases[::5]
    split = [{"train": [c for c in cases if c not in judged], "val": judged}]
    (folder / "splits_final.json").write_text(json.dumps(split))
    return folder


def measure(folder: Path, out: Path, what: str, sets: str, method: str, steps: int, seed: int) -> dict[str, Any]:
    """One row of the table: train, then score one draw, the mean of four, and one draw in one step."""
    checkpoint = out / "last.safetensors"
    if not is_finished(checkpoint):
        wishes = [] if method == "unet" else [*BASE.split(), *sets.split()]
        resume = (out / "run.json").exists()
        train(TrainSettings(folder, method, out, steps=steps, set=wishes, seed=seed, resume=resume, validate_every=steps))
    rows = score(checkpoint, folder, 0, draws=4)
    row = {"what": what, "set": sets, "name": out.name, "seed": seed, "training_steps": steps, "one": rows[0]["dice"]}
    row |= {"one_low": rows[0]["dice_low"], "one_high": rows[0]["dice_high"], "parameters": rows[0]["parameters"]}
    if len(rows) > 1:
        row |= {"mean": rows[1]["dice"], "disagreement": rows[1]["disagreement"]}
        row["one_step"] = row["one"] if rows[0]["steps"] == 1 else score(checkpoint, folder, 0, steps=1, draws=1)[0]["dice"]
    row["band_nll"] = rows[-1]["band"]["nll"]  # rows with "nll" are older: in a box round the object, with another floor
    row["precision"] = environment()["precision"]  # rows may come from different machines
    return row | {"seconds": rows[0]["training_seconds"], "dice_per_case": rows[0]["dice_per_case"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of variants")
    asked = parser.parse_args()
    folder = inner_split(asked.dataset, asked.work, asked.fold)
    content = json.loads(TABLE.read_text()) if TABLE.exists() else {"base": BASE, "rows": []}
    for name, what, sets in VARIANTS:
        done = any((row["name"], row["seed"]) == (name, asked.seed) for row in content["rows"])
        if done or (asked.only and name not in asked.only):
            continue
        method = "unet" if name == "unet" else "cdal"
        content["rows"].append(measure(folder, asked.work / name, what, sets, method, asked.steps, asked.seed))
        write(TABLE, content)
