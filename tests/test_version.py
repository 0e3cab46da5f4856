"""There is one version, and it is written in one place."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import diffuseg

ROOT = Path(__file__).parents[1]


def test_what_is_installed_has_the_version_of_the_code():
    assert importlib.metadata.version("diffuseg") == diffuseg.__version__


def test_the_version_is_read_from_the_code_and_reading_it_imports_nothing_heavy():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "diffuseg.__version__"}
    code = "import sys, diffuseg; print(diffuseg.__version__, 'torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [diffuseg.__version__, "False", "False"]
