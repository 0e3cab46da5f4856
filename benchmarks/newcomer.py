"""How long a newcomer waits: from a plain folder of made-up images and masks to a first model and a first mask.

The commands of docs/quickstart.md, one after the other, each a process of its own; wall time and processor time of each.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.evidence import busy
from benchmarks.score import environment, write
from diffuseg.data.synthetic import make_dataset

CASES = 20
COMMANDS = (
    "convert my-folder --out my-set --yes",
    "plan my-set",
    "train my-set --out run --max-minutes {minutes}",
    "predict run/best.safetensors my-folder/images/volume_000.nii.gz --out results",
)


def plain_folder(at: Path) -> Path:
    """images/ and masks/ as a person has them, with names of their own."""
    made = make_dataset(at / "made", CASES)
    for kind, of in (("images", "imagesTr"), ("masks", "labelsTr")):
        (at / "my-folder" / kind).mkdir(parents=True)
        for number, file in enumerate(sorted((made / of).glob("*.nii.gz"))):
            shutil.copy(file, at / "my-folder" / kind / f"volume_{number:03d}{'_mask' * (kind == 'masks')}.nii.gz")
    shutil.rmtree(made)
    return at / "my-folder"


def main(asked: argparse.Namespace) -> None:
    """Run the commands in an empty folder and write how long each took."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain_folder(Path(folder))
        for command in COMMANDS:
            words = shlex.split(command.format(minutes=asked.minutes))
            before, started = busy(), time.monotonic()
            subprocess.run([sys.executable, "-m", "diffuseg", *words], cwd=folder, check=True)
            row = {"command": shlex.join(["diffuseg", *words]), "seconds": time.monotonic() - started}
            rows.append(row | {"processor_seconds": busy() - before})
    write(asked.out, {"cases": CASES, "minutes": asked.minutes, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=2, help="of the training")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
