"use strict";
/* The page: which case, which layer, how it is shown. What is drawn, and how, is the business of a stage. */

const $ = (id) => document.getElementById(id);
const state = { cases: [], number: -1, key: "mask", frames: {}, opacity: 0.6, tops: {}, view: "four", smooth: true, solid: false, mirror: true, window: null, outlines: { mask: false, truth: true } };
let stages = {}; // "volume" and "picture", opened when they are first needed
let stage = null;
let parts = []; // what lies over the image, the lowest first
let kept = new Map(); // the layers of the case that were loaded
let last = []; // place, value of the image and voxel that are read
let loading = 0; // counts choices, so that what comes late is not drawn over what was chosen after it

const current = () => state.cases[state.number];
const layer = () => current().layers.find((one) => one.key === state.key) ?? null;
const overlays = () => current().layers.filter((one) => one.kind !== "image");

function element(kind, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(kind), attributes);
  made.append(text);
  return made;
}

function digits(value) {
  if (value === null || value === undefined) return "-";
  return Math.abs(value) >= 1000 ? Math.round(value).toString() : Number(value.toPrecision(3)).toString();
}

async function openStage(kind) {
  if (kind === "volume" && !document.createElement("canvas").getContext("webgl2")) {
    throw new Error("Volumes cannot be shown: this browser offers no WebGL 2.");
  }
  $("volume").hidden = kind !== "volume";
  $("marks").hidden = kind !== "volume";
  $("picture").hidden = kind !== "picture";
  const told = { read: (...where) => ((last = where), showRead()), windowed: (low, high) => showWindow(low, high) };
  stages[kind] ??= await { volume: Volumes, picture: Pictures }[kind].open($(kind), told);
  return stages[kind];
}

/* --- a case -------------------------------------------------------------------------------------------------- */

async function chooseCase(number) {
  if (number < 0 || number >= state.cases.length) return;
  pause();
  const mine = ++loading;
  state.number = number;
  parts = [];
  last = [];
  kept = new Map();
  state.window = null;
  stage = null;
  showRead();
  $("stage").className = "blank"; // nothing of another case stands under the name of this one
  const one = current();
  $("name").textContent = one.case;
  document.title = `${one.case} - diffuseg view`;
  [...$("cases").querySelectorAll("button")].forEach((button, i) => button.setAttribute("aria-current", i === number));
  $("cases").querySelectorAll("button")[number].scrollIntoView({ block: "nearest" });
  $("remarks").replaceChildren(...one.remarks.map((text) => element("li", text)));
  showRecord(one);
  if (!overlays().some((found) => found.key === state.key)) state.key = overlays()[0]?.key ?? "";
  showLayers();
  $("frames").hidden = true;
  for (const only of [...$("views").children, $("solid").parentElement, $("mirror").parentElement]) only.hidden = one.picture;
  if (one.layers.length) await busy(mine, () => showCase(one, number, mine));
}

async function showCase(one, number, mine) {
  const buffer = await loadImage(one, number);
  const mask = overlays().some((found) => found.key === "mask") ? await loaded("mask").catch(() => null) : null; // drawLayer says why
  if (mine !== loading) return;
  const opened = await openStage(one.picture ? "picture" : "volume");
  await opened.image(buffer);
  if (mine !== loading) return;
  stage = opened;
  if (mask) stage.centre(mask);
  const { low, high, slope, inter, remark, stored } = data.read(buffer);
  const { least, most } = range(stored, slope, inter);
  state.window = { low, high, least: Math.min(least, low), most: Math.max(most, high) };
  if (remark) addRemark(remark);
  setWindow(low, high);
  stage.smooth(state.smooth);
  stage.view(state.view);
  await drawLayer(mine);
  if (mine === loading) $("stage").classList.remove("blank");
}

async function loadImage(one, number) {
  if (one.layers.some((found) => found.key === "image")) {
    try {
      return await data.layer(number, "image");
    } catch (fault) {
      addRemark(fault.message);
    }
  }
  return data.empty(await data.layer(number, overlays()[0].key));
}

function range(stored, slope, inter) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of stored) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return { least: slope * low + inter, most: Math.max(slope * high + inter, slope * low + inter + slope) };
}

async function busy(mine, work) {
  $("stage").classList.add("busy");
  try {
    await work();
  } catch (fault) {
    addRemark(fault.message);
  }
  if (mine === loading) $("stage").classList.remove("busy");
}

function addRemark(text) {
  if (![...$("remarks").children].some((item) => item.textContent === text)) $("remarks").append(element("li", text));
}

function showRecord(one) {
  const text = (ml) => (one.unit === "ml" ? ml.toFixed(3) : Math.round(one.scale * ml).toString());
  const rows = one.volumes.map(([name, ml, low, high, raw]) => {
    const row = element("tr");
    const between = low === null ? "-" : `${text(low)} to ${text(high)}${raw ? " raw" : ""}`;
    row.append(element("td", name), element("td", text(ml)), element("td", between));
    return row;
  });
  $("sizes").textContent = one.unit === "ml" ? "Volumes" : "Areas";
  $("unit").textContent = one.unit;
  $("volumes").tBodies[0].replaceChildren(...rows);
  $("note").textContent = one.note ? `Interval: ${one.note}.` : "";
  $("about").replaceChildren(...Object.entries(one.about).flatMap(([key, text]) => [element("dt", key), element("dd", text)]));
}

