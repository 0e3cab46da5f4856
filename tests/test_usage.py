"""How a command is called in a way that it cannot be: one line, which says how it is meant."""

import pytest

from diffuseg.cli.app import complain
from tests.test_cli import call, refused

WRONG = {
    "predict": ("MODEL... is missing", "`diffuseg predict MODEL... INPUT... --out OUT`"),
    "predict hippocampus": ("INPUT... is missing",),
    "predict a b": ("--out is missing",),
    "merge": ("OUT is missing", "`diffuseg merge OUT [FOLDER...]`"),
    "predict a b --out x --drows 3": ("diffuseg predict has no option --drows. Did you mean --draws?",),
    "predict a b --OUT x": ("Did you mean --out?",),
    "predict a b --zzz": ("`diffuseg predict --help` lists them",),
    "predict a b --out x --draws many": ("--draws many: expected a whole number",),
    "train d --out r --max-minutes soon": ("--max-minutes soon: expected a number",),
    "demo-data x --cases 0": ("--cases 0: expected at least 1",),
    "predict a b --out x --fuse meen": ("--fuse meen: expected one of mean, vote, dice, staple. Did you mean mean?",),
    "evaluate a b --empty two": ("--empty two: expected one of nan, one, zero",),
    "train d --out r more": ("does not know what to do with more", "`diffuseg train DATASET --out OUT`"),
    "train d --out r --steps": ("--steps needs a value",),
    "predictt": ("diffuseg has no command predictt. Did you mean `diffuseg predict`?",),
    "frobnicate": ("There are: convert, plan, train",),
    "--fuse": ("diffuseg has no option --fuse",),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_call_is_one_line(line):
    found = call(*line.split())
    refused(found, *WRONG[line])
    assert "Value error" not in found.stderr and "Input should" not in found.stderr


def test_help_that_is_asked_for_is_help():
    assert call("predict", "-h").exit_code == 0 and "--draws" in call("predict", "-h").output
    assert "predict" in call().output and not call().stderr.startswith("error")


def test_a_complaint_is_one_line_but_for_a_list(capsys):
    complain("a  fault\n  of some\tlibrary")
    assert capsys.readouterr().err == "a fault of some library\n"
    complain("two of\nthem:\n  one  x\n  other\nChoose\none")
    assert capsys.readouterr().err == "two of them:\n  one  x\n  other\nChoose one\n"
