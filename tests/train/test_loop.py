"""The loop: exact resume from any interruption, its averages, rates, clipping and phases, and what it writes."""

import copy
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffuseg.checkpoint import is_finished, load_checkpoint, read_meta
from diffuseg.errors import Terminated, UserError
from diffuseg.methods import METHODS
from diffuseg.train import loop
from diffuseg.train.validate import Result, bounded, validate
from tests.signals import arrives
from tests.train.tiny import call, options, same_weights, settings, start

STEPS = 24
# All three phases (R1 every fourth step), and dropout, which is random by itself.
CDAL = ("cdal", "r1_every=2", "dropout=0.2", "train.log_every=1", "train.warmup=3", "train.save_every=4")


def command(data: Path, out: Path) -> list[str]:
    return [*options(data, out, *CDAL, "train.validation_cases=1", steps=STEPS), "--val-every", "8"]


def rows(out: Path) -> list[dict[str, str]]:
    """log.csv without the seconds."""
    with (out / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def curve(out: Path) -> list[tuple[int, float]]:
    """The generator's loss as TensorBoard shows it."""
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars("generator/loss")]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("straight")
    done = call(*command(data, out))
    assert done.exit_code == 0, done.output
    assert f"best checkpoint: {out / 'best.safetensors'}" in done.stdout
    return out


def is_as_if_nothing_had_happened(out, straight) -> None:
    assert rows(out) == rows(straight) and curve(out) == curve(straight)
    for name in ("last", "best", "resume"):
        assert same_weights(out / f"{name}.safetensors", straight / f"{name}.safetensors"), name
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def saved_step(out) -> int:
    with safe_open(out / "resume.safetensors", "pt") as file:
        return json.loads(file.metadata()["scalars"])["step"]


def test_what_a_run_leaves_behind(straight):
    names = {"best.safetensors", "last.safetensors", "resume.safetensors", "log.csv", "plan.json", "run.json"}
    assert {path.name for path in straight.iterdir()} == names | {"tensorboard", "validation.png"}
    steps = [row for row in rows(straight) if row["generator/loss"]]
    assert [int(row["step"]) for row in steps] == list(range(1, STEPS + 1))
    assert [int(row["step"]) for row in rows(straight) if row["validation/dice"]] == [8, 16, 24]
    assert read_meta(straight / "last.safetensors")["steps_trained"] == STEPS


def test_a_killed_training_resumes_as_if_nothing_had_happened(data, straight, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-m", "diffuseg.cli", *command(data, tmp_path)], stdout=subprocess.DEVNULL, env=environment
    )
    try:
        while not (tmp_path / "resume.safetensors").exists() and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < saved_step(tmp_path) < STEPS
    time.sleep(1)  # TensorBoard puts files in order by the second at which they were begun
    done = call(*command(data, tmp_path), "--resume")
    assert done.exit_code == 0, done.output
    is_as_if_nothing_had_happened(tmp_path, straight)