/* --- a layer ------------------------------------------------------------------------------------------------- */

function showLayers() {
  const choices = [...overlays().map((one) => [one.key, one.title]), ["", "None"]];
  const labels = choices.map(([key, title], i) => {
    const label = element("label");
    const radio = element("input", "", { type: "radio", name: "layer", value: key, checked: key === state.key });
    radio.addEventListener("change", () => chooseLayer(key));
    label.append(radio, title, element("kbd", key ? String(i + 1) : "0"));
    return label;
  });
  $("layers").replaceChildren(element("legend", "Layer"), ...labels);
  const outlines = [["mask", "mask", "m"], ["truth", "truth (dashed)", "t"]];
  const boxes = outlines.filter(([key]) => overlays().some((one) => one.key === key)).map(([key, title, letter]) => {
    const label = element("label");
    const box = element("input", "", { type: "checkbox", id: `outline-${key}`, checked: state.outlines[key] });
    box.addEventListener("change", () => setOutline(key, box.checked));
    label.append(box, title, element("kbd", letter));
    return label;
  });
  $("outlines").replaceChildren(element("legend", "Outline"), ...boxes);
  $("outlines").hidden = !boxes.length;
}

async function chooseLayer(key) {
  pause();
  state.key = key;
  [...document.getElementsByName("layer")].forEach((radio) => (radio.checked = radio.value === key));
  const mine = ++loading;
  await busy(mine, () => drawLayer(mine));
}

async function loaded(key) {
  const { number } = state;
  const before = kept;
  if (!before.has(key)) before.set(key, await data.layer(number, key));
  return before.get(key);
}

/* Outlines lie over the layer, that of the prediction over that of the truth: where only its colour is seen, both agree. */
function outlined() {
  const styles = { truth: "dashes", mask: "outline" };
  return Object.keys(styles).filter((key) => state.outlines[key] && overlays().some((one) => one.key === key)).map((key) => [key, styles[key]]);
}

function setOutline(key, on) {
  state.outlines[key] = on;
  $(`outline-${key}`).checked = on;
  const mine = ++loading;
  return busy(mine, () => drawLayer(mine));
}

function draw() {
  stage?.show(parts, current().classes.map((one) => rgb(one.colour)), state.opacity);
}

async function drawLayer(mine) {
  const one = layer();
  $("frames").hidden = !(one && one.frames.length > 1);
  $("tops").hidden = one?.kind !== "scale";
  showLegend(one);
  const wanted = [...(one ? [[one.key, "fill"]] : []), ...outlined()];
  const made = [];
  for (const [key, style] of wanted) {
    const about = overlays().find((found) => found.key === key);
    try {
      const read = data.read(await loaded(key));
      if (read.remark) addRemark(read.remark);
      made.push({ ...read, about, kind: about.kind, style, frame: 0, share: state.tops[key] ?? 1 });
    } catch (fault) {
      if (mine === loading) addRemark(fault.message);
    }
  }
  if (mine !== loading) return;
  parts = made;
  if (one?.kind === "scale") showTop(one, state.tops[one.key] ?? 1);
  if (one && one.frames.length > 1) {
    $("frame").max = one.frames.length - 1;
    setFrame(Math.min(state.frames[one.key] ?? 0, one.frames.length - 1));
  } else draw();
}

/* The part that shows the chosen layer. */
const filled = () => parts.find((part) => part.style === "fill");

function showLegend(one) {
  const coloured = one?.kind === "labels" || outlined().some(([key]) => key === "mask");
  $("legend").replaceChildren(...(coloured ? current().classes : []).map((item) => {
    const entry = element("span");
    const swatch = element("i");
    swatch.style.background = item.colour;
    entry.append(swatch, item.name);
    return entry;
  }));
  if (one?.kind !== "scale") return;
  const bar = element("canvas", "", { width: 256, height: 1 });
  const pixels = new ImageData(256, 1);
  SHADES.forEach((colour, i) => pixels.data.set(colour.map(Math.round), 4 * i));
  bar.getContext("2d").putImageData(pixels, 0, 0);
  const ends = element("span", "", { className: "ends" });
  ends.append(element("span", "0"), element("span", "", { id: "legend-top" }));
  $("legend").append(bar, ends);
}

function setFrame(number) {
  const one = layer();
  if (!one || one.frames.length < 2) return;
  state.frames[one.key] = number;
  $("frame").value = number;
  $("frame-title").textContent = `${one.title}: ${one.frames[number]}`;
  const part = filled();
  if (part) part.frame = number;
  draw();
}

