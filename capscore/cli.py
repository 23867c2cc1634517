"""The `capscore` command: train, eval, predict, export, inspect, verify, explore, demo."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import PRESETS, CapsNetSpec, __version__, backend, modelfile
from .data import NAMES, Samples, load, read_image
from .errors import CapscoreError, ModelFileError, SpecError, TrainingError
from .report import Screen, TensorBoard
from .train import BEST, LAST, LOG, Recipe, Reporter, Stopped, accuracy, alone, check_dataset, train
from .verify import verify

app = typer.Typer(
    help="Capsule networks on NumPy, CuPy, PyTorch and JAX: train, look inside, export to ONNX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(emoji=False)  # a file may be called :smile:.png

DEMO = Recipe(epochs=20, batch=32, rate=3e-3, decay_steps=50, reconstruction=0.002)

ModelPath = Annotated[Path, typer.Argument(help="A .safetensors model or an .onnx export.", show_default=False)]
Weights = Annotated[Path, typer.Argument(help="A .safetensors model.", show_default=False)]
Data = Annotated[str, typer.Option(help=f"{NAMES}, a folder of images, or an .npz file.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with mnist/, cifar10/ and so on; else CAPSCORE_DATA.")]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="numpy, torch, cupy or jax; else CAPSCORE_BACKEND, torch if installed, numpy."),
]
Provider = Annotated[
    str | None,
    typer.Option(help=".onnx: auto (CUDA if it is there, else the CPU), cpu, cuda, tensorrt or ONNX Runtime's name."),
]
Threads = Annotated[int | None, typer.Option(help=".onnx on the CPU: how many; all cores if not given.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Take the options of the command as a whole."""
    if show:
        _say(__version__)
        raise typer.Exit


