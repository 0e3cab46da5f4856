"""The picture of the ablation is drawn from its numbers, and known to be of others."""

import json

from benchmarks import figures


def points(dice: float) -> dict:
    value = {"ap_smoothed": [0.6, 0.5, 0.7], "dice": [dice, dice - 0.1, dice + 0.1]}
    knobs = {"Q": (3.0, -1.0), "R": (1, 10), "tau": (0.0, 0.95), "s": (0.0, 10.0), "n": (1, 4)}
    made = [
        {"map": kind, "knob": knob, "value": v} | value
        for kind in ("accumulated", "levels")
        for knob in knobs
        for v in knobs[knob]
    ]
    return {"points": made, "environment": {"cores": 2}}


def test_every_curve_is_drawn_where_its_numbers_are():
    drawn = figures.weak_ablation(points(0.4))
    for row, y in zip((drawn.axes[:5], drawn.axes[5:]), (0.6, 0.4), strict=True):
        for axis, x in zip(row, ([3.0, -1.0], [1, 10], [0.0, 0.95], [0.1, 10.0], [1, 4]), strict=True):
            assert [list(line.get_xdata()) for line in axis.get_lines()] == [x, x]
            assert all(list(line.get_ydata()) == [y, y] for line in axis.get_lines())


def test_a_picture_of_other_numbers_is_stale(tmp_path, monkeypatch, capsys):
    found = points(0.4)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "FIGURES", {"picture.svg": ("weak_ablation", figures.weak_ablation)})
    monkeypatch.setattr(figures, "load", lambda name: found)
    run = lambda *words: (monkeypatch.setattr("sys.argv", ["figures", *words]), figures.main())[1]
    assert run("--check") == 1 and not (tmp_path / "picture.svg").exists()
    assert run() == 0 and run("--check") == 0
    found["environment"] = {"cores": 8}
    assert run("--check") == 0
    found["points"][0]["dice"] = json.loads("[0.5, 0.4, 0.6]")
    assert run("--check") == 1 and "not of" in capsys.readouterr().out
