// ONNX Runtime Web: on WebGPU where the browser has a GPU, else in WebAssembly. One run at a time.

const VERSION = "1.30.0";
const NETWORK = `https://cdn.jsdelivr.net/npm/onnxruntime-web@${VERSION}/dist/`;
const FILES = {
  webgpu: ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
  wasm: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"],
};
const PROTOBUF = /protobuf|ModelProto|parse/i; // what the runtime says of a file that is no ONNX

/** The name of the GPU, or null. A software adapter counts only where it is asked for: WebAssembly is faster. */
async function gpu(asked) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return null;
  const { vendor, architecture, isFallbackAdapter } = adapter.info;
  if ((isFallbackAdapter || architecture === "swiftshader") && !asked) return null;
  return [vendor, architecture].filter(Boolean).join(" ") || "GPU";
}

/** Have the browser fetch a file that will be asked for. */
function early(href) {
  document.head.append(Object.assign(document.createElement("link"), { rel: "preload", as: "fetch", crossOrigin: "", href }));
}

export class Engine {
  #last = Promise.resolve();

  /** `folder` has the runtime's modules (null: jsDelivr has); `asked` is webgpu, wasm, or null for what is best. */
  static async start(folder, asked) {
    const engine = new Engine();
    engine.folder = folder ? new URL(folder, document.baseURI).href : NETWORK;
    const device = asked === "wasm" ? null : await gpu(asked === "webgpu");
    if (asked === "webgpu" && !device) engine.note = "This browser offers no WebGPU. ";
    await engine.#load(device ? "webgpu" : "wasm", device);
    return engine;
  }

  async #load(name, device) {
    this.name = name;
    this.words = device ? `WebGPU (${device})` : "WebAssembly";
    const [module, code] = FILES[name];
    early(this.folder + code); // else the module asks for it, when it is here itself
    try {
      this.ort = await import(this.folder + module);
    } catch {
      throw new Error(`ONNX Runtime Web cannot be loaded from ${this.folder}. Is there a network?`);
    }
    this.ort.env.wasm.wasmPaths = { wasm: this.folder + code };
    this.ort.env.wasm.numThreads = 1; // more need headers that few hosts send
    this.ort.env.logLevel = "error";
  }

  async open(bytes) {
    const options = { executionProviders: [this.name], graphOptimizationLevel: "all" };
    return this.#inTurn(async () => {
      try {
        return await this.ort.InferenceSession.create(bytes, options);
      } catch (error) {
        if (PROTOBUF.test(error.message)) throw new Error("it is damaged, or no ONNX model");
        if (/SIMD/.test(error.message)) throw new Error("this browser's WebAssembly has no SIMD. Browsers since 2023 have it");
        throw new Error(`${this.words} does not run it: ${error.message.slice(0, 200)}`);
      }
    });
  }

  /** Outputs as {name: {data, dims}}, and the milliseconds of the run. */
  run(session, name, data, dims) {
    return this.#inTurn(async () => {
      const begun = performance.now();
      const kind = data instanceof Uint8Array ? "uint8" : "float32";
      const found = await session.run({ [name]: new this.ort.Tensor(kind, data, dims) });
      return { found, ms: performance.now() - begun };
    });
  }

  #inTurn(job) {
    const mine = this.#last.then(job);
    this.#last = mine.catch(() => {});
    return mine;
  }
}
