// The page: from the paper through the network to what is shown.

import { Engine } from "./engine.js";
import { Model, read } from "./model.js";
import { over, Paper, pixels, STRAIGHT, TINTS } from "./paper.js";
import { Arrows, make, Numbers, paint, percent, Shares, votes } from "./views.js";

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search).get("engine"); // webgpu or wasm
const CLEAR = 0.4; // how long a capsule is that has found its digit
let engine, model, list; // list: what models.json says
const models = new Map(); // by name, those that are open
let result = null; // of the last drawing: {seen, chances, capsules, steps}
let before = null; // capsules of the same drawing put straight
let chosen = 0; // class whose capsule is bent
let held = false; // whether the user chose it
let bent = null; // numbers of the chosen capsule, where they were moved by hand
let comparing = false;
let pinned = false; // whether the user named the network

// ---- files ----

const loaded = new Map(); // files, as promises of their bytes

function fetched(file) {
  const load = async () => {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(`${file} is not here (${answer.status})`);
    return new Uint8Array(await answer.arrayBuffer());
  };
  if (!loaded.has(file)) loaded.set(file, load());
  return loaded.get(file);
}

/** The bytes of a network and of its decoder, undefined if it has none. */
const files = (entry) => [entry.file, entry.decoder].map((file) => file && fetched(`models/${file}`));

async function open(name) {
  if (!models.has(name)) {
    const entry = list.models.find((each) => each.name === name);
    const [net, decoder] = await Promise.all(files(entry));
    const opened = new Model(engine, await read(engine, net), entry);
    opened.decoder = decoder && (await read(engine, decoder)).session;
    models.set(name, opened);
  }
  return models.get(name);
}

/** A network of a user's, that has looked at black. */
async function tried(entry, opened) {
  const own = new Model(engine, opened, entry);
  await own.look(new Float32Array(own.channels * own.height * own.width));
  return own;
}

/** Files that were dropped or chosen: a network, its decoder, pictures. */
async function take(files) {
  const told = [];
  const decoders = [];
  let shown = null;
  for (const file of files) {
    try {
      if (file.type.startsWith("image/")) {
        paper.take(await createImageBitmap(file));
        told.push(`${file.name} is on the paper.`);
        continue;
      }
      const opened = await read(engine, new Uint8Array(await file.arrayBuffer()));
      if (opened.session.inputNames.includes("capsules")) decoders.push([file.name, opened]);
      else {
        shown = await tried({ name: file.name.replace(/\.onnx$/i, "") }, opened);
        models.set(shown.name, shown);
        told.push(`${file.name} takes ${shown.width} × ${shown.height} pixels in ${shown.channels === 1 ? "grey" : "colour"} and knows ${shown.classes.length} classes.`);
      }
    } catch (error) {
      told.push(`${file.name} cannot be used: ${error.message}.`);
    }
  }
  for (const [name, opened] of decoders) {
    const of = [shown, model, ...models.values()].find((each) => each?.takes(opened));
    if (of) of.decoder = opened.session;
    told.push(of ? `${name} draws for ${of.name}.` : `${name} cannot be used: it is the decoder of another network. Drop its network with it.`);
  }
  $("own-note").textContent = told.join(" ");
  if (shown) {
    pinned = true;
    choices();
  }
  await show(shown ?? model);
}

// ---- from the drawing to the page ----

let running = false;
let again = false;

/** Look at the drawing; one look at a time, and one more if it has changed meanwhile. */
async function update() {
  paper.show();
  again = running;
  if (running || !model) return;
  running = true;
  try {
    do {
      again = false;
      await fit();
      await look();
    } while (again);
  } catch (error) {
    tell(error);
  } finally {
    running = false;
  }
}

/** Two digits are for the network that has learned from pairs, if there is one and the user has named no other. */
async function fit() {
  if (!list.two || pinned) return;
  const two = paper.layers.every((layer) => !layer.empty);
  const wanted = two ? list.two : list.models[0].name;
  if (model.name !== wanted) build(await open(wanted));
}

/** The layers of the drawing as a network takes them, and the drawing. */
const apart = (network, move) => paper.layers.map((layer) => pixels(layer, network, move));
const drawn = (network, move) => apart(network, move).reduce(over);

