// What the page shows of numbers: arrows, sliders, pixels, votes, the table.

const SVG = "http://www.w3.org/2000/svg";
const HUES = [4, 28, 48, 90, 150, 178, 204, 232, 270, 322]; // of classes; more of them begin anew
export const colour = (j) => `hsl(${HUES[j % HUES.length]} 72% 55%)`;
export const percent = (x) => `${(100 * Math.max(0, x)).toFixed(0)}%`;

/** An element with attributes and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawing(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** The classes as arrows, one of which is chosen; `choose(j)` hears of it. */
export class Arrows {
  constructor(parent, classes, choose) {
    parent.querySelectorAll("label").forEach((label) => label.remove());
    this.all = classes.map((name, j) => {
      const input = make("input", { type: "radio", name: "capsule", value: j, class: "hidden" });
      input.addEventListener("change", () => choose(j));
      const svg = drawing("svg", { viewBox: "-1.15 -1.15 2.3 2.3", "aria-hidden": "true" });
      const line = drawing("path", { class: "arrow", stroke: colour(j) });
      svg.append(drawing("circle", { r: 1, class: "rim" }), line);
      const chance = make("span", { class: "chance" });
      const label = make("label", { class: "capsule" }, input, svg, make("b", {}, name), " ", chance);
      parent.append(label);
      return { input, line, chance, label };
    });
  }

  /** `capsules` may be missing: arrows of chances alone point upwards. */
  show(chances, capsules, best) {
    this.all.forEach(({ line, chance, label }, j) => {
      const [x, y] = capsules?.[j] ?? [0, 1];
      const angle = Math.atan2(-y, x);
      const length = Math.min(1, Math.max(0, chances[j]));
      const head = Math.min(0.24, length * 0.6);
      const at = (r, a) => `${(r * Math.cos(a)).toFixed(3)} ${(r * Math.sin(a)).toFixed(3)}`;
      const [tip, wing] = [at(length, angle), length - head * 0.8];
      const side = (sign) => at(Math.hypot(wing, head * 0.55), angle + sign * Math.atan2(head * 0.55, wing));
      line.setAttribute("d", length < 0.02 ? "M0 0" : `M0 0L${tip}M${side(1)}L${tip}L${side(-1)}`);
      line.style.opacity = 0.35 + 0.65 * length;
      chance.textContent = percent(chances[j]);
      label.classList.toggle("best", j === best);
    });
  }

  choose(j) {
    this.all[j].input.checked = true;
  }
}

/** The numbers of a capsule as sliders, with what moved since the drawing was straight; `bend(numbers)` hears. */
export class Numbers {
  constructor(parent, count, bend) {
    this.all = Array.from({ length: count }, (_, k) => {
      const input = make("input", { type: "range", step: "any", "aria-label": `Number ${k + 1}` });
      const moved = make("span", { class: "moved" });
      const told = make("output", {});
      input.addEventListener("input", () => {
        told.textContent = signed(input.value);
        bend(this.values);
      });
      return { input, moved, told, row: make("div", { class: "number" }, make("span", {}, `${k + 1}`), make("span", { class: "track" }, moved, input), told) };
    });
    parent.style.setProperty("--rows", Math.ceil(count / 2) || 1);
    parent.replaceChildren(...this.all.map(({ row }) => row));
  }

  get values() {
    return this.all.map(({ input }) => Number(input.value));
  }

  show(numbers, before) {
    const most = Math.max(0.5, ...numbers.map(Math.abs)); // at the ends of the sliders
    this.all.forEach(({ input, moved, told, row }, k) => {
      Object.assign(input, { min: -most, max: most, value: numbers[k] });
      told.textContent = signed(numbers[k]);
      const [from, to] = [Math.min(numbers[k], before[k]), Math.max(numbers[k], before[k])];
      moved.style.left = `${50 + (50 * from) / most}%`;
      moved.style.width = `${(50 * (to - from)) / most}%`;
      row.classList.toggle("far", to - from > 0.05);
    });
  }
}

const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

