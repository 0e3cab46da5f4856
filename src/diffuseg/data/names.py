"""What names of labels and channels say: one splitter into words, for left and right and for what a picture was taken with."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import zip_longest

LEFT = {"left", "lhs", "lh", "lt", "l", "lk", "lul", "lll", "lewy", "lewa", "vanster", "venstre", "balra"}
LEFT |= {"links", "linke", "linker", "linkes", "gauche", "izquierda", "izquierdo", "izq", "esquerda", "esquerdo"}
LEFT |= {"sinistra", "sinistro", "sinister", "sinistrum", "sin"}
RIGHT = {"right", "rhs", "rh", "rt", "r", "rk", "rul", "rml", "rll", "prawy", "prawa", "hoger", "hoyre", "hojre", "jobbra"}
RIGHT |= {"rechts", "rechte", "rechter", "rechtes", "droite", "droit", "derecha", "derecho", "der", "direita", "direito"}
RIGHT |= {"destra", "destro", "dexter", "dextra", "dextrum", "dex", "dext"}
LONG = ("left", "right", "links", "rechts", "gauche", "droite", "izquierd", "derech", "sinistr", "destr", "sinister", "dexter",
        "esquerd", "direit", "linker", "rechter")  # fmt: skip
OTHERS = {"bright", "upright", "copyright", "cleft", "leftover", "leftovers", "brightness"}  # that have such a word inside
PAIRS = (  # too short or common to count alone: they do where two names differ in nothing else
    ("l", "r"), ("li", "re"), ("sx", "dx"), ("sin", "dx"), ("sn", "dx"), ("s", "d"), ("os", "od"), ("as", "ad"), ("g", "d"),
    ("e", "d"), ("esq", "dir"), ("iz", "de"), ("sol", "sag"), ("bal", "jobb"), ("vasen", "oikea"), ("v", "h"),
    ("stang", "drept"),
    ("stanga", "dreapta"), ("leva", "prava"), ("levy", "pravy"), ("lewe", "prawe"), ("kiri", "kanan"), ("trai", "phai"),
)  # fmt: skip
# Chinese and Japanese, Korean, Cyrillic, Greek, Arabic, Hebrew, Thai, Hindi, without accents
LEFT_LETTERS = ("左", "왼", "좌", "лев", "лів", "ляв", "αριστερ", "يسار", "يسر", "שמאל", "ซาย", "बाय")
RIGHT_LETTERS = ("右", "오른", "우측", "прав", "десен", "дясн", "δεξι", "يمين", "يمن", "ימין", "ขวา", "दाय")
SPOT = r"lesion|tumou?r|nodule?|metasta|polyp|cyst|cancer|infarct|haemorrhage|hemorrhage|kidney|lung|breast|hippocampus|eye"
CT = {"ct", "hu", "hus", "cta", "ctpa", "cect", "ncct", "cbct", "ldct", "hrct", "msct", "mdct", "dect", "qct", "kvct", "mvct",
      "rtct", "dct", "ctscan", "tdm", "tac", "tc", "кт", "hounsfield", "tomodensitometry", "tomodensitometrie"}  # fmt: skip
TOMOGRAPHY = r"comput\w*[\W_]*(axial[\W_]*)?tomogra|tomogra\w*[\W_]*(axial[\W_]*)?comput|computertomogra"
EMISSION = {"pet", "spect", "suv", "emission", "99"}  # the last of 99mTc
MR = {
    "mr", "mri", "mra", "mrcp", "flair", "pd", "pdw", "dwi", "adc", "swi", "irm", "mrt", "bold", "fmri", "dti", "mprage",
    "mp2rage", "stir", "dce", "dixon", "bssfp", "lge", "qsm", "asl", "pwi", "мрт",
}  # fmt: skip
WEIGHTED = r"t[12][a-z]{0,4}"  # T1, T1w, t1ce, T2star, T1post
XRAY = {"xray", "cxr", "radiograph", "dx", "cr", "dr", "mammo", "mammography", "mammogram", "rx", "xr", "roentgen"}


def words(name: str) -> list[str]:
    """The words of a name in lower case, split at everything but letters and at changes of case and digits.

    "tumor1L" is tumor, 1, l; "LungTumorLHS" is lung, tumor, lhs; "T1_Gd" is t, 1, gd and, with the digit, t1.
    """
    plain = _without_accents(name)
    joined = re.findall(r"[A-Za-z]+\d+[A-Za-z]*", plain)
    return [*_parts(name), *(part.lower() for part in (*joined, *re.findall(r"[A-Za-z]{4,}", plain)))]


def _parts(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", _without_accents(name))]


def _without_accents(name: str) -> str:
    plain = name.replace("\u00f8", "o").replace("\u00d8", "O").replace("\u0142", "l").replace("\u0141", "L")
    return "".join(c for c in unicodedata.normalize("NFKD", plain) if unicodedata.category(c) != "Mn")


def side(name: str) -> str | None:
    """ "left" or "right" if the name of a label says so, in the common languages of the field; else None.

    Long words count inside of a longer one too ("lefttumor", "leftsided"), short ones only as a word of their own.
    """
    found = {"left" for word in words(name) if word in LEFT} | {"right" for word in words(name) if word in RIGHT}
    for word in set(words(name)) - OTHERS:
        for stem in LONG:
            if word.startswith(stem) or word.endswith(stem):
                found.add("left" if any(known.startswith(stem) for known in LEFT) else "right")
        spot = re.fullmatch(rf"([lr])?({SPOT})s?([lr])?", word)
        found |= {{"l": "left", "r": "right"}[letter] for letter in (spot.group(1, 3) if spot else ()) if letter}
    plain = _without_accents(name).lower()
    found |= {"left" for letters in LEFT_LETTERS if _without_accents(letters) in plain}
    found |= {"right" for letters in RIGHT_LETTERS if _without_accents(letters) in plain}
    return min(found) if found else None


def tells_sides(names: Iterable[str]) -> list[str]:
    """Those of some names that say left or right, by themselves or as two that differ in nothing else."""
    given = list(names)
    paired = {name for one in given for other in given if _differ_by_side(one, other) for name in (one, other)}
    return [name for name in given if side(name) is not None or name in paired]


def _differ_by_side(one: str, other: str) -> bool:
    """Whether two names become equal where one has a word for left and the other the word for right: "lvent" and "rvent"."""
    changed = [(a, b) for a, b in zip_longest(_parts(one), _parts(other)) if a != b]
    if len(changed) != 1 or None in changed[0]:
        return False
    a, b = changed[0]
    return (a, b) in PAIRS or (a[1:], a[0], b[0]) == (b[1:], "l", "r") or (a[:-1], a[-1], b[-1]) == (b[:-1], "l", "r")


def is_ct(name: str) -> bool:
    """Whether a channel holds Hounsfield units by its name: a word of CT, in a name that is not one of PET, SPECT or MR."""
    found = set(words(name))
    spelt = re.search(TOMOGRAPHY, _without_accents(name).lower()) or re.search(r"(?<![A-Za-z])CT[a-z]", name)
    return bool(found & CT or spelt) and not found & EMISSION and not is_mr(name)


def is_mr(name: str) -> bool:
    """Whether a channel is magnetic resonance by its name."""
    return any(word in MR or word.startswith(("mri", "flair")) or re.fullmatch(WEIGHTED, word) for word in words(name))


def is_xray(name: str) -> bool:
    """Whether a channel is a plain radiograph by its name."""
    return bool(set(words(name)) & XRAY) or re.search(r"x[-_ ]?ray|radiograph", name.lower()) is not None
