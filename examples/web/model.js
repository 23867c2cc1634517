// An exported model by what its .json file says of it: size, classes, scale. It runs in browsers and in Node.

export class Model {
  /** `ort` is onnxruntime-web or onnxruntime-node, `about` the object in the .json file. */
  constructor(ort, session, about) {
    if (!about.inputs?.images || !about.outputs || !about.classes) {
      throw new Error("its .json file tells of no images and classes: capscore export … --json writes one that does");
    }
    const { shape, dtype } = about.inputs.images;
    [this.batch, this.channels, this.height, this.width] = shape;
    if ((this.batch ?? 1) !== 1) {
      throw new Error(`it takes ${this.batch} images at a time: export it without --batch, or with --batch 1`);
    }
    Object.assign(this, { ort, session, dtype, classes: about.classes, scale: about.preprocessing.scale });
    this.scores = ["scores", "lengths"].find((name) => name in about.outputs);
    if (!this.scores) throw new Error("it gives no scores: export it without --outputs, or with lengths among them");
    this.drawn = about.outputs.reconstruction?.shape.slice(1); // [C, H, W]
  }

  /** Scores [J] and, if the model draws, pixels [C, H, W] in [0, 1], for bytes [C, H, W] of one image. */
  async classify(bytes) {
    const shape = [1, this.channels, this.height, this.width];
    const data = this.dtype === "uint8" ? bytes : Float32Array.from(bytes, (value) => value * this.scale);
    const out = await this.session.run({ images: new this.ort.Tensor(this.dtype, data, shape) });
    return { scores: out[this.scores].data, drawn: out.reconstruction?.data };
  }
}
