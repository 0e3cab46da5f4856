"""The project's own tools and settings: the floor under the coverage, and the files that services read."""

import ast
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tools import mutants as of_mutants
from tools.coverage_gate import faults, packages

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def report(**ran_of_lines: tuple[int, int]) -> dict:
    names = {name.replace("__", "/"): counts for name, counts in ran_of_lines.items()}
    return {
        "files": {
            f"src/diffuseg/{name}.py": {"summary": {"covered_lines": ran, "num_statements": lines}}
            for name, (ran, lines) in names.items()
        }
    }


def test_coverage_is_that_of_all_lines_of_a_package():
    measured = packages(report(data__io=(90, 100), data__deep__more=(0, 100), errors=(3, 4), data__empty=(0, 0)))
    assert measured == {".": (3, 4), "data": (90, 200)}


def test_what_is_below_its_floor_is_a_fault_and_what_is_on_it_is_not():
    measured = packages(report(data__io=(95, 100), train__loop=(94, 100), viewer__page=(1, 100)))
    assert faults(measured, {"data": 95, "train": 94.5}) == ["train: 94.0 %, its floor is 94.5 %"]
    assert faults(measured, {"gone": 10}) == ["gone: has a floor but no lines"]


def test_floors_are_for_packages_that_exist():
    floors = PROJECT["tool"]["diffuseg"]["coverage"]
    assert [name for name in floors if not (ROOT / "src" / "diffuseg" / name / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", [*GITHUB, ROOT / ".pre-commit-config.yaml", ROOT / "mkdocs.yml"], ids=lambda path: path.name)
def test_settings_of_services_are_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_what_they_need_and_run_what_is_there(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True], "when it runs"  # YAML reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}, "a job that needs more says so itself"
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] and job["steps"], name
        assert all(("run" in step) != ("uses" in step) for step in job["steps"]), name
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"]), name
        for targets in re.findall(r"^make ((?:[a-z-]+ ?)+)", "\n".join(step.get("run", "") for step in job["steps"]), re.M):
            for target in targets.split():
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"{name}: make {target}"


def test_tests_run_on_every_python_that_is_promised():
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    versions = tests["check"]["strategy"]["matrix"]["python"]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    assert {f"Programming Language :: Python :: {version}" for version in versions} <= set(PROJECT["project"]["classifiers"])


def test_every_dependency_says_its_lowest_version_and_none_resolves_torch_anew():
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]:
        assert re.fullmatch(r"[\w.-]+(?:\[\w+\])?>=[\d.]+(?:,<\d+)?", requirement), requirement
    assert [one for extra in extras.values() for one in extra if one.startswith("torch")] == []


def test_the_makefile_installs_the_torch_that_is_pinned():
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None and f"torch=={pinned[1]}" in (ROOT / "Makefile").read_text()


def named(requirement: str) -> str:
    """The name of a package in the one spelling that indexes use."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", requirement)[0]).lower()


EXTRAS = PROJECT["project"]["optional-dependencies"]
PINNED = {named(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_dependency_is_pinned(extra):
    asked = EXTRAS[extra] if extra else PROJECT["project"]["dependencies"]
    assert [requirement for requirement in asked if named(requirement) not in PINNED] == []


def test_every_extra_that_a_message_or_a_page_names_exists():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    advised = {found for file in files for found in re.findall(r"diffuseg\[([a-z,]+)\]", file.read_text())}
    assert {extra for found in advised for extra in found.split(",")} <= set(EXTRAS)


def test_the_sdist_has_what_building_and_testing_need():
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line and not line.startswith("#")]
    given = {name for kind, *names in lines if kind in ("include", "graft") for name in names}
    assert {"constraints.txt", "docs", "tests", "benchmarks", "tools", "Makefile", "mkdocs.yml"} <= given
    assert [name for name in given if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_dockerfiles_copy_what_is_there_and_pin_the_torch_of_the_constraints(name):
    text = (ROOT / name).read_text()
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in line.split()}
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert copied == let_in and all((ROOT / source).exists() for source in copied)
    torch = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert re.findall(r"torch==\S+", text) == torch == re.findall(r"torch==\S+", (ROOT / "Makefile").read_text())
    asked = re.findall(r"\.\[([a-z,]+)\]", text)
    assert asked and {extra for found in asked for extra in found.split(",")} <= set(EXTRAS)


def test_the_release_appends_urls_to_the_metadata():
    steps = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["build"]["steps"]
    (script,) = [step["run"] for step in steps if "pyproject.toml" in step.get("run", "")]
    environment = {"REPOSITORY": "https://host/a/b", "GITHUB_REF_NAME": "v1", "PATH": os.defpath}
    printed = subprocess.run(
        ["sh", "-c", script.replace(">> pyproject.toml", "")], env=environment, capture_output=True, text=True, check=True
    ).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text() + printed)["project"]
    assert project["urls"]["Changes"] == "https://host/a/b/blob/v1/CHANGELOG.md"


def test_every_mutant_fits_the_code_and_names_tests_that_are_there():
    """The list does not rot: each old text is there once, the new one is Python and says something else."""
    listed = of_mutants.mutants()
    assert len({m["name"] for m in listed}) == len(listed) >= 60
    for mutant in listed:
        text = (ROOT / "src" / "diffuseg" / mutant["file"]).read_text(encoding="utf-8")
        new = of_mutants.mutated(text, mutant)
        assert new != text and ast.parse(new), mutant["name"]
        assert all((ROOT / word).is_file() for word in mutant["tests"].split() if word.startswith("tests/")), mutant["name"]
    assert set(of_mutants.EXPECTED) <= {m["name"] for m in listed}
    with pytest.raises(SystemExit, match="is 0 times in"):
        of_mutants.mutated("", listed[0])


def test_what_came_of_a_mutant_is_kept_beside_the_others(tmp_path):
    first, second, third = of_mutants.mutants()[:3]
    path = tmp_path / "mutants.json"
    path.write_text(json.dumps({"rows": [{"name": "former", "killed": True}]}))
    for mutant, killed in ((third, True), (first, False), (second, True), (first, True), (second, False)):
        of_mutants.keep(mutant, killed, path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["killed"]) for row in rows] == [(m["name"], m is not second) for m in (first, second, third)]
    assert rows[1]["reason"] == of_mutants.UNKNOWN and "reason" not in rows[0]


def test_nearly_all_of_the_mutants_that_were_put_in_were_seen():
    """As the table of docs/reliability.md says; a survivor has a reason there, or a test is missing."""
    rows = json.loads(of_mutants.RESULTS.read_text())["rows"]
    assert {row["name"] for row in rows} <= {m["name"] for m in of_mutants.mutants()}
    assert sum(row["killed"] for row in rows) >= 0.95 * len(rows) > 0
