"""What the name of a file says: image or mask, of which case, which channel, and of which part of a split."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

MASK = {
    "mask", "masks", "label", "labels", "labelmap", "labelmaps", "seg", "segs", "segm", "segmentation", "segmentations", "dseg",
    "gt", "gts", "ground", "truth", "groundtruth", "annotation", "annotations", "annot", "manual", "target", "targets",
    "contour", "contours", "roi", "rois", "delineation", "delineations",
}  # fmt: skip
IMAGE = {
    "image", "images", "img", "imgs", "im", "ims", "scan", "scans", "photo", "photos", "picture", "pictures", "original",
    "originals", "orig", "input", "inputs", "raw", "volume", "volumes", "vol",
}  # fmt: skip
CHANNEL = {
    "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2star", "flair", "pd", "pdw", "dwi", "adc", "swi", "ct",
    "cta", "pet", "mr", "mri", "bold",
}  # fmt: skip
READER = {
    "reader", "rater", "observer", "annotator", "expert", "doctor", "physician", "radiologist", "grader", "obs", "r",
}  # fmt: skip
SPLIT = {
    "train": "train", "training": "train", "tr": "train", "test": "test", "testing": "test", "ts": "test", "val": "val",
    "valid": "val", "validation": "val",
}  # fmt: skip
NO_CASE = MASK | IMAGE | {"derivatives", "anat"}  # folders of these names say nothing of the case
ENTITY = re.compile(r"(?:^|_)(?:space|desc|res|den)-[A-Za-z0-9]+")  # of BIDS: how a mask was made, not of whom

Role = Literal["image", "mask"]


class Named(NamedTuple):
    """What the path of a file says.

    Attributes:
        path: The file.
        role: Image or mask.
        folders: Words of its folders that say which case it is.
        stem: Words of its name that do.
        after: How many words of the stem stand behind the one that says mask.
        channel: "T1", "0001", or "" where nothing says it.
        split: "train", "test", "val", or "".
        shown: Its name without what says image, mask or channel.
        places: Names of its folders, without those that only say image or mask.
    """

    path: Path
    role: Role
    folders: tuple[str, ...]
    stem: tuple[str, ...]
    after: int
    channel: str
    split: str
    shown: str
    places: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """All words that say which case it is."""
        return self.folders + self.stem


def read_name(path: Path, source: Path, ending: str, numbered: bool = False, role: Role | None = None) -> Named:
    """What the path of a file below `source` says.

    Args:
        path: Of a file below `source`.
        source: The folder that is converted.
        ending: Of the file's name.
        numbered: A last word of four digits is the number of a channel.
        role: What the file is known to be; None: its path says.
    """
    stem = path.name[: -len(ending)]
    folders = path.parent.relative_to(source).parts
    words, shown, after, channel, says = [], "", 0, "", set()
    found = re.findall(r"([\W_]*)([^\W_]+)", ENTITY.sub("", stem) if stem.startswith("sub-") else stem)
    for number, (between, token) in enumerate(found):
        if token.lower() in CHANNEL:
            channel = token
            continue
        if numbered and number and number == len(found) - 1 and re.fullmatch(r"\d{4}", token):
            channel = token
            continue
        parts = _parts(token)
        kept = [part for part in parts if part not in MASK | IMAGE]
        if len(kept) < len(parts):
            says |= {"mask" if part in MASK else "image" for part in parts if part not in kept}
            after = 0 if set(parts) & MASK else after
        after += len(kept) if "mask" in says else 0
        words += kept
        shown += between + (token if len(kept) == len(parts) else "".join(kept)) if kept else ""
    if role is None:
        role = "mask" if "mask" in says else _role(folders) or "image"
    inner = [part for folder in folders for token in _tokens(folder) for part in _parts(token)]
    split = next((SPLIT[word] for word in reversed(inner) if word in SPLIT), "")
    whose = tuple(word for word in inner if word not in NO_CASE)
    places = tuple(folder for folder in folders if not {p for t in _tokens(folder) for p in _parts(t)} <= NO_CASE)
    return Named(path, role, whose, tuple(words), after, channel, split, shown.strip("_-. "), places)


def _role(folders: tuple[str, ...]) -> Role | None:
    """What the innermost folder that says it says."""
    for folder in reversed(folders):
        parts = {part for token in _tokens(folder) for part in _parts(token)}
        if parts & MASK:
            return "mask"
        if parts & IMAGE:
            return "image"
    return None


def _tokens(text: str) -> list[str]:
    return [token for token in re.split(r"[\W_]+", text) if token]


def _parts(token: str) -> list[str]:
    """The words of a token in lower case, split at digits and changes of case; a word that says mask or image stays whole."""
    if token.lower() in MASK | IMAGE | CHANNEL:
        return [token.lower()]
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", token)] or [token.lower()]
