"use strict";
/* Playing through draws and steps, and the keyboard. */

let player = null;

function pause() {
  clearInterval(player);
  player = null;
  $("play").setAttribute("aria-pressed", false);
  $("play").textContent = "Play";
}

function play() {
  if (player) return pause();
  if ((layer()?.frames.length ?? 0) < 2) return;
  player = setInterval(() => turn(1), 700);
  $("play").setAttribute("aria-pressed", true);
  $("play").textContent = "Stop";
}

function turn(by) {
  const one = layer();
  if (one && one.frames.length > 1) setFrame(((state.frames[one.key] ?? 0) + by + one.frames.length) % one.frames.length);
}

function nextView() {
  const names = Object.keys(VIEWS);
  setView(names[(names.indexOf(state.view) + 1) % names.length]);
}

function turnOutline(key) {
  if ($(`outline-${key}`)) setOutline(key, !state.outlines[key]);
}

function toggleHelp() {
  if ($("keys").open) $("keys").close();
  else $("keys").showModal();
}

const KEYS = [
  ["n, p", "next, previous case", { n: () => chooseCase(state.number + 1), p: () => chooseCase(state.number - 1) }],
  ["1 to 9, 0", "layer, none", null],
  ["m, t", "outline of the mask, of the truth", { m: () => turnOutline("mask"), t: () => turnOutline("truth") }],
  ["←, →", "previous, next draw or step", { ArrowLeft: () => turn(-1), ArrowRight: () => turn(1) }],
  ["space", "play through them, stop", { " ": play }],
  ["↑, ↓", "next, previous slice", { ArrowUp: () => stage?.slice(1, state.view), ArrowDown: () => stage?.slice(-1, state.view) }],
  ["+, -", "opacity", { "+": () => setOpacity(state.opacity + 0.1), "-": () => setOpacity(state.opacity - 0.1) }],
  ["v", "view: all, one plane, 3-D", { v: nextView }],
  ["r", "left of the patient on the right, or on the left", { r: () => setMirror(!state.mirror) }],
  ["i", "image in 3-D solid, or faint", { i: () => setSolid(!state.solid) }],
  ["s", "smooth, or voxels as they are", { s: () => setSmooth(!state.smooth) }],
  ["w", "reset the window", { w: () => resetWindow() }],
  ["?", "this list", { "?": toggleHelp }],
  ["click, drag", "move the cross; turn the 3-D; move a picture", null],
  ["right drag", "level and window of the image", null],
  ["wheel", "slices; enlarge the 3-D, or a picture", null],
  ["double click", "picture: the whole of it", null],
];
const ACTIONS = Object.assign({}, ...KEYS.map(([, , actions]) => actions));

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  // only what was reached with Tab has keys of its own: a slider its arrows, a box and a button the space; a choice of layers none
  const native = { range: ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"], checkbox: [" "], button: [" "] };
  if (native[event.target.type]?.includes(event.key) || (event.target.tagName === "SUMMARY" && event.key === " ")) return;
  const choice = /^[0-9]$/.test(event.key) ? [...overlays().map((one) => one.key)][Number(event.key) - 1] ?? (event.key === "0" ? "" : null) : null;
  const action = ACTIONS[event.key] ?? (choice !== null ? () => chooseLayer(choice) : null);
  event.stopPropagation(); // the stage has keys of its own, which this list does not name
  if (!action) return;
  event.preventDefault();
  action();
}
