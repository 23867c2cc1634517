// The drawing: two layers of strokes or pictures, each turned, resized and shifted, as a network wants them.

const PEN = 2.6 / 28; // width of the pen's line in what the network sees: that of MNIST's digits
const BOX = 20 / 28; // MNIST's digits fit into this, their centre of mass in the middle
export const STRAIGHT = { turn: 0, size: 100, right: 0, down: 0 };

export class Layer {
  strokes = []; // of points [x, y], the paper being 1 wide and high
  picture = null; // or an image, that takes their place
  move = { ...STRAIGHT };

  get empty() {
    return !this.picture && !this.strokes.length;
  }

  get straight() {
    return Object.keys(STRAIGHT).every((name) => this.move[name] === STRAIGHT[name]);
  }

  clear() {
    this.strokes = [];
    this.picture = null;
  }
}

/** How pixels go where a drawing is moved to; it takes a `share` of the picture, in its middle. */
function moved({ turn, size, right, down }, width, height, share = 1) {
  return new DOMMatrix()
    .translate(width * (0.5 + (share * right) / 28), height * (0.5 + (share * down) / 28))
    .rotate(turn)
    .scale((share * size) / 100)
    .translate(-width / 2, -height / 2);
}

function trace(pen, strokes, width) {
  Object.assign(pen, { lineWidth: width, lineCap: "round", lineJoin: "round" });
  for (const points of strokes) {
    pen.beginPath();
    points.forEach(([x, y]) => pen.lineTo(x, y));
    pen.lineTo(...points.at(-1)); // a dot is a line, too
    pen.stroke();
  }
}

/** Where ink is, on average: [x, y] as shares of a canvas. */
function middle(data, width, height) {
  let [mass, x, y] = [0, 0, 0];
  for (let i = 0; i < width * height; i++) {
    mass += data[4 * i];
    x += data[4 * i] * ((i % width) + 0.5);
    y += data[4 * i] * (Math.floor(i / width) + 0.5);
  }
  return [x / mass / width, y / mass / height];
}

const pens = {}; // by the size of their canvases: to make one takes longer than to draw on it

/** A canvas of the network's size, black, with the layer on its middle; `shift` [x, y] moves strokes, as shares of that. */
function sheet(layer, { width, height, share }, move, shift) {
  const pen = (pens[[width, height]] ??= new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true }));
  pen.reset();
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.setTransform(moved(move, width, height, share));
  if (layer.picture) {
    pen.drawImage(layer.picture, 0, 0, width, height);
  } else {
    const all = layer.strokes.flat();
    const [xs, ys] = [all.map(([x]) => x), all.map(([, y]) => y)];
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    const span = Math.max(Math.max(...xs) - left, Math.max(...ys) - top, 0.15);
    const scale = (BOX - PEN) / span;
    pen.scale(width, height);
    pen.translate(0.5 + shift[0], 0.5 + shift[1]);
    pen.scale(scale, scale);
    pen.translate(-left - (Math.max(...xs) - left) / 2, -top - (Math.max(...ys) - top) / 2);
    pen.strokeStyle = "#fff";
    trace(pen, layer.strokes, PEN / scale);
  }
  return pen;
}

/** The layer as pixels [C, H, W] in [0, 1], after `move`. */
export function pixels(layer, size, move = layer.move) {
  const { channels, height, width } = size;
  if (layer.empty) return new Float32Array(channels * height * width);
  const read = (pen) => pen.getImageData(0, 0, width, height).data; // [H, W, RGBA]
  let shift = [0, 0];
  if (!layer.picture) {
    const [x, y] = middle(read(sheet(layer, size, STRAIGHT, shift)), width, height);
    shift = [(0.5 - x) / size.share, (0.5 - y) / size.share];
  }
  const data = read(sheet(layer, size, move, shift));
  const plane = height * width;
  const grey = (i) => 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
  return Float32Array.from({ length: channels * plane }, (_, i) => {
    const at = 4 * (i % plane);
    return Math.round(channels === 1 ? grey(at) : data[at + Math.floor(i / plane)]) / 255;
  });
}

