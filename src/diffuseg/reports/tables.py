"""Tables for a terminal: one presenter for all of them, and what evaluations and comparisons put into it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from diffuseg.evaluation.metrics import METRICS
from diffuseg.evaluation.statistics import Interval
from diffuseg.reports.titles import (
    evaluation_letter,
    metric_title,
    notes,
    scaled_text,
    summary_cells,
    summary_titles,
    tolerance_text,
)
from diffuseg.text import pluralize

if TYPE_CHECKING:
    from diffuseg.reports.comparison import Comparison
    from diffuseg.reports.evaluation import Evaluation

COLUMNS = 4  # more classes than this become lines of the table in the terminal
NAME = 32  # characters of a name that is not broken


def text_table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    right: bool = True,
    lines: bool = False,
) -> Table:
    """A table for a terminal; nothing in it is taken for markup.

    No word is cut off: what is too long for its column goes on below. A first column of short names, as one types them, is
    kept whole.

    Args:
        title: Stands above it.
        head: The title of each column.
        rows: A cell of text for each column.
        notes: Lines that stand under it.
        right: All columns but the first are aligned to the right.
        lines: A line is drawn between rows.
    """
    table = Table(title=escape(title), caption=escape("\n".join(notes)) or None, caption_justify="left", show_lines=lines)
    names = all(len(row[0]) <= NAME and " " not in row[0] for row in rows)
    for number, name in enumerate(head):
        justify = "right" if right and number else "left"
        table.add_column(escape(name), justify=justify, overflow="fold", no_wrap=names and not number)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def evaluation_table(evaluation: "Evaluation") -> Table:
    """The summary for a terminal: a column per class (a line each, if there are many), the notes below."""
    pictures = evaluation.pictures
    columns = {name: summary_cells(entry, pictures) for name, entry in evaluation.means.items()}
    nsd = METRICS["nsd"].title
    within = f"{nsd} at {tolerance_text(evaluation.tolerance, pictures)}"
    titles = [within if title == nsd else title for title in summary_titles(pictures)]
    lines = [[title, *cells] for title, *cells in zip(titles, *columns.values(), strict=True)]
    if all(cell == "-" for cell in lines[-1][1:]):
        lines = lines[:-1]
    lines = [["", *columns], *lines]
    if len(columns) > COLUMNS:
        lines = [list(line) for line in zip(*lines, strict=True)]
    title = f"Mean [95 % interval] over {pluralize(len(evaluation.cases), 'case')}"
    return text_table(title, lines[0], lines[1:], notes(evaluation))


def mean_rows(comparison: "Comparison") -> list[tuple[str, ...]]:
    """As text, first the heading: metric, evaluation, mean with interval, how often it is first."""
    rows = [("metric", "evaluation", "mean [95 % interval]", "first")]
    for metric, values in comparison.means.items():
        for name, interval in values.items():
            share = comparison.first[metric][name]
            first = "-" if math.isnan(share) else f"{share:.0%}"
            title = metric_title(metric, unsigned=True, pictures=comparison.pictures)
            rows.append((title, name, scaled_text(metric, interval, comparison.pictures), first))
    return rows


def difference_rows(comparison: "Comparison") -> list[tuple[str, ...]]:
    """As text, first the heading: metric, pair, mean with interval, p-values, sizes of effects, number of cases, the better.

    Letters stand for the names of evaluations.
    """
    name = evaluation_letters(comparison)
    rows = [("metric", "difference", "mean [95 % interval]", "p", "adjusted p", "d", "rank-biserial", "n", "better")]
    for d in comparison.differences:
        numbers = (scaled_text(d.metric, Interval(d.mean, d.low, d.high), comparison.pictures), _p(d.p), _p(d.adjusted))
        effects = (f"{d.cohens_d:.2f}", f"{d.rank_biserial:.2f}")
        pair, better = f"{name[d.first]} - {name[d.second]}", name.get(d.verdict, d.verdict)
        rows.append(
            (metric_title(d.metric, unsigned=True, pictures=comparison.pictures), pair, *numbers, *effects, str(d.n), better)
        )
    return rows


def comparison_tables(comparison: "Comparison") -> list[Table]:
    """The comparison for a terminal of 80 columns: means and first places, then differences by metric, the notes below."""
    letters = evaluation_letters(comparison)
    means = [(metric, letters[name], *cells) for metric, name, *cells in mean_rows(comparison)[1:]]
    names = [f"{letter}: {name}" for name, letter in letters.items()]
    tables = [text_table(comparison.label, ("metric", "", "mean [95 % interval]", "first"), means, names, right=False)]
    lines = list(zip(comparison.differences, difference_rows(comparison)[1:], strict=True))
    under = [*comparison.notes, "Sizes of effects (d, rank-biserial) are in comparison.json: --out."]
    for metric in comparison.means:
        chosen = [(d.n, row) for d, row in lines if d.metric == metric]
        what = metric_title(metric, unsigned=True, pictures=comparison.pictures)
        title = f"{what}: differences of {pluralize(chosen[0][0], 'case')}"  # equal for all
        head = ("pair", "mean [95 % interval]", "p", "adjusted p", "better")
        last = metric == list(comparison.means)[-1]
        tables.append(text_table(title, head, [(*row[1:5], row[-1]) for _, row in chosen], under if last else (), right=False))
    return tables


def evaluation_letters(comparison: "Comparison") -> dict[str, str]:
    """The letter of each evaluation."""
    return {name: evaluation_letter(number) for number, name in enumerate(comparison.names)}


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
