// Draw with the mouse or open a picture; the exported network runs on every stroke and shows scores and reconstruction.
// Everything is served from here: ONNX Runtime from node_modules, the model from digits.onnx and digits.json, or from
// those that the address names: ?model=flowers. What the page shows and asks for follows the model's .json file.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { Model } from "./model.js";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that make the page cross-origin isolated

const name = new URLSearchParams(location.search).get("model") ?? "digits";
const drawing = document.getElementById("drawing");
const pen = drawing.getContext("2d", { willReadFrequently: true });
const reconstruction = document.getElementById("reconstruction");
const table = document.getElementById("scores");
const said = document.getElementById("said");

async function fetched(file, hint) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file} is not here (${answer.status}): ${hint}`);
  return answer;
}

async function open() {
  const about = await (await fetched(`${name}.json`, `capscore export … ${name}.onnx --json writes it`)).json();
  const file = await (await fetched(`${name}.onnx`, "copy the export beside this page")).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(file), { executionProviders: ["wasm"] });
  const model = new Model(ort, session, about);
  if (![1, 3].includes(model.channels)) {
    throw new Error(`${name} takes ${model.channels} channels; this page has grey and colour images`);
  }
  return model;
}

/** The canvas in the model's size, as bytes [C, H, W]; `draw` puts it onto a black one of that size. */
function pixels(model, draw) {
  const { channels, height, width } = model;
  const small = new OffscreenCanvas(width, height).getContext("2d");
  small.fillRect(0, 0, width, height);
  small.imageSmoothingQuality = "high";
  draw(small);
  const { data } = small.getImageData(0, 0, width, height); // [H, W, RGBA]
  const grey = (i) => 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
  const size = height * width;
  return Uint8Array.from({ length: channels * size }, (_, i) => {
    const at = 4 * (i % size);
    return channels === 1 ? Math.round(grey(at)) : data[at + Math.floor(i / size)];
  });
}

/** A stroke as MNIST has its digits: 20 of 28 parts high or wide, its centre of mass in the middle; null if empty. */
function stroke({ height, width }) {
  const ink = pen.getImageData(0, 0, drawing.width, drawing.height).data;
  let left = Infinity, top = Infinity, right = -1, bottom = -1, mass = 0, sumX = 0, sumY = 0;
  for (let y = 0; y < drawing.height; y++) {
    for (let x = 0; x < drawing.width; x++) {
      const value = ink[4 * (y * drawing.width + x)];
      if (value === 0) continue;
      left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, y), bottom = Math.max(bottom, y);
      mass += value, sumX += value * x, sumY += value * y;
    }
  }
  if (mass === 0) return null;
  const scale = ((20 / 28) * Math.min(height, width)) / Math.max(right - left + 1, bottom - top + 1);
  return (small) => {
    small.setTransform(scale, 0, 0, scale, width / 2 - (sumX / mass) * scale, height / 2 - (sumY / mass) * scale);
    small.drawImage(drawing, 0, 0);
  };
}

function show(model, { scores, drawn }) {
  const best = scores.indexOf(Math.max(...scores));
  table.replaceChildren(
    ...model.classes.map((label, j) => {
      const row = document.createElement("tr");
      row.className = j === best ? "best" : "";
      row.insertCell().textContent = label;
      const meter = row.insertCell().appendChild(document.createElement("meter"));
      meter.value = scores[j];
      row.insertCell().textContent = scores[j].toFixed(3);
      return row;
    }),
  );
  if (!drawn) return;
  const [channels, height, width] = model.drawn;
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const colour = [0, 1, 2].map((c) => 255 * drawn[(channels === 3 ? c : 0) * height * width + i]);
    image.data.set([...colour, 255], 4 * i);
  }
  Object.assign(reconstruction, { width, height });
  reconstruction.getContext("2d").putImageData(image, 0, 0);
}

async function start() {
  const model = await open();
  document.getElementById("figure").hidden = !model.drawn;
  let picture = null; // that was opened; a stroke takes its place
  let running = false;
  let again = false;

  async function update() {
    again = running;
    if (running) return; // the run under way starts the next one
    running = true;
    try {
      do {
        again = false;
        const draw = picture ? (small) => small.drawImage(picture, 0, 0, model.width, model.height) : stroke(model);
        const begun = performance.now();
        show(model, await model.classify(pixels(model, draw ?? (() => {}))));
        said.textContent = draw ? `${(performance.now() - begun).toFixed(1)} ms` : "Draw with the mouse or a finger.";
      } while (again);
    } catch (error) {
      tell(error);
    } finally {
      running = false;
    }
  }

  function clear() {
    picture = null;
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, drawing.width, drawing.height);
    return update();
  }

  Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  drawing.addEventListener("pointerdown", (event) => {
    if (picture) clear();
    drawing.setPointerCapture(event.pointerId);
    pen.beginPath();
    pen.moveTo(event.offsetX, event.offsetY);
  });
  drawing.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    pen.lineTo(event.offsetX, event.offsetY);
    pen.stroke();
    update();
  });
  document.getElementById("clear").addEventListener("click", clear);
  document.getElementById("file").addEventListener("change", async (event) => {
    if (!event.target.files.length) return;
    try {
      picture = await createImageBitmap(event.target.files[0]);
      pen.drawImage(picture, 0, 0, drawing.width, drawing.height);
      update();
    } catch (error) {
      tell(error);
    }
  });
  await clear();
  return model;
}

function tell(error) {
  said.textContent = `This does not work here: ${error.message}`;
}

export const ready = start();
ready.catch(tell);