/** Pictures over each other, as the networks have learned it: summed, at most 1. */
export function over(a, b) {
  return a.map((x, i) => Math.min(1, x + b[i]));
}

/** The paper on the screen: what was drawn, and a pen that the mouse, fingers and keys move. */
export class Paper {
  layers = [new Layer(), new Layer()];
  active = 0;
  #pen;
  #down = false;
  #at = [0.5, 0.3]; // of the pen that the keys move

  constructor(canvas, changed, digit) {
    Object.assign(this, { canvas, changed, digit });
    this.#pen = canvas.getContext("2d");
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#begin(this.#place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons || !canvas.hasPointerCapture(event.pointerId)) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      (passed.length ? passed : [event]).forEach((each) => this.layer.strokes.at(-1)?.push(this.#place(each)));
      this.changed();
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.show());
  }

  get layer() {
    return this.layers[this.active];
  }

  #place({ offsetX, offsetY }) {
    return this.#under([offsetX / this.canvas.clientWidth, offsetY / this.canvas.clientHeight]);
  }

  /** The point of the drawing that has been moved to here. */
  #under([x, y]) {
    const point = moved(this.layer.move, 1, 1).inverse().transformPoint({ x, y });
    return [point.x, point.y];
  }

  #begin(place) {
    if (this.layer.picture) this.layer.clear();
    this.layer.strokes.push([place]);
    this.changed();
  }

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      this.#at = this.#at.map((x, i) => Math.min(0.95, Math.max(0.05, x + 0.05 * step[i])));
      if (this.#down) this.layer.strokes.at(-1).push(this.#under(this.#at));
    } else if (event.key === " ") {
      this.#down = !this.#down;
      if (this.#down) this.#begin(this.#under(this.#at));
    } else if (/^\d$/.test(event.key)) {
      this.digit(Number(event.key));
    } else return;
    event.preventDefault();
    this.changed();
  }

  clear() {
    this.#down = false;
    this.layer.clear();
    this.changed();
  }

  /** Put a picture on the layer that is drawn on. */
  take(picture) {
    this.#down = false;
    this.layer.clear();
    this.layer.picture = picture;
    this.changed();
  }

  show() {
    const { width } = this.canvas;
    const pen = this.#pen;
    pen.reset();
    pen.fillStyle = "#0d0d14";
    pen.fillRect(0, 0, width, width);
    pen.globalCompositeOperation = "lighter";
    this.layers.forEach((layer, i) => {
      pen.save();
      pen.setTransform(moved(layer.move, width, width));
      if (layer.picture) {
        pen.imageSmoothingEnabled = false;
        pen.drawImage(tinted(layer.picture, i), 0, 0, width, width);
      } else {
        pen.scale(width, width);
        pen.strokeStyle = TINTS[i];
        trace(pen, layer.strokes, 0.065);
      }
      pen.restore();
    });
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) {
      pen.globalCompositeOperation = "source-over";
      pen.strokeStyle = this.#down ? "#ff5c8a" : "#fff";
      pen.lineWidth = 4;
      pen.strokeRect(this.#at[0] * width - 12, this.#at[1] * width - 12, 24, 24);
    }
  }
}

export const TINTS = ["#ffb454", "#59c2ff"]; // of the first digit and the second
const coloured = TINTS.map(() => new WeakMap()); // pictures in each tint

function tinted(picture, layer) {
  if (!coloured[layer].has(picture)) {
    const pen = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
    pen.drawImage(picture, 0, 0);
    pen.globalCompositeOperation = "multiply";
    pen.fillStyle = TINTS[layer];
    pen.fillRect(0, 0, picture.width, picture.height);
    coloured[layer].set(picture, pen.canvas);
  }
  return coloured[layer].get(picture);
}
