"""A training by the clock: what comes before the first step counts, and is announced."""

import csv
import json
import re
from dataclasses import replace

import pytest
from safetensors import safe_open

from diffuseg import pulse
from diffuseg.train import loop, setup
from diffuseg.train.validate import Result
from tests.train.tiny import call, options, settings


class Clock:
    """Time that only passes where it is said to: so long in the preparation, so long in each step."""

    def __init__(self, monkeypatch, preparation: float, step: float) -> None:
        self.now, self.rates = 0.0, []
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(loop, "validate", lambda *_: Result({"head": 0.5, "tail": 0.5}, 1))
        set_up, make_step = loop.set_up, loop.step

        def slow_set_up(*asked):
            self.now += preparation
            return set_up(*asked)

        def slow_step(state, batch, done):
            self.now += step
            self.rates.append(done)
            return make_step(state, batch, done)

        monkeypatch.setattr(loop, "set_up", slow_set_up)
        monkeypatch.setattr(loop, "step", slow_step)


def test_preparation_counts_and_the_rate_follows_the_time_that_is_left(data, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, preparation=40, step=2)
    loop.train(settings(data, tmp_path, steps=None, max_minutes=1.0))
    assert clock.rates == pytest.approx([n / 10 for n in range(10)]), "20 of the 60 seconds are left for steps of two"
    with (tmp_path / "log.csv").open() as file:
        assert [float(row["seconds"]) for row in csv.DictReader(file)][-1] == 20.0, "of training alone"


def test_each_sitting_has_its_preparation(data, tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch, preparation=40, step=2)
    run = settings(data, tmp_path, steps=None, max_minutes=1.0)
    loop.train(run)
    clock.rates.clear()
    loop.train(replace(run, resume=True))
    assert clock.rates == [], "its time is over"
    loop.train(replace(run, resume=True, max_minutes=2.0))
    assert clock.rates == pytest.approx([n / 40 for n in range(20, 40, 2)]), "120 s less twice 40 s, of which 20 s are done"
    assert "one step is made" not in capsys.readouterr().err


def test_a_preparation_that_takes_all_the_time_is_followed_by_one_step_that_is_saved(data, tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch, preparation=130, step=2)
    loop.train(settings(data, tmp_path, steps=None, max_minutes=2.0))
    assert clock.rates == [0.0]
    said = capsys.readouterr()
    assert "reading the cases took 0:02:10, and --max-minutes are 0:02:00: one step is made and saved" in said.err
    assert "waited" not in said.out, "of a single step nothing is known"
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"best", "last", "resume"}
    with safe_open(tmp_path / "resume.safetensors", "pt") as file:
        scalars = json.loads(file.metadata()["scalars"])
    assert (scalars["step"], scalars["seconds"], scalars["prepared"]) == (1, 2.0, 130.0)


def test_with_steps_the_clock_decides_nothing(data, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, preparation=1e6, step=1e6)
    loop.train(settings(data, tmp_path, steps=3))
    assert clock.rates == pytest.approx([0, 1 / 3, 2 / 3])


def test_the_number_of_cases_is_said_before_they_are_read(data, tmp_path, monkeypatch):
    printed, before, measured = [], [], setup.fingerprint
    monkeypatch.setattr(setup, "fingerprint", lambda dataset: before.extend(printed) or measured(dataset))
    monkeypatch.setattr(loop.Console, "print", lambda self, text, **_: printed.append(text))
    loop.train(settings(data, tmp_path, steps=1))
    assert before == ["reading 4 cases"]


def test_it_is_printed_without_a_terminal_too(data, tmp_path, quick):
    done = call(*options(data, tmp_path / "run", steps=1))
    assert done.stdout.splitlines()[0] == "reading 4 cases", done.output


def test_the_time_left_is_that_of_the_clock(data, tmp_path, monkeypatch, capsys):
    """What the pace of the first steps promises is another thing: they are slow, and reading came before them."""
    Clock(monkeypatch, preparation=10, step=7)
    monkeypatch.setattr(pulse.Pulse, "due", lambda *_: True)
    loop.train(settings(data, tmp_path, steps=None, max_minutes=1.0))
    told = re.findall(r"0:00:(\d\d) of 0:01:00 time.* 0:00:(\d\d) left", capsys.readouterr().out)
    assert len(told) > 4 and all(int(done) + int(left) == 60 for done, left in told)
