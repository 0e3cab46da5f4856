"""Faults in how a command is called, as one line like every other fault: what is wrong, and how it is meant."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from diffuseg.errors import UserError
from diffuseg.text import nearest

UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
KINDS = (  # of values, as the library that reads them words it
    (r"input should be a valid integer.*", "expected a whole number"),
    (r"input should be a valid number.*", "expected a number"),
    (r"input should be greater than or equal to (\S+)", r"expected at least \1"),
    (r"input should be less than or equal to (\S+)", r"expected at most \1"),
    (r"input should be (.*)", r"expected \1"),
    (r".* is not one of (.*?)\.?", r"expected one of \1"),
    (r".* is not a valid (?:integer|int)( range)?\.?", "expected a whole number"),
    (r".* is not a valid float( range)?\.?", "expected a number"),
    (r".* is not in the range x>=(\S+?)\.?", r"expected at least \1"),
    (r".* is not in the range (\S+)<=x<=(\S+?)\.?", r"expected \1 to \2"),
)


@contextmanager
def one_line() -> Iterator[None]:
    """Within it, a command that is called in a way that it cannot be is a `UserError`; help that is asked for stays help."""
    try:
        yield
    except UsageError as fault:
        if type(fault).__name__ == "NoArgsIsHelpError":
            raise
        raise UserError(wording(fault)) from None


def wording(fault: Any) -> str:
    """A usage error in one line.

    Args:
        fault: An error of the parser: its class, `param`, `option_name` and `message` say what is wrong.
    """
    command = fault.ctx.command if fault.ctx else None
    name, path = type(fault).__name__, f"diffuseg {fault.ctx.info_name}" if fault.ctx and fault.ctx.parent else "diffuseg"
    ask = f"`{path if fault.ctx else 'diffuseg COMMAND'} --help` tells more"
    if name == "NoSuchOption":
        options = [text for param in getattr(command, "params", ()) for text in param.opts if text.startswith("--")]
        near = nearest(fault.option_name, [*options, "--help"])
        return f"{path} has no option {fault.option_name}. {f'Did you mean {near}?' if near else f'`{path} --help` lists them'}"
    if name == "MissingParameter":
        return f"{_shown(fault.param)} is missing. It is called as `{call_of(path, command)}`; {ask}"
    if name == "BadParameter" and fault.param is not None:
        return _bad_value(fault)
    if name == "BadOptionUsage":
        text = fault.message.replace("Option ", "").replace("requires an argument", "needs a value").replace("'", "")
        return f"{' '.join(text.split()).rstrip('.')}. {ask}"
    extra = re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", " ".join(fault.message.split()))
    if extra:
        return f"{path} does not know what to do with {extra[1]}. It is called as `{call_of(path, command)}`; {ask}"
    return f"{' '.join(fault.format_message().split()).rstrip('.')}. {ask}"


def call_of(path: str, command: Any) -> str:
    """How a command is called: its arguments, and the options that it cannot do without."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    needed = [param for param in command.params if param.param_type_name == "option" and param.required]
    texts = [_shown(param) if param.required else f"[{_shown(param).strip('[]')}]" for param in arguments]
    return " ".join([path, *texts, *(f"{param.opts[0]} {param.name.upper()}" for param in needed)])


def _shown(param: Any) -> str:
    """What help calls a parameter."""
    return param.opts[0] if param.param_type_name == "option" else (param.metavar or param.name.upper())


def _bad_value(fault: Any) -> str:
    """Which option, the value where it is known, and what was expected in its place."""
    text, given = " ".join(fault.message.split()).removeprefix("Value error, "), ""
    inner = getattr(fault.__cause__, "errors", None)
    if inner is not None:
        given = str(inner()[0].get("input", ""))
    named = re.match(r"'(.*?)' is not |(\S+) is not in the range ", text)
    given = (named[1] or named[2] or "") if named else given
    for pattern, words in KINDS:
        if re.fullmatch(pattern, text, re.IGNORECASE):
            text = re.sub(pattern, words, text, flags=re.IGNORECASE)
            break
    if text.startswith("expected one of "):
        known = re.findall(r"'(.*?)'", text) or text.removeprefix("expected one of ").split(", ")
        near = nearest(given, known)
        text = f"expected one of {', '.join(known)}{f'. Did you mean {near}?' if near else ''}"
    return f"{_shown(fault.param)}{f' {given}' if given else ''}: {text.removesuffix('.')}"
