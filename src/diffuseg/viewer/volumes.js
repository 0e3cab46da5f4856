"use strict";
/* Volumes: three planes and a rendering, by NiiVue. */

const VIEWS = { four: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", render: "3-D" };

const FAINT = 0.12; // opacity of the image in 3-D, so that the layer is seen through it

/* NiiVue has one opacity of the image for planes and 3-D, and tells nobody of a window that is changed by dragging, nor when it has drawn. */
class Planes extends niivue.Niivue {
  imageOpacity = FAINT;
  covered = false; // whether there is something over the image
  windowed = () => {};
  drawn = () => {};
  held = false; // while a case is put together, nothing is drawn: each drawing takes a second where there is no GPU

  updateGLVolume() {
    if (!this.held) super.updateGLVolume();
  }

  drawScene() {
    if (this.held) return;
    super.drawScene();
    this.drawn();
  }

  refreshLayers(volume, number) {
    super.refreshLayers(volume, number);
    if (number === 0) this.windowed(volume.cal_min, volume.cal_max);
    this.renderShader.use(this.gl);
    this.gl.uniform1f(this.renderShader.uniforms.backOpacity, this.covered ? this.imageOpacity : 1);
  }
}

class Volumes {
  /* told: { read(mm, value of the image, its voxel), windowed(low, high) } */
  static async open(canvas, told) {
    const stage = Object.assign(new Volumes(), { marks: $("marks"), lined: [], colours: [] });
    const { SLICE_TYPE, DRAG_MODE, SHOW_RENDER, MULTIPLANAR_TYPE } = niivue;
    stage.types = {
      four: SLICE_TYPE.MULTIPLANAR,
      axial: SLICE_TYPE.AXIAL,
      coronal: SLICE_TYPE.CORONAL,
      sagittal: SLICE_TYPE.SAGITTAL,
      render: SLICE_TYPE.RENDER,
    };
    stage.nv = new Planes({
      backColor: [0, 0, 0, 1],
      crosshairWidth: 0, // cross and letters are drawn by `mark`: so they are seen on every image, and are as thin on each
      isOrientationTextVisible: false,
      isRadiologicalConvention: true,
      isForceMouseClickToVoxelCenters: true, // between two slices, labels would fade into one another
      dragMode: DRAG_MODE.windowing,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      tileMargin: 4,
      dragAndDropEnabled: false, // nothing but the cases of this page
      loadingText: "",
      logLevel: "error",
    });
    stage.nv.onLocationChange = (place) => stage.grid && told.read(place.mm, place.values[0].value, data.voxel(stage.grid, place.mm));
    Object.assign(stage.nv, { windowed: told.windowed, drawn: () => stage.mark() });
    await stage.nv.attachToCanvas(canvas);
    return stage;
  }

  async image(buffer) {
    this.nv.held = true; // until `show`
    while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[this.nv.volumes.length - 1]);
    this.grid = data.read(buffer);
    this.lined = [];
    const { low, high } = this.grid;
    this.nv.covered = false;
    this.nv.addVolume(await this.volume(buffer, { name: "image.nii", colormap: "gray", cal_min: low, cal_max: high }));
    this.nv.addVolume(await this.volume(data.colours(buffer), { name: "colours.nii", opacity: 1 }));
  }

  /* The cross goes to the labelled voxel that is nearest to the middle of all labelled ones. */
  centre(buffer) {
    const { size, stored } = data.read(buffer);
    const place = (i) => [i % size[0], Math.floor(i / size[0]) % size[1], Math.floor(i / (size[0] * size[1]))];
    const sum = [0, 0, 0];
    let count = 0;
    for (let i = 0; i < stored.length; i++) {
      if (!stored[i]) continue;
      place(i).forEach((v, axis) => (sum[axis] += v));
      count++;
    }
    if (!count) return;
    let [best, nearest] = [Infinity, [0, 0, 0]];
    for (let i = 0; i < stored.length; i++) {
      if (!stored[i]) continue;
      const distance = place(i).reduce((total, v, axis) => total + (v - sum[axis] / count) ** 2, 0);
      if (distance < best) [best, nearest] = [distance, place(i)];
    }
    const view = new DataView(buffer);
    const at = (row, column) => view.getFloat32(280 + 16 * row + 4 * column, true);
    const mm = [0, 1, 2].map((row) => nearest.reduce((total, v, column) => total + at(row, column) * v, at(row, 3)));
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm, 0, true);
  }

  /* Colours over the image: NiiVue would give every voxel of a layer the same opacity, so they are painted here. */
  show(parts, colours, opacity) {
    paint(this.nv.volumes[1].img, this.grid.size, parts, colours, opacity);
    Object.assign(this, { lined: parts.filter((part) => part.style !== "fill"), colours });
    Object.assign(this.nv, { covered: parts.length > this.lined.length, held: false });
    this.nv.updateGLVolume();
    this.nv.createOnLocationChange();
  }

  size() {
    return this.grid.size;
  }

  volume(buffer, how) {
    return niivue.NVImage.loadFromUrl({ url: buffer, colorbarVisible: false, ...how });
  }

  window(low, high) {
    Object.assign(this.nv.volumes[0], { cal_min: low, cal_max: high });
    this.nv.updateGLVolume();
  }

  view(name) {
    this.nv.setSliceType(this.types[name]);
  }

  solid(on) {
    this.nv.imageOpacity = on ? 1 : FAINT;
    this.nv.updateGLVolume();
  }

  /* Radiologists look from the feet: the patient's left is on the right. */
  mirror(on) {
    this.nv.setRadiologicalConvention(on);
  }

  smooth(on) {
    this.nv.setInterpolation(!on);
  }

  /* One slice along the axis across the plane that is shown; in all planes, from feet to head. */
  slice(by, view) {
    const axis = { sagittal: 0, coronal: 1 }[view] ?? 2;
    this.nv.moveCrosshairInVox(...[0, 1, 2].map((i) => (i === axis ? by : 0)));
  }

  /* Where the planes lie on the screen: frame [left, top, width, height], axis across them and its slice, the place of the voxels of the
     slice (see lines.js), and `mm`, the world at a point of the screen. */
  tiles() {
    return this.nv.screenSlices.flatMap(({ axCorSag, leftTopWidthHeight: [x, y, width, height] }, number) => {
      if (axCorSag > 2 || !width || !height) return [];
      const [left, wide] = width < 0 ? [x + width, -width] : [x, width];
      const mm = (column, row) => this.nv.frac2mm(this.nv.screenXY2TextureFrac(column, row, number, false), 0, true);
      const corners = [mm(left + 1, y + 1), mm(left + wide - 1, y + 1), mm(left + 1, y + height - 1)].map((at) => data.place(this.grid, at));
      const ways = [1, 2].map((i) => corners[i].map((v, axis) => (v - corners[0][axis]) / ([wide, height][i - 1] - 2)));
      const still = [0, 1, 2].map((axis) => Math.abs(ways[0][axis]) + Math.abs(ways[1][axis]));
      const across = still.indexOf(Math.min(...still));
      const [u, v] = [0, 1, 2].filter((axis) => axis !== across);
      const turn = ways[0][u] * ways[1][v] - ways[1][u] * ways[0][v];
      const right = [ways[1][v] / turn, -ways[0][v] / turn];
      const down = [-ways[1][u] / turn, ways[0][u] / turn];
      const origin = [left, y].map((start, i) => start + 1 - corners[0][u] * right[i] - corners[0][v] * down[i]);
      const slice = Math.min(Math.max(Math.round(corners[0][across]), 0), this.grid.size[across] - 1);
      return [{ frame: [left, y, wide, height], axis: across, slice, place: { origin, right, down }, mm }];
    });
  }

  /* Borders, cross and letters over the planes. */
  mark() {
    if (!this.grid || !this.nv.volumes.length) return;
    const { width, height } = this.nv.gl.canvas;
    Object.assign(this.marks, { width, height });
    const pen = this.marks.getContext("2d");
    const unit = this.nv.uiData.dpr || 1;
    const at = data.place(this.grid, this.nv.frac2mm(this.nv.scene.crosshairPos, 0, true));
    for (const tile of this.tiles()) {
      pen.save();
      pen.beginPath();
      pen.rect(...tile.frame);
      pen.clip();
      for (const part of this.lined) stroke(pen, bordersIn(part, this.grid.size, tile.axis, tile.slice), tile.place, part.style, this.colours, unit);
      cross(pen, tile, at, unit);
      letters(pen, tile, unit);
      pen.restore();
    }
  }
}

