"""Numbers in sentences: one of a thing is no plural."""

import pytest

from diffuseg.text import pluralize


@pytest.mark.parametrize(("number", "says"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (-1, "-1 cases")])
def test_one_of_a_thing_is_no_plural(number, says):
    assert pluralize(number, "case") == says


def test_other_plurals_and_verbs_are_told():
    assert pluralize(3, "class", "classes") == "3 classes" and pluralize(1, "case was", "cases were") == "1 case was"
