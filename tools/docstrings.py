"""What API pages make of a docstring: aligned lists (`name    what it is`) are lists, shapes and <case> stay as written.

mkdocstrings loads this as an extension of griffe; it reads source text and imports nothing of the package.
"""

import re
from typing import Any

try:
    from griffe import Extension
except ImportError:  # it comes with mkdocstrings; the functions below do without
    Extension = object

ROW = re.compile(r"^(?P<name>[\w.]+)  +(?P<text>\S.*)$")

CODE = re.compile(r"(`[^`]*`)")
SECTION = re.compile(r"(Args|Attributes|Note|Raises|References|Returns|Yields):$")


def literal(docstring: str) -> str:
    """The docstring with `*s` of a shape and `<case>` of a file name kept from being emphasis and HTML; code is left alone."""
    lines, in_section = docstring.split("\n"), False
    for i, line in enumerate(lines):
        if line and not line.startswith(" "):
            in_section = SECTION.match(line) is not None
        if in_section or not line.startswith("    "):
            parts = CODE.split(line)
            parts[::2] = [re.sub(r"<(?=[A-Za-z/])", "&lt;", part.replace("*", "\\*")) for part in parts[::2]]
            lines[i] = "".join(parts)
    return "\n".join(lines)


def listed(docstring: str) -> str:
    """The docstring with each aligned list as a list of Markdown; everything else as it was."""
    lines, out, in_list = docstring.split("\n"), [], False
    for i, line in enumerate(lines):
        row = ROW.match(line)
        begins = row is not None and (in_list or i == 0 or not lines[i - 1].strip())
        if row is not None and begins:
            out.append(f"* `{row['name']}`: {row['text']}")
        elif in_list and line.startswith("  ") and line.strip():
            out.append("  " + line.strip())
        else:
            out.append(line)
            in_list = False
            continue
        in_list = True
    return "\n".join(out)


class AlignedLists(Extension):
    """Rewrites the docstring of every object that is collected."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """One object: module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = listed(literal(obj.docstring.value))
