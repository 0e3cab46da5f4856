"""Lay the pages of the documentation out as one folder, from which mkdocs or zensical build the site.

On the site README.md is the first page, and pages that lie elsewhere in the repository stand beside those of docs/. Links are
turned to where a page lies on the site. A link to a file that is not on the site becomes plain text.
"""

import argparse
import os
import re
import shutil
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
CARDS = "src/diffuseg/models"

LINK = re.compile(r"(!?)\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^()\s]+)\)")
EMPTY_HEAD = re.compile(r"^(?:\| +)+\|$(?=\n\|-)", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages(root: Path = ROOT) -> dict[str, str]:
    """Where each file of the documentation lies on the site: path in the repository -> path in the site's folder."""
    found = {name: "index.md" if name == "README.md" else name.lower() for name in BESIDE if (root / name).is_file()}
    found |= {f"{CARDS}/{card.name}": f"models/{card.name}" for card in sorted((root / CARDS).glob("*.md"))}
    for path in sorted((root / "docs").rglob("*")):
        if path.is_file():
            place = path.relative_to(root / "docs")
            found[path.relative_to(root).as_posix()] = (place.parent / place.name.replace("README", "index")).as_posix()
    return found


def moved(text: str, page: str, places: dict[str, str]) -> str:
    """The text of a page with links that hold on the site."""

    def link(match: re.Match[str]) -> str:
        mark, shown, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        file = os.path.normpath(PurePosixPath(page).parent / path)
        if file not in places:
            file = f"{file}/README.md"  # a folder: what is shown of it
        if file not in places:
            return shown
        new = os.path.relpath(places[file], PurePosixPath(places[page]).parent)
        return f"{mark}[{shown}]({new}{'#' + anchor if anchor else ''})"

    kept = FENCE.findall(text)
    parts = [LINK.sub(link, part) for part in FENCE.split(text)]
    return "".join(part for pair in zip(parts, [*kept, ""], strict=True) for part in pair)


def lay_out(folder: Path, root: Path = ROOT) -> list[Path]:
    """Write every page into the folder, made anew; returns what was written."""
    shutil.rmtree(folder, ignore_errors=True)
    places, written = pages(root), []
    for page, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.endswith(".md"):
            text = moved((root / page).read_text(), page, places)
            target.write_text(EMPTY_HEAD.sub(lambda row: row[0].replace("| ", "| &nbsp; "), text))  # a head without words
        else:
            shutil.copyfile(root / page, target)
        written.append(target)
    return written


def main() -> None:
    """Lay the pages out in build/docs, or where --out says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    folder = parser.parse_args().out
    print(f"{folder}: {len(lay_out(folder))} files")


if __name__ == "__main__":
    main()
