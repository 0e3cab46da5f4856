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


def browse(folder, tmp_path, drive: str) -> dict:
    """What a script that is run at the end of the exported page tells; nothing may be loaded, and nothing go wrong."""
    path = tmp_path / "one.html"
    write_page(find_cases(folder), path)
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
    """NiiVue finds at each place in mm what the files have there: image, mask, and every draw."""
    places = [(i, j, k) for i in (0, 2, 5) for j in (0, 3) for k in (1, 3)]
    told = browse(
        volumes,
        tmp_path,
        """
        const places = %s;
        const values = () => places.map((mm) => {
          stage.nv.scene.crosshairPos = stage.nv.mm2frac(mm, 0, true);
          let found;
          const before = stage.nv.onLocationChange;
          stage.nv.onLocationChange = (place) => (found = place.values.map((value) => value.value));
          stage.nv.createOnLocationChange();
          stage.nv.onLocationChange = before;
          return found;
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
