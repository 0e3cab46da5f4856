"""The rows of benchmarks/evidence.toml: their commands are what the programs take, with the settings that the docs state."""

import shlex
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.evidence import Row, called, commands, main, rows
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.methods import METHODS
from diffuseg.methods.presets import preset_of
from diffuseg.train.settings import TrainConfig

ALL = [f"{name}/{seed}" for name in rows() for seed in (0, 1)]
ROOT = Path(__file__).parents[2]


def said(text: str) -> list[list[str]]:
    return commands(Row.of(text), Path("/data"), Path("/trained"), Path("/results"))


def options(command: list[str]) -> dict[str, list[str]]:
    """--name -> its values, over all times that it is given."""
    found: dict[str, list[str]] = {}
    for i, word in enumerate(command):
        if word.startswith("--"):
            after = [w for w in command[i + 1 :]]
            end = next((k for k, w in enumerate(after) if w.startswith("--")), len(after))
            found[word] = found.get(word, []) + after[:end]
    return found


@pytest.mark.parametrize("text", ALL)
def test_every_setting_of_a_row_is_one_that_its_training_takes(text):
    """Of the method, the plan and the training; a preset exists and is of that method."""
    for command in said(text):
        if command[0] != "train":
            continue
        asked = options(command)
        (method,), preset = asked["--method"], asked.get("--preset", [None])[0]
        config = METHODS[method].config_class()
        if preset is not None:
            known = preset_of(preset)
            assert known is not None and preset.startswith(f"{method}/")
            config = METHODS[method].config_class(**known["config"])
        plain = [item for item in asked.get("--set", []) if not item.startswith(("plan.", "train."))]
        override(config, plain)
        override(TrainConfig(), [item[6:] for item in asked.get("--set", []) if item.startswith("train.")])
        for item in asked.get("--set", []):
            assert not item.startswith("plan.") or item[5:].partition("=")[0] in Plan.__dataclass_fields__
        assert (
            int(asked["--steps"][0]) > 0 and asked["--fold"][-1] == str(int("fold1" in text)) and asked["--seed"] == [text[-1]]
        )


@pytest.mark.parametrize("text", ALL)
def test_a_row_measures_the_weights_that_it_has_just_trained(text):
    """Last weights, never the best; on the data set itself; into a file of the results."""
    made, trained = said(text), set()
    for command in made:
        asked = options(command)
        if command[0] == "train":
            trained.add(asked["--out"][0])
        for word in command[1:]:
            if word.endswith(".safetensors"):
                folder, _, file = word.rpartition("=")[2].rpartition("/")
                assert file == "last.safetensors" and folder in trained
        if command[0] == "cp":
            assert command[1].startswith("/trained/") and command[2].startswith("/results/")
        elif command[0] not in evidence.COMMANDS:
            assert command[1] == "/data" and asked["--out"][0].startswith("/results/")
    assert len({tuple(command) for command in made}) == len(made)


def test_seeds_share_no_folder_and_no_row():
    """A second seed stands beside the first: another name in the file, or another file."""
    for name in rows():
        first, second = said(f"{name}/0"), said(f"{name}/1")
        if first[-1][0] != "train":
            told = [[word for word in made[-1] if "last.safetensors" not in word or "=" in word] for made in (first, second)]
            assert [w.rpartition("=")[0] for w in told[0]] != [w.rpartition("=")[0] for w in told[1]] or told[0] != told[1]
        outs = [{options(command)["--out"][0] for command in made if command[0] == "train"} for made in (first, second)]
        assert not outs[0] & outs[1]
    assert options(said("thyroid/unet/2")[-1])["--what"] == ["seed 2"]
    assert "--what" not in options(said("thyroid/unet/0")[-1])  # rows that are stored have no name


