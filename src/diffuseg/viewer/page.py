"""The page, its style and its scripts; and all of it with its data in one file, which needs no server and no network."""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from diffuseg.atomic_io import atomic_write, nan_to_none
from diffuseg.errors import UserError
from diffuseg.text import pluralize
from diffuseg.viewer.cases import Case
from diffuseg.viewer.voxels import EXPORTED, encode

SCRIPTS = (
    "niivue",
    "data",
    "paint",
    "lines",
    "volumes",
    "pictures",
    "keys",
    "page",
)  # in the order in which they need each other
LARGEST = 2**28  # bytes of a page that browsers still open reliably
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


@cache
def text(name: str) -> str:
    """A file of this package as text."""
    return files("diffuseg.viewer").joinpath(name).read_text(encoding="utf-8")


def script(name: str) -> str | None:
    """A script by name; None where there is no such script."""
    return text("niivue.umd.js" if name == "niivue" else f"{name}.js") if name in SCRIPTS else None


def page(embedded: Sequence[tuple[str, str]] = ()) -> str:
    """The page: with links to its server or, where contents (id, text) are embedded in it, with everything inside."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    scripts = [(name, script(name)) for name in SCRIPTS]
    return environment.from_string(text("page.html")).render(
        embedded=embedded, scripts=scripts, style=text("style.css"), policy=POLICY
    )


def write_page(cases: Sequence[Case], path: Path) -> int:
    """Write one file that shows the cases by itself, and return its size in bytes.

    Layers of more than 2^24 voxels are thinned out, which the page says; what cannot be read is left out and named on it.

    Raises:
        UserError: The page would have more than 2^28 bytes, or cannot be written.
    """
    embedded: list[tuple[str, str]] = []
    described = []
    size = 0
    for number, case in enumerate(cases):
        about = case.describe()
        for layer in case.layers:
            try:
                content = encode(case, layer, EXPORTED)
            except UserError as fault:
                about["remarks"].append(str(fault).replace(str(layer.file), layer.file.name))  # folders are nobody's business
                about["layers"] = [one for one in about["layers"] if one["key"] != layer.key]
                continue
            packed = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
            embedded.append((f"case/{number}/{layer.key}", packed))
            size += len(packed)
            if size > LARGEST:
                what = (
                    f"the page would be larger than {LARGEST / 2**20:.0f} MB, at {case.name} of {pluralize(len(cases), 'case')}"
                )
                raise UserError(what, file=path, do="Choose one with --case")
        described.append(about)
    listed = json.dumps(nan_to_none(described)).replace("<", "\\u003c")
    licences = "\n".join(text(f"NIIVUE_{name}.txt") for name in ("NOTICE", "LICENSE"))
    content = page([("licences", licences), ("cases.json", listed), *embedded]).encode()
    atomic_write(path, content)
    return len(content)
