"use strict";
/* Pictures: a plain canvas. The wheel enlarges, dragging moves, dragging with the right button changes the window. */

class Pictures {
  static async open(canvas, told) {
    const stage = new Pictures();
    Object.assign(stage, { canvas, told, zoom: 1, shift: [0, 0], over: null, lined: [], colours: [], smoothed: true });
    stage.paper = document.createElement("canvas");
    new ResizeObserver(() => stage.draw()).observe(canvas);
    stage.listen();
    return stage;
  }

  async image(buffer) {
    this.picture = data.read(buffer);
    Object.assign(this, { low: this.picture.low, high: this.picture.high, zoom: 1, shift: [0, 0], over: null, lined: [] });
    this.paint();
  }

  show(parts, colours, opacity) {
    const [width, height] = this.picture.size;
    this.over = paint(new Uint8ClampedArray(4 * width * height), [width, height, 1], parts, colours, opacity);
    Object.assign(this, { lined: parts.filter((part) => part.style !== "fill"), colours });
    this.paint();
  }

  size() {
    return this.picture.size;
  }

  window(low, high) {
    Object.assign(this, { low, high });
    this.paint();
  }

  smooth(on) {
    this.smoothed = on;
    this.draw();
  }

  centre() {} // what follows is for volumes alone

  view() {}

  solid() {}

  mirror() {}

  slice() {}

  value(of, pixel, frame = 0) {
    const count = of.size[0] * of.size[1];
    return of.slope * of.stored[frame * count + pixel] + of.inter;
  }

  /* Image and what lies over it, pixel by pixel, on a canvas of the picture's own size. */
  paint() {
    const [width, height, , planes] = this.picture.size;
    const pixels = new ImageData(width, height);
    const span = Math.max(this.high - this.low, 1e-12);
    for (let i = 0; i < width * height; i++) {
      const share = this.over ? this.over[4 * i + 3] / 255 : 0;
      for (let c = 0; c < 3; c++) {
        const grey = (255 * (this.value(this.picture, i, planes === 3 ? c : 0) - this.low)) / span;
        pixels.data[4 * i + c] = (1 - share) * Math.min(Math.max(grey, 0), 255) + (share ? share * this.over[4 * i + c] : 0);
      }
      pixels.data[4 * i + 3] = 255;
    }
    Object.assign(this.paper, { width, height });
    this.paper.getContext("2d").putImageData(pixels, 0, 0);
    this.draw();
  }

  /* Where the picture lies on the screen, in pixels of the screen. */
  place() {
    const [width, height] = this.picture.size;
    const scale = this.zoom * Math.min(this.canvas.width / width, this.canvas.height / height);
    const left = (this.canvas.width - scale * width) / 2 + this.shift[0];
    return { scale, left, top: (this.canvas.height - scale * height) / 2 + this.shift[1] };
  }

  draw() {
    if (!this.picture) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    const pen = this.canvas.getContext("2d");
    const { scale, left, top } = this.place();
    pen.imageSmoothingEnabled = this.smoothed;
    pen.drawImage(this.paper, left, top, scale * this.paper.width, scale * this.paper.height);
    const place = { origin: [left + scale / 2, top + scale / 2], right: [scale, 0], down: [0, scale] };
    for (const part of this.lined) stroke(pen, bordersIn(part, this.picture.size, 2, 0), place, part.style, this.colours, ratio);
  }

  read(event) {
    const { scale, left, top } = this.place();
    const ratio = window.devicePixelRatio || 1;
    const x = Math.floor((event.offsetX * ratio - left) / scale);
    const y = Math.floor((event.offsetY * ratio - top) / scale);
    const [width, height, , planes] = this.picture.size;
    if (x < 0 || y < 0 || x >= width || y >= height) return this.told.read(null);
    const i = y * width + x;
    const image = planes === 3 ? [0, 1, 2].map((c) => this.value(this.picture, i, c)) : this.value(this.picture, i);
    this.told.read([x, y], image, [x, y, 0]);
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const zoom = Math.min(Math.max(this.zoom * Math.exp(-event.deltaY / 500), 1), 40);
      this.shift = this.shift.map((s) => (zoom === 1 ? 0 : (s * zoom) / this.zoom));
      this.zoom = zoom;
      this.draw();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => {
      Object.assign(this, { zoom: 1, shift: [0, 0] });
      this.draw();
    });
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!this.picture) return;
      if (event.buttons & 2) this.drag(event);
      else if (event.buttons & 1) {
        const ratio = window.devicePixelRatio || 1;
        this.shift = [this.shift[0] + event.movementX * ratio, this.shift[1] + event.movementY * ratio];
        this.draw();
      }
      this.read(event);
    });
  }

  drag(event) {
    const unit = (this.picture.high - this.picture.low) / 300;
    const middle = (this.low + this.high) / 2 - event.movementY * unit;
    const half = Math.max((this.high - this.low) / 2 + (event.movementX * unit) / 2, unit);
    this.told.windowed(middle - half, middle + half);
    this.window(middle - half, middle + half);
  }
}