function setOpacity(share) {
  state.opacity = Math.round(100 * Math.min(Math.max(share, 0), 1)) / 100;
  $("opacity").value = state.opacity;
  $("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  if (parts.length) draw();
}

function setTop(share) {
  const one = layer();
  if (one?.kind !== "scale") return;
  state.tops[one.key] = share;
  showTop(one, share);
  const part = filled();
  if (part) part.share = share;
  draw();
}

function showTop(one, share) {
  $("top").value = share;
  const text = `${digits(share * one.top)}${one.unit ? ` ${one.unit}` : ""}`;
  $("top-value").textContent = text;
  $("legend-top").textContent = text;
}

/* --- the image ----------------------------------------------------------------------------------------------- */

function setWindow(low, high) {
  showWindow(low, high);
  stage?.window(low, high);
}

function resetWindow() {
  if (state.window) setWindow(state.window.low, state.window.high);
}

function showWindow(low, high) {
  if (!state.window) return;
  const { least, most } = state.window;
  Object.assign($("level"), { min: least, max: most, value: (low + high) / 2 });
  Object.assign($("width"), { min: (most - least) / 500, max: most - least, value: high - low });
  $("level-value").textContent = digits((low + high) / 2);
  $("width-value").textContent = digits(high - low);
}

function windowFromSliders() {
  const [level, width] = [Number($("level").value), Number($("width").value)];
  setWindow(level - width / 2, level + width / 2);
}

function setView(name) {
  state.view = name;
  [...$("views").children].forEach((button) => button.setAttribute("aria-pressed", button.value === name));
  stage?.view(name);
}

function setSolid(on) {
  state.solid = on;
  $("solid").checked = on;
  stage?.solid(on);
}

function setSmooth(on) {
  state.smooth = on;
  $("smooth").checked = on;
  stage?.smooth(on);
}

function setMirror(on) {
  state.mirror = on;
  $("mirror").checked = on;
  if (!current()?.picture) stage?.mirror(on);
}

/* What lies under the cross or the mouse. */
function showRead() {
  const [place, image, voxel] = last;
  if (!place || state.number < 0) return ($("read").textContent = "\u00a0");
  const picture = current().picture;
  const where = picture ? `column ${place[0]}, row ${place[1]}` : `${[0, 1, 2].map((i) => place[i].toFixed(1)).join(", ")} mm`;
  const values = parts.map((part) => `${part.about.title.toLowerCase()}: ${valueText(part, valueOf(part, voxel))}`);
  $("read").textContent = [where, `image: ${[image].flat().map(digits).join(", ")}`, ...new Set(values)].join("  |  ");
}

/* The value of a part at a voxel of the image. */
function valueOf(part, voxel) {
  const grid = stage.size();
  const [x, y, z] = voxel.map((v, axis) => Math.floor((v * part.size[axis]) / grid[axis]));
  const [nx, ny, nz] = part.size;
  return part.slope * part.stored[x + nx * (y + ny * (z + nz * part.frame))] + part.inter;
}

function valueText(part, value) {
  const shown = part.kind === "labels" ? current().classes[Math.round(value) - 1]?.name ?? "background" : digits(value);
  return `${shown}${part.about.unit ? ` ${part.about.unit}` : ""}`;
}

/* --- the beginning ------------------------------------------------------------------------------------------- */

function listen() {
  $("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value)));
  $("top").addEventListener("input", () => setTop(Number($("top").value)));
  $("frame").addEventListener("input", () => (pause(), setFrame(Number($("frame").value))));
  $("level").addEventListener("input", windowFromSliders);
  $("width").addEventListener("input", windowFromSliders);
  $("solid").addEventListener("change", () => setSolid($("solid").checked));
  $("smooth").addEventListener("change", () => setSmooth($("smooth").checked));
  $("reset").addEventListener("click", resetWindow);
  $("mirror").addEventListener("change", () => setMirror($("mirror").checked));
  $("play").addEventListener("click", play);
  $("help").addEventListener("click", toggleHelp);
  $("close-help").addEventListener("click", toggleHelp);
  for (const place of [document.querySelector("nav"), document.querySelector("aside"), $("frames")]) {
    // what the mouse was used on keeps no key for itself
    place.addEventListener("pointerup", () => setTimeout(() => place.contains(document.activeElement) && document.activeElement.blur()));
  }
  document.addEventListener("keydown", pressed, true);
  document.addEventListener("keyup", (event) => event.stopPropagation(), true);
}

async function begin() {
  state.cases = await data.cases();
  $("cases").replaceChildren(...state.cases.map((one, i) => {
    const item = element("li");
    const button = element("button", one.case, { type: "button" });
    button.addEventListener("click", () => chooseCase(i));
    item.append(button);
    return item;
  }));
  $("views").replaceChildren(...Object.entries(VIEWS).map(([value, title]) => {
    const button = element("button", title, { type: "button", value });
    button.addEventListener("click", () => setView(value));
    return button;
  }));
  $("key-list").replaceChildren(...KEYS.flatMap(([keys, what]) => [element("dt", keys), element("dd", what)]));
  listen();
  setOpacity(state.opacity);
  setView(state.view);
  await chooseCase(0);
  document.body.dataset.ready = "true";
}

begin().catch((fault) => {
  $("name").textContent = "Nothing to show";
  addRemark(fault.message);
});
