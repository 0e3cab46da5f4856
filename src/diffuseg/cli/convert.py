"""Command `convert`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuseg.cli.app import app, complain, console
from diffuseg.errors import UserError
from diffuseg.text import pluralize

if TYPE_CHECKING:
    from diffuseg.data.convert.folder import Survey
    from diffuseg.data.convert.pairing import Pairing

SHOWN = 20  # rows of the table; all of them with --dry-run


class Several(StrEnum):
    """What several masks of one image are."""

    parts = "parts"
    structures = "structures"
    raters = "raters"


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder with images and masks in any nesting; it is left as it is.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set; must not be there.")],
    labels: Annotated[
        str, typer.Option(help="Names of the classes by rising value: liver,tumour; or liver=1,tumour=255.")
    ] = "",
    colours: Annotated[Path | None, typer.Option(help="What colours mean: JSON name -> #rrggbb, or CSV name,r,g,b.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Foreground is what is at least this, in smoothed masks.")] = None,
    channels: Annotated[str, typer.Option(help="Which channels to take, in this order: T1w,FLAIR.", show_default="all")] = "",
    several: Annotated[
        Several | None, typer.Option(help="What several masks of one image are.", show_default="by name")
    ] = None,
    spacing: Annotated[str, typer.Option(help="Voxel size of arrays, mm along each axis: 1,1,3.")] = "",
    annotations: Annotated[Path | None, typer.Option(help="COCO or Label Studio JSON.", show_default="looked for")] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV with image and mask (and case), where names say nothing.")] = None,
    images_only: Annotated[bool, typer.Option("--images-only", help="Images to predict, without masks.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made, and write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
) -> None:
    """Make a data set of images and masks as people have them; shows first what belongs together, overwrites nothing."""
    from diffuseg.data.convert.colours import read_colours
    from diffuseg.data.convert.folder import Wishes, empty_masks, refuse_existing, survey, write_dataset
    from diffuseg.data.convert.pairing import only_images, read_pairs

    refuse_existing(out, source)
    of_names = {"--channels": channels, "--several": several, "--annotations": annotations}
    of_masks = {"--labels": labels, "--colours": colours, "--threshold": threshold is not None, "--pairs": pairs} | of_names
    _refuse_idle(of_masks if images_only else {}, "--images-only takes images and no masks")
    _refuse_idle(of_names if pairs else {}, "--pairs says which files belong together")
    meaning = [colours, annotations, several, threshold is not None]
    named = _named(source, labels, images_only, meaning, [channels, spacing, pairs])
    wishes = Wishes(named, read_colours(colours) if colours else None, threshold, _spacing(spacing))
    if images_only:
        _refuse_dicom(source)
        pairing = only_images(source)
    elif pairs:
        pairing = read_pairs(pairs, source)
    else:
        pairing = _paired(source, annotations, labels, channels, several)
    _show_pairs(pairing, source, len(pairing.pairs) if dry_run else SHOWN)
    if not pairing.pairs:
        do = "Say what belongs together with --pairs CSV, or take the images alone with --images-only"
        raise UserError("no mask could be paired with an image by its name", file=source, do=do)
    _refuse_idle({"--spacing": spacing} if not _has_arrays(pairing) else {}, "no image is an array, and others say their sizes")
    _refuse_idle({"--several": several} if not pairing.several else {}, "no image has several masks")
    found = survey(pairing, wishes)
    _show_classes(found, empty_masks(pairing))
    if dry_run:
        typer.echo("nothing is written (--dry-run)")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nothing is written yet: there is no terminal to ask at", do="Look at the above, and say --yes")
        typer.confirm(f"Write {pluralize(len(pairing.pairs), 'case')} to {out}?", abort=True)
    write_dataset(out, pairing, found, wishes)
    what = "`diffuseg predict MODEL` takes its imagesTs"
    if found.meaning is not None:
        what = f"next: diffuseg plan {out}, or at once diffuseg train {out} --out RUN"
    typer.echo(f"{out}: {pluralize(len(pairing.pairs), 'case')} written; {what}")


def _refuse_idle(options: dict[str, Any], why: str) -> None:
    """Refuse options that would do nothing."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UserError(f"{', '.join(given)}: {why}", do="Leave it out")


def _named(source: Path, labels: str, images_only: bool, meaning: list[Any], parts: list[Any]) -> tuple[str, ...]:
    """Names of classes as they are asked for, else those of a dataset.json; refuses a data set of which nothing is asked.

    Args:
        source: The folder.
        labels: What is said of them.
        images_only: There are no classes.
        meaning: Options that say what masks mean; the names of a dataset.json then say nothing.
        parts: Options that say what is taken of the folder.
    """
    from diffuseg.data.convert.known import known_labels, refuse_dataset

    if not labels and not any(meaning) and not any(parts):
        refuse_dataset(source)
    return _split(labels) or (() if images_only or any(meaning) else known_labels(source))