/** Pixels [C, H, W] in [0, 1] on a canvas, white or in a colour. */
export function paint(canvas, pixels, [channels, height, width], tint = "#ffffff") {
  const image = new ImageData(width, height);
  const rgb = [1, 3, 5].map((i) => parseInt(tint.slice(i, i + 2), 16));
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) {
      const value = pixels[(channels === 3 ? c : 0) * height * width + i];
      image.data[4 * i + c] = Math.max(0, Math.min(1, value)) * rgb[c];
    }
    image.data[4 * i + 3] = 255;
  }
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const total = (xs) => xs.reduce((a, b) => a + b, 0);

/** Of every place of a picture: `all` that its capsules vote, and `more` [J], what classes get beyond an even share. */
function discs({ grid: [types, rows, columns] }, count, vote) {
  return Array.from({ length: rows * columns }, (_, place) => {
    const more = new Float64Array(count);
    let all = 0;
    for (let t = 0; t < types; t++) {
      const votes = Array.from(more, (_, k) => vote(t * rows * columns + place, k));
      const sum = total(votes);
      all += sum;
      votes.forEach((x, k) => (more[k] += Math.max(0, x - sum / count)));
    }
    return { all, more };
  });
}

/**
 * Discs over the picture, one for each place: how present its capsules are and, in slices, what they give to classes
 * beyond an even share. Returns the share of all votes that each class has.
 */
export function votes(canvas, seen, model, { vote }) {
  const [, where] = model.places;
  const { grid: [types, rows, columns], first, step: apart } = where;
  const count = model.classes.length;
  const pen = canvas.getContext("2d");
  const { width } = canvas;
  pen.reset();
  pen.imageSmoothingEnabled = false;
  pen.fillRect(0, 0, width, width);
  pen.globalAlpha = 0.5;
  pen.drawImage(seen, 0, 0, width, width);
  pen.globalAlpha = 1;
  const places = discs(where, count, vote);
  const most = Math.max(...places.map(({ all }) => all), 1e-9);
  const [right, down] = [width / model.width, width / model.height];
  const free = [columns > 1 ? apart[1] * right : width / 2, rows > 1 ? apart[0] * down : width / 2]; // around a disc
  const largest = 0.48 * Math.min(...free);
  places.forEach(({ all, more }, place) => {
    const [y, x] = [Math.floor(place / columns), place % columns];
    const at = [(first[1] + x * apart[1] + 0.5) * right, (first[0] + y * apart[0] + 0.5) * down];
    const slice = (radius, from, to, fill) => {
      pen.beginPath();
      pen.moveTo(...at);
      pen.arc(...at, radius, from, to);
      pen.fillStyle = fill;
      pen.fill();
    };
    const radius = largest * Math.sqrt(all / most);
    slice(radius, 0, 2 * Math.PI, "#8888a0b0");
    const coloured = total(more);
    const part = coloured / (all || 1);
    if (part < 1e-3) return;
    let angle = -Math.PI / 2;
    more.forEach((sum, k) => {
      const next = angle + (2 * Math.PI * sum) / coloured;
      if (sum) slice(radius * Math.min(0.95, Math.sqrt(4 * part)), angle, next, colour(k));
      angle = next;
    });
  });
  const sums = new Float64Array(count);
  for (let n = 0; n < types * rows * columns; n++) sums.forEach((_, k) => (sums[k] += vote(n, k)));
  return Array.from(sums, (sum) => sum / (total(sums) || 1));
}

/** A bar for each class: how long its capsule is after a step, and its share of the votes. */
export class Shares {
  constructor(list, classes) {
    this.all = classes.map((name, j) => {
      const [bar, words] = [make("span", { class: "bar", style: `background:${colour(j)}` }), make("small", {})];
      return { bar, words, row: make("li", {}, make("b", {}, name), make("span", { class: "rail" }, bar), words) };
    });
    list.replaceChildren(...this.all.map(({ row }) => row));
  }

  /** `lengths` may be missing: bars are shares then. */
  show(lengths, parts, best) {
    this.all.forEach(({ bar, words, row }, j) => {
      bar.style.width = percent(Math.min(1, (lengths ?? parts)[j]));
      words.textContent = `${lengths ? `length ${lengths[j].toFixed(2)}, ` : ""}${percent(parts[j])} of votes`;
      row.classList.toggle("best", j === best);
    });
  }
}
