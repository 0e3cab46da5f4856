"""The model card of a checkpoint: what lies beside it, or what its header says."""

from pathlib import Path

from diffuseg.errors import UserError
from diffuseg.inference.info import describe
from diffuseg.text import pluralize

MADE = """---
license: other
library_name: diffuseg
tags: [image-segmentation, medical]
---
# {name}

**For research only. Not a medical device: no decision about a patient may rest on it.**

{usage}

| | |
|---|---|
| method | `{method}`, {dims}-D |
| channels | {channels} |
| classes | {classes} |
| trained on | {cases} of "{dataset}", {steps} steps |
| validation | {validation} |
| licence of the data | {licence} |
"""


def card_of(file: Path, usage: str, given: Path | None = None) -> str:
    """The card that is given, else that beside a checkpoint (.md), else one that is made of its header.

    Args:
        file: The checkpoint.
        usage: How it is used, for a card that is made.
        given: A file.

    Raises:
        UserError: There is no such file, or it is no text.
    """
    beside = file.with_suffix(".md")
    card = given or (beside if beside.is_file() else None)
    if card is None:
        return _made(file, usage)
    try:
        return card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", file=card) from None


def _made(file: Path, usage: str) -> str:
    about = describe(file)
    training = about["training"]
    known = {key: f"{value:.3f}" for key, value in (training["validation"] or {}).items() if isinstance(value, float)}
    return MADE.format(
        name=about["name"], usage=usage, method=about["method"], dims=about["plan"]["dims"],
        channels=", ".join(about["channels"]), classes=", ".join(about["classes"]),
        cases=pluralize(training["training_cases"] or 0, "case"), dataset=training["dataset"], steps=training["steps"],
        validation=", ".join(f"{key} {value}" for key, value in known.items()) or "unknown", licence=about["licence"],
    )  # fmt: skip
