"""One run of benchmarks/raters.py on made-up pictures: rows are replaced, dropout draws differ, and values are per case."""

import json
from argparse import Namespace

import numpy as np
import torch

from benchmarks.raters import main
from diffuseg.checkpoint import save_checkpoint
from diffuseg.data.plan import Plan
from diffuseg.methods import METHODS
from tests.studies.test_ambiguity import LABELS, make_rated


def test_rows_of_models_ensembles_and_dropout_on_the_same_cases(tmp_path):
    data = make_rated(tmp_path / "data", cases=12)
    plan = Plan(
        "rated", ("CT",), LABELS, ".png", dims=2, orientation=None, patch=(8, 8), widths=(4, 8),
        normalisation=("unit",), intensity=({"low": 0.0, "high": 255.0},),
    )  # fmt: skip
    cls, paths = METHODS["unet"], []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.safetensors")
        method = cls(plan, cls.config_class(dropout=0.5))
        for p in method.parameters():
            torch.nn.init.normal_(p, std=0.3)  # fresh networks have a last layer of zeros, which no dropout changes
        save_checkpoint(paths[-1], method, {"name": "u", "fold": 0, "steps_trained": 0})
    one, two = map(str, paths)
    asked = Namespace(
        dataset=data, rows=[f"plain, a=1={one}", f"ensemble={one},{two}"], dropout=[f"dropout={one}"], draws=4, steps=None,
        what="", cases=0, patients=None, out=tmp_path / "raters.json",
    )  # fmt: skip
    main(asked)
    first = json.loads(asked.out.read_text())
    plain, ensemble, dropped = first["rows"]
    assert [row["name"] for row in first["rows"]] == ["plain, a=1", "ensemble", "dropout"]
    assert len(ensemble["models"]) == 2 and dropped["dropout"] and dropped["n"] == 4
    n = first["cases"]
    for row in first["rows"]:
        values = row["per_case"]["draws"]["ged_4"]
        assert len(values) == len(row["patient_of_case"]) == n and np.isclose(
            np.mean(values), row["draws"]["ged_4"]["mean"], atol=1e-4
        )
    assert plain["per_case"]["mean"]["ece"] != dropped["per_case"]["mean"]["ece"]
    assert "p0" not in asked.out.read_text()  # no name of a patient
    main(asked)
    again = json.loads(asked.out.read_text())
    assert [row["per_case"] for row in again["rows"]] == [row["per_case"] for row in first["rows"]]
