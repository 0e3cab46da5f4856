"""The exported page in a real browser, without a window: what it paints and reads is what the files hold."""

import html
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import PIL.Image
import pytest

from diffuseg.data.io import read_image, read_mask
from diffuseg.reports.figures import OKABE_ITO
from diffuseg.viewer.cases import find_cases
from diffuseg.viewer.page import write_page
from diffuseg.viewer.server import doorway, open_server
from tests.viewer.conftest import AFFINE, LABELS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--no-first-run", "--use-gl=angle", "--use-angle=swiftshader")
OPTIONS += ("--enable-unsafe-swiftshader", "--virtual-time-budget=60000", "--window-size=1200,900", "--dump-dom")
WATCH = """<script>const told = { blocked: [], errors: [] };
document.addEventListener("securitypolicyviolation", (event) => told.blocked.push(event.blockedURI));
window.addEventListener("error", (event) => told.errors.push(event.message));</script>"""
DRIVE = """<script>(async () => {
while (!document.body.dataset.ready) await new Promise((done) => setTimeout(done, 20));
try { await (async () => { %s })(); } catch (fault) { told.errors.push(String(fault)); }
told.loaded = performance.getEntriesByType("resource").map((one) => one.name.slice(0, 40));
told.remarks = $("remarks").textContent;
document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: JSON.stringify(told) }));
})();</script>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium here")]


def browse(folder, tmp_path, drive: str, labels=None) -> dict:
    """What a script that is run at the end of the exported page tells; nothing may be loaded, and nothing go wrong."""
    path = tmp_path / "one.html"
    write_page(find_cases(folder, labels=labels), path)
    start, _, rest = path.read_text(encoding="utf-8").partition("<body>")
    content, _, end = rest.rpartition("</body>")
    path.write_text(f"{start}<body>{WATCH}{content}{DRIVE % drive}</body>{end}", encoding="utf-8")
    command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert not told["blocked"] and not told["errors"] and not told["remarks"]
    assert all(name.startswith(("data:", "blob:")) for name in told["loaded"])
    return told


def test_the_file_that_a_browser_is_started_with_leads_to_the_page(pictures, tmp_path):
    server, address = open_server(find_cases(pictures))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with doorway(address) as door:
        command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", door]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    server.shutdown()
    server.server_close()
    thread.join()
    assert "For research only" in done.stdout and '<h1 id="name">p</h1>' in done.stdout


def test_a_picture_is_painted_as_it_is(pictures, tmp_path):
    told = browse(
        pictures,
        tmp_path,
        """
        const pixels = () => [...stage.paper.getContext("2d").getImageData(0, 0, stage.paper.width, stage.paper.height).data];
        setOpacity(1);
        await chooseLayer("");
        told.plain = pixels();
        await chooseLayer("draws");
        told.draws = [0, 1, 2].map((i) => (setFrame(i), pixels()));
        await chooseLayer("entropy");
        told.entropy = pixels();
        """,
    )
    data = np.asarray(PIL.Image.open(pictures.parent / "p.png")).astype(float)
    shape = (*data.shape, 4)
    plain = np.array(told["plain"]).reshape(shape)[..., 0]
    assert np.corrcoef(plain.ravel(), data.ravel())[0, 1] > 0.999 and plain.min() == 0 and plain.max() == 255
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in OKABE_ITO])
    for number, draw in enumerate(read_image(pictures / "p_draws.tif").data):
        painted = np.array(told["draws"][number]).reshape(shape)[..., :3]
        for i, value in enumerate(sorted(LABELS.values())):
            expected = plain[draw == value][:, None] if value == 0 else colours[i - 1]
            here = painted[draw == value]
            np.testing.assert_array_equal(here, np.broadcast_to(expected, here.shape))
    bright = np.array(told["entropy"]).reshape(shape)[..., 1][plain == 0]
    entropy = np.asarray(PIL.Image.open(pictures / "p_entropy.png")).astype(float)[plain == 0]
    order = np.argsort(entropy)
    assert (np.diff(bright[order]) >= -2).all(), "the more uncertain, the brighter"


def test_a_volume_is_read_where_it_lies_in_the_world(volumes, tmp_path):
    """The page finds at each place in mm what the files have there: image, mask, and every draw."""
    places = [(i, j, k) for i in (0, 2, 5) for j in (0, 3) for k in (1, 3)]
    told = browse(
        volumes,
        tmp_path,
        """
        const places = %s;
        const values = () => places.map((mm) => {
          stage.nv.scene.crosshairPos = stage.nv.mm2frac(mm, 0, true);
          stage.nv.createOnLocationChange();
          return [last[1], valueOf(filled(), last[2])];
        });
        await chooseCase(1);
        told.mask = values();
        await chooseLayer("draws");
        told.draws = [0, 1, 2].map((i) => (setFrame(i), values()));
        stage.nv.drawScene();
        const gl = stage.nv.gl, pixels = new Uint8Array(4 * gl.canvas.width * gl.canvas.height);
        gl.readPixels(0, 0, gl.canvas.width, gl.canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
        told.bright = pixels.filter((value, i) => i %% 4 < 3 && value > 60).length / pixels.length;
        """
        % [(AFFINE @ [*place, 1])[:3].tolist() for place in places],
    )
    image = read_image(volumes.parent / "scans" / "b_0000.nii.gz").data[0]
    index = lambda mask: np.searchsorted(sorted(LABELS.values()), mask)
    mask, draws = index(read_mask(volumes / "b.nii.gz").data[0]), index(read_image(volumes / "b_draws.nii.gz").data)
    for number, place in enumerate(places):
        assert told["mask"][number] == [image[place], mask[place]]
        assert [frame[number][1] for frame in told["draws"]] == draws[(slice(None), *place)].tolist()
    assert told["bright"] > 0.05, "something is on the screen"


def test_what_is_near_zero_does_not_cover_the_image(pictures, tmp_path):
    shape = np.asarray(PIL.Image.open(pictures / "p_entropy.png")).shape
    ramp = np.linspace(0, 65535, shape[0] * shape[1]).astype(np.uint16).reshape(shape)
    PIL.Image.fromarray(ramp).save(pictures / "p_entropy.png")
    told = browse(
        pictures,
        tmp_path,
        """
        const alphas = () => [...stage.over].filter((_, i) => i % 4 === 3);
        setOpacity(1);
        await chooseLayer("entropy");
        told.alphas = alphas();
        setTop(0.5);
        told.half = alphas();
        """,
    )
    share = ramp.ravel() / 65535
    alphas = np.array(told["alphas"])
    assert (alphas[share < 0.05] == 0).all() and (alphas[share > 0.41] == 255).all()
    assert (np.diff(alphas) >= 0).all() and len(set(told["alphas"])) > 50, "it rises with the value"
    assert (np.array(told["half"])[share < 0.024] == 0).all() and (np.array(told["half"])[share > 0.21] == 255).all()


def test_keys_work_wherever_the_focus_is_and_the_list_of_them_is_in_view(pictures, tmp_path):
    told = browse(
        pictures,
        tmp_path,
        """
        const press = (key) => {
          const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
          document.activeElement.dispatchEvent(event);
          return event.defaultPrevented;
        };
        await chooseLayer("draws");
        const places = [document.querySelector("input[value=draws]"), document.querySelector("nav button"), $("picture")];
        told.turned = places.map((place) => {
          place.focus();
          return [document.activeElement === place, press("ArrowRight"), state.key, state.frames.draws];
        });
        places[0].focus();
        told.played = [press(" "), player !== null, press(" "), player === null];
        press("?");
        const { top, bottom } = $("keys").getBoundingClientRect();
        const named = $("keys").textContent.includes("play through them");
        told.help = [$("keys").open, top >= 0 && bottom <= window.innerHeight, named];
        press("?");
        told.closed = !$("keys").open;
        """,
    )
    assert told["turned"] == [[True, True, "draws", (i + 1) % 3] for i in range(3)]
    assert told["played"] == [True] * 4 and told["help"] == [True] * 3 and told["closed"]


def test_outlines_of_truth_and_mask_lie_over_another_layer(pictures, tmp_path):
    """The border of the truth is black and white; that of the mask, above it, has the colours of its classes."""
    (tmp_path / "truth").mkdir()
    mask = read_mask(pictures / "p.png").data[0]
    truth = np.zeros_like(mask)
    truth[2:10, 4:15] = 5
    PIL.Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "truth" / "p.png")
    told = browse(
        pictures,
        tmp_path,
        """
        await chooseLayer("");
        told.layers = overlays().map((one) => one.key);
        told.truth = [...stage.over];
        await setOutline("mask", true);
        told.both = [...stage.over];
        await chooseLayer("prob0");
        told.parts = parts.map((part) => [part.about.key, part.style]);
        """,
        tmp_path / "truth",
    )
    assert "truth" in told["layers"] and told["parts"] == [["prob0", "fill"], ["truth", "dashes"], ["mask", "outline"]]
    shown = np.array(told["truth"]).reshape(*mask.shape, 4)
    border = np.zeros(mask.shape, bool)
    border[2:10, 4:15] = True
    border[3:9, 5:14] = False
    np.testing.assert_array_equal(shown[..., 3] > 0, border)
    assert {tuple(pixel) for pixel in shown[border]} == {(0, 0, 0, 255), (255, 255, 255, 255)}
    both = np.array(told["both"]).reshape(*mask.shape, 4)
    padded = np.pad(mask, 1, constant_values=-1)
    neighbours = [
        padded[1 + a : 1 + a + mask.shape[0], 1 + b : 1 + b + mask.shape[1]] for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    edge = (mask != 0) & np.any([other != mask for other in neighbours], axis=0)
    for number, value in enumerate(sorted(LABELS.values())[1:]):
        colour = [int(OKABE_ITO[number][i : i + 2], 16) for i in (1, 3, 5)]
        here = both[edge & (mask == value)]
        np.testing.assert_array_equal(here, np.broadcast_to([*colour, 255], here.shape))
    np.testing.assert_array_equal(both[..., 3] > 0, border | edge)
