// Draw with the mouse, run the exported network on every stroke, show class lengths and reconstruction.
// Everything is served from here: ONNX Runtime from node_modules, the model from digits.onnx.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that make the page cross-origin isolated

const SIZE = 28;
const drawing = document.getElementById("drawing");
const pen = drawing.getContext("2d", { willReadFrequently: true });
const reconstruction = document.getElementById("reconstruction").getContext("2d");
const table = document.getElementById("lengths");
const said = document.getElementById("said");

/** Lengths [J] and, if the model has a decoder, pixels of the reconstruction, for 784 pixels in [0, 1]. */
export async function classify(session, pixels) {
  const images = new ort.Tensor("float32", pixels, [1, 1, SIZE, SIZE]);
  const out = await session.run({ images });
  return { lengths: out.lengths.data, reconstruction: out.reconstruction?.data };
}

/** The drawing as MNIST has its digits: 20 pixels high or wide at most, centre of mass in the middle of 28 × 28. */
function digit() {
  const { width, height } = drawing;
  const ink = pen.getImageData(0, 0, width, height).data;
  let left = width, top = height, right = -1, bottom = -1, mass = 0, sumX = 0, sumY = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = ink[4 * (y * width + x)];
      if (value === 0) continue;
      left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, y), bottom = Math.max(bottom, y);
      mass += value, sumX += value * x, sumY += value * y;
    }
  }
  if (mass === 0) return null;
  const scale = 20 / Math.max(right - left + 1, bottom - top + 1);
  const small = new OffscreenCanvas(SIZE, SIZE).getContext("2d");
  small.fillRect(0, 0, SIZE, SIZE);
  small.imageSmoothingQuality = "high";
  small.setTransform(scale, 0, 0, scale, SIZE / 2 - (sumX / mass) * scale, SIZE / 2 - (sumY / mass) * scale);
  small.drawImage(drawing, 0, 0);
  const { data } = small.getImageData(0, 0, SIZE, SIZE);
  return Float32Array.from({ length: SIZE * SIZE }, (_, i) => data[4 * i] / 255);
}

function show({ lengths, reconstruction: pixels }) {
  const longest = lengths.indexOf(Math.max(...lengths));
  table.replaceChildren(
    ...Array.from(lengths, (length, j) => {
      const row = document.createElement("tr");
      row.className = j === longest ? "longest" : "";
      row.insertCell().textContent = j;
      const meter = row.insertCell().appendChild(document.createElement("meter"));
      meter.value = length;
      row.insertCell().textContent = length.toFixed(3);
      return row;
    }),
  );
  if (!pixels) return;
  const image = reconstruction.createImageData(SIZE, SIZE);
  pixels.forEach((value, i) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  reconstruction.putImageData(image, 0, 0);
}

async function start() {
  const session = await ort.InferenceSession.create("digits.onnx", { executionProviders: ["wasm"] });
  let running = false;
  let again = false;

  async function update() {
    again = running;
    if (running) return; // the run under way starts the next one
    running = true;
    do {
      again = false;
      const pixels = digit();
      const begun = performance.now();
      show(await classify(session, pixels ?? new Float32Array(SIZE * SIZE)));
      said.textContent = pixels ? `${(performance.now() - begun).toFixed(1)} ms` : "Draw with the mouse or a finger.";
    } while (again);
    running = false;
  }

  function clear() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, drawing.width, drawing.height);
    update();
  }

  Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  drawing.addEventListener("pointerdown", (event) => {
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
  clear();
  return session;
}

export const ready = start();
ready.catch((error) => (said.textContent = `This does not work here: ${error.message}`));
