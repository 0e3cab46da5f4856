"""What `<case>.json` holds: every key is in the table of the documentation, and a case that is too large is named at once."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from diffuseg.data.world import PART
from diffuseg.inference.folder import Callbacks, predict_folder
from diffuseg.inference.sampling import SamplingOptions
from tests.inference.oracle import make_model
from tests.inference.test_several import LEARNT

DOCS = Path(__file__).parents[2] / "docs/training.md"
RANGES = {"cases": 9, "ranges": {f"extent of axis {axis} in mm": [8.0, 9.0] for axis in range(3)}}


def model_of(**meta):
    learnt = replace(LEARNT, settings=LEARNT.settings | {"steps": 2}, widening={})
    model = make_model(patch=(8, 8, 8), noise=1.0)
    return replace(model, meta=model.meta | {"calibration": asdict(learnt)} | meta)


def scan(folder: Path, side: int) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"scan{side}.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(side, 8, 8)).astype(np.float32), np.eye(4)), file)
    return file


def test_every_key_is_in_the_table(tmp_path):
    options = SamplingOptions(draws=2, steps=2, keep_draws=True, keep_steps=True)
    for name, changes in {"whole": {}, "part": {"region": "0:6,0:8,0:8"}}.items():
        predict_folder(model_of(), [scan(tmp_path / "in", 8)], tmp_path / name, replace(options, **changes), prob_dtype="uint8")
    far = replace(options, anyway=True)
    predict_folder(model_of(fingerprint=RANGES), [scan(tmp_path / "in", 60)], tmp_path / "far", far)
    text = DOCS.read_text().split("### The keys of `<case>.json`")[1].split("\n## ")[0]
    known = set(re.findall(r"`(\w+)`", text))
    for name, file in {"whole": "scan8", "part": "scan8", "far": "scan60"}.items():
        record = json.loads((tmp_path / name / f"{file}.json").read_text())
        assert set(record) <= known, set(record) - known
        assert record["doubt"] == record["uncertainty_score"] and record["look_at"] == record["needs_review"]


def test_a_case_that_is_too_large_is_named_before_its_draws(tmp_path):
    heard = []
    said = Callbacks(on_draw=lambda *_: heard.append("draw"), on_large=lambda case, faults: heard.append((case, faults)))
    files = [scan(tmp_path / "in", side) for side in (8, 20)]
    predict_folder(model_of(fingerprint=RANGES), files, tmp_path / "out", SamplingOptions(1, 2), callbacks=said)
    large = [n for n, item in enumerate(heard) if item != "draw"]
    assert len(large) == 1 and heard[large[0]][0] == "scan20" and heard[large[0] + 1] == "draw"
    assert any(PART in fault for fault in json.loads((tmp_path / "out/scan20.json").read_text())["outside_training"])
    heard.clear()
    part = SamplingOptions(1, 2, region="0:8,0:8,0:8")
    predict_folder(model_of(fingerprint=RANGES), files[1:], tmp_path / "part", part, callbacks=said)
    assert heard == ["draw"], "what was chosen is not too large"
    assert "outside_training" not in json.loads((tmp_path / "part/scan20.json").read_text())