const byChance = (chances) => chances.map((_, j) => j).sort((a, b) => chances[b] - chances[a]);

async function look() {
  const using = model;
  const layers = apart(using);
  const seen = layers.reduce(over);
  result = { seen, ...(await using.look(seen)) };
  if (using !== model) return;
  const straight = paper.layers.every((layer) => layer.straight);
  before = straight ? result.capsules : (await using.look(drawn(using, STRAIGHT))).capsules;
  const order = byChance(result.chances);
  if (!held) chosen = order[0];
  bent = null;
  paint($("seen"), seen, [model.channels, model.height, model.width]);
  sayAnswer(order);
  arrows.show(result.chances, result.capsules, order[0]);
  arrows.choose(chosen);
  await showCapsule();
  await showApart(order, layers);
  showStep();
  if (comparing) await compare();
  $("engine").textContent = `${engine.note ?? ""}Runs on ${engine.words}: ${model.time.toFixed(1)} ms a picture.`;
}

/** The classes that are there: two at most, and one of a network that knows of no second. */
function there(network, chances) {
  return byChance(chances).slice(0, network.several ? 2 : 1).filter((j) => chances[j] > CLEAR);
}

/** The digits that are there, or the likeliest. */
function named(network, chances) {
  const found = there(network, chances);
  return (found.length ? found : byChance(chances).slice(0, 1)).map((j) => network.classes[j]).join(" and ");
}

function sayAnswer([a, b]) {
  const { chances } = result;
  const found = there(model, chances);
  const sure = (j) => `${model.classes[j]} (${percent(chances[j])})`;
  let words = `Not sure: ${sure(a)}, or ${sure(b)}?`;
  if (paper.layers.every((layer) => layer.empty)) words = "Draw something.";
  else if (found.length > 1) words = named(model, chances);
  else if (found.length) words = `${named(model, chances)}, ${percent(chances[a])} sure`;
  if ($("answer").textContent !== words) $("answer").textContent = words;
}

async function showCapsule() {
  $("chosen").textContent = `of ${model.classes[chosen]}`;
  if (result.capsules) numbers.show(bent ?? result.capsules[chosen], before[chosen]);
  $("unbend").disabled = !bent;
  const picture = model.decoder ? await model.draw(chosen, bent ?? result.capsules[chosen]) : result.drawn;
  $("drawn").closest("figure").hidden = !picture;
  document.querySelector(".bending").hidden = !picture && !result.capsules;
  if (picture) paint($("drawn"), picture.data, picture.dims.slice(1));
}

async function showApart(order, [first, second]) {
  if (!model.decoder) return;
  const clear = there(model, result.chances);
  const found = [];
  for (const j of order.slice(0, 2)) {
    const seen = clear.includes(j);
    const { data, dims } = await model.draw(j, seen ? result.capsules[j] : result.capsules[j].map(() => 0));
    const words = seen ? `${model.classes[j]}, ${percent(result.chances[j])}` : "no other digit";
    found.push({ picture: seen ? data : data.map(() => 0), size: dims.slice(1), words });
  }
  const covers = (a, b) => dot(found[0].picture, a) + dot(found[1].picture, b);
  if (covers(second, first) > covers(first, second)) found.reverse(); // each in the colour of the digit that it explains
  for (const [i, id] of ["first", "second"].entries()) {
    paint($(id), found[i].picture, found[i].size, TINTS[i]);
    $(`${id}-name`).textContent = found[i].words;
  }
  both(found.map(({ picture }) => picture), found[0].size);
}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** Both pictures in their colours, summed. */
function both([a, b], [channels, height, width]) {
  if (channels !== 1) return paint($("both"), over(a, b), [channels, height, width]);
  const rgb = TINTS.map((tint) => [1, 3, 5].map((i) => parseInt(tint.slice(i, i + 2), 16) / 255));
  const plane = height * width;
  const mixed = Float32Array.from({ length: 3 * plane }, (_, i) => {
    const [c, at] = [Math.floor(i / plane), i % plane];
    return a[at] * rgb[0][c] + b[at] * rgb[1][c];
  });
  paint($("both"), mixed, [3, height, width]);
}

