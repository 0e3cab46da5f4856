"""A folder of many cases of which some are broken: a mask for each of the others, a reason for each of these, code 3."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tools.torture.child import Tally
from tools.torture.disk import _command, _model
from tools.torture.kills import _spared, _torn, _train


def run(count: int, work: Path, only: str = "", seed: int = 0) -> Iterator[Tally]:
    """So many cases, one in twenty broken."""
    return (_predicted(count, work, seed) for kind in ("one case in twenty broken",) if only in kind)


def _predicted(count: int, work: Path, seed: int) -> Tally:
    import nibabel as nib
    import numpy as np

    from diffuseg.data.synthetic import make_dataset

    data = make_dataset(work / "data", cases=4, shape=(10, 12, 9))
    _spared(lambda: _train(data, work / "model"), "the model")
    tally, rng = Tally("many", "one case in twenty broken", mutants=count), random.Random(seed)
    scans, broken = work / "scans", set(rng.sample(range(count), count // 20))
    scans.mkdir()
    for number in range(count):
        voxels = np.random.default_rng(number).normal(100, 10, (10, 12, 9)).astype(np.float32)
        if number in broken and number % 2:
            voxels[0, 0, 0] = np.nan
        file = scans / f"case{number}_0000.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), file)
        if number in broken and not number % 2:
            raw = file.read_bytes()
            file.write_bytes(raw[: rng.randrange(len(raw))])
    out = work / "out"
    arguments = ["predict", str(_model(work)), str(scans), "--out", str(out), "--draws", "1", "--steps", "1", "--device", "cpu"]
    status, said = _command([*arguments, "--no-prob", "--verbose"])
    named = {line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("failed ")}
    masks = {path.name.removesuffix(".nii.gz") for path in out.glob("case*.nii.gz") if "_" not in path.name}
    records = {path.stem for path in out.glob("case*.json") if "seconds" in json.loads(path.read_text())}
    tally.results, tally.refusals = len(masks & records), len(named)
    lost = {f"case{number}" for number in range(count)} - masks - named
    wrong = named ^ {f"case{number}" for number in broken}
    for fault in (lost and f"neither mask nor reason: {sorted(lost)}", wrong and f"not as broken: {sorted(wrong)}", _torn(out)):
        tally.faults += [str(fault)[:300]] if fault else []
    if status != 3 or masks != records or "Traceback" in said:
        tally.faults.append(f"code {status}, {len(masks)} masks, {len(records)} records: {said[-200:]!r}")
    return tally