@pytest.mark.parametrize("when", ["between two phases", "in validation"])
def test_an_interrupted_training_resumes_as_if_nothing_had_happened(data, straight, tmp_path, monkeypatch, when):
    owner, name = (METHODS["cdal"], "loss") if when == "between two phases" else (loop, "validate")
    inner, calls = getattr(owner, name), []

    def interrupted(*given):
        calls.append(given)
        if name == "validate" or (given[2].name == "generator" and len(calls) > 12):
            arrives(signal.SIGINT)
        return inner(*given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        done = call(*command(data, tmp_path))
    assert done.exit_code == 130 and done.stderr == "interrupted\n"
    assert f"stopped at step {saved_step(tmp_path)}; continue with --resume" in done.stdout
    assert 0 < saved_step(tmp_path) < STEPS
    time.sleep(1)  # as above
    done = call(*command(data, tmp_path), "--resume")
    assert done.exit_code == 0, done.output
    is_as_if_nothing_had_happened(tmp_path, straight)


def test_a_signal_in_validation_is_answered_within_a_tile(data, tmp_path, monkeypatch):
    tiles = []

    def signalled(share):
        tiles.append(share)
        arrives(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("diffuseg.methods.tiles.beat", signalled)
        with pytest.raises(Terminated):
            loop.train(settings(data, tmp_path, "unet", "plan.patch=4,4,4", steps=2, validate_every=1))
    assert len(tiles) == 1 and saved_step(tmp_path) == 1
    assert not (tmp_path / "best.safetensors").exists() and not is_finished(tmp_path / "last.safetensors")
    loop.train(settings(data, tmp_path, "unet", "plan.patch=4,4,4", steps=2, validate_every=1, resume=True))
    assert [int(row["step"]) for row in rows(tmp_path) if row["validation/dice"]] == [1, 2]
    assert is_finished(tmp_path / "last.safetensors")


def test_a_kill_after_the_first_step_finds_something_to_go_on_from(data, tmp_path, monkeypatch):
    def validated(*_):
        raise AssertionError("as if killed in the first validation")

    monkeypatch.setattr(loop, "validate", validated)
    with pytest.raises(AssertionError, match="as if killed"):
        loop.train(settings(data, tmp_path, "unet", steps=30, validate_every=1))
    assert saved_step(tmp_path) == 1 and [row["step"] for row in rows(tmp_path)] == ["1"]
    assert load_checkpoint(tmp_path / "last.safetensors")[2]["steps_trained"] == 1


def test_a_validation_by_the_clock_is_as_large_as_can_be_afforded(data, tmp_path):
    run = start(data, tmp_path, "concat", "plan.patch=4,4,4", "steps=4", steps=2)
    everything = replace(run.validation, cases=[case.id for case in run.validation.dataset.cases])
    bound = lambda seconds: bounded(everything, run.average, run.batches, seconds)
    assert bound(1e6) == replace(everything, seconds=1e6) and bound(1e6).bounds() == ""
    small = bound(1e-9)
    assert (small.patches, small.draws, len(small.chosen)) == (True, 1, 1) and "with one denoising step" in small.bounds()
    found = validate(run.average, run.batches, replace(small, only=tuple(everything.cases)))
    assert found.cases == 1 and found.patches  # no time is left after the first one
    assert found.pictures[0]["truth"].shape == (4, 4, 4) and found.pictures[0]["truth"].any()
    assert "one denoising step" in found.summary()["of"]


def test_more_steps_lengthen_a_finished_run(data, tmp_path, quick, capsys):
    loop.train(settings(data, tmp_path, "unet", "train.log_every=1", "train.warmup=0", steps=3))
    loop.train(settings(data, tmp_path, "unet", "train.log_every=1", "train.warmup=0", steps=6, resume=True))
    said = "lengthened from 3 to 6 steps, of which 3 are done: from here on the learning rate is that of a run of 6 steps"
    assert said in capsys.readouterr().out
    rates = [float(row["rate"]) for row in rows(tmp_path) if row["rate"]]
    course = lambda n, of: 1e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * n / of)) / 2)
    assert rates == pytest.approx([course(n, 3) for n in range(3)] + [course(n, 6) for n in range(3, 6)])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["steps"] == 6 and record["lengthened"] == [{"from": 3, "to": 6}]
    assert read_meta(tmp_path / "last.safetensors")["steps_trained"] == saved_step(tmp_path) == 6


def test_patience_ends_a_training_that_gets_no_better(data, tmp_path, monkeypatch, capsys):
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.4])
    monkeypatch.setattr(loop, "validate", lambda *_: Result({"head": next(scores)}, 1))
    loop.train(settings(data, tmp_path, "unet", steps=10, validate_every=1, patience=2))
    assert saved_step(tmp_path) == 4 and is_finished(tmp_path / "last.safetensors")
    assert "stopped early, at step 4: no better one in 2 validations" in capsys.readouterr().out
    loop.train(settings(data, tmp_path, "unet", steps=10, validate_every=1, patience=2, resume=True))
    assert saved_step(tmp_path) == 4  # it stays finished
    loop.train(settings(data, tmp_path, "unet", steps=10, validate_every=1, patience=3, resume=True))
    assert saved_step(tmp_path) == 5  # with more patience it goes on