function showStep() {
  const { steps, chances } = result;
  for (const part of document.querySelectorAll(".stepper, .routing, #votes-words")) part.hidden = !steps.length;
  if (!steps.length) return;
  const last = $("step").max === $("step").value;
  $("step").max = steps.length;
  if (last) $("step").value = steps.length;
  const r = Number($("step").value);
  const step = steps[r - 1];
  document.querySelector("output[for=step]").textContent = `${r} of ${steps.length}`;
  const parts = votes($("votes"), $("seen"), model, step);
  const best = (step.lengths ?? chances).reduce((a, x, j, all) => (x > all[a] ? j : a), 0);
  shares.show(step.lengths, parts, best);
  const even = Math.max(...parts) - Math.min(...parts) < 1e-3;
  $("votes-words").textContent = even
    ? `In step ${r} every capsule gives each digit the same part of its vote.`
    : `After step ${r}, ${model.classes[best]} has ${percent(parts[best])} of all votes; an even share would be ${percent(1 / parts.length)}.`;
}

async function compare() {
  for (const entry of list.models) {
    const other = models.get(entry.name);
    const { chances } = other === model ? result : await other.look(drawn(other));
    const words = [named(other, chances), percent(Math.max(...chances)), `${other.time.toFixed(1)} ms`];
    [...$(`row-${entry.name}`).cells].slice(-3).forEach((cell, i) => (cell.textContent = words[i]));
  }
}

// ---- which network ----

function choices() {
  const own = [...models.keys()].filter((name) => !list.models.some((each) => each.name === name));
  const names = [...list.models.map((each) => each.name), ...own];
  $("network").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  $("network").disabled = false;
  if (model) $("network").value = model.name;
}

let arrows, numbers, shares;

async function show(network) {
  build(network);
  await update();
}

/** Build what depends on the network. */
function build(network) {
  if (network !== model) {
    [model, held, before] = [network, false, null];
    const capsules = model.session.outputMetadata.find(({ name }) => name === "capsules");
    arrows = new Arrows($("arrows"), model.classes, (j) => {
      [chosen, held, bent] = [j, true, null];
      showCapsule().catch(tell);
    });
    numbers = new Numbers($("numbers"), capsules ? capsules.shape[2] : 0, (values) => {
      bent = values;
      showCapsule().catch(tell);
    });
    shares = new Shares($("shares"), model.classes);
    $("step").max = $("step").value = 1;
  }
  $("network").value = model.name;
  $("numbers").inert = !model.decoder;
  for (const id of ["both", "first", "second"]) $(id).closest("figure").hidden = !model.decoder;
  note("bend-note", model.decoder, model.outputs.has("capsules")
    ? "No decoder of this network is here: its numbers can be read, not drawn."
    : "This network has no capsules: no number of it stands for one property of one digit.");
  note("apart-note", model.decoder, "Taking apart needs a decoder: choose another network, or drop this one’s decoder.");
  note("route-note", model.places, "This network tells of no routing: it has none, or was exported without its steps.");
}

function note(id, there, words) {
  $(id).hidden = Boolean(there);
  $(id).textContent = there ? "" : words;
}

function tell(error) {
  $("answer").textContent = `This does not work here: ${error.message}`;
}

// ---- what users do ----

const SIDE = 28; // pixels of a digit of digits.png
const digits = []; // to take: {label, left, top}, those of a class in the order in which they are taken
let sprite; // all of them
const paper = new Paper($("paper"), () => update(), (label) => {
  const picture = next(({ label: its }) => its === label);
  if (picture) paper.take(picture);
});

/** The picture of the next digit of some, which goes to the end. */
function next(fits) {
  const at = digits.findIndex(fits);
  if (at < 0) return null;
  const [digit] = digits.splice(at, 1);
  digits.push(digit);
  const picture = new OffscreenCanvas(SIDE, SIDE);
  picture.getContext("2d").drawImage(sprite, -digit.left, -digit.top);
  return picture;
}

