"""The measures of benchmarks/weak.py against their definitions, and one run of it on made-up pictures."""

import json
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.weak import auc, average_precision, main
from diffuseg.data.plan import Plan
from diffuseg.methods import METHODS
from diffuseg.train.checkpoint import save_checkpoint

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20).filter(
    lambda rows: 0 < sum(t for _, t in rows) < len(rows)
)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_average_precision_and_auc_are_their_definitions(rows):
    score, truth = np.array([float(s) for s, _ in rows]), np.array([t for _, t in rows])
    precision = [truth[score >= s].mean() for s in score[truth]]
    assert average_precision(score, truth) == pytest.approx(np.mean(precision))
    cases = [SimpleNamespace(name=str(i), label=int(t)) for i, t in enumerate(truth)]
    pairs = [(a > b) + 0.5 * (a == b) for a in score[truth] for b in score[~truth]]
    assert auc({str(i): s for i, s in enumerate(score)}, cases) == pytest.approx(np.mean(pairs))


def test_it_runs_and_reports_on_other_patients_than_it_chose_on(tmp_path):
    data, rng, rows = tmp_path / "data", np.random.default_rng(0), ["case,patient,spot"]
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    names = [f"p{i // 4}_{i % 4}" for i in range(24)]
    for i, name in enumerate(names):
        mask = np.zeros((16, 16), np.uint8)
        mask[4:9, 5:10] = i % 2
        picture = rng.normal(90, 10, (16, 16)) + 120 * mask
        PIL.Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data / f"imagesTr/{name}_0000.png")
        PIL.Image.fromarray(mask).save(data / f"labelsTr/{name}.png")
        rows.append(f"{name},{name[:2]},{i % 2}")
    (data / "image_labels.csv").write_text("\n".join(rows) + "\n")
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "spot": 1}, "file_ending": ".png"}
    (data / "dataset.json").write_text(json.dumps(described))
    (data / "splits_final.json").write_text(json.dumps([{"train": names[:8], "val": names[8:]}]))
    plan = Plan(
        "made", ("MR",), {"background": 0, "spot": 1}, ".png", dims=2, orientation=None, patch=(16, 16), widths=(4, 8),
        normalisation=("unit",), intensity=({"low": 0.0, "high": 255.0},),
    )  # fmt: skip
    paths = []
    for name in ("cdm", "cam"):
        cls = METHODS[name]
        method = cls(plan, cls.config_class(**({"T": 20, "steps": 2} if name == "cdm" else {})))
        paths.append(tmp_path / f"{name}.safetensors")
        save_checkpoint(paths[-1], method, {"name": name, "fold": 0})
    unet = tmp_path / "unet.safetensors"
    save_checkpoint(unet, METHODS["unet"](plan, METHODS["unet"].config_class()), {"name": "unet", "fold": 0})
    out = tmp_path / "weak.json"
    asked = Namespace(
        dataset=data,
        models=paths,
        fold=None,
        draws=2,
        limit=0,
        only="^intensity|^levels$|^gradcam, layer last",
        place=r"_(\d+)$",
        masks=[f"from masks={unet}"],
        out=out,
    )
    main(asked)
    found = json.loads(out.read_text())
    counts = found["slices_and_positives"]
    assert counts == {"chosen": [8, 4], "reported": [8, 4]}
    assert [row["map"] for row in found["maps"]] == ["intensity", "levels", "gradcam, layer last", "from masks"]
    intensity = found["maps"][0]
    assert intensity["ap"][0] > 0.95 and intensity["rules"][intensity["best"]]["dice"][0] > 0.8  # bright is all that a spot is
    for row in found["maps"]:
        best = row["rules"][row["best"]]
        assert best["iou"][0] <= best["dice"][0] <= 1 and 0 <= best["hd95_mm"][0] <= 16 * 2**0.5 + 1e-6
        assert len(best["dice_per_case"]) == len(found["patients"]) == 4 and set(found["patients"]) == {0, 1}
    assert found["verdicts"]["brightest percent"]["auc"] == 1
    assert "p2" not in out.read_text()  # no name of a case
