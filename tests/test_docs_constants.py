"""Numbers that the pages state are those of the code: each constant, its value, and the words of the page that says it."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
STATED: list[tuple[str, Any, str, str]] = [  # (module.name, value, page, words)
    ("methods.weak.cdm.FOCUS", (1.5, 1.5), "methods/cdm.md", "log-SNR ~ N(1.5, 1.5^2)"),
    ("methods.weak.binarize.AROUND", 5, "methods/cdm.md", "those within five pixels around"),
    ("methods.weak.binarize.MOST", 3.0, "methods/cdm.md", "at most 3 either way"),
    ("methods.weak.binarize.STEEP", 4.0, "methods/cdm.md", "z = 4 (m - threshold) / threshold"),
    ("methods.weak.binarize.AT_NULL_THRESHOLD", 0.5, "methods/cdm.md", "at e = 1/2"),
    ("inference.saliency_calibration.BELOW", 0.99, "methods/cdm.md", "99 % of the voxels of the smoothed maps"),
    ("inference.saliency_calibration.IMAGES", 64, "methods/cdm.md", "of up to 64 training images"),
    ("studies.pseudo_labels.MIN_CONFIDENCE", 0.7, "methods/cdm.md", "`--confidence` (0.7)"),
    ("methods.tiles.FEATURES_KEPT", 2**29, "methods/medsegdiff.md", "up to half a GB; beyond that features are computed again"),
    ("evaluation.calibration_metrics.BINS", 15, "uncertainty.md", "15 bins of equal width"),
    ("evaluation.calibration_metrics.FLOOR", 1e-6, "uncertainty.md", "- log max(p(true class), 1e-6)"),
    ("evaluation.calibration_metrics.BAND_MM", 3.0, "uncertainty.md", "within r mm (3, or two voxels if that is more)"),
    ("evaluation.calibration_metrics.VOXELS", 200_000, "uncertainty.md", "200 000 voxels of each region"),
    ("evaluation.conformal.SMALLEST", 1e-3, "uncertainty.md", "0.001 ml by default"),
    ("evaluation.multirater.THRESHOLDS", (0.1, 0.3, 0.5, 0.7, 0.9), "uncertainty.md", "t = 0.1, 0.3, 0.5, 0.7, 0.9"),
    ("evaluation.selective.NEGLIGIBLE", 0.01, "uncertainty.md", "p below 0.01 as 0"),
    ("data.world.FAR_EXTENT", 3.0, "uncertainty.md", "above 3 times the largest of the training"),
    ("data.world.FAR_SPACING", 5.0, "uncertainty.md", "a spacing above 5 times the largest or below a fifth"),
    ("data.world.FAR_INTENSITY", 3.0, "uncertainty.md", "intensities 3 times the contrast"),
    ("studies.calibrate.ALPHA", 0.1, "uncertainty.md", "cannot calibrate a 90 %"),
    ("studies.calibrate.FRACTION", 0.2, "uncertainty.md", "at most 20 % of these cases lie"),
    ("studies.calibrate.HALVES", 20, "uncertainty.md", "With fewer than 20 patients"),
    ("studies.ambiguity.COUNTS", (4, 16, 32), "uncertainty.md", "GED is given for 4, 16 and 32 draws"),
    ("studies.curve.WITHIN", 0.002, "training.md", "within 0.002 Dice of the best"),
    ("train.loop.VALIDATIONS", 8, "training.md", "Each eighth of the training"),
    ("train.loop.VALIDATING", 0.25, "training.md", "more than a quarter of that time"),
    ("train.loop.ONE_VALIDATION", 1 / 16, "training.md", "longer than a sixteenth of the time"),
    ("train.loop.SAVE_SECONDS", 300, "training.md", "every 200 steps or five minutes"),
    ("train.validate.FEW", 4, "training.md", "where not even four cases can be afforded"),
    ("train.settings.TrainConfig.save_every", 200, "training.md", "every 200 steps or five minutes"),
    ("train.settings.TrainConfig.warmup", 50, "training.md", "rises for 50 steps"),
    ("train.settings.TrainConfig.floor", 0.01, "training.md", "as a cosine to a hundredth"),
    ("train.settings.TrainConfig.validation_cases", 16, "training.md", "(16 of them, spread evenly"),
    ("evaluation.statistics.CONFIDENCE", 0.95, "uncertainty.md", "95 % intervals over patients"),
]


@pytest.mark.parametrize(("name", "value", "page", "words"), STATED, ids=[name for name, *_ in STATED])
def test_a_page_states_the_number_that_the_code_has(name, value, page, words):
    *parts, last = name.split(".")
    where: Any = importlib.import_module("diffuseg." + ".".join(part for part in parts if part[0].islower()))
    for part in parts:
        where = getattr(where, part) if part[0].isupper() else where
    assert getattr(where, last) == value
    assert " ".join(words.split()) in " ".join((DOCS / page).read_text(encoding="utf-8").split())


def test_the_page_says_how_many_affines_are_tried_and_how_near_they_come():
    from tests.data.test_placement import FEW, MANY, NEAR

    said = f"to {NEAR:.4f} mm", f"{FEW} per format in `make test` and {MANY} in `make test-slow`"
    assert all(text in (DOCS / "reliability.md").read_text(encoding="utf-8") for text in said)


def test_defaults_that_pages_state_are_those_of_the_settings():
    """Of MedSegDiff V2's bracket, and of the maps."""
    from diffuseg.methods.medsegdiff_v2 import MedSegDiffV2Config
    from diffuseg.methods.weak.cdm import MAPS

    assert (MedSegDiffV2Config().interval, MedSegDiffV2Config().beta) == (4, 1.0)  # of the default's four timesteps
    assert MedSegDiffV2Config(T=1000).interval == MedSegDiffV2Config(alpha_counts="training_steps").interval == 5
    assert "`alpha=5` (T where there are fewer timesteps), `beta=1`" in (DOCS / "methods/medsegdiff.md").read_text()
    ours, paper = MAPS["likelihood_ratio"], MAPS["published"]
    assert (ours.steps, ours.log_snr, ours.tau, paper.steps, paper.tau) == (3, (4.0, 1.0), 0.0, 10, 0.95)
    text = (DOCS / "methods/cdm.md").read_text()
    assert "(default; tau = 0, log-SNR 4, 2.5, 1)" in text and "(Algorithm 1; tau = 0.95)" in text


def test_pages_that_list_methods_list_all_of_them():
    from diffuseg.methods import METHODS

    ours = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("diffuseg.")}
    code = lambda text: sorted(re.findall(r"`(\w+)`", text))
    table = (DOCS.parent / "README.md").read_text(encoding="utf-8").split("| `--method` |")[1].split("\n\n")[0]
    assert code(" ".join(line.split("|")[1] for line in table.splitlines()[2:])) == sorted(ours)
    exported = [name for name, cls in ours.items() if cls.supervision == "mask" and not cls.not_exportable]
    which = (DOCS / "speed.md").read_text(encoding="utf-8").split("* **Which methods**:")[1].split("Refused")[0]
    assert code(which) == sorted(exported)
    draws = (DOCS / "training.md").read_text(encoding="utf-8").split("a prediction has 8 draws, of")[1].split(" 32")[0]
    assert code(draws) == sorted(name for name, cls in ours.items() if cls.default_draws == 32)
    assert {cls.default_draws for cls in ours.values()} == {8, 32}
