"""The example notebook runs, cell after cell, and is stored without results."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs/examples"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook, names = json.loads(path.read_text(encoding="utf-8")), {"__name__": "__main__"}
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "store it without results"
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert said.count("Prediction(") == 5, "each case of predict_many"
    assert names["found"].summary["cases"] == 5
