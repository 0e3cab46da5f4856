"""Do the tests notice when a method is wrong? Break the code in one place, run the tests that should see it, and count.

    python -m tools.mutants                       # all of them: some minutes to an hour, as busy as the machine is
    python -m tools.mutants --missing             # those of which no result is kept
    python -m tools.mutants --only 'cdal|v1' --list    # those whose name or file has it

Each mutant is put into a temporary copy of the tree, never into this one. Tests run in a child of a process that has loaded the
libraries already, so that a mutant costs seconds. A mutant that no test notices has survived; a known one has its reason in
`EXPECTED`. The list is in tools/mutants.toml: file in src/diffuseg, old text (once in that file), new text, tests. What came of
each is kept in benchmarks/results/mutants.json, from which `make tables` makes the table of docs/reliability.md.
"""

import argparse
import importlib
import json
import os
import re
import resource
import shlex
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tools" / "mutants.toml"
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
LIBRARIES = ("numpy", "scipy.stats", "torch", "monai.metrics", "nibabel", "hypothesis", "jaxtyping", "beartype", "pytest")
PYTEST = shlex.split(
    "-x -q -p no:cacheprovider -p no:xdist -o timeout=0 -W ignore::pytest.PytestAssertRewriteWarning -m 'not slow'"
)
SECONDS = 240  # of processor time, after which a mutant that hangs counts as noticed

# name -> why no test can or need notice it
EXPECTED: dict[str, str] = {}
UNKNOWN = "no reason is known; a test is missing"


def mutants(pattern: str = "") -> list[dict[str, Any]]:
    """The list, or those of it in whose name or file a regular expression is found."""
    return [m for m in tomllib.loads(LIST.read_text())["mutant"] if re.search(pattern, f"{m['name']} {m['file']}")]


def mutated(text: str, mutant: dict[str, Any]) -> str:
    """The text with the mutant put in; stops where its old text is not there exactly once."""
    if text.count(mutant["old"]) != 1:
        raise SystemExit(f"{mutant['name']}: its old text is {text.count(mutant['old'])} times in {mutant['file']}")
    return text.replace(mutant["old"], mutant["new"])


def results(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """What is kept of each mutant, by its name."""
    return {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def keep(mutant: dict[str, Any], killed: bool, path: Path = RESULTS) -> None:
    """Write what came of a mutant beside what came of the others, in the order of the list; former mutants are dropped."""
    found = results(path)
    row = {key: mutant[key] for key in ("name", "file", "tests")} | {"killed": killed}
    found[mutant["name"]] = row if killed else row | {"reason": EXPECTED.get(mutant["name"], UNKNOWN)}
    rows = [found[m["name"]] for m in mutants() if m["name"] in found]
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def copy_of_the_tree(folder: Path) -> Path:
    """Sources and tests, and links to what they read; no compiled files."""
    for name in ("src", "tests", "benchmarks", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for item in ROOT.iterdir():
        if not (folder / item.name).exists() and not item.name.startswith("."):
            (folder / item.name).symlink_to(item)
    return folder


def passes(tree: Path, tests: str) -> bool:
    """Whether these tests pass in a tree, in a child of this process."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        code = 3
        try:
            code = _run(tree, tests)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (3, 4, 5):  # faults of pytest itself, of its options, or no test at all
        raise SystemExit(f"no answer from: pytest {tests}")
    return code == 0


def put(path: Path, text: str) -> None:
    """Write a source file, and take away what was compiled of it: two texts of one second and length look alike."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def _run(tree: Path, tests: str) -> int:
    import pytest

    os.chdir(tree)
    sys.path[:0] = [str(tree / "src"), str(tree)]
    os.environ["PYTHONPATH"] = str(tree / "src")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    if not str(importlib.import_module("diffuseg").__file__).startswith(str(tree)):
        return 4
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffuseg"]:
        del sys.modules[name]
    return int(pytest.main([*PYTEST, *shlex.split(tests)]))


def main() -> int:
    """Print killed or survived for each mutant, and the share; 1 where one survives that should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression, found in the name or the file")
    parser.add_argument("--list", action="store_true", help="print them, run nothing")
    parser.add_argument("--missing", action="store_true", help="those of which no result is kept")
    asked = parser.parse_args()
    chosen = [m for m in mutants(asked.only) if not (asked.missing and m["name"] in results())]
    for mutant in chosen:
        mutated((ROOT / "src" / "diffuseg" / mutant["file"]).read_text(), mutant)
        if asked.list:
            print(f"{mutant['name']}: {mutant['file']}: {mutant['tests']}")
    if asked.list:
        return 0
    for name in LIBRARIES:
        importlib.import_module(name)
    survivors, failing = [], {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_tree(Path(folder))
        for mutant in chosen:
            tests, path = mutant["tests"], tree / "src" / "diffuseg" / mutant["file"]
            if tests not in failing:
                failing[tests] = not passes(tree, tests)
            if failing[tests]:
                raise SystemExit(f"these fail without any mutant: pytest {tests}")
            text = path.read_text()
            put(path, mutated(text, mutant))
            survived = passes(tree, tests)
            put(path, text)
            keep(mutant, not survived)
            if survived:
                survivors.append(mutant["name"])
            print(f"{'SURVIVED' if survived else 'killed':8} {mutant['name']}", flush=True)
    killed = len(chosen) - len(survivors)
    print(f"{killed} of {len(chosen)} killed, {100 * killed / max(len(chosen), 1):.0f} %")
    for name in survivors:
        print(f"survivor {name}: {EXPECTED.get(name, UNKNOWN)}")
    return 1 if set(survivors) - set(EXPECTED) else 0


if __name__ == "__main__":
    sys.exit(main())
