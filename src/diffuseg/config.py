"""Dataclasses to JSON and back. A key that does not exist is an error that names the nearest one that does.

A dataclass may have two tables of former settings, "key" -> "key", "key=value" -> "key=value", or -> "" for nothing. What is in
`aliases` means the same as before: it loads, with one line of warning if it was given with --set. What is in `removed` meant
something else: a stored one loads as its replacement with one line of warning, one given with --set is refused.
"""

import dataclasses
import json
import logging
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from diffuseg.errors import UserError
from diffuseg.text import did_you_mean, nearest

T = TypeVar("T")
_WARNED: set[str] = set()
_log = logging.getLogger("diffuseg")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: dict[str, Any], where: str = "", file: Path | None = None) -> T:
    """The dataclass with these values; defaults fill the rest.

    Args:
        values: stored ones, with present or former names.
        where: stands before the key in messages.
        file: where they are stored, for the warning of those that are gone.

    Raises:
        UserError: an unknown key, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    values = _stored(cls, values, file)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise _unknown(where + key, fields)
    try:
        return cls(**{key: _coerce(hints[key], value, where + key) for key, value in values.items()})
    except TypeError as error:
        raise UserError(f"{cls.__name__}: {error}") from None


def parse_stored(text: str, kinds: Mapping[str, Callable[[Any], object]], file: Path, required: Sequence[str] = ()) -> Any:
    """An object of JSON in the header of a file, which may be a stranger's.

    Args:
        text: Of the header.
        kinds: What a value has to be, by key; of keys that are not there nothing is asked.
        file: Its name in messages.
        required: Keys that have to be there.

    Raises:
        UserError: It is no JSON, no object, lacks a key, or has a value of another kind.
    """
    try:
        content: Any = parse_json(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"its header cannot be read as JSON ({str(error)[:100]})", file=file) from None
    check_stored(content, kinds, file, required)
    return content


def parse_json(text: str, **how: Any) -> Any:
    """JSON of which every text can be written to a file again; `how` as in json.loads.

    Raises:
        ValueError: It is no JSON, or a text in it has half a character (a surrogate by itself).
    """
    content: Any = json.loads(text, **how)
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return content


def check_stored(content: Any, kinds: Mapping[str, Callable[[Any], object]], file: Path, required: Sequence[str] = ()) -> None:
    """Check an object of JSON in the header of a file; the arguments are those of `parse_stored`.

    Raises:
        UserError: It is no object, lacks a key, or has a value of another kind.
    """
    if not isinstance(content, dict):
        raise UserError("it must hold an object { ... }", file=file)
    values = cast("dict[str, Any]", content)
    lacking = [key for key in required if key not in values]
    if lacking:
        raise UserError(f"it lacks {', '.join(lacking)}", file=file)
    for key, fits in kinds.items():
        if key in values and not fits(values[key]):
            raise UserError(f"{key} cannot be {json.dumps(values[key])[:60]}", file=file)


def is_number(value: Any, low: float | int = -1e15, high: float | int = 1e15) -> bool:
    """Whether a value of JSON is a finite number between bounds; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_count(value: Any, low: int = 0, high: int = 10**12) -> bool:
    """Whether a value of JSON is a whole number between bounds."""
    return isinstance(value, int) and is_number(value, low, high)


def is_map(value: Any, fits: Callable[[Any], object]) -> bool:
    """Whether a value of JSON is an object all of whose values fit."""
    return isinstance(value, dict) and all(map(fits, cast("dict[str, Any]", value).values()))


def is_list(value: Any, fits: Callable[[Any], object], length: int | None = None) -> bool:
    """Whether a value of JSON is a list, of this length, all of whose values fit.

    Args:
        value: Of JSON.
        fits: Whether an item fits.
        length: How many items it has; None: any number.
    """
    values = cast("list[Any]", value)
    return isinstance(value, list) and length in (None, len(values)) and all(map(fits, values))


def override(config: T, assignments: list[str], where: str = "", elsewhere: Sequence[str] = ()) -> T:
    """Apply `key=value` strings, as given with --set, to a dataclass.

    Args:
        config: Stays as it is.
        assignments: A value is JSON, or a word, or several with commas.
        where: Stands before the key in messages, "plan." for example.
        elsewhere: Settings that other dataclasses have, as --set names them, "plan.batch" for example.

    Returns:
        The dataclass with these values.

    Raises:
        UserError: no "=", an unknown key, a value of another type, or a setting that is gone.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(config))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: expected key=value")
        item = current_name(type(config), key, _parse(text))
        if item is None or item[0] != key or item[1] != _parse(text):
            warn_renamed(key, f"--set {assignment}", "" if item is None else f"--set {item[0]}={item[1]}")
        if item is None:
            continue
        key, value = item
        instead = replacement(type(config), key, value)
        if instead is not None:
            do = f"Give {instead}" if instead else "Leave it out"
            raise UserError(f"--set {assignment}: this option is gone", do=do)
        if key not in values:
            raise _unknown(where + key, set(values), where, elsewhere)
        values[key] = _coerce(hints[key], value, key)
    return type(config)(**values)


def checked(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that were given in Python by name, as the fields of a dataclass want them.

    Args:
        cls: The dataclass.
        values: Numbers of NumPy are numbers, and paths are text.

    Raises:
        UserError: A name or a type that it does not know.
    """
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"there is no option {name!r}", do=did_you_mean(name, hints))
        plain = value.item() if getattr(value, "ndim", 1) == 0 else str(value) if isinstance(value, Path) else value
        found[name] = _coerce(hints[name], plain, name)
    return found


