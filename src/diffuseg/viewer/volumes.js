"use strict";
/* Volumes: three planes and a rendering, by NiiVue. */

const VIEWS = { four: "Planes and 3-D", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", render: "3-D" };

const FAINT = 0.12; // opacity of the image in 3-D, so that the layer is seen through it

/* NiiVue has one opacity of the image for planes and 3-D, and tells nobody of a window that is changed by dragging. */
class Planes extends niivue.Niivue {
  imageOpacity = FAINT;
  covered = false; // whether there is something over the image
  windowed = () => {};

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
    const stage = new Volumes();
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
      crosshairColor: [1, 1, 1, 0.8],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      isForceMouseClickToVoxelCenters: true, // between two slices, labels would fade into one another
      fontColor: [1, 0.85, 0.2, 1],
      fontMinPx: 20,
      dragMode: DRAG_MODE.windowing,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      tileMargin: 4,
      dragAndDropEnabled: false, // nothing but the cases of this page
      loadingText: "",
      logLevel: "error",
    });
    stage.nv.onLocationChange = (place) => stage.grid && told.read(place.mm, place.values[0].value, data.voxel(stage.grid, place.mm));
    stage.nv.windowed = told.windowed;
    await stage.nv.attachToCanvas(canvas);
    return stage;
  }

  async image(buffer) {
    while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[this.nv.volumes.length - 1]);
    this.grid = data.read(buffer);
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
    this.nv.covered = parts.length > 0;
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
  mirror() {
    this.nv.setRadiologicalConvention(!this.nv.opts.isRadiologicalConvention);
  }

  smooth(on) {
    this.nv.setInterpolation(!on);
  }

  /* One slice along the axis across the plane that is shown; in all planes, from feet to head. */
  slice(by, view) {
    const axis = { sagittal: 0, coronal: 1 }[view] ?? 2;
    this.nv.moveCrosshairInVox(...[0, 1, 2].map((i) => (i === axis ? by : 0)));
  }
}
