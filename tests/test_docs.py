"""What the documentation points at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_tests_and_files_exist(page):
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in TESTS] == []
    files = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_heading_that_is_linked_to_exists():
    readme = (ROOT / "README.md").read_text()
    anchors = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", readme, re.M)}
    for page in PAGES:
        for anchor in re.findall(r"README\.md#([\w-]+)", page.read_text()):
            assert anchor in anchors, f"{page}: {anchor}"


def test_all_that_read_the_file_names_of_predict_are_in_their_row():
    rows = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    row = next(line for line in rows if line.startswith("| a file name of predict |"))
    readers = [path for path in (ROOT / "src").rglob("*.py") if "from diffuseg.data.outputs import" in path.read_text()]
    assert readers and [path.name for path in readers if f"{path.name}`" not in row] == []