def warn_renamed(key: str, old: str, new: str) -> None:
    """One line of warning that a name is a former one, once for each key.

    Args:
        key: By which it is remembered.
        old: The former name, as it was given.
        new: The present one; empty for what is gone.
    """
    if key not in _WARNED:
        _WARNED.add(key)
        _log.warning("%s: %s", old, f"now called {new}" if new else "this setting is gone")


def current_name(cls: type, key: str, value: Any) -> tuple[str, Any] | None:
    """Key and value by their present names; None for a setting that is gone.

    Args:
        cls: A dataclass, see the head of this file.
        key: A present or former name.
        value: Its value.
    """
    aliases: dict[str, str] = getattr(cls, "aliases", {})
    new = aliases.get(f"{key}={value}", aliases.get(key, key))
    if not new:
        return None
    new_key, equals, new_value = new.partition("=")
    return new_key, new_value if equals else value


def replacement(cls: type, key: str, value: Any) -> str | None:
    """The "key=value" used in place of a setting that is gone, "" for none; None for any other setting.

    Args:
        cls: A dataclass, see the head of this file.
        key: A name.
        value: Its value.
    """
    removed: dict[str, str] = getattr(cls, "removed", {})
    return removed.get(f"{key}={value}", removed.get(key))


def _stored(cls: type, values: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """By their present names, with a warning of those that are gone."""
    current: dict[str, Any] = {}
    for old_key, old_value in values.items():
        item = current_name(cls, old_key, old_value)
        if item is None:
            continue
        key, value = item
        instead = replacement(cls, key, value)
        if instead is not None:
            where = "" if file is None else f"{file}: "
            _log.warning("%s%s=%s: this option is gone; %s", where, key, value, f"{instead} is used" if instead else "left out")
            key, _, value = instead.partition("=")
        if key:
            current[key] = value
    return current


def _unknown(key: str, known: set[str], where: str = "", elsewhere: Sequence[str] = ()) -> UserError:
    """What to say of a key that is not there: the very key of another group, the nearest one of its own, or all of these."""
    own, others = key.split(".")[-1], {name.split(".")[-1]: name for name in elsewhere}
    near, far = nearest(own, sorted(known)), nearest(own, others)
    meant = others.get(own) or (near and where + near) or (far and others[far])
    hint = f"did you mean {meant!r}?" if meant else f"known: {', '.join(where + name for name in sorted(known))}"
    return UserError(f"unknown setting {key!r}; {hint}")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        return [_parse(part) for part in text.split(",")] if "," in text else text


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """Turn JSON values into the annotated type (lists into tuples, ints into floats) or refuse them."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _coerce(option, value, key)
            except UserError:
                continue
        raise UserError(f"{key}={value!r}: expected {type_words(hint)}")
    if origin is typing.Literal:
        if value in args:
            return value
        near = nearest(str(value), map(str, args))
        meant = f". Did you mean {near}?" if near else ""
        raise UserError(f"{key}={value!r}: expected one of {', '.join(map(str, args))}{meant}")
    if origin is tuple and isinstance(value, (list, tuple)):
        values = cast("Sequence[Any]", value)
        inner = [args[0]] * len(values) if args[-1] is Ellipsis else args
        if len(inner) == len(values):
            return tuple(_coerce(i, v, key) for i, v in zip(inner, values, strict=True))
    if origin is tuple and args[-1] is Ellipsis and not isinstance(value, dict):  # one of a list
        return (_coerce(args[0], value, key),)
    if origin is list and isinstance(value, list):
        return [_coerce(args[0], one, key) for one in cast("list[Any]", value)]
    if origin is dict and isinstance(value, dict):
        return {_coerce(args[0], k, key): _coerce(args[1], v, key) for k, v in cast("dict[Any, Any]", value).items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return cast("Any", value)
    raise UserError(f"{key}={value!r}: expected {type_words(hint)}")


def type_words(hint: Any) -> str:
    """The type of a setting in words: "whole number", "list of number or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(arg) for arg in args)
    if origin is tuple:
        inner = args[:1] if args[-1] is Ellipsis else args
        return f"list of {type_words(inner[0])}" if len(inner) == 1 else ", ".join(map(type_words, inner))
    if hint is type(None):
        return "null"
    names = {int: "whole number", float: "number", bool: "true|false", str: "text"}
    return names.get(hint, "object")
