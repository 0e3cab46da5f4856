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


def browse(folder, tmp_path, drive: str, labels=None, remarks: bool = False) -> dict:
    """What a script that is run at the end of the exported page tells; nothing may be loaded, and nothing go wrong.

    Args:
        folder: Of the results.
        tmp_path: Where the page goes.
        drive: JavaScript that puts what it finds into `told`.
        labels: Folder of the truth.
        remarks: Whether the page may have something to remark.
    """
    path = tmp_path / "one.html"
    write_page(find_cases(folder, labels=labels), path)
    start, _, rest = path.read_text(encoding="utf-8").partition("<body>")
    content, _, end = rest.rpartition("</body>")
    path.write_text(f"{start}<body>{WATCH}{content}{DRIVE % drive}</body>{end}", encoding="utf-8")
    command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert not told["blocked"] and not told["errors"] and bool(told["remarks"]) == remarks
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


def test_borders_enclose_the_voxels_of_their_class(pictures, tmp_path):
    """Closed lines along the edges of voxels: the area within is their number, the length that of edges to anything else."""
    planes = [np.random.default_rng(i).integers(0, 3, (7, 9)) for i in range(3)]
    planes += [np.ones((2, 3), int), np.eye(3, dtype=int), np.zeros((2, 2), int)]
    told = browse(
        pictures,
        tmp_path,
        """
        const lines = (rows, value) => borders({ values: rows.flat(), size: [rows[0].length, rows.length] }, value);
        told.lines = PLANES.map((rows) => [1, 2].map((value) => lines(rows, value)));
        """.replace("PLANES", json.dumps([plane.tolist() for plane in planes])),
    )
    for plane, found in zip(planes, told["lines"], strict=True):
        for value, lines in zip((1, 2), found, strict=True):
            inside = np.pad(plane == value, 1)
            edges = sum((inside != np.roll(inside, 1, axis)).sum() for axis in (0, 1))
            assert sum(len(line) for line in lines) == edges
            area = 0.0
            for line in lines:
                here, there = np.array(line), np.roll(line, -1, 0)
                assert (np.abs(there - here).sum(1) == 1).all(), "each step goes along one edge"
                area += (here[:, 0] * there[:, 1] - there[:, 0] * here[:, 1]).sum() / 2
            assert area == (plane == value).sum()


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
        const { canvas } = stage;
        const seen = () => {
          const pixel = (x, y) => [...canvas.getContext("2d").getImageData(10 + 20 * x, 10 + 20 * y, 1, 1).data].slice(0, 3);
          const [columns, rows] = stage.size().map((n) => [...Array(n).keys()]);
          // the middle of the edge between a pixel and the next one to the right, and the middle of each pixel
          const [edges, middles] = [1, 0.5].map((at) => rows.map((y) => columns.map((x) => pixel(x + at, y + 0.5))));
          return { edges, middles };
        };
        stage.place = () => ({ scale: 20, left: 10, top: 10 }); // edges lie between pixels of the screen, which lines fill
        setSmooth(false);
        setWindow(-10, 30); // nothing is black or white by itself
        setOutline("truth", false);
        await chooseLayer("");
        told.plain = seen();
        await setOutline("truth", true);
        told.layers = overlays().map((one) => one.key);
        told.truth = seen();
        await setOutline("mask", true);
        told.both = seen();
        await chooseLayer("prob0");
        told.parts = parts.map((part) => [part.about.key, part.style]);
        """,
        tmp_path / "truth",
    )
    assert "truth" in told["layers"] and told["parts"] == [["prob0", "fill"], ["truth", "dashes"], ["mask", "outline"]]
    seen = {key: {kind: np.array(rows) for kind, rows in told[key].items()} for key in ("plain", "truth", "both")}
    between = lambda labels: labels[:, :-1] != labels[:, 1:]
    for key in ("truth", "both"):
        np.testing.assert_array_equal(seen[key]["middles"], seen["plain"]["middles"])  # lines leave the pixels free
    changed = (seen["truth"]["edges"] != seen["plain"]["edges"]).any(-1)[:, :-1]
    assert not changed[~between(truth)].any() and changed[between(truth)].all()
    shades = seen["truth"]["edges"][:, :-1][between(truth)]
    assert (np.ptp(shades, axis=-1) == 0).all() and {0, 255} <= set(shades[:, 0].tolist())
    classes = {value: [int(OKABE_ITO[i][n : n + 2], 16) for n in (1, 3, 5)] for i, value in enumerate((2, 5))}
    rows, columns = np.nonzero(between(mask))
    for row, column in zip(rows, columns, strict=True):
        neighbours = [classes[value] for value in mask[row, column : column + 2].tolist() if value]
        assert seen["both"]["edges"][row, column].tolist() in neighbours


def test_marks_lie_where_the_voxels_are_seen_and_letters_where_the_body_is(volumes, tmp_path):
    """A single voxel is painted: in every plane its colour fills the place that lines are drawn around."""
    place = [3, 1, 2]
    told = browse(
        volumes,
        tmp_path,
        """
        const place = PLACE;
        const { size, affine } = stage.grid;
        const stored = new Uint8Array(size[0] * size[1] * size[2]);
        stored[place[0] + size[0] * (place[1] + size[1] * place[2])] = 1;
        const mm = affine.map((row) => row[3] + place.reduce((sum, v, i) => sum + row[i] * v, 0));
        stage.nv.scene.crosshairPos = stage.nv.mm2frac(mm, 0, true);
        stage.smooth(false);
        const { gl } = stage.nv;
        told.views = [true, false].map((mirror) => {
          setMirror(mirror);
          stage.show([{ size: [...size.slice(0, 3), 1], stored, kind: "labels", style: "fill", frame: 0 }], [[255, 0, 0]], 1);
          stage.nv.drawScene();
          return stage.tiles().map((tile) => {
            const [left, top, width, height] = tile.frame.map(Math.round);
            const pixels = new Uint8Array(4 * width * height);
            gl.readPixels(left, gl.canvas.height - top - height, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
            const [xs, ys] = [[], []];
            for (let i = 0; i < width * height; i++) {
              if (pixels[4 * i] < 200 || pixels[4 * i + 1] > 50) continue;
              xs.push(left + (i % width));
              ys.push(top + height - 1 - Math.floor(i / width));
            }
            const box = [Math.min(...xs), Math.min(...ys), Math.max(...xs) + 1, Math.max(...ys) + 1];
            return { axis: tile.axis, slice: tile.slice, box, ...tile.place, letters: sides(tile) };
          });
        });
        """.replace("PLACE", json.dumps(place)),
    )
    letters = {2: ["R", "L", "A", "P"], 0: ["R", "L", "S", "I"], 1: ["P", "A", "S", "I"]}  # by the file's axis across the plane
    for mirrored, tiles in zip((True, False), told["views"], strict=True):
        assert sorted(tile["axis"] for tile in tiles) == [0, 1, 2]
        for tile in tiles:
            u, v = np.delete(place, tile["axis"])
            origin, right, down = (np.array(tile[key]) for key in ("origin", "right", "down"))
            corners = [origin + (u + a) * right + (v + b) * down for a in (-0.5, 0.5) for b in (-0.5, 0.5)]
            assert tile["slice"] == place[tile["axis"]]
            np.testing.assert_allclose(tile["box"], [*np.min(corners, 0), *np.max(corners, 0)], atol=1.5)
            west, east, *rest = letters[tile["axis"]]
            turned = not mirrored and tile["axis"] != 1
            assert tile["letters"] == ([east, west] if turned else [west, east]) + rest


def test_no_image_stands_under_the_name_of_another_case(volumes, tmp_path):
    """What of a case cannot be shown is said; its neighbours stay within reach of the keys."""
    (volumes / "b.json").write_text("{}")
    told = browse(
        volumes,
        tmp_path,
        """
        const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        const canvases = () => ["volume", "marks"].map((id) => getComputedStyle($(id)).visibility);
        const seen = () => [$("name").textContent, ...canvases(), $("read").textContent.trim() !== ""];
        told.first = seen();
        await chooseCase(1);
        ["w", "r", "s", "ArrowUp", "+", "1", "0", "v"].forEach(press);
        told.second = seen();
        press("p");
        while ($("stage").className) await new Promise((done) => setTimeout(done, 20));
        told.again = seen();
        """,
        remarks=False,
    )
    assert told["first"] == told["again"] == ["a", "visible", "visible", True]
    assert told["second"] == ["b", "hidden", "hidden", False]
