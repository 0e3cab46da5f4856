"""Every command line of the documentation is one that the program takes: commands, options, choices and settings exist.

Nothing is run. A line that is complete is parsed as the program would parse it; of one with placeholders (`[--draws N]`,
`EVALUATION...`) the options and their choices are looked up.
"""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from diffuseg.cli import app
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.methods import METHODS
from diffuseg.methods.presets import PRESETS, method_of
from diffuseg.train.settings import TrainConfig

ROOT = Path(__file__).parents[1]
GROUP = typer.main.get_command(app)
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.md"))]
    if path.name != "CHANGELOG.md"  # it may speak of what there was
}
OPTION = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)")
PLACEHOLDER = re.compile(r"[\[\]|]|\.\.\.")


def lines(text: str) -> list[str]:
    """The command lines of a page's indented and fenced blocks, continued lines joined; and those in running text."""
    blocks = re.findall(r"(?:^    .+\n)+", text, re.M)
    blocks += re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.M | re.S)
    found = []
    for block in blocks:
        shown = re.sub(r"^    ", "", block, flags=re.M)
        shown = re.sub(r" *\\\n\s*", " ", shown)  # continued by a backslash,
        shown = re.sub(r"\n(?=\s{4})\s*", " ", shown)  # or by standing further in, as synopses do
        found += [part.strip() for line in shown.splitlines() for part in line.split(" && ")]
    return found


STARTERS = re.compile(r"^(?:torchrun .*?-m diffuseg\.cli |(?:srun|seq) .*?\bdiffuseg )")  # what starts a command several times
MANIFEST = re.compile(r"command: \[(diffuseg, .*)\]")  # of a pod
COMMANDS = [
    (page, STARTERS.sub("diffuseg ", line))
    for page, text in PAGES.items()
    for line in [*lines(text), *(found.replace(",", "") for found in MANIFEST.findall(text))]
    if re.match(r"diffuseg |torchrun |srun |seq ", line)
]
IN_TEXT = [
    (page, STARTERS.sub("diffuseg ", line))
    for page, text in PAGES.items()
    for line in re.findall(r"`((?:srun [^`]*)?diffuseg [^`]+)`", text)
]
SCRIPTS = [(page, line) for page, text in PAGES.items() for line in lines(text) if line.startswith("python -m ")]
TARGETS = [(page, line) for page, text in PAGES.items() for line in lines(text) if line.startswith("make ")]


def command(line: str):
    """The command of a line, and its options by name."""
    name = line.split()[1]
    if name.startswith("-"):
        return GROUP, {option: parameter for parameter in GROUP.params for option in parameter.opts} | {"--help": None}
    assert name in GROUP.commands, f"no command {name!r}"
    found = GROUP.commands[name]
    return found, {
        option: parameter for parameter in found.params for option in [*parameter.opts, *parameter.secondary_opts]
    } | {"--help": None}


def settings(arguments: list[str], option: str) -> list[str]:
    """What an option is given, each time."""
    return [value for name, value in zip(arguments, arguments[1:], strict=False) if name == option]


def check_settings(arguments: list[str]) -> None:
    """--method, --preset and --set name what there is, with values of the right type."""
    given = [*settings(arguments, "--preset"), *(f"{name}/" for name in settings(arguments, "--method"))]
    for preset in settings(arguments, "--preset"):
        assert preset in PRESETS  # by their present names
    for name in settings(arguments, "--method"):
        assert name in METHODS
    own = []
    for assignment in settings(arguments, "--set"):
        key = assignment.partition("=")[0]
        if key.startswith("plan."):
            assert key.removeprefix("plan.") in {field.name for field in dataclasses.fields(Plan)}
        elif key.startswith("train."):
            override(TrainConfig(), [assignment.removeprefix("train.")])
        else:
            own.append(assignment)
    if arguments[0] == "train" and given:
        named = settings(arguments, "--method")
        method = named[0] if named else method_of(settings(arguments, "--preset")[0])
        override(METHODS[method].config_class(), own)
    else:
        for assignment in own:
            assert any(assignment.partition("=")[0] in method.inference_settings for method in METHODS.values()), assignment


@pytest.mark.parametrize(("page", "line"), COMMANDS + IN_TEXT)
def test_commands_options_and_choices_exist(page, line):
    found, options = command(line)
    for option in OPTION.findall(line):  # those that a comment speaks of as well
        assert option in options, f"{page}: {found.name} has no {option}"
    context = found.make_context(found.name, [], resilient_parsing=True)
    context.resilient_parsing = False
    for option, values in re.findall(r"(--[\w-]+) ([\w.-]+(?:\|[\w.-]+)+)", line):
        for value in values.split("|"):
            options[option].process_value(context, [value] if options[option].multiple else value)


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page, line in COMMANDS if not PLACEHOLDER.search(line.partition(" #")[0])]
)
def test_complete_lines_parse(page, line):
    arguments = shlex.split(line.partition(" #")[0])[1:]
    found, _ = command(line)
    found.make_context(arguments[0], arguments[1:])
    check_settings(arguments)


def test_the_parser_of_this_test_refuses_what_the_program_refuses():
    with pytest.raises(AssertionError, match="no command"):
        command("diffuseg segment SCAN")
    with pytest.raises(AssertionError, match="has no --draw\\n"):
        test_commands_options_and_choices_exist("page", "diffuseg predict MODEL SCAN --out DIR [--draw N]")
    with pytest.raises(Exception, match="median"):
        test_commands_options_and_choices_exist("page", "diffuseg predict MODEL SCAN --out DIR [--fuse mean|median]")
    with pytest.raises(Exception, match=r"(?i)missing"):
        test_complete_lines_parse("page", "diffuseg train DATASET --method cdal")
    with pytest.raises(Exception, match="unknown setting"):
        test_complete_lines_parse("page", "diffuseg train DATASET --method cdal --out RUN --set levels=4")
    assert lines(
        "text\n\n    diffuseg a B \\\n        --c D && diffuseg e  # f\n    diffuseg g [--h]\n              [--i]\n\n    j\n"
    ) == [
        "diffuseg a B --c D",
        "diffuseg e  # f",
        "diffuseg g [--h] [--i]",
        "j",
    ]


def test_every_command_is_in_the_documentation():
    shown = {line.split()[1] for _, line in COMMANDS + IN_TEXT} | {"demo-data"}  # this one is what `make demo` runs
    assert {name for name, command in GROUP.commands.items() if not command.hidden} <= shown


@pytest.mark.parametrize(("page", "line"), SCRIPTS)
def test_scripts_and_their_options_exist(page, line):
    module = line.split()[2]
    script = ROOT / (module.replace(".", "/") + ".py")
    assert script.is_file(), f"{page}: {module}"
    for option in OPTION.findall(line.split(module, 1)[1]):
        assert f'"{option}"' in script.read_text(), f"{page}: {module} has no {option}"


@pytest.mark.parametrize(("page", "line"), TARGETS)
def test_targets_of_make_exist(page, line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), f"{page}: {line}"
