"""The command that tells what there is: `info` of a model or a method, or a list of both."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffuseg.cli.app import app, console
from diffuseg.cli.as_json import JSON, print_json
from diffuseg.errors import UserError
from diffuseg.text import nearest


@app.command()
def info(
    name: Annotated[
        str | None,
        typer.Argument(help="A checkpoint, a run, a packaged model, or a method.", show_default="lists models and methods"),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Tell what a model is and was trained on, or every setting of a method; without a name, list models and methods."""
    from diffuseg.inference.checkpoints import checkpoints, model_file, packaged
    from diffuseg.inference.info import describe
    from diffuseg.methods import METHODS
    from diffuseg.reports.tables import text_table

    known = packaged()
    if name is None:
        found: dict[str, Any] = {"models": known, "methods": {key: _first_line(METHODS[key]) for key in METHODS}}
        rows = [("model", model, _of_model(describe(model_file(model), model))) for model in known] + [
            ("method", key, text) for key, text in found["methods"].items()
        ]
        table = text_table("What there is", ("", "name", "what"), rows, ["diffuseg info NAME tells more."], right=False)
    elif checkpoints(name) or Path(name).is_file() or name in known:
        file = model_file(name)
        found = describe(file, name if name in known and not checkpoints(name) else None)
        table = text_table(found["name"], ("", ""), _rows(found), right=False)
    elif name in METHODS:
        found = _method(name)
        rows = [(one["name"], json.dumps(one["default"]), one["type"], one["meaning"]) for one in found["settings"]]
        table = text_table(f"{name}: --set key=value", ("key", "default", "type", "meaning"), rows, right=False, lines=True)
    else:
        near = nearest(name, [*known, *METHODS])
        do = f"{f'Did you mean {near}? ' if near else ''}Models: {', '.join(known) or 'none'}. Methods: {', '.join(METHODS)}."
        raise UserError("neither a checkpoint, nor a run, nor a packaged model, nor a method", file=name, do=do)
    console().print(table)
    print_json(found)


def _method(name: str) -> dict[str, Any]:
    """A method with all that --set takes in a training with it: its own settings, those of the plan and of the training."""
    from diffuseg.data.plan import Plan
    from diffuseg.methods import METHODS
    from diffuseg.methods.presets import PRESETS, method_of
    from diffuseg.methods.settings import settings_of
    from diffuseg.train.settings import TrainConfig

    method = METHODS[name]
    fixed = ("plan.dataset", "plan.channels", "plan.labels", "plan.file_ending", "plan.ignore", "plan.reasons")
    kinds = (method.config_class, ""), (Plan, "plan."), (TrainConfig, "train.")
    settings = [one.as_dict() for cls, prefix in kinds for one in settings_of(cls, prefix) if one.name not in fixed]
    return {
        "method": name,
        "what": _first_line(method),
        "learns_from": "masks" if method.supervision == "mask" else "image-level labels",
        "generative": method.generative,
        "free_after_training": list(method.inference_settings),
        "presets": [preset for preset in PRESETS if method_of(preset) == name],
        "settings": settings,
    }


def _of_model(found: dict[str, Any]) -> str:
    classes = [name for name, value in found["classes"].items() if value]
    return f"{', '.join(classes)} on {', '.join(found['channels'])}; {found['method']}; licence {found['licence']}"


def _first_line(method: type) -> str:
    return (method.__doc__ or "").strip().split("\n")[0]


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What `describe` gives as lines; what is nested as "key value" pairs, long lists of ranges left to --json."""
    rows = []
    for key, value in found.items():
        if key == "fingerprint" and value:
            rows.append((key, f"ranges over {value.get('cases')} training cases, in full with --json"))
        elif key == "settings":
            rows.append((key, f"{len(value)}: --json lists them, `diffuseg info {found['method']}` says what they mean"))
        elif isinstance(value, dict):
            rows.append((key, "\n".join(f"{inner}: {_text(part)}" for inner, part in value.items())))
        else:
            rows.append((key, _text(value)))
    return rows


def _text(value: Any) -> str:
    """A value for a person: numbers with four digits, an object as "key value" pairs."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items()) or "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