def test_a_second_interrupt_does_not_wait_and_saves_no_half_step(data, tmp_path, monkeypatch):
    inner = METHODS["cdal"].loss

    def impatient(method, batch, phase, rng):
        if phase.name == "generator":
            for _ in range(2):
                arrives(signal.SIGINT)
            raise AssertionError("it went on")
        return inner(method, batch, phase, rng)

    monkeypatch.setattr(METHODS["cdal"], "loss", impatient)
    before = signal.getsignal(signal.SIGINT)
    assert call(*command(data, tmp_path)).exit_code == 130
    assert not (tmp_path / "resume.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_resumes_to_itself(data, straight, tmp_path):
    done = call(*command(data, straight), "--resume")
    assert done.exit_code == 0 and saved_step(straight) == STEPS and len(rows(straight)) == STEPS + 3


def test_validation_leaves_no_trace_in_the_training(data, straight, tmp_path, monkeypatch):
    inner, seen = loop.validate, []

    def watched(*given):
        before = torch.get_rng_state(), str(np.random.get_state())
        seen.append(inner(*given))
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == str(np.random.get_state())
        return seen[-1]

    monkeypatch.setattr(loop, "validate", watched)
    loop.train(settings(data, tmp_path, *CDAL, "train.validation_cases=1", steps=STEPS, validate_every=STEPS))
    assert len(seen) == 1 and seen[0].dice == float(rows(straight)[-1]["validation/dice"])  # the other had three
    assert same_weights(tmp_path / "resume.safetensors", straight / "resume.safetensors")


def test_best_holds_the_average_that_validated_best_and_last_the_last(data, tmp_path, monkeypatch):
    scores, seen = [0.3, 0.9, 0.95, 0.5, 0.7, 0.9], []

    def scripted(method, batches, validation):
        seen.append(copy.deepcopy(method.state_dict()))
        if len(seen) == 3:
            arrives(signal.SIGINT)  # made again by the resumed run, which remembers the score to beat
        return Result({"head": scores[len(seen) - 1]}, 1)

    monkeypatch.setattr(loop, "validate", scripted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(settings(data, tmp_path, "unet", steps=10, validate_every=2))
    best = loop.train(settings(data, tmp_path, "unet", steps=10, validate_every=2, resume=True))
    assert best == tmp_path / "best.safetensors" and len(seen) == 6
    for name, index in (("best", 1), ("last", 5)):
        weights = load_file(tmp_path / f"{name}.safetensors")
        assert weights.keys() == seen[index].keys() and all(torch.equal(v, seen[index][k]) for k, v in weights.items())
    meta = read_meta(tmp_path / "best.safetensors")
    assert meta["steps_trained"] == 4 and meta["validation"]["dice"] == 0.9
    assert [row["validation/dice"] for row in rows(tmp_path) if row["validation/dice"]] == [str(s) for s in scores if s != 0.95]


def test_the_average_by_hand(data, tmp_path):
    run = start(data, tmp_path, "unet", "train.ema=0.25", steps=9)
    expected = [p.detach().double() for p in run.method.parameters()]
    for n, batch in enumerate(run.batches.iterate(0, 5)):
        loop.step(run, batch, 0.0)
        run.step += 1
        decay = min(0.25, (1 + n) / (10 + n))  # 0.1, 2/11, 0.25, ...
        new = [p.detach().double() for p in run.method.parameters()]
        expected = [decay * a + (1 - decay) * p for a, p in zip(expected, new, strict=True)]
    for a, b in zip(run.average.parameters(), expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-6)
    assert not any(p.requires_grad for p in run.average.parameters())
    assert not any(torch.equal(a, p) for a, p in zip(run.average.parameters(), run.method.parameters(), strict=True))


def test_the_rate_rises_falls_and_keeps_a_floor(data, tmp_path):
    run = start(data, tmp_path, "cdal", "train.warmup=4", "train.floor=0.1", "learning_rate=0.01", steps=9)
    batch, judge = run.batches.batch(0), run.optimisers["discriminator"]
    # (step, share of the run that is done) -> share of the full rate
    points = {(0, 0.0): 0.25, (2, 0.0): 0.75, (4, 0.0): 1, (6, 0.5): 0.55, (8, 1.0): 0.1, (9, 1.3): 0.1, (2, 0.5): 0.4125}
    for (at, done), share in points.items():
        run.step = at
        assert loop.step(run, batch, done)["rate"] == pytest.approx(0.01 * share)
        assert judge.param_groups[0]["lr"] == pytest.approx(2e-4 * share)  # each phase its own rate, one course


def test_the_rate_follows_the_steps_of_the_run(straight):
    for row in rows(straight):
        if row["rate"]:
            n = int(row["step"]) - 1
            cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * n / STEPS)) / 2
            assert float(row["rate"]) == pytest.approx(1e-3 * min((n + 1) / 3, 1) * cosine)


@pytest.mark.parametrize("method", ["cdal", "unet"])
def test_clipping_bounds_the_norm_and_keeps_the_direction(data, tmp_path, method):
    seen: dict[str, list[torch.Tensor]] = {}
    for clip in ("0", "0.001"):
        run = start(data, tmp_path / clip, method, f"train.clip={clip}", steps=9)

        def note(optimiser, *_):
            gradients = [p.grad.flatten() for p in optimiser.param_groups[0]["params"] if p.grad is not None]
            seen.setdefault(clip, []).append(torch.cat(gradients).clone())  # noqa: B023 (called at once)

        for optimiser in run.optimisers.values():
            optimiser.register_step_pre_hook(note)
        loop.step(run, run.batches.batch(0), 0.0)
    free, bound = seen["0"][0], seen["0.001"][0]
    assert free.norm() > 0.002
    torch.testing.assert_close(bound, free * (0.001 / free.norm()), rtol=1e-3, atol=1e-9)
    assert all(gradient.norm() <= 0.001 * (1 + 1e-4) for gradient in seen["0.001"])


