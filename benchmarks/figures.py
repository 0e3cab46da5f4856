"""Draw the curves of the docs from benchmarks/results/*.json; with --check, fail where a picture is of other numbers.

A picture carries the digest of the numbers it was drawn from.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables.grid import ROOT, load
from diffuseg.reports.figures import OKABE_ITO, figure_of

KNOBS = {
    "Q": "level Q (log-SNR), one level",
    "R": "steps R, or levels",
    "tau": "contrast tau",
    "s": "guidance s (0 where 0.1 would be)",
    "n": "draws n",
}
MEASURES = {"ap_smoothed": "average precision", "dice": "Dice, default rule"}


def weak_ablation(found: dict[str, Any]) -> Any:
    """Average precision and Dice over each setting of CDM, with 95 % intervals over patients."""
    figure, axes = figure_of(len(MEASURES), len(KNOBS), (15.0, 6.0))
    for row, (measure, words) in zip(axes, MEASURES.items(), strict=True):
        for axis, (knob, label) in zip(row, KNOBS.items(), strict=True):
            for number, kind in enumerate(sorted({point["map"] for point in found["points"]})):
                line = [p for p in found["points"] if (p["map"], p["knob"]) == (kind, knob)]
                at = [max(p["value"], 0.1) if knob == "s" else p["value"] for p in line]
                mean, low, high = zip(*(p[measure] for p in line), strict=True) if line else ((), (), ())
                axis.plot(at, mean, marker="os"[number], color=OKABE_ITO[number], label=kind)
                axis.fill_between(at, low, high, color=OKABE_ITO[number], alpha=0.12, linewidth=0)
            if knob in ("R", "s", "n"):
                axis.set_xscale("log")
                values = sorted({p["value"] for p in found["points"] if p["knob"] == knob})
                axis.set_xticks([max(value, 0.1) if knob == "s" else value for value in values], [f"{v:g}" for v in values])
                axis.minorticks_off()
            axis.set_xlabel(label, fontsize=9)
            axis.set_ylim(0, 0.9)
            axis.tick_params(labelsize=8)
        row[0].set_ylabel(words, fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def sampler_curve(found: dict[str, Any]) -> Any:
    """Dice over network calls: a line for each model, sampler and number of draws, and how good the costliest setting is."""
    figure, axes = figure_of(1, 1, (7.5, 4.6))
    axis, lines = axes[0, 0], {}
    for curve in found["curves"]:
        for point in curve["points"]:
            lines.setdefault((curve["what"], curve["sampler"], point["draws"]), []).append(point)
    kinds = list(dict.fromkeys((what, sampler) for what, sampler, _ in lines))
    for (what, sampler, draws), line in lines.items():
        number = kinds.index((what, sampler))
        look = {"color": OKABE_ITO[2 * number], "linestyle": "-" if draws > 1 else ":"}
        calls, overlaps = [point["evaluations"] for point in line], [point["dice"] for point in line]
        axis.plot(calls, overlaps, marker="os^D"[number], label=f"{what}, {sampler}, draws {draws}", **look)
    most = max((point for line in lines.values() for point in line), key=lambda point: point["evaluations"])
    axis.axhline(most["dice"], color="black", linewidth=0.8, label=f"Dice of {most['steps']} steps, draws {most['draws']}")
    axis.set_xscale("log")
    axis.set_xlabel("network calls for one case (log)", fontsize=9)
    axis.set_ylabel("Dice", fontsize=9)
    axis.tick_params(labelsize=8)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "docs/methods/cdm_ablation.svg": ("weak_ablation", weak_ablation),
    "docs/methods/medsegdiff_curve.svg": ("isic_medsegdiff_curve", sampler_curve),
}


def digest(found: dict[str, Any]) -> str:
    """Of the numbers alone: where they were made does not show in a picture."""
    return hashlib.sha256(json.dumps({k: v for k, v in found.items() if k != "environment"}).encode()).hexdigest()[:16]


def stale(path: Path, found: dict[str, Any]) -> bool:
    """Whether a picture is missing, or of other numbers."""
    seen = re.search(r"numbers: ([0-9a-f]{16})", path.read_text()) if path.is_file() else None
    return seen is None or seen[1] != digest(found)


def main() -> int:
    """Draw what is not of the numbers that are there, or with --check say which."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check, wrong = parser.parse_args().check, 0
    for place, (name, draw) in FIGURES.items():
        found = load(name)
        if not stale(ROOT / place, found):
            continue
        wrong += 1
        if not check:
            draw(found).savefig(ROOT / place, format="svg", metadata={"Date": None, "Description": f"numbers: {digest(found)}"})
        print(f"{place}: {'is not of benchmarks/results; run `make tables`' if check else 'drawn'}")
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
