"""Plurals and lists for messages, and text for places that cannot show every character."""

from collections.abc import Iterable
from typing import Any


def few(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def pluralize(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun, "1 case", "2 cases"; `several` where the plural is not one with -s, or a verb goes along."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def by(values: Iterable[Any]) -> str:
    """Sizes along axes, "64 x 64 x 32"; what is no whole number with four digits."""
    return " x ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def showable(text: str, most: int = 120) -> str:
    """A text for a picture: signs that no encoding has become "?", line breaks blanks; a long one is cut in its middle."""
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"
