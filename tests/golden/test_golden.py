"""The library computes and writes what it did when the golden files were made; see make.py, and `make golden`.

On the machine they were made on (its processor and PyTorch are stored with them) arrays are equal byte for byte. On others
draws may differ by 1e-4, losses by 1e-3 of their size, and masks in one of a thousand voxels. Text, keys and names are
always equal exactly.
"""

import json

import numpy as np
import pytest

from tests.golden import make

HOW_TO = "if this is meant: make golden, and look at the difference"


@pytest.fixture(autouse=True)
def steady():
    with make.steady():
        yield


def compare(file: str, found: make.Arrays, atol: float, rtol: float) -> None:
    path = make.HERE / file
    assert path.exists(), f"no {file}; make golden writes it"
    with np.load(path) as stored:
        golden = {key: stored[key] for key in stored.files}
    same = str(golden.pop("machine")) == make.machine()
    assert found.keys() == golden.keys(), HOW_TO
    for key, value in found.items():
        old, where = golden[key], f"{file}, {key}: {HOW_TO}"
        assert (value.dtype, value.shape) == (old.dtype, old.shape), where
        if same:
            assert value.tobytes() == old.tobytes(), (
                f"{where}; differs by {np.abs(value.astype(float) - old).max():.3g} at most"
            )
        elif value.dtype.kind == "f":
            np.testing.assert_allclose(value, old, rtol, atol, err_msg=where)
        else:
            assert (value != old).mean() <= 1e-3, where


@pytest.mark.parametrize("name", make.METHODS)
def test_draws(name):
    compare(f"draws/{name}.npz", make.draws(name), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", make.METHODS)
def test_loss_curve(name):
    compare(f"losses/{name}.npz", make.losses(name), atol=0, rtol=1e-3)


@pytest.mark.parametrize("name", make.METHODS)
def test_checkpoint_of_a_former_version(name):
    compare(f"checkpoints/{name}.npz", make.checkpoints(name), atol=1e-4, rtol=0)


def test_packaged_model():
    compare("packaged.npz", make.packaged(), atol=1e-4, rtol=0)


def test_keys_columns_and_names_of_what_commands_write():
    golden = json.loads((make.HERE / "written.json").read_text(encoding="utf-8"))
    found = make.written()
    assert found.keys() == golden.keys(), HOW_TO
    for key, value in found.items():
        assert value == golden[key], f"{key}: {HOW_TO}"


def test_there_is_a_text_for_each_command():
    assert {path.stem for path in (make.HERE / "help").glob("*.txt")} == set(make.commands()), HOW_TO


@pytest.mark.parametrize("command", make.commands())
def test_help(command):
    assert make.help_of(command) == (make.HERE / f"help/{command}.txt").read_text(encoding="utf-8"), HOW_TO
