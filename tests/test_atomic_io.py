"""Places that cannot be written are refused before any work, and nothing is made by asking."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffuseg.atomic_io import atomic_write, check_writable
from diffuseg.cli import app
from diffuseg.errors import UserError


def test_what_can_be_written_passes_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "page.html").write_text("before")
    for folder in (tmp_path / "there", tmp_path / "new", tmp_path / "new" / "deep" / "er"):
        check_writable(folder)
        check_writable(folder / "page.html", file=True)
    check_writable(tmp_path / "page.html", file=True)
    monkeypatch.chdir(tmp_path)
    check_writable("new/folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["page.html", "there"]
    assert (tmp_path / "page.html").read_text() == "before"


def test_what_cannot_be_written_is_refused_as_the_writing_itself_is(tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for place in ("taken", "taken/below/it", "gone"):
        with pytest.raises(UserError, match=f"{tmp_path / place}: cannot be written"):
            check_writable(tmp_path / place)
        with pytest.raises(UserError, match="cannot be written"):
            atomic_write(tmp_path / place / "x", "")
    (tmp_path / "folder").mkdir()
    for place in ("folder", "taken/x"):
        with pytest.raises(UserError, match=f"{tmp_path / place}: cannot be written"):
            check_writable(tmp_path / place, file=True)
        with pytest.raises(UserError, match="cannot be written"):
            atomic_write(tmp_path / place, "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="whoever may do everything is refused nothing")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(tmp_path / "new" / "folder")
    tmp_path.chmod(0o700)


COMMANDS = {  # what their other arguments name is not there, which they would say if they had begun
    "curve": ("hippocampus", "no-data"), "calibrate": ("hippocampus", "no-data"), "ambiguity": ("hippocampus", "no-data"),
    "report": ("no-evaluation",), "compare": ("no-evaluation", "none"), "evaluate": ("no-predictions", "no-labels"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_commands_refuse_such_a_place_before_anything_else(tmp_path, command, place):
    if (command, place) == ("report", "taken"):  # whose place is a file
        (tmp_path / "taken").mkdir()
    else:
        (tmp_path / "taken").write_text("a file")
    done = CliRunner().invoke(app, [command, *COMMANDS[command], "--out", str(tmp_path / place)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    assert done.stderr.startswith(f"error: {tmp_path / place}: cannot be written") and not done.stdout


@pytest.mark.parametrize("command", ["curve", "calibrate"])
def test_a_checkpoint_that_cannot_be_amended_is_refused_before_anything_else(tmp_path, command, monkeypatch):
    model = tmp_path / "run" / "best.safetensors"
    model.parent.mkdir()
    model.write_text("no checkpoint, which would be said if it were read")
    asked = []

    def refuse(path: Path | str, file: bool = False) -> None:
        asked.append((Path(path), file))
        if file:
            raise UserError("cannot be written", file=path)

    monkeypatch.setattr("diffuseg.atomic_io.check_writable", refuse)
    call = lambda *more: CliRunner().invoke(app, [command, str(model), "no-data", "--out", str(tmp_path / "out"), *more])
    assert call().stderr == f"error: {model}: cannot be written\n"
    assert asked == [(tmp_path / "out", False), (model, True)]
    assert "cannot be written" not in call("--no-store").stderr