@pytest.mark.parametrize(
    ("row", "page"),
    [
        ("hippocampus/distributional/0", "docs/methods/distributional.md"),
        ("hippocampus/distributional_first/0", "docs/methods/distributional.md"),
        ("lidc/distributional/0", "docs/methods/distributional.md"),
        ("lidc/distributional_longer/0", "docs/methods/distributional.md"),
    ],
)
def test_settings_are_those_of_the_page_that_shows_the_row(row, page):
    """The command on the page and that of the row have the same method, steps and settings."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("    diffuseg train")]
    trained = options([command for command in said(row) if command[0] == "train"][-1])
    wanted = [trained["--method"], trained["--steps"], set(trained.get("--set", []))]
    assert wanted in [[asked["--method"], asked.get("--steps"), set(asked.get("--set", []))] for asked in map(options, lines)]


def test_dry_prints_the_commands_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evidence.subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    (tmp_path / "thyroid").mkdir()
    main(["thyroid/unet/0", str(tmp_path), "--dry", "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[:2] for line in lines] == [["diffuseg", "train"], ["python", "-m"]]
    assert shlex.split(lines[0])[2] == str(tmp_path / "thyroid")  # the folder that holds the sets will do
    assert [shlex.split(line) for line in lines] == [
        called(c) for c in commands(Row.of("thyroid/unet/0"), tmp_path / "thyroid", tmp_path / "work", tmp_path)
    ]


def test_names_are_listed_and_an_unknown_one_is_refused(capsys):
    main([])
    assert capsys.readouterr().out.split() == list(rows())
    for wrong in ("thyroid/unet", "thyroid/unet/x", "nowhere/unet/0"):
        with pytest.raises(SystemExit, match="set/row/seed"):
            main([wrong, "/data"])
    with pytest.raises(SystemExit, match="folder of the data set"):
        main(["thyroid/unet/0"])


def test_what_is_trained_is_measured_only_and_a_failure_ends_it(tmp_path, monkeypatch):
    """A finished training is left, a stopped one goes on, and after a command that fails none follows."""
    ran, codes = [], [0]
    monkeypatch.setattr(evidence, "is_finished", lambda path: "cdal_0" in str(path))

    def fake(words, **_):
        ran.append(words[1:4])
        return evidence.subprocess.CompletedProcess(words, codes[0])

    monkeypatch.setattr(evidence.subprocess, "run", fake)
    told = ["--work", str(tmp_path), "--results", str(tmp_path)]
    main(["hippocampus/cdal/0", str(tmp_path), *told])
    assert ran == [["-m", "benchmarks.score", str(tmp_path)]]
    (tmp_path / "hippocampus" / "unet_0").mkdir(parents=True)
    (tmp_path / "hippocampus" / "unet_0" / "run.json").write_text("{}")
    ran.clear()
    monkeypatch.setattr(evidence.subprocess, "run", lambda words, **_: (ran.append(words), fake(words))[1])
    codes[0] = 2
    with pytest.raises(SystemExit) as stopped:
        main(["hippocampus/unet/0", str(tmp_path), *told])
    assert stopped.value.code == 2 and ran[0][-1] == "--resume" and len(ran) == 2


def test_a_training_that_is_continued_adds_to_its_processor_time(tmp_path, monkeypatch):
    """Where the first part was not measured, the rest alone would be less than the truth: nothing is written."""
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setattr(evidence.subprocess, "run", lambda words, **_: evidence.subprocess.CompletedProcess(words, 0))
    clock = iter([10.0, 15.0, 20.0, 22.5, 30.0, 31.0])
    monkeypatch.setattr(evidence, "busy", lambda: next(clock))
    evidence.run(["train", "data", "--out", str(out)])
    assert evidence.processor_seconds(out) == 5.0
    (out / "run.json").write_text("{}")
    evidence.run(["train", "data", "--out", str(out)])
    assert evidence.processor_seconds(out) == 7.5
    (out / evidence.PROCESSOR).unlink()
    evidence.run(["train", "data", "--out", str(out)])
    assert evidence.processor_seconds(out) is None


@pytest.mark.parametrize(("before", "all_of_it"), [("3.0\n", 8.0), (None, None)])
def test_a_training_that_starts_from_another_counts_that_too(before, all_of_it, tmp_path, monkeypatch):
    out, first = tmp_path / "run", tmp_path / "first"
    out.mkdir(), first.mkdir()
    monkeypatch.setattr(evidence.subprocess, "run", lambda words, **_: evidence.subprocess.CompletedProcess(words, 0))
    clock = iter([10.0, 15.0])
    monkeypatch.setattr(evidence, "busy", lambda: next(clock))
    if before:
        (first / evidence.PROCESSOR).write_text(before)
    evidence.run(["train", "data", "--out", str(out), "--from", str(first / "last.safetensors")])
    assert evidence.processor_seconds(out) == all_of_it
