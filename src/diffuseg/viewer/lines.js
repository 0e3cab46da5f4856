"use strict";
/* Borders as thin lines upon what is shown, along the edges of voxels: of masks, plane by plane.
   A plane is { values, size [2] }; a place on the screen is { origin, right, down }, where the middle of its voxel (0, 0) lies and the
   ways to the next voxels, all [x, y] in pixels of the screen. */

/* Closed lines about the voxels of one class: lists of corners [x, y], where voxel (0, 0) reaches from -0.5 to 0.5. */
function borders({ values, size: [width, height] }, value) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && values[x + width * y] === value;
  const across = width + 1;
  const after = new Map(); // corner -> where lines go on from it: two where voxels touch at the corner alone
  const edge = (x, y, dx, dy) => {
    const from = x + across * y;
    after.set(from, [...(after.get(from) ?? []), from + dx + across * dy]);
  };
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      if (!inside(x, y - 1)) edge(x, y, 1, 0);
      if (!inside(x + 1, y)) edge(x + 1, y, 0, 1);
      if (!inside(x, y + 1)) edge(x + 1, y + 1, -1, 0);
      if (!inside(x - 1, y)) edge(x, y + 1, 0, -1);
    }
  }
  const lines = [];
  for (const first of after.keys()) {
    while (after.get(first).length) {
      const line = [];
      for (let corner = first; after.get(corner).length; corner = after.get(corner).pop()) {
        line.push([(corner % across) - 0.5, Math.floor(corner / across) - 0.5]);
      }
      lines.push(line);
    }
  }
  return lines;
}

/* The borders of every class of a plane, as paths in its voxels. */
function paths(plane) {
  return [...new Set(plane.values)].filter((value) => value).map((value) => {
    const path = new Path2D();
    for (const line of borders(plane, value)) {
      line.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
      path.closePath();
    }
    return [value, path];
  });
}

/* Draw them: in the colours of the classes, or dashed in black and white, which shows on every image. */
function stroke(pen, found, { origin, right, down }, style, colours, unit) {
  const onScreen = new DOMMatrix([...right, ...down, ...origin]);
  for (const [value, path] of found) {
    const placed = new Path2D();
    placed.addPath(path, onScreen);
    pen.lineWidth = 2 * unit;
    pen.setLineDash([]);
    pen.strokeStyle = style === "dashes" ? "#000" : `rgb(${colours[value - 1]})`;
    pen.stroke(placed);
    if (style !== "dashes") continue;
    pen.setLineDash([5 * unit, 5 * unit]);
    pen.strokeStyle = "#fff";
    pen.stroke(placed);
  }
  pen.setLineDash([]);
}

/* The plane of a part across an axis of the image, whose grid has `size` voxels: of layers that are thinned out more, the nearest. */
function planeOf(part, size, axis, index) {
  const [u, v] = [0, 1, 2].filter((other) => other !== axis);
  const steps = [1, part.size[0], part.size[0] * part.size[1]];
  const near = (i, along) => steps[along] * Math.floor((i * part.size[along]) / size[along]);
  const first = part.frame * part.size[0] * part.size[1] * part.size[2] + near(index, axis);
  const values = new Uint8Array(size[u] * size[v]);
  for (let y = 0; y < size[v]; y++) {
    for (let x = 0; x < size[u]; x++) values[x + size[u] * y] = part.stored[first + near(x, u) + near(y, v)];
  }
  return { values, size: [size[u], size[v]] };
}

/* The borders of a part in one of its planes, found once. */
function bordersIn(part, size, axis, index) {
  part.found ??= new Map();
  const key = `${axis} ${index}`;
  if (!part.found.has(key)) part.found.set(key, paths(planeOf(part, size, axis, index)));
  return part.found.get(key);
}
