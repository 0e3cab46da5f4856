from pathlib import Path

import pytest

from diffuseg.data.synthetic import make_dataset
from diffuseg.train import loop
from diffuseg.train.validate import Result


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Four small volumes, which nobody changes."""
    return make_dataset(tmp_path_factory.mktemp("made") / "data", cases=4, shape=(10, 12, 9))


@pytest.fixture
def quick(monkeypatch) -> None:
    """Validation that looks at nothing and draws no picture."""
    monkeypatch.setattr(loop, "validate", lambda method, batches, validation: Result({"head": 0.5, "tail": 0.25}, 1))
