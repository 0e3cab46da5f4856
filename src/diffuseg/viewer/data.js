"use strict";
/* Where cases and voxels come from: the server of this page, or the page itself where it was exported.
   Every layer is a plain NIfTI-1 file that this program wrote: little-endian, uint8 or int16. */

const data = {
  async cases() {
    const own = document.getElementById("cases.json");
    return own ? JSON.parse(own.textContent) : (await data.ask("cases.json")).json();
  },

  async layer(number, key) {
    const own = document.getElementById(`case/${number}/${key}`);
    if (!own) return (await data.ask(`case/${number}/${key}`)).arrayBuffer();
    const packed = Uint8Array.from(atob(own.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  },

  async ask(address) {
    const answer = await fetch(address).catch(() => {
      throw new Error("Nothing answers any more: `diffuseg view` has ended. Start it again, and open the address that it names.");
    });
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  },

  /* size [4] (the fourth are frames), stored values, value = slope * stored + inter, window [low, high], affine, spacing, remark */
  read(buffer) {
    const view = new DataView(buffer);
    const axes = view.getInt16(40, true);
    const size = [1, 2, 3, 4].map((axis) => (axis <= axes ? view.getInt16(40 + 2 * axis, true) : 1));
    const Values = view.getInt16(70, true) === 2 ? Uint8Array : Int16Array;
    const number = (offset) => view.getFloat32(offset, true);
    const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => number(280 + 16 * row + 4 * column)));
    return {
      size,
      stored: new Values(buffer, 352),
      slope: number(112),
      inter: number(116),
      low: number(128),
      high: number(124),
      affine,
      spacing: [0, 1, 2].map((column) => Math.hypot(...affine.map((row) => row[column]))),
      remark: new TextDecoder().decode(new Uint8Array(buffer, 148, 80)).split("\0")[0],
    };
  },

  /* The same grid with room for a colour, [r, g, b, a], at each voxel. */
  colours(buffer) {
    const { size } = data.read(buffer);
    const made = new ArrayBuffer(352 + 4 * size[0] * size[1] * size[2]);
    new Uint8Array(made).set(new Uint8Array(buffer, 0, 352));
    const view = new DataView(made);
    [3, ...size.slice(0, 3), 1].forEach((value, i) => view.setInt16(40 + 2 * i, value, true));
    view.setInt16(70, 2304, true); // RGBA32
    view.setInt16(72, 32, true);
    [[112, 1], [116, 0], [124, 0], [128, 0]].forEach(([offset, value]) => view.setFloat32(offset, value, true));
    return made;
  },

  /* A place in mm in voxels, whose middles are whole numbers. */
  place({ affine }, mm) {
    const [a, b, c] = [0, 1, 2].map((column) => affine.map((row) => row[column]));
    const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    const dot = (u, v) => u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
    const from = affine.map((row, i) => mm[i] - row[3]);
    const volume = dot(a, cross(b, c));
    return [cross(b, c), cross(c, a), cross(a, b)].map((normal) => dot(normal, from) / volume);
  },

  /* The voxel whose middle is nearest to a place in mm. */
  voxel(grid, mm) {
    return data.place(grid, mm).map((v, axis) => Math.min(Math.max(Math.round(v), 0), grid.size[axis] - 1));
  },

  /* The same grid without anything on it, for cases whose image was not found. */
  empty(buffer) {
    const blank = buffer.slice(0);
    new Uint8Array(blank, 352).fill(0);
    return blank;
  },
};

/* Viridis: equally bright steps for all common colour vision, and in grey. */
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const [CLEAR, FULL] = [0.05, 0.4]; // of the scale: what lies below is not shown, so that no film covers the image; it is full from there on

function rgb(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

/* Colour [r, g, b, a] in 0..255 of a share of the scale. */
function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [a, b] = [rgb(VIRIDIS[i]), rgb(VIRIDIS[i + 1])];
  return [...a.map((v, c) => v + (b[c] - v) * (place - i)), 255 * Math.min(Math.max((share - CLEAR) / (FULL - CLEAR), 0), 1) ** 2];
}

const SHADES = [...Array(256).keys()].map((i) => shade(i / 255));
