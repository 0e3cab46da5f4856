"""Tables of colours: which class a colour of a mask means."""

import csv
import json
import re
from pathlib import Path

from diffuseg.data.layout import read_json
from diffuseg.errors import UserError

Colour = tuple[int, int, int]


def hex_of(colour: Colour) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def read_colours(path: Path) -> dict[Colour, str]:
    """A table of colours: JSON {"name": "#rrggbb" or [r, g, b]}, or a CSV with name and colour, or name, r, g and b.

    Raises:
        UserError: It cannot be read, or two classes have one colour.
    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        rows = list(content.items()) if isinstance(content, dict) else []
    else:
        try:
            lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read ({error})", file=path) from None
        rows = [(line[0], line[1] if len(line) == 2 else line[1:]) for line in lines if len(line) in (2, 4)]
        rows = [row for n, row in enumerate(rows) if n or _is_colour(row[1])]  # the first may be a head
    found: dict[Colour, str] = {}
    for name, text in rows:
        if not _is_colour(text):
            raise UserError(f"{name}: {json.dumps(text)} is no colour", file=path, do='Write "#ff0000" or [255, 0, 0]')
        colour = _parse(text)
        if found.setdefault(colour, str(name).strip()) != str(name).strip():
            raise UserError(f"{hex_of(colour)} is {found[colour]} and {name}", file=path)
    if not found:
        raise UserError("there is no colour in it", file=path, do='Such as {"background": "#000000", "lesion": "#ff0000"}')
    return found


def _is_colour(text: object) -> bool:
    if isinstance(text, str):
        return re.fullmatch(r"\s*#?[0-9a-fA-F]{6}\s*", text) is not None
    return isinstance(text, list) and len(text) == 3 and all(re.fullmatch(r"\s*\d{1,3}\s*", str(v)) for v in text)


def _parse(text: str | list) -> Colour:
    if isinstance(text, str):
        code = text.strip().lstrip("#")
        return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)
    return int(text[0]), int(text[1]), int(text[2])
