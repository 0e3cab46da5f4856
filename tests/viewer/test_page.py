"""The page and the one file: complete, and nothing in them is loaded from elsewhere."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

import diffuseg.viewer
from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.viewer import page as module
from diffuseg.viewer.cases import find_cases
from diffuseg.viewer.page import SCRIPTS, page, script, text, write_page
from diffuseg.viewer.voxels import EXPORTED, encode

FOLDER = Path(diffuseg.viewer.__file__).parent
LOADS = {"src", "href", "srcset", "action", "data", "poster", "formaction"}


class Parsed(HTMLParser):
    """What a page would load, and its scripts by id."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.loads, self.policy, self.inline, self.now = [], None, {}, None
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [value for name, value in attrs.items() if name in LOADS]
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        if tag in ("script", "style"):
            self.now = attrs.get("id", f"{tag} {len(self.inline)}")
            self.inline[self.now] = ""

    def handle_endtag(self, tag):
        self.now = None

    def handle_data(self, data):
        if self.now is not None:
            self.inline[self.now] += data


def test_nothing_of_ours_names_an_address_elsewhere():
    for name in ("page.html", "style.css", *(f"{name}.js" for name in SCRIPTS if name != "niivue")):
        assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text(name)), name
        assert "@import" not in text(name) and "url(" not in text(name), name


def test_the_page_of_the_server_loads_only_what_lies_beside_it():
    assert all(load == "data:," or re.fullmatch(r"[a-z]+\.(js|css)", load) for load in Parsed(page()).loads)


def test_one_file_has_everything_in_it(volumes, tmp_path):
    cases = find_cases(volumes)
    size = write_page(cases, tmp_path / "one.html")
    content = (tmp_path / "one.html").read_text(encoding="utf-8")
    found = Parsed(content)
    assert found.loads == ["data:,"] and size == (tmp_path / "one.html").stat().st_size
    assert "connect-src" not in found.policy and found.policy.startswith("default-src 'none'") and "http" not in found.policy
    listed = json.loads(found.inline["cases.json"])
    for number, case in enumerate(cases):
        assert listed[number] == json.loads(json.dumps(case.describe()))
        for layer in case.layers:
            packed = found.inline[f"case/{number}/{layer.key}"]
            assert gzip.decompress(base64.b64decode(packed)) == encode(case, layer, EXPORTED)
    scripts = [inline for name, inline in found.inline.items() if name.startswith("script")]
    assert scripts == [script(name) for name in SCRIPTS]
    assert "BSD 2-Clause" in found.inline["licences"] and "Copyright (c) 2021, Niivue" in found.inline["licences"]
    assert "For research only" in content


def test_the_same_cases_are_the_same_file(volumes, tmp_path):
    for name in ("one", "two"):
        write_page(find_cases(volumes), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_names_cannot_break_out_of_the_page(volumes, tmp_path):
    """A case, a class or a note that looks like HTML stays text."""
    evil = "</script><script>alert(1)</script><!--"
    record = json.loads((volumes / "a.json").read_text())
    record["volume_note"] = record["model_name"] = evil
    record["labels"] = {"background": 0, evil: 2, "far": 5}
    (volumes / "a.json").write_text(json.dumps(record))
    write_page(find_cases(volumes), tmp_path / "one.html")
    found = Parsed((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert json.loads(found.inline["cases.json"])[0]["note"].startswith(evil)
    assert not any(inline.startswith("alert") for inline in found.inline.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_stand_inside_a_page(name):
    assert not re.search(r"</script|<!--", script(name), re.IGNORECASE)
    assert "innerHTML" not in script(name) or name == "niivue", "texts of records are never read as HTML"


def test_niivue_is_the_file_that_the_notice_names():
    digest = hashlib.sha256((FOLDER / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in text("NIIVUE_NOTICE.txt")


def test_a_page_too_large_for_browsers_is_refused(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 500)
    with pytest.raises(UserError, match="--case"):
        write_page(find_cases(volumes), tmp_path / "one.html")
    assert not (tmp_path / "one.html").exists()


def test_a_layer_that_cannot_be_read_is_left_out_and_named_without_its_folder(volumes, tmp_path):
    (volumes / "a_steps.nii.gz").write_bytes(b"no gzip")
    write_page(find_cases(volumes, only="a"), tmp_path / "one.html")
    found = Parsed((tmp_path / "one.html").read_text(encoding="utf-8"))
    about = json.loads(found.inline["cases.json"])[0]
    assert "steps" not in [layer["key"] for layer in about["layers"]]
    assert any("a_steps.nii.gz" in remark for remark in about["remarks"]) and str(tmp_path) not in found.inline["cases.json"]


def test_the_command_exports_and_says_the_size(volumes, tmp_path):
    done = CliRunner().invoke(app, ["view", str(volumes), "--case", "b", "--export", str(tmp_path / "b.html")])
    assert done.exit_code == 0 and "1 case" in done.output and "MB" in done.output
    assert json.loads(Parsed((tmp_path / "b.html").read_text()).inline["cases.json"])[0]["case"] == "b"
    refused = CliRunner().invoke(app, ["view", str(tmp_path), "--no-browser"])
    assert refused.exit_code == 2 and "no result in this folder" in refused.stderr
