"""What names of labels and channels say: one splitter into words, for left and right and for what a picture was taken with."""

import re
from collections.abc import Iterable

LEFT = {"left", "lhs", "lh", "lt", "l", "lk", "lul", "lll", "lewy", "lewa", "vanster", "venstre"}
LEFT |= {"links", "linke", "linker", "linkes", "gauche", "izquierda", "izquierdo", "izq", "esquerda", "esquerdo"}
LEFT |= {"sinistra", "sinistro", "sinister", "sinistrum", "sin"}
RIGHT = {"right", "rhs", "rh", "rt", "r", "rk", "rul", "rml", "rll", "prawy", "prawa", "hoger", "hoyre"}
RIGHT |= {"rechts", "rechte", "rechter", "rechtes", "droite", "droit", "derecha", "derecho", "der", "direita", "direito"}
RIGHT |= {"destra", "destro", "dexter", "dextra", "dextrum", "dex"}
LONG = ("left", "right", "links", "rechts", "gauche", "droite", "izquierd", "derech", "sinistr", "destr", "sinister", "dexter",
        "esquerd", "direit")  # fmt: skip
CT = {"ct", "hu", "cta", "cect", "ncct", "cbct", "ldct", "ctscan", "hounsfield", "tomodensitometry"}
MR = {
    "mr", "mri", "mra", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2star", "flair", "pd", "pdw", "dwi",
    "adc", "swi", "irm", "mrt", "bold", "fmri", "dti", "mprage",
}  # fmt: skip
XRAY = {"xray", "cxr", "radiograph", "dx", "cr", "dr", "mammo", "mammography", "mammogram", "rx", "xr", "roentgen"}


def words(name: str) -> list[str]:
    """The words of a name in lower case, split at everything but letters and at changes of case and digits.

    "tumor1L" is tumor, 1, l; "LungTumorLHS" is lung, tumor, lhs; "T1_Gd" is t, 1, gd and, with the digit, t1.
    """
    plain = name.replace("\u00f8", "o").replace("\u00e4", "a").replace("\u00f6", "o")
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", plain)
    joined = re.findall(r"[A-Za-z]+\d+[A-Za-z]*", plain)
    return [part.lower() for part in (*parts, *joined, *re.findall(r"[A-Za-z]{4,}", plain))]


def side(name: str) -> str | None:
    """ "left" or "right" if the name of a label says so, in the common languages of the field; else None.

    Long words count inside of a longer one too ("lefttumor", "leftsided"), short ones only as a word of their own.
    """
    found = {"left" for word in words(name) if word in LEFT} | {"right" for word in words(name) if word in RIGHT}
    for word in words(name):
        for stem in LONG:
            if word.startswith(stem) or word.endswith(stem):
                found.add("left" if any(known.startswith(stem) for known in LEFT) else "right")
    return min(found) if found else None


def tells_sides(names: Iterable[str]) -> list[str]:
    """Those of some names that say left or right."""
    return [name for name in names if side(name) is not None]


def is_ct(name: str) -> bool:
    """Whether a channel holds Hounsfield units by its name: a word of CT, in a name that is not one of PET or MR."""
    found = set(words(name))
    return bool(found & CT) and not found & ({"pet", "suv"} | MR)


def is_mr(name: str) -> bool:
    """Whether a channel is magnetic resonance by its name."""
    return bool(set(words(name)) & MR) or any(word.startswith(("mri", "flair")) for word in words(name))


def is_xray(name: str) -> bool:
    """Whether a channel is a plain radiograph by its name."""
    return bool(set(words(name)) & XRAY) or re.search(r"x[-_ ]?ray|radiograph", name.lower()) is not None
