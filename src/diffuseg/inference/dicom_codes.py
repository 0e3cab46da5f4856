"""What a class is called in DICOM: codes for its segment, from a table that the user gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuseg.data.layout import read_json
from diffuseg.errors import UserError

TISSUE = ("85756007", "SCT", "Tissue")  # category and type of a class that nobody has given a code
ANATOMY = ("123037004", "SCT", "Anatomical Structure")  # category of a class that has a type alone
KEYS = ("category", "type", "modifier")
Code = tuple[str, str, str]


def read_codes(path: Path | str) -> dict[str, dict[str, Code]]:
    """Codes by class from a JSON file, dataset.json for example: its object "codes", or the whole file.

    A class has [value, scheme, meaning], its type, or {"category": [...], "type": [...], "modifier": [...]}, of which the type
    alone is needed.

    Raises:
        UserError: It holds anything else.
    """
    content = read_json(Path(path))
    table = content.get("codes", content) if isinstance(content, dict) else None
    if not isinstance(table, dict) or ("labels" in table and "codes" not in content):
        what = 'it needs "codes": {"class": ["10200004", "SCT", "Liver"], ...}'
        raise UserError(what, file=path)
    return {str(name): _entry(str(name), value, path) for name, value in table.items()}


def check_codes(codes: Mapping[str, Any], labels: Mapping[str, int]) -> None:
    """Check that codes are those of classes which the model has.

    Raises:
        UserError: One is not.
    """
    unknown = sorted(set(codes) - set(labels))
    if unknown:
        raise UserError(f"codes for {', '.join(unknown)}, which the model does not know", do=f"Classes: {', '.join(labels)}")


def codes_of(name: str, codes: Mapping[str, dict[str, Code]]) -> dict[str, Code]:
    """Category and type of a class, and its modifier if it has one; "tissue" where nobody has said more."""
    return {"category": ANATOMY} | codes[name] if name in codes else {"category": TISSUE, "type": TISSUE}


def _entry(name: str, value: Any, file: Path | str) -> dict[str, Code]:
    entry = {"type": value} if isinstance(value, list) else value
    if not isinstance(entry, dict) or "type" not in entry or set(entry) - set(KEYS):
        what = f'the codes of {name!r} must be ["value", "scheme", "meaning"], or an object with {", ".join(KEYS)}'
        raise UserError(what, file=file)
    return {key: _code(name, code, file) for key, code in entry.items()}


def _code(name: str, code: Any, file: Path | str) -> Code:
    good = isinstance(code, list) and len(code) == 3 and all(isinstance(part, str) and part.strip() for part in code)
    if not good or len(code[0]) > 16 or len(code[1]) > 16 or len(code[2]) > 64:
        what = f"a code of {name!r} is {code!r}"
        raise UserError(what, file=file, do='Expected ["value", "scheme", "meaning"] of at most 16, 16 and 64 signs')
    return code[0], code[1], code[2]
