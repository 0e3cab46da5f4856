"""Every Python snippet of the documentation runs as it stands.

The snippets of a page run one after the other in one namespace, in a folder that has the files they name. What a page takes as
given (`draws`, `truth_ml`, ...) stands in GIVEN. A snippet that cannot run has `<!-- not run: REASON -->` in the line above it.
"""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from diffuseg.data.synthetic import make_dataset

ROOT = Path(__file__).parents[1]
SNIPPET = re.compile(r"(?:^<!-- not run: (?P<reason>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
PAGES = {
    path.relative_to(ROOT).as_posix(): list(SNIPPET.finditer(path.read_text()))
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.md"))]
}


def maps(n: int, seed: int) -> np.ndarray:
    """Boolean masks [n, h, w] that differ a little."""
    middles = np.random.default_rng(seed).uniform(6, 10, (n, 2, 1, 1))
    return ((np.indices((16, 16)) - middles) ** 2).sum(1) < 16


def intervals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low ends, high ends and true volumes of n cases, in ml."""
    truth = np.random.default_rng(seed).uniform(1, 3, n)
    return truth - 0.2, truth - 0.1, truth


def of_uncertainty() -> dict:
    low, high, truth = intervals(30, 0)
    new_low, new_high, new_truth = intervals(20, 1)
    share = maps(8, 2).mean(0)
    return {
        "draws": maps(32, 0),
        "raters": maps(4, 1),
        "mean_probability": np.stack([1 - share, share]),
        "probabilities": np.random.default_rng(0).dirichlet([2, 2], (30, 6, 6)).transpose(0, 3, 1, 2),
        "new_probability": np.stack([1 - share, share]),
        **{"low": low, "high": high, "truth_ml": truth, "new_low": new_low, "new_high": new_high, "new_truth_ml": new_truth},
    }


GIVEN = {"docs/uncertainty.md": of_uncertainty}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What snippets find in their folder: a scan, a data set, and predictions for it."""
    folder = tmp_path_factory.mktemp("snippets")
    make_dataset(folder / "my-set", cases=6, shape=(24, 28, 20))
    scan = np.random.default_rng(0).normal(100, 20, (16, 20, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "SCAN.nii.gz")
    (folder / "predictions").mkdir()
    for path in (folder / "my-set/labelsTr").iterdir():
        mask = nib.load(path)
        nib.save(nib.Nifti1Image(np.roll(np.asarray(mask.dataobj), 1, 0), mask.affine), folder / "predictions" / path.name)
    return folder


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text, names = (ROOT / page).read_text(), {"__name__": "snippet", **GIVEN.get(page, dict)()}
    for found in PAGES[page]:
        if found["language"] == "python" and found["reason"] is None:
            line = text.count("\n", 0, found.start("code"))
            exec(compile("\n" * line + found["code"], ROOT / page, "exec"), names)


@pytest.mark.parametrize("page", [page for page, found in PAGES.items() if any(one["language"] == "python" for one in found)])
def test_snippets_run(page, files, monkeypatch):
    run(page, files, monkeypatch)


def test_the_first_prediction_writes_the_files_that_the_readme_promises(files, monkeypatch):
    """Whatever order the tests run in: predictions of the same scan into the same folder are the same."""
    if not (files / "results").is_dir():
        run("README.md", files, monkeypatch)
    promised = re.findall(r"^    (results/\S+)", (ROOT / "README.md").read_text(), re.M)
    assert len(promised) == 4
    assert [name for name in promised if not (files / name).is_file()] == []


@pytest.mark.parametrize("page", [page for page, found in PAGES.items() if found])
def test_every_fence_says_what_it_holds_and_why_it_is_not_run(page):
    for found in PAGES[page]:
        assert found["language"], f"{page}: a fence without a language: {found['code'][:60]}"
        assert found["reason"] is None or len(found["reason"].split()) > 2, f"{page}: {found['reason']}"
    assert (ROOT / page).read_text().count("```") == 2 * len(PAGES[page])


def test_python_does_not_hide_in_indented_blocks():
    for page in PAGES:
        hidden = re.findall(r"^    (?:from \w[\w.]* import|import \w+$).*", (ROOT / page).read_text(), re.M)
        assert hidden == [], f"{page}: {hidden}"