/** Make a button for each class, a row of digits.png. */
async function cut() {
  sprite = await createImageBitmap(await (await fetch("digits.png")).blob());
  for (let top = 0; top < sprite.height; top += SIDE) {
    const label = top / SIDE;
    for (let left = 0; left < sprite.width; left += SIDE) digits.push({ label, left, top });
    const face = make("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
    face.getContext("2d").drawImage(sprite, 0, -top);
    const button = make("button", { type: "button", "aria-label": `Take a ${label}` }, face);
    button.addEventListener("click", () => paper.digit(label));
    $("digits").append(button);
  }
}

const UNITS = { turn: "°", size: "%", right: " px", down: " px" };

function moves() {
  for (const name of Object.keys(STRAIGHT)) {
    $(name).value = paper.layer.move[name];
    document.querySelector(`output[for=${name}]`).textContent = `${paper.layer.move[name]}${UNITS[name]}`;
  }
}

function listen() {
  $("clear").addEventListener("click", () => paper.clear());
  for (const input of $("layers").querySelectorAll("input")) {
    input.addEventListener("change", () => {
      paper.active = Number(input.value);
      moves();
    });
  }
  for (const name of Object.keys(STRAIGHT)) {
    $(name).addEventListener("input", () => {
      paper.layer.move[name] = Number($(name).value);
      moves();
      update();
    });
  }
  $("straight").addEventListener("click", () => {
    Object.assign(paper.layer.move, STRAIGHT);
    moves();
    update();
  });
  $("unbend").addEventListener("click", () => {
    bent = null;
    showCapsule().catch(tell);
  });
  $("overlap").addEventListener("click", () => {
    const label = Math.floor(Math.random() * 10);
    const pair = [next((each) => each.label === label), next((each) => each.label !== label)];
    paper.layers.forEach((layer, i) => {
      layer.clear();
      Object.assign(layer, { picture: pair[i], move: { ...STRAIGHT, right: i ? 3 : -3, down: i ? 2 : -2 } });
    });
    held = false;
    moves();
    update();
  });
  $("step").addEventListener("input", () => result && showStep());
  $("network").addEventListener("change", async (event) => {
    try {
      pinned = true;
      await show(await open(event.target.value));
    } catch (error) {
      tell(error);
    }
  });
  $("compare").addEventListener("click", async () => {
    $("compare").disabled = true;
    try {
      for (const { name } of list.models) await open(name);
      comparing = true;
      $("compare").textContent = "Compared with every change";
      await update();
    } catch (error) {
      tell(error);
    }
  });
  $("files").addEventListener("change", async (event) => {
    await take([...event.target.files]);
    event.target.value = "";
  });
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files]).catch(tell);
    });
  }
}

// ---- from the beginning ----

/** Keep all that was loaded, so that the page works without a network the next time. */
async function keep() {
  if (!navigator.serviceWorker || !globalThis.caches) return;
  await navigator.serviceWorker.register("sw.js");
  const all = list.models.flatMap(({ file, decoder }) => (decoder ? [file, decoder] : [file]));
  const got = performance.getEntriesByType("resource").map(({ name }) => name).filter((name) => name.startsWith("http"));
  const named = all.map((file) => new URL(`models/${file}`, location).href);
  const box = await caches.open("playground");
  await box.addAll([...new Set([new URL(location.pathname, location).href, ...got, ...named])]);
  $("offline").textContent = "This page now works offline.";
}

async function start() {
  listen();
  moves();
  paper.show();
  list = await (await fetch("models/models.json")).json();
  for (const { name, routing, parameters } of list.models) {
    const head = make("th", { scope: "row" }, name, make("small", {}, routing ?? "No routing"));
    const cells = [parameters.toLocaleString("en"), "", "", ""].map((words) => make("td", {}, words));
    $("others").append(make("tr", { id: `row-${name}` }, head, ...cells));
  }
  const first = list.models[0];
  const [started] = await Promise.all([Engine.start(list.runtime, asked), cut(), ...files(first)]); // what loads, at once
  engine = started;
  try {
    await open(first.name);
  } catch (error) {
    if (engine.name === "wasm") throw error;
    engine = await Engine.start(list.runtime, "wasm");
    engine.note = "WebGPU refused the network. ";
    await open(first.name);
  }
  choices();
  paper.layer.picture = next(({ label }) => label === 4);
  await show(models.get(first.name));
  performance.mark("answered");
  $("compare").disabled = false;
  await keep().catch(() => {
    $("offline").textContent = "This browser keeps nothing: the page needs a network each time.";
  });
}

start().catch((error) => {
  $("engine").textContent = "Nothing runs here.";
  tell(error);
});
