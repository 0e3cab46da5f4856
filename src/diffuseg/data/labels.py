"""Image-level labels: one class per case, from a table or from a folder per class. No mask is looked at."""

from collections import Counter
from pathlib import Path

from diffuseg.data.layout import Dataset, read_table
from diffuseg.errors import UserError
from diffuseg.text import did_you_mean, few, pluralize

TABLE = "image_labels.csv"  # where a data set keeps them if nobody says otherwise


def read_labels(dataset: Dataset, table: Path | None = None) -> dict[str, int]:
    """The class of each case as an index 0..k-1 by rising label value: what the image shows, 0 if none of the classes.

    From the table (given, or image_labels.csv in the data set's folder), which has a column `case` and either `label`, a
    class by its name or value in dataset.json, or one column per class with 0 or 1; else from imagesTr/<class>/<image>.

    Args:
        dataset: The data set.
        table: A CSV; None: that of the data set's folder, if it has one.

    Raises:
        UserError: A table without these columns, classes that dataset.json does not name, and cases without a label.
    """
    if table is None and (dataset.folder / TABLE).is_file():
        table = dataset.folder / TABLE
    if table is not None:
        label_of, file = _read_table(table, dataset.labels), table
    else:
        names = list(dataset.labels)
        folders = {case.id: case.images[0].parent.name for case in dataset.cases}
        label_of, file = {case: names.index(name) for case, name in folders.items() if name in names}, dataset.folder
    lacking = [case.id for case in dataset.cases if case.id not in label_of]
    if lacking:
        do = "Give --labels a table with the columns case and label, or sort the images into imagesTr/<class>/"
        raise UserError(
            f"no image-level label for {len(lacking)} of {pluralize(len(dataset.cases), 'case')}: {few(lacking)}",
            file=file,
            do=do,
        )
    return {case.id: label_of[case.id] for case in dataset.cases}


def check_labels(labels: dict[str, int], cases: list[str], classes: list[str]) -> None:
    """Check that the cases to train on show every class: else there is nothing to compare a class with.

    Args:
        labels: Class index by case.
        cases: Those to train on.
        classes: Their names, by index.

    Raises:
        UserError: A class is not among them.
    """
    counts = Counter(labels[case] for case in cases)
    lacking = [name for index, name in enumerate(classes) if not counts[index]]
    if lacking:
        raise UserError(
            f"no image to train on has the label {', '.join(lacking)}", do="Image-level labels need images of each class"
        )


def _read_table(table: Path, labels: dict[str, int]) -> dict[str, int]:
    if not table.is_file():
        raise UserError("no such table of labels", file=table)
    names = list(labels)
    index_of = {str(value): index for index, value in enumerate(labels.values())} | {name: i for i, name in enumerate(names)}
    rows, columns = read_table(table)
    single = "label" in columns
    if "case" not in columns or not (single or set(names[1:]) <= columns):
        raise UserError(f"it needs the columns case and label, or case and {', '.join(names[1:])}", file=table)
    label_of: dict[str, int] = {}
    for row in rows:
        case, text = row["case"], row["label"] if single else _only_marked_class(row, names)
        if text is None or text not in index_of:
            what = (
                f"case {case}: {text!r} is no class"
                if single
                else f"case {case}: each class is 0 or 1, and one of them at most 1"
            )
            raise UserError(what, file=table, do=did_you_mean(str(text), [f"{value} {name}" for name, value in labels.items()]))
        if label_of.setdefault(case, index_of[text]) != index_of[text]:
            raise UserError(f"case {case} has two labels", file=table)
    return label_of


def _only_marked_class(row: dict[str, str], names: list[str]) -> str | None:
    """The class whose column says 1, the background where none does; None where they say anything else."""
    marked = [name for name in names[1:] if row[name] == "1"]
    if len(marked) > 1 or any(row[name] not in ("0", "1") for name in names[1:]):
        return None
    return marked[0] if marked else names[0]
