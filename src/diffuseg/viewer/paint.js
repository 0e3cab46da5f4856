"use strict";
/* A layer as colours: one [r, g, b, a] for each voxel of the image, the same for volumes and pictures.
   A part is what `data.read` gives of a layer, with kind, style ("fill", "outline", "dashes"), frame, and share, where its scale ends. */

function paint(out, size, parts, colours, opacity) {
  out.fill(0);
  for (const part of parts) {
    if (part.style === "fill") fill(out, onGrid(part, size), shades(part, colours, opacity));
  }
  return out;
}

/* The values of a frame at each voxel of the image; layers of many frames may be thinned out more than the image. */
function onGrid(part, size) {
  const [nx, ny, nz] = size;
  const [mx, my, mz] = part.size;
  const first = part.frame * mx * my * mz;
  if (nx === mx && ny === my && nz === mz) return part.stored.subarray(first, first + mx * my * mz);
  const along = (n, m) => Int32Array.from({ length: n }, (_, i) => Math.floor((i * m) / n));
  const [xs, ys, zs] = [along(nx, mx), along(ny, my), along(nz, mz)];
  const values = new Uint8Array(nx * ny * nz);
  let i = 0;
  for (let z = 0; z < nz; z++) {
    for (let y = 0; y < ny; y++) {
      const row = first + mx * (ys[y] + my * zs[z]);
      for (let x = 0; x < nx; x++) values[i++] = part.stored[row + xs[x]];
    }
  }
  return values;
}

/* A colour for each of the 256 values that a layer may hold. */
function shades(part, colours, opacity) {
  const table = new Uint8ClampedArray(1024);
  for (let value = 0; value < 256; value++) {
    const known = part.kind === "labels" ? [...(colours[value - 1] ?? [0, 0, 0]), value ? 255 : 0] : SHADES[Math.min(Math.round(value / part.share), 255)];
    table.set([known[0], known[1], known[2], known[3] * opacity], 4 * value);
  }
  return table;
}

function fill(out, values, table) {
  for (let i = 0; i < values.length; i++) {
    const from = 4 * values[i];
    for (let c = 0; c < 4; c++) out[4 * i + c] = table[from + c];
  }
}