def test_phases_run_when_it_is_their_turn_and_move_only_their_modules(data, tmp_path, monkeypatch):
    inner, turns = METHODS["cdal"].loss, []

    def noted(method, batch, phase, rng):
        turns.append((run.step, phase.name))
        return inner(method, batch, phase, rng)

    monkeypatch.setattr(METHODS["cdal"], "loss", noted)
    run = start(data, tmp_path, "cdal", "r1_every=2", "discriminator_every=3", steps=9)
    moved = {}
    for batch in run.batches.iterate(0, 8):
        before = copy.deepcopy(run.method.state_dict())
        loop.step(run, batch, 0.0)
        after = run.method.state_dict()
        moved[run.step] = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
        run.step += 1
    generator = {"encoder", "generator", "mapping"}
    for n in range(8):
        names = [name for step, name in turns if step == n]
        assert names == ["discriminator"] * (n % 3 == 0) + ["r1"] * (n % 6 == 0) + ["generator"]
        assert moved[n] == generator | ({"discriminator"} if n % 3 == 0 else set())
    assert sorted(run.optimisers) == ["discriminator", "encoder+generator+mapping"]  # R1 shares the discriminator's


def test_a_training_by_the_clock_validates_on_the_way(data, tmp_path, monkeypatch):
    clock, seen = iter(range(10_000)), []
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))  # each look at the clock takes a second
    monkeypatch.setattr(loop, "validate", lambda *_: seen.append(1) or Result({"head": 0.5, "tail": 0.5}, 1))
    run = settings(data, tmp_path, steps=None, max_minutes=1.0)
    loop.train(run)
    assert len(seen) == loop.VALIDATIONS
    before = (tmp_path / "log.csv").read_text()
    loop.train(replace(run, resume=True))  # its time is over: nothing more is done
    assert len(seen) == loop.VALIDATIONS and (tmp_path / "log.csv").read_text() == before
    (tmp_path / "log.csv").write_text("step,seconds\nthree,1.0\n")
    with pytest.raises(UserError, match=r"log\.csv: is damaged"):
        loop.train(replace(run, resume=True))


def test_validations_leave_a_training_by_the_clock_its_time(data, tmp_path, monkeypatch, capsys):
    clock, seen = [0.0], []

    def slow(*_):
        clock[0] += 20
        seen.append(1)
        return Result({"head": 0.5, "tail": 0.5}, 1)

    def looked():
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr(loop.time, "monotonic", looked)
    monkeypatch.setattr(loop, "validate", slow)
    loop.train(settings(data, tmp_path, steps=None, max_minutes=3.0))
    assert 2 <= len(seen) <= 4  # of 180 s: two on the way at most spend a quarter, and the last one is always made
    assert "fewer than the 50 over which the learning rate rises" not in capsys.readouterr().err


def test_a_training_of_hardly_any_steps_says_so(data, tmp_path, capsys):
    loop.train(settings(data, tmp_path, steps=2))
    assert "Warning: only 2 steps were done, fewer than the 50" in capsys.readouterr().err


def test_files_may_be_read_by_whom_the_umask_lets(straight):
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in straight.glob("*.safetensors")} == {0o666 & ~mask}


def test_the_losses_of_phases_with_turns_are_logged(data, tmp_path):
    loop.train(settings(data, tmp_path, "cdal", "discriminator_every=2", "r1_every=5", steps=22))
    with (tmp_path / "log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["generator/loss"]]
    assert [int(row["step"]) for row in rows] == [1, 11, 21, 22]
    assert all(row["discriminator/loss"] and row["r1/loss"] for row in rows[:3])


def test_without_tensorboard_a_training_writes_its_curve_all_the_same(data, tmp_path, quick, monkeypatch):
    """`import torch.utils.tensorboard` fails as it does where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = call(*options(data, tmp_path / "run", steps=2))
    assert done.exit_code == 0, done.output
    assert [row["step"] for row in rows(tmp_path / "run") if row.get("network/loss")] == ["1", "2"]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_profile_says_where_the_time_went(data, tmp_path):
    done = call(*options(data, tmp_path / "run", steps=2), "--profile")
    assert done.exit_code == 0, done.output
    said = done.stdout.splitlines()[-1]
    assert all(f"{part} " in said for part in ("loss", "backward", "update", "validate", "save", "wait for data", "denoise")), (
        said
    )
