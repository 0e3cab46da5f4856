"""The site of the documentation: every page has its place, links and anchors hold there, and API pages name what is there."""

import importlib
import re
from pathlib import Path, PurePosixPath

import pytest
import yaml

from tools.docstrings import listed, literal
from tools.site import FENCE, LINK, lay_out, moved, pages

ROOT = Path(__file__).parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PLACES = pages()
IDENTIFIERS = [
    (path.relative_to(ROOT).as_posix(), name)
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for name in re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE)
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    lay_out(folder)
    return folder


def entries(nav) -> list[str]:
    """The pages of a nav, at any depth."""
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in entries(item)]


def headings(text: str) -> list[str]:
    """The words of each heading, without marks."""
    return [re.sub(r"[`*]|\]\([^)]*\)|\[", "", found).strip() for found in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)]


def of_repository(heading: str) -> str:
    """The anchor that a repository's page gives to a heading: each space one hyphen."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def of_site(heading: str) -> str:
    """The anchor that the site gives to it: runs of spaces and hyphens are one, signs that are not ASCII are gone."""
    ascii_only = heading.encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


def linked(text: str) -> list[str]:
    """What links of a page point at, other sites left out."""
    return [target for _, _, target in LINK.findall(FENCE.sub("", text)) if "://" not in target]


def test_every_page_stands_in_the_nav_once_and_nothing_else_does():
    in_nav = entries(SETTINGS["nav"])
    assert sorted(in_nav) == sorted(place for place in PLACES.values() if place.endswith(".md"))


@pytest.mark.parametrize("page", [page for page in PLACES if page.endswith(".md")])
def test_links_and_anchors_hold_in_the_repository_and_on_the_site(page, site):
    for of, file, text in (
        (of_repository, ROOT / page, (ROOT / page).read_text()),
        (of_site, site / PLACES[page], (site / PLACES[page]).read_text()),
    ):
        for target in linked(text):
            path, _, anchor = target.partition("#")
            other = file.parent / path if path else file
            assert other.exists(), f"{file}: {target}"
            if anchor and other.suffix == ".md":
                there = other.read_text()
                assert anchor in {*map(of, headings(there)), *re.findall(r'<a id="([^"]+)"', there)}, f"{file}: {target}"


def test_links_are_turned_to_where_pages_lie_on_the_site():
    places = {
        "README.md": "index.md",
        "docs/a.md": "a.md",
        "docs/adr/README.md": "adr/index.md",
        "src/m/card.md": "models/card.md",
    }
    said = (
        "[a](docs/a.md#x) [card](src/m/card.md) [all](docs/adr/) [here](#y) [cite](CITATION.cff) [out](https://a.b/docs/a.md)"
    )
    assert moved(said, "README.md", places) == (
        "[a](a.md#x) [card](models/card.md) [all](adr/index.md) [here](#y) cite [out](https://a.b/docs/a.md)"
    )
    assert moved("[r](../README.md#z)", "docs/a.md", places) == "[r](index.md#z)"
    assert moved("[r](../README.md)", "docs/adr/README.md", places | {"docs/README.md": "b.md"}) == "[r](../b.md)"
    fenced = "[a](docs/a.md)\n```python\nx = f[0](docs/a.md)\n```\n[a](docs/a.md)"
    assert moved(fenced, "README.md", places) == "[a](a.md)\n```python\nx = f[0](docs/a.md)\n```\n[a](a.md)"


@pytest.mark.parametrize(("page", "name"), IDENTIFIERS)
def test_api_pages_name_what_can_be_imported(page, name):
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            found = getattr(found, attribute)
        return
    pytest.fail(f"{page}: {name}")


def test_api_pages_have_every_public_name_of_the_package():
    import diffuseg

    named = {name.rsplit(".", 1)[1] for _, name in IDENTIFIERS}
    assert {name for name in diffuseg.__all__ if not name.startswith("_")} <= named


def test_aligned_lists_of_docstrings_become_lists_and_prose_stays():
    said = "Two things.\n\nmask    [*s] labels\nlonger  one that\n        goes on\n\nPlain words  with spaces."
    assert listed(said) == "Two things.\n\n* `mask`: [*s] labels\n* `longer`: one that\n  goes on\n\nPlain words  with spaces."


def test_shapes_and_placeholders_of_docstrings_stay_as_written_and_code_is_left_alone():
    said = "Mask [*s] and `[*s]`.\n\n    a * b, <case>\n\nArgs:\n    x: [c, *s] of <case>.json"
    assert literal(said) == "Mask [\\*s] and `[*s]`.\n\n    a * b, <case>\n\nArgs:\n    x: [c, \\*s] of &lt;case>.json"


def test_pages_on_the_site_are_those_of_the_repository(site):
    on_site = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    assert on_site == {Path(PurePosixPath(place)) for place in PLACES.values()}