def _paired(source: Path, annotations: Path | None, labels: str, channels: str, several: Several | None) -> "Pairing":
    """What belongs together by annotations that are given or lie there, by DICOM's references, or by names."""
    from diffuseg.data.convert.dicom import pair_dicom
    from diffuseg.data.convert.known import with_known_channels
    from diffuseg.data.convert.pairing import find_files, pair
    from diffuseg.data.convert.polygons import find_annotations, read_annotations
    from diffuseg.data.dicom import holds_series

    found = [annotations] if annotations else find_annotations(source)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"several files of annotations: {names}", file=source, do="Choose one with --annotations")
    by_name = {"--channels": channels, "--several": several}
    if found:
        _refuse_idle(by_name, "annotations say what is marked in which image")
        return read_annotations(found[0], source)
    if source.is_dir() and not find_files(source) and holds_series(source):
        _refuse_idle(by_name, "DICOM says what belongs to which series")
        return pair_dicom(source, [part.partition("=")[0] for part in _split(labels)])
    return with_known_channels(pair(source, _split(channels), several.value if several else None), source)


def _refuse_dicom(source: Path) -> None:
    """Refuse DICOM of which images alone are asked for: nothing has to be made of them."""
    from diffuseg.data.convert.dicom import AS_IT_IS
    from diffuseg.data.convert.pairing import find_files
    from diffuseg.data.dicom import holds_series

    if holds_series(source) and not (source.is_dir() and find_files(source)):
        raise UserError("--images-only is for other images than DICOM", file=source, do=AS_IT_IS)


def _has_arrays(pairing: "Pairing") -> bool:
    return any(path.suffix.lower() in (".npy", ".npz") for case in pairing.pairs for path in case.images)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _spacing(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in _split(text))
    except ValueError:
        values = (0.0,)
    if values and (len(values) not in (2, 3) or not all(0 < value < 1e4 for value in values)):
        raise UserError(f"--spacing {text}: give mm along each axis, such as 1,1,3")
    return values


def _show_pairs(pairing: "Pairing", source: Path, most: int) -> None:
    from diffuseg.reports.tables import text_table

    def below(path: Path) -> str:
        return str(path.relative_to(source)) if path.is_relative_to(source) else str(path)

    columns = ["case", "image" if not pairing.channels else f"image ({', '.join(pairing.channels)})", "mask"]
    rows = []
    for case in pairing.pairs[:most]:
        masks = dict.fromkeys(
            below(drawn.path) + (f" ({drawn.rater or drawn.what})" if drawn.rater or drawn.what else "") for drawn in case.masks
        )
        name = f"{case.name} ({case.split})" if case.split else case.name
        rows.append((name, "\n".join(map(below, case.images)), "\n".join(masks)))
    if rows:
        console().print(text_table(f"{source}: {pluralize(len(pairing.pairs), 'case')}", columns, rows, right=False))
    if len(pairing.pairs) > most:
        typer.echo(f"and {len(pairing.pairs) - most} more; --dry-run shows all")
    if pairing.several:
        typer.echo(f"several masks of one image are {pairing.several}; --several says otherwise")
    for title, paths in (("images without a mask", pairing.without_mask), ("masks without an image", pairing.without_image)):
        if paths:
            complain(f"{title}, left out ({len(paths)}): {', '.join(map(below, paths))}")


def _show_classes(found: "Survey", unmarked: str) -> None:
    from diffuseg.reports.tables import text_table

    if found.meaning is not None:
        rows = [(stored, name, str(value), share) for stored, name, value, share in found.meaning.rows]
        console().print(text_table("", ("in the masks", "class", "label", "share"), rows, right=False))
    typer.echo(f"channels: {', '.join(found.channels)}; images {'copied as' if found.copied else 'written as'} {found.ending}")
    if unmarked:
        typer.echo(f"{unmarked}; taken as empty masks")
    for stray in found.strays[:SHOWN]:
        complain(f"Warning: {stray}. It becomes a class; --labels names the classes that are meant")
    if len(found.strays) > SHOWN:
        complain(f"Warning: {len(found.strays) - SHOWN} more values are in as few masks")
    for what, number in found.missing.items():
        complain(f"{what}: {pluralize(number, 'case has', 'cases have')} no mask of it, and is taken as without it")
