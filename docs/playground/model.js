// A network and its decoder, by what their files say of themselves.

const text = new TextDecoder();

/** What `capscore export` wrote into an ONNX file: the entry "capscore" of the model's metadata, or null. */
export function metadata(bytes) {
  for (const [field, entry] of messages(bytes)) {
    if (field !== 14) continue; // metadata_props of ModelProto
    const pair = Object.fromEntries([...messages(entry)].map(([k, value]) => [k, text.decode(value)]));
    if (pair[1] === "capscore") return JSON.parse(pair[2]);
  }
  return null;
}

/** The fields of a protobuf message that have bytes, each with its number; RangeError if it is none. */
function* messages(bytes) {
  let at = 0;
  const number = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 63) throw new RangeError("no protobuf");
      const byte = bytes[at++];
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = number();
    const [field, kind] = [Math.floor(key / 8), key % 8];
    if (kind === 0) number();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const size = number();
      if (at + size > bytes.length) throw new RangeError("no protobuf");
      yield [field, bytes.subarray(at, at + size)];
      at += size;
    } else throw new RangeError("no protobuf");
  }
}

/** A file [Uint8Array] that is dropped or fetched: {about, session}; Error in words for one that is foreign. */
export async function read(engine, bytes) {
  let about;
  try {
    about = metadata(bytes);
  } catch {
    throw new Error("it is no ONNX model");
  }
  if (!Array.isArray(about?.spec?.input) || !Array.isArray(about.classes)) {
    throw new Error("it is not from capscore: capscore export writes files that tell size, classes and scale");
  }
  return { about, session: await engine.open(bytes) };
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function softmax(xs) {
  const most = Math.max(...xs);
  const es = xs.map((x) => Math.exp(x - most));
  const total = es.reduce((a, b) => a + b);
  return es.map((e) => e / total);
}

/** Whether sizes, classes and places that a file tells of are those of its graph: anyone can write them. */
function fits({ spec, classes, provenance }, { inputMetadata, outputMetadata }) {
  const shapes = Object.fromEntries(outputMetadata.map(({ name, shape }) => [name, shape]));
  const { lengths, scores } = shapes;
  const placed = ([name, { grid, first, step }]) =>
    shapes[name]?.[1] === grid?.reduce((a, b) => a * b) && [grid?.length, first?.length, step?.length].join() === "3,2,2";
  return (
    String(inputMetadata[0].shape.slice(1)) === String(spec.input) &&
    [lengths, scores].every((shape) => !shape || shape[1] === classes.length) &&
    classes.every((name) => typeof name === "string") &&
    Object.entries(provenance?.export?.places ?? {}).every(placed)
  );
}

export class Model {
  constructor(engine, { about, session }, { name, parameters }) {
    if (!session.inputNames.includes("images")) {
      throw new Error(`it takes ${session.inputNames}, not images: is it a decoder? Drop its network with it`);
    }
    if (!fits(about, session)) {
      throw new Error("what it says of itself is not what its graph has: export it once more");
    }
    Object.assign(this, { engine, session, about, name, parameters, times: [] });
    [this.channels, this.height, this.width] = about.spec.input;
    this.classes = about.classes;
    const wide = about.provenance?.source?.[1] ?? this.width; // of an image before it was put into a larger picture
    this.share = Math.min(1, wide / this.width); // of the picture, that is drawn on
    const { shape, type } = session.inputMetadata[0];
    this.bytes = type === "uint8";
    if (typeof shape[0] === "number" && shape[0] > 1) {
      throw new Error(`it takes ${shape[0]} images at a time: export it without --batch`);
    }
    if (![1, 3].includes(this.channels)) {
      throw new Error(`it takes ${this.channels} channels: this page has grey and colour pictures`);
    }
    this.outputs = new Set(session.outputNames);
    const said = about.provenance?.export?.own_scores ? ["scores"] : ["lengths", "scores"]; // of which one tells
    if (!said.some((name) => this.outputs.has(name))) {
      throw new Error(`it tells ${session.outputNames}, no ${said[0]}: export it with --outputs ${said[0]}`);
    }
    this.places = Object.entries(about.provenance?.export?.places ?? {}).at(-1); // of the last layer that routes
  }

  /** Whether a decoder's file is of this network. */
  takes({ about }) {
    return JSON.stringify(about.spec) === JSON.stringify(this.about.spec);
  }

  /** What the network says of pixels [C, H, W] in [0, 1]. */
  async look(pixels) {
    const data = this.bytes ? Uint8Array.from(pixels, (x) => Math.round(x * 255)) : Float32Array.from(pixels);
    const { found, ms } = await this.engine.run(this.session, "images", data, [1, this.channels, this.height, this.width]);
    this.times = [...this.times.slice(-14), ms];
    const [, count, dim] = found.capsules?.dims ?? [];
    const capsule = (j) => Array.from(found.capsules.data.subarray(j * dim, (j + 1) * dim));
    return {
      chances: this.#chances(found),
      capsules: found.capsules && Array.from({ length: count }, (_, j) => capsule(j)),
      drawn: found.reconstruction,
      steps: this.#steps(found),
    };
  }

  /** Whether several classes can be there: a spread loss, and an exclusive cross-entropy, put one above the others. */
  get several() {
    const { type, exclusive } = this.about.spec.loss ?? {};
    return type === "CrossEntropy" ? exclusive === false : type !== "SpreadLoss";
  }

  #chances({ scores, lengths }) {
    if (!scores) return Array.from(lengths.data);
    const { type, scale = 1 } = this.about.spec.loss ?? {};
    if (type !== "CrossEntropy") return Array.from(scores.data);
    const found = Array.from(scores.data, (x) => scale * x);
    return this.several ? found.map(sigmoid) : softmax(found);
  }

  /** Of each step of the last routing: {vote(n, j), lengths [J]}; [] where the file does not tell. */
  #steps(found) {
    if (!this.places) return [];
    const [inputs, j] = [found[this.places[0]].data, this.classes.length];
    const layer = this.places[0].split(".")[1];
    const told = Object.keys(found).map((name) => name.split(".")).filter((parts) => parts.length === 3 && parts[1] === layer);
    const count = 1 + Math.max(0, ...told.map((parts) => Number(parts[2])));
    const steps = [];
    for (let r = 0; r < count; r++) {
      const couplings = found[`couplings.${layer}.${r}`]?.data; // none where all are equal
      const vote = (n, k) => Math.max(0, couplings ? couplings[n * j + k] : 1 / j) * inputs[n];
      const lengths = found[`lengths.${layer}.${r}`]?.data;
      steps.push({ vote, lengths: lengths && Array.from(lengths) });
    }
    return steps;
  }

  /** What the decoder draws of class `j` with these numbers: pixels [C, H, W] in [0, 1]. */
  async draw(j, numbers) {
    const capsules = new Float32Array(this.classes.length * numbers.length);
    capsules.set(numbers, j * numbers.length); // all others are zero, so that this one is the longest
    const dims = [1, this.classes.length, numbers.length];
    const { found } = await this.engine.run(this.decoder, "capsules", capsules, dims);
    return found.reconstruction;
  }

  /** Milliseconds of a run: the median of the last fifteen. */
  get time() {
    const sorted = this.times.toSorted((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)];
  }
}