/* Two lines that leave the voxel free that they meet at. */
function cross(pen, { frame: [left, top, width, height], axis, place }, at, unit) {
  const [u, v] = at.filter((_, i) => i !== axis);
  const [x, y] = [0, 1].map((i) => place.origin[i] + u * place.right[i] + v * place.down[i]);
  const gap = 7 * unit;
  pen.beginPath();
  for (const [from, to] of [[[left, y], [x - gap, y]], [[x + gap, y], [left + width, y]], [[x, top], [x, y - gap]], [[x, y + gap], [x, top + height]]]) {
    pen.moveTo(...from);
    pen.lineTo(...to);
  }
  for (const [colour, thick] of [["#0008", 3], ["#fffc", 1]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = thick * unit;
    pen.stroke();
  }
}

/* The letter of the patient's side that one comes to: x grows to the right, y to the front, z to the head. */
function sideOf(from, to) {
  const way = [0, 1, 2].map((i) => to[i] - from[i]);
  const most = way.reduce((best, v, i) => (Math.abs(v) > Math.abs(way[best]) ? i : best), 0);
  return ["LR", "PA", "IS"][most][way[most] > 0 ? 1 : 0];
}

function sides({ frame: [left, top, width, height], mm }) {
  const [west, east, north, south] = [[1, height / 2], [width - 1, height / 2], [width / 2, 1], [width / 2, height - 1]].map(([x, y]) => mm(left + x, top + y));
  return [sideOf(east, west), sideOf(west, east), sideOf(south, north), sideOf(north, south)];
}

function letters(pen, tile, unit) {
  const [left, top, width, height] = tile.frame;
  const far = 10 * unit;
  const places = [[left + far, top + height / 2], [left + width - far, top + height / 2], [left + width / 2, top + far], [left + width / 2, top + height - far]];
  Object.assign(pen, { font: `600 ${15 * unit}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle", lineJoin: "round" });
  Object.assign(pen, { lineWidth: 4 * unit, strokeStyle: "#000", fillStyle: "#ffd933" });
  sides(tile).forEach((letter, i) => {
    pen.strokeText(letter, ...places[i]);
    pen.fillText(letter, ...places[i]);
  });
}