@app.command("train")
def train_command(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help=f"Network: {', '.join(PRESETS)}.")] = "small",
    spec: Annotated[Path | None, typer.Option(help="Network: a JSON file instead of a preset.")] = None,
    data: Data = "digits",
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder for model, checkpoint and log.")] = Path("runs/capsnet"),
    resume: Annotated[Path | None, typer.Option(help="Go on with the training in this folder, exactly.")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the data; {Recipe.epochs} if new.")] = None,
    batch: Annotated[int, typer.Option(help="Images per step.")] = Recipe.batch,
    rate: Annotated[float, typer.Option(help="Learning rate of Adam at the start.")] = Recipe.rate,
    decay: Annotated[float, typer.Option(help="Factor on the rate per decay-steps.")] = Recipe.decay,
    decay_steps: Annotated[int, typer.Option(help="Steps over which the rate decays so.")] = Recipe.decay_steps,
    floor: Annotated[float, typer.Option(help="Smallest learning rate.")] = Recipe.floor,
    shift: Annotated[int | None, typer.Option(help="Random shift, pixels each way; else the dataset's own.")] = None,
    reconstruction: Annotated[float, typer.Option(help="Weight of the reconstruction loss.")] = Recipe.reconstruction,
    seed: Annotated[int, typer.Option(help="Of parameters, order and shifts.")] = Recipe.seed,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    backend_name: Backend = None,
    device: Annotated[str | None, typer.Option(help="torch: cpu, cuda, cuda:1, mps.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="torch: bfloat16 in convolutions and products.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch: compile the loss.")] = False,
    fast_conv: Annotated[str | None, typer.Option(help="3x3 or 6x6: convolutions by fewer multiplications.")] = None,
) -> None:
    """Train a network; Ctrl-C (or SIGTERM) saves and says how to go on.

    Writes best.safetensors (highest held-out accuracy), last.safetensors (to resume from) and log.jsonl.
    """
    if resume is not None:
        given = [name for name in context.params if "COMMANDLINE" in str(context.get_parameter_source(name))]
        if other := set(given) - {"resume", "epochs", "device", "backend_name", "data_dir"}:
            named = ", ".join("--" + name.replace("_", "-") for name in sorted(other))
            raise TrainingError(f"a training goes on as it began: without {named}, beside --resume")
        model = modelfile.read(resume / LAST) if (resume / LAST).exists() else None
        if model is None or not _resumable(model.provenance):
            raise ModelFileError(f"there is no training to resume in {resume}: {LAST} is missing or no checkpoint")
        settings, classes = model.provenance, model.classes
        recipe = Recipe.of(settings)
        recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
        net_spec, out, data, backend_name = model.spec, resume, settings["data"], backend_name or settings["backend"]
        data_dir = data_dir or (Path(settings["data_dir"]) if settings["data_dir"] else None)
        seed = recipe.seed
        dtype = str(next(iter(model.params.values())).dtype)
        device, amp, compile = device or settings["device"], settings["amp"], settings["compile"]
        fast_conv = settings["fast_conv"]
    else:
        net_spec, classes = _spec(preset, spec), ()
    train_set, test_set = load(data, data_dir=data_dir, size=net_spec.input, seed=seed)
    if classes and classes != tuple(train_set.classes):
        raise TrainingError(f"the training was of the classes {', '.join(classes)}; the data now has "
                            f"{', '.join(train_set.classes)}")  # fmt: skip
    if resume is None:
        shift = train_set.shift if shift is None else shift
        epochs = Recipe.epochs if epochs is None else epochs
        recipe = Recipe(epochs, batch, rate, decay, decay_steps, floor, shift, reconstruction, seed)
        net_spec = net_spec if spec is not None else _for_classes(net_spec, len(train_set.classes))
    where = None if data_dir is None else str(data_dir.resolve())  # absolute: to be resumed from anywhere
    data = data if data in NAMES.split(", ") else str(Path(data).resolve())
    name = backend_name or _default_backend()
    caps = backend(name)
    about = _training(data, where, name, device, amp, compile, fast_conv)
    net = caps.CapsNet(
        net_spec, seed=recipe.seed, dtype=dtype, fast_conv=fast_conv, classes=train_set.classes, provenance=about
    )
    options = {key: value for key, value in (("device", device), ("amp", amp), ("compile", compile)) if value}
    learner = caps.Learner(net, recipe.reconstruction, **options)
    say = _say if learner.writes else str  # one of several processes that train together speaks
    say(f"{net_spec.parameter_count:,} parameters on {name}; {len(train_set):,} images to learn from, "
        f"{len(test_set):,} held out")  # fmt: skip
    rows = _train(net, learner, train_set, test_set, recipe, out, resume is not None)
    best = max(rows, key=lambda row: row["held_out_accuracy"])
    say(f"best held-out accuracy {best['held_out_accuracy']:.2%} in epoch {best['epoch']}: {out / BEST}")


@app.command("eval")
def eval_command(
    model: ModelPath,
    data: Data = "digits",
    data_dir: DataDir = None,
    backend_name: Backend = None,
    provider: Provider = None,
    threads: Threads = None,
) -> None:
    """Measure a model's accuracy on a dataset's test images."""
    net = _open(model, backend_name, provider, threads)
    _, test = load(data, data_dir=data_dir, size=net.spec.input)
    check_dataset(net, test, "test")
    share = accuracy(_TakesFloats(net) if _takes_bytes(net) else net, test)
    wrong = round((1 - share) * len(test))
    if tuple(test.classes) != tuple(net.classes):
        _say(f"note: the model's classes are {', '.join(net.classes)}; the dataset's are {', '.join(test.classes)}")
    _say(f"accuracy {share:.2%}: {wrong:,} of {len(test):,} test images of {data} are wrong")


@app.command("predict")
def predict_command(
    model: ModelPath,
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files.", show_default=False)],
    invert: Annotated[
        bool, typer.Option("--invert", help="The images are dark on light; the model's, light on dark.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: file, class, all lengths.")] = False,
    backend_name: Backend = None,
    provider: Provider = None,
    threads: Threads = None,
) -> None:
    """Say which class image files show, and how long its capsule is."""
    net = _open(model, backend_name, provider, threads)
    pixels = np.stack([read_image(path, net.spec.input) for path in images])
    pixels = 255 - pixels if invert else pixels
    lengths = net.predict(pixels if _takes_bytes(net) else pixels.astype(np.float32) / 255)
    table = Table("file", "class", "length", "next", "length", box=None)
    for path, row in zip(images, lengths, strict=True):
        order = np.argsort(-row, kind="stable")
        names = [net.classes[i] for i in order]
        if as_json:
            found = {net.classes[i]: round(float(n), 6) for i, n in enumerate(row)}
            print(json.dumps({"file": str(path), "class": names[0], "lengths": found}))
        else:
            second = (names[1], f"{row[order[1]]:.3f}") if len(names) > 1 else ("", "")
            cells = str(path), names[0], f"{row[order[0]]:.3f}", *second
            table.add_row(*map(escape, cells))
    if not as_json:
        console.print(table)


@app.command("export")
def export_command(
    model: Weights,
    onnx: Annotated[Path | None, typer.Argument(help="The file to write; MODEL with .onnx if not given.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    batch: Annotated[int | None, typer.Option(help="A fixed number of images; any number if not given.")] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 17 or later.")] = 18,
    outputs: Annotated[str | None, typer.Option(help="Some of lengths,capsules,reconstruction,couplings.")] = None,
    byte_images: Annotated[bool, typer.Option("--byte-images", help="Take uint8 images, 0 to 255.")] = False,
    decoder: Annotated[Path | None, typer.Option(help="Write the decoder as a model of its own here.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Calibrate int8 on its training images; report accuracy on its test images.")
    ] = None,
    data_dir: DataDir = None,
    fast_conv: Annotated[str | None, typer.Option(help="3x3 or 6x6: fp32 for large batches, in a larger file.")] = None,
    verify: Annotated[bool, typer.Option(help="Prove that the graph computes the same.")] = True,
    triton: Annotated[Path | None, typer.Option(help="A Triton model repository to put the file into, too.")] = None,
) -> None:
    """Write a model as one ONNX file, routing unrolled, and prove that it computes the same as the network."""
    from .export.onnx import export, export_decoder

    net = backend("numpy").load(model)
    target = onnx or model.with_suffix(".onnx")
    files = [path for path in (model, target, decoder) if path is not None]
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise ModelFileError(f"one file would be written over another: {', '.join(map(str, files))} must differ")
    chosen = None if outputs is None else [name.strip() for name in outputs.split(",")]
    sets = None if data is None else load(data, data_dir=data_dir, size=net.spec.input)
    calibration = None
    if sets is not None:
        check_dataset(net, sets[1], "test")
        some = np.random.default_rng(0).permutation(len(sets[0]))[:512]  # of every class, whatever the order
        calibration = sets[0].batch(some)[0]
    report = export(
        net,
        target,
        precision=precision,
        batch=batch,
        opset=opset,
        outputs=chosen,
        byte_images=byte_images,
        calibration=calibration,
        fast_conv=fast_conv,
        verify=verify,
    )
    _exported(report, model)
    if decoder is not None:
        half = "fp16" if precision == "fp16" else "fp32"
        _exported(export_decoder(net, decoder, precision=half, batch=batch, opset=opset, verify=verify), model)
    if sets is not None and (chosen is None or "lengths" in chosen):
        from .export.runtime import Session

        session = Session(target)
        exported = accuracy(_TakesFloats(session) if byte_images else session, sets[1])
        _say(f"accuracy on {len(sets[1]):,} test images of {data}: {accuracy(net, sets[1]):.2%} before, "
             f"{exported:.2%} exported")  # fmt: skip
    if triton is not None:
        from .export.triton import write

        _say(f"{write(target, triton)}: serve it with tritonserver --model-repository {triton}")


def _log(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a training's log, None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = [{name: float(row[name]) for name in ("loss", "accuracy", "held_out_accuracy")} for row in rows]
        if not all(math.isfinite(value) for row in told for value in row.values()):
            raise ValueError("its numbers are not finite")
        return [{"epoch": int(row["epoch"]), **numbers} for row, numbers in zip(rows, told, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        _say(f"note: no training curves: {path} cannot be read ({error})")
        return None


def _exported(report: Any, model: Path) -> None:
    """Tell of a file that was written: its size, and its largest differences."""
    _say(f"{report.path}: {report.bytes / 1e6:.2f} MB from {model.stat().st_size / 1e6:.2f} MB")
    if report.differences is None:
        _say("not verified")
        return
    table = Table("output", "largest difference from float64", box=None)
    for name, difference in report.differences.items():
        table.add_row(name, f"{difference:.1e}")
    console.print(table)


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="A .safetensors or .onnx file, a spec's JSON, or a preset's name.")],
) -> None:
    """Show layers, shapes, parameters and multiply-adds of a model."""
    about: dict[str, Any] = {}
    if model in PRESETS:
        spec = PRESETS[model]
    elif model.endswith(".json"):
        spec = _spec("", Path(model))
    elif model.lower().endswith(".onnx"):
        from .export.onnxfile import read as read_onnx

        file = read_onnx(model)
        spec, about = file.spec, {"classes": ", ".join(file.classes)} | file.provenance
    else:
        read = modelfile.read(model)
        stored = sorted({str(array.dtype) for array in read.params.values()})
        spec, about = read.spec, {"stored as": ", ".join(stored), "classes": ", ".join(read.classes)} | read.provenance
    table = Table("layer", "kind", "output", "parameters", "multiply-adds", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    table.add_row("images", "", _size(spec.input))
    for row in (*spec.rows, *spec.decoder_rows):
        cost = f"{row.parameter_count:,}", f"{row.plan.multiply_adds:,}"
        table.add_row(row.name, row.kind, _size(row.output.dims), *cost)
    table.add_section()
    table.add_row("total", "", "", f"{spec.parameter_count:,}", f"{spec.multiply_adds:,}")
    console.print(table)
    for name, value in about.items():
        if name not in ("log", "training"):  # a checkpoint's own; the run's log.jsonl has them
            _say(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}")


@app.command("verify")
def verify_command(
    model: Weights,
    data: Annotated[str | None, typer.Option(help="Use 32 of its test images too.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Run a model on every backend at hand and ONNX Runtime; show the largest differences from NumPy in float64."""
    read = modelfile.read(model)
    images = None
    if data is not None:
        _, test = load(data, data_dir=data_dir, size=read.spec.input)
        images = test.batch(slice(0, 32))[0]
    if not _agreement(read, images):
        raise typer.Exit(1)


@app.command("explore")
def explore_command(
    model: Weights,
    data: Data = "digits",
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("figures"),
    backend_name: Backend = None,
) -> None:
    """Draw what a model does: reconstructions, what each dimension means, couplings, lengths, training curves."""
    from .figures import explore

    net = backend(backend_name or _default_backend()).load(model)
    _, test = load(data, data_dir=data_dir, size=net.spec.input)
    check_dataset(net, test, "test")
    for path in explore(net, test, out, _log(model.parent / LOG)):
        _say(str(path))


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the 5,000 digits.")] = DEMO.epochs,
    backend_name: Backend = None,
) -> None:
    """Train a small network on 5,000 real digits and follow it everywhere: evaluate, save, export, compare, draw."""
    from .export.onnx import export
    from .export.runtime import Session
    from .figures import explore

    train_set, test_set = load("digits")
    name = backend_name or _default_backend()
    caps = backend(name)
    recipe = replace(DEMO, epochs=epochs)
    about = _training(backend=name)
    net = caps.CapsNet(PRESETS["small"], seed=recipe.seed, classes=train_set.classes, provenance=about)
    _say(f"1. Train {net.spec.parameter_count:,} parameters on {name} with {len(train_set):,} digits")
    run = out / "run"
    run.mkdir(parents=True, exist_ok=True)
    with alone(run):
        for old in (LAST, BEST):  # a demo starts anew
            (run / old).unlink(missing_ok=True)
    rows = _train(net, caps.Learner(net, recipe.reconstruction), train_set, test_set, recipe, run, False)
    model = out / "digits.safetensors"
    net.save(model)
    _say(f"2. Saved {model} ({model.stat().st_size / 1e6:.1f} MB)")
    _say(f"3. {accuracy(net, test_set):.2%} of the {len(test_set):,} test digits are right on {name}")
    onnx = out / "digits.onnx"
    export(net, onnx)
    session = Session(onnx)
    _say(f"4. Exported {onnx}: {accuracy(session, test_set):.2%} are right in ONNX Runtime")
    _say("5. The same network everywhere, largest differences from NumPy in float64:")
    agree = _agreement(modelfile.read(model), test_set.batch(slice(0, 32))[0])
    _say("6. What it learned, in pictures:")
    for path in explore(caps.load(model), test_set, out, rows):
        _say(f"   {path}")
    if not agree:
        raise typer.Exit(1)


def _training(
    data: str = "digits",
    data_dir: str | None = None,
    backend: str = "numpy",
    device: str | None = None,
    amp: bool = False,
    compile: bool = False,
    fast_conv: str | None = None,
) -> dict[str, Any]:
    """Return what `train --resume` must know beside the recipe, by name."""
    return dict(locals())


def _resumable(provenance: Mapping[str, Any]) -> bool:
    """Whether a file tells all that `train --resume` must know, each of its kind."""
    known = "recipe" in provenance and set(_training()) <= set(provenance)
    return known and all(
        type(provenance[name]) is type(usual) or (usual is None and isinstance(provenance[name], str))
        for name, usual in _training().items()
    )


def _train(
    net: Any, learner: Any, train_set: Samples, test_set: Samples, recipe: Recipe, out: Path, resume: bool
) -> list[dict[str, Any]]:
    """Train with a bar, and TensorBoard where it is installed; Ctrl-C ends with the command that goes on."""
    screen = Screen(console)
    reporters: list[Reporter] = []
    if learner.writes:
        reporters = [screen, *([TensorBoard(out)] if importlib.util.find_spec("tensorboard") else [])]
    try:
        return train(net, learner, train_set, test_set, recipe, out, resume, tuple(reporters))
    except KeyboardInterrupt as stop:
        screen.close()
        if learner.writes:
            saved = "everything is saved" if isinstance(stop, Stopped) else "at once, after the last checkpoint"
            go_on = f"{saved}. Go on with: capscore train --resume {shlex.quote(str(out))}"
            _say(f"stopped; {go_on if (out / LAST).exists() else 'nothing was saved yet'}")
        raise typer.Exit(130) from None
    finally:
        screen.close()


def _agreement(model: modelfile.Model, images: Any) -> bool:
    """Print the table of differences; return whether all are within the tolerances."""
    table = Table("engine", "dtype", "lengths", "capsules", "reconstruction", "", box=None)
    rows = verify(model, images)
    for row in rows:
        drawn = "" if row.reconstruction is None else f"{row.reconstruction:.1e}"
        verdict = "agrees" if row.agrees else f"differs (> {row.allowed:.1g})"
        table.add_row(row.engine, row.dtype, f"{row.lengths:.1e}", f"{row.capsules:.1e}", drawn, verdict)
    console.print(table)
    return all(row.agrees for row in rows)


def _default_backend() -> str:
    chosen = os.environ.get("CAPSCORE_BACKEND")
    return chosen or ("torch" if importlib.util.find_spec("torch") else "numpy")


def _open(path: Path, name: str | None = None, provider: str | None = None, threads: int | None = None) -> Any:
    """Return a network, or for an .onnx file a session."""
    if path.suffix.lower() == ".onnx":
        from .export.runtime import Session

        if name is not None:
            raise CapscoreError(f"--backend is for .safetensors models; {path} runs in ONNX Runtime, on a --provider")
        return Session(path, provider or "auto", threads or 0)
    if provider is not None or threads is not None:
        raise CapscoreError(f"--provider and --threads are for .onnx models; {path} runs on a --backend")
    return backend(name or _default_backend()).load(path)


def _takes_bytes(net: Any) -> bool:
    return getattr(net, "dtype", "") == "uint8"  # only a session has one


@dataclass(frozen=True)
class _TakesFloats:
    """A session that takes bytes, for a dataset that gives floats in [0, 1]."""

    session: Any

    def predict(self, images: Any) -> Any:
        """Return the lengths [N, J]."""
        return self.session.predict(np.rint(images * 255).astype(np.uint8))


def _spec(preset: str, path: Path | None) -> CapsNetSpec:
    if path is not None:
        try:
            return CapsNetSpec.from_json(path.read_bytes())
        except OSError as error:
            raise SpecError(f"cannot read {path}: {error.strerror}") from None
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None
    if preset not in PRESETS:
        raise SpecError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _for_classes(spec: CapsNetSpec, classes: int) -> CapsNetSpec:
    """Return a preset with as many class capsules as the data has classes."""
    return spec.replace(layers=(*spec.layers[:-1], replace(spec.capsules[-1], count=classes)))


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command; an error of the user's ends with one line and exit code 1."""
    try:
        app()
    except CapscoreError as error:
        message = str(error)
    except MemoryError as error:
        message = f"not enough memory: {error or 'use a smaller batch or network'}"
    except OSError as error:
        message = f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
    except RuntimeError as error:  # PyTorch's, without a class of its own on the CPU
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        message = f"not enough memory: use a smaller batch or network ({str(error).splitlines()[0]:.120})"
    else:
        return
    print(f"capscore: error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
