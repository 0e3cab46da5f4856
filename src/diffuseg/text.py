"""Plurals and lists for messages, and text for places that cannot show every character."""

from collections.abc import Iterable
from typing import Any


def few(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one, or the initials of one (lr), is most like; None where none is like it."""
    import difflib  # only where something is mistyped

    known = list(known)
    initials = [one for one in known if "_" in one and "".join(part[:1] for part in one.split("_")) == name]
    by_form = {one.lower(): one for one in reversed(known)}
    near = [by_form[form] for form in difflib.get_close_matches(name.lower(), by_form, n=1)]
    return next(iter([*initials, *near]), None)


def did_you_mean(name: str, known: Iterable[str], all_of_them: str = "Known") -> str:
    """What to do about a name that is not known: the one that may have been meant, and all that there are."""
    known = list(known)
    near = nearest(name, known)
    return f"{'' if near is None else f'Did you mean {near}? '}{all_of_them}: {', '.join(known) or 'none'}"


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
