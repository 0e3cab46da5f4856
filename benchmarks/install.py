"""What `pip install diffuseg` puts on a disk: `python -m benchmarks.install VENV`, an environment with nothing else in it.

Packages are those that pip lists, `diffuseg` among them, pip itself and its build tools left out. Size is that of the files as
they lie in `site-packages`, with the compiled Python that pip writes beside them.
"""

import argparse
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.score import RESULTS

FILE = RESULTS / "install.json"
TOOLS = ("pip", "setuptools", "wheel")


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; a link is not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def measure(environment: Path) -> dict[str, Any]:
    """Packages, bytes in all and bytes of PyTorch."""
    python = environment / "bin" / "python"
    said = lambda *words: subprocess.run([python, *words], capture_output=True, text=True, check=True).stdout
    listed = {one["name"]: one["version"] for one in json.loads(said("-m", "pip", "list", "--format", "json"))}
    packages = {name: version for name, version in listed.items() if name not in TOOLS}
    (place,) = (environment / "lib").glob("python3*/site-packages")
    version = said("-c", "import platform; print(platform.python_version())").strip()
    return {
        "packages": packages,
        "bytes": sum(size_of(path) for path in place.iterdir() if path.name.partition("-")[0] not in TOOLS and path.is_dir()),
        "bytes_of_torch": size_of(place / "torch"),
        "python": version,
        "system": platform.system(),
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    found = measure(parser.parse_args().environment)
    print(json.dumps(found))
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
