"""The sentence that answers the question of an audit: one for each outcome, and no claim that an interval does not bear."""

import math

import pytest

from diffuseg.studies.audit.answer import SAMPLING, UNET, answer, effect

CHANGES = {
    "lower": {"mean": -0.2, "low": -0.3, "high": -0.1},
    "higher": {"mean": 0.2, "low": 0.1, "high": 0.3},
    "none": {"mean": 0.01, "low": -0.02, "high": 0.04},
    "unknown": {"mean": -0.2, "low": math.nan, "high": math.nan},
}
ALL = {"lower", "higher", "none", "unknown"}


def found(sampler: str | None = "ancestral", **rows: str) -> dict:
    made = {"run": {"scores": {"mean": {"difference": {"mean": 0, "low": 0, "high": 0}}}}}
    made |= {name: {"scores": {"mean": {"difference": CHANGES[how]}}} for name, how in rows.items()}
    return {"of": {"sampler": sampler}, "rows": made}


@pytest.mark.parametrize("noise", CHANGES)
@pytest.mark.parametrize("unet", [None, *CHANGES])
def test_every_outcome_has_its_own_sentence(noise, unet):
    said = answer(found(noise=noise, **({"unet": unet} if unet else {})))
    assert said.startswith("In this training diffusion ") and said.endswith(".") and said.count(". ") == 0
    assert [how for how in ALL if SAMPLING[how] in said] == [noise]
    assert [how for how in ALL if UNET[how] in said] == ([unet] if unet else [])
    assert ("--retrain" in said) is (unet is None)
    if noise == "lower":
        assert "Dice changes by -0.200 [-0.300, -0.100]" in said


def test_an_interval_that_touches_zero_claims_nothing():
    assert effect({"mean": 0.1, "low": 0.0, "high": 0.2}) == effect({"mean": -0.1, "low": -0.2, "high": 0.0}) == "none"
    assert effect({"mean": 0.0, "low": 0.0, "high": 0.0}) == "none"
    assert effect({"mean": 0.1, "low": None, "high": None}) == "unknown"


def test_without_a_row_or_without_diffusion_nothing_is_claimed():
    assert answer(found()) == (
        "In this training diffusion was not examined: neither the row noise nor the row unet was measured."
    )
    assert answer(found(None)).startswith("In this training diffusion has no part")
    assert answer(found(None, unet="higher")).startswith("In this training diffusion has no part")
    assert "in sampling" not in answer(found(unet="higher"))
