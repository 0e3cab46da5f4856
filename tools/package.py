"""Install a wheel and an sdist in a bare environment, outside of the repository, and try there what a user tries first.

    python -m tools.package dist

The environment gets torch and the versions of constraints.txt. Both ways of installing must give the same files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from diffuseg import __version__

ROOT = Path(__file__).parents[1]
SCAN = """
import nibabel, numpy
data = numpy.random.default_rng(0).normal(100, 20, (16, 20, 16)).astype("float32")
nibabel.save(nibabel.Nifti1Image(data, numpy.eye(4)), "SCAN.nii.gz")
"""
LISTED = """
import importlib.metadata, pathlib
for file in sorted(map(str, importlib.metadata.files("diffuseg"))):
    if file.startswith("diffuseg/") and not file.endswith(".pyc"): print(file)
"""


def try_out(archive: Path, bin_: Path, folder: Path) -> list[str]:
    """Install an archive over what is there and use it; returns the files of the package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*command: str | Path) -> str:
        print("+", *command, flush=True)
        done = subprocess.run(
            list(map(str, command)), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    pip = (bin_ / "python", "-m", "pip", "install", "--quiet")
    constraints = ("--constraint", ROOT / "constraints.txt")
    torch = next(line for line in constraints[1].read_text().splitlines() if line.startswith("torch=="))
    call(*pip, *constraints, torch)  # first and exactly: anything that resolves it later would fetch another build
    call(*pip, *constraints, archive)
    call(*pip, "--no-deps", "--force-reinstall", archive)
    assert call(bin_ / "diffuseg", "--version").split() == ["diffuseg", __version__]
    assert "predict" in call(bin_ / "diffuseg", "--help")
    call(bin_ / "python", "-c", SCAN)
    call(bin_ / "diffuseg", "predict", "hippocampus", "SCAN.nii.gz", "--out", archive.name + "-results", "--draws", "2")
    assert (folder / (archive.name + "-results") / "SCAN.nii.gz").is_file()
    where = Path(call(bin_ / "python", "-c", "import diffuseg; print(diffuseg.__file__)").strip())
    assert folder in where.parents, f"{where} is not what was installed"
    return call(bin_ / "python", "-c", LISTED).splitlines()


def main() -> int:
    """Try the wheel and the sdist of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args().folder.resolve()
    archives = [*asked.glob("*.whl"), *asked.glob("*.tar.gz")]
    if len(archives) != 2:
        print(f"{asked}: expected one wheel and one sdist, found {[archive.name for archive in archives]}")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        venv.create(folder / "bare", with_pip=True)
        files = [try_out(archive, folder / "bare" / "bin", folder) for archive in archives]
    if files[0] != files[1]:
        print("only in one of both:", sorted({*files[0]} ^ {*files[1]}))
        return 1
    print(f"{' and '.join(archive.name for archive in archives)}: {len(files[0])} files each, both work")
    return 0


if __name__ == "__main__":
    sys.exit(main())
