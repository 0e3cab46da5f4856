"""Numbers in sentences: one of a thing is no plural."""

import pytest

from diffuseg.text import did_you_mean, nearest, pluralize


@pytest.mark.parametrize(("number", "says"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (-1, "-1 cases")])
def test_one_of_a_thing_is_no_plural(number, says):
    assert pluralize(number, "case") == says


def test_other_plurals_and_verbs_are_told():
    assert pluralize(3, "class", "classes") == "3 classes" and pluralize(1, "case was", "cases were") == "1 case was"


def test_a_mistyped_name_is_near_the_one_that_was_meant():
    known = ["unet", "ssn", "learning_rate", "weight_decay", "T1w"]
    assert [nearest(name, known) for name in ("unett", "UNET", "lr", "wd", "t1W", "gan")] == [
        "unet", "unet", "learning_rate", "weight_decay", "T1w", None,
    ]  # fmt: skip
    assert did_you_mean("sn", ["unet", "ssn"]) == "Did you mean ssn? Known: unet, ssn"
    assert did_you_mean("gan", ["unet"], "Methods") == "Methods: unet" and did_you_mean("x", []) == "Known: none"
