"""`python -m lab`: the paper's experiments, the page of their results, and the benchmarks; make runs the usual ones."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from capscore import backend
from capscore.cli.shared import found
from capscore.errors import CapscoreError, TrainingError, short
from lab import ROOT, files
from lab.experiments import NAMES, experiment

if TYPE_CHECKING:
    from lab.experiments.trials import Lab

app = typer.Typer(
    help="Experiments and benchmarks of capscore's own networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(emoji=False)  # a folder may be called :smile:

CORES = os.cpu_count() or 1
# Of this checkout, wherever the command is started: a user's own docs/ and results/ are another project's.
RESULTS, RUNS = ROOT / "results", ROOT / "runs" / "experiments"
MADE = ROOT / "runs" / "recipes"
ZOO = ROOT / "docs" / "zoo.md"
PAGE, IMAGES = ROOT / "docs" / "results.md", ROOT / "docs" / "images"
PLAYGROUND = ROOT / "docs" / "playground"

Results = Annotated[Path, typer.Option(help="Folder of the results' JSON files.", show_default="results")]


@app.command("experiment")
def experiment_command(
    name: Annotated[str, typer.Argument(help=f"{', '.join(NAMES)}.", show_default=False)],
    budget: Annotated[
        str, typer.Option(help="smoke: it runs; quick, hour: as long on a laptop; full: as the paper, on a GPU.")
    ] = "quick",
    trials: Annotated[int | None, typer.Option(min=1, help="How many seeds; else as the budget has it.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with mnist/, cifar10/ and so on; else CAPSCORE_DATA.")
    ] = None,
    results: Results = RESULTS,
    runs: Annotated[Path, typer.Option(help="Folder for the trainings.", show_default="runs/experiments")] = RUNS,
    images: Annotated[
        Path, typer.Option(help="Folder for the pictures, results-*.png.", show_default="docs/images")
    ] = IMAGES,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; else a GPU if there is one.")] = None,
) -> None:
    """Repeat an experiment of the paper, or measure its claims; what is done already is kept, and not done again.

    Every finished trial is added to results/NAME.json. Stop it at any moment; the same command goes on.
    """
    module = experiment(name)
    from lab.experiments.trials import Lab

    if budget not in module.BUDGETS:
        raise TrainingError(f"{name} has no budget {budget!r}; choose one of {', '.join(module.BUDGETS)}")
    spends = module.BUDGETS[budget]
    spends = spends if trials is None else replace(spends, trials=trials)
    lab = Lab(name, budget, spends, results, runs, images, data_dir, device, console)
    try:
        module.run(lab)
    except KeyboardInterrupt:
        lab.say("stopped; the same command goes on")
        raise typer.Exit(130) from None
    lab.say(f"{name}: done at budget {budget}: {lab.file}")


@app.command("recipe")
def recipe_command(
    name: Annotated[str, typer.Argument(help="A file of lab/recipes, without its end.", show_default=False)],
    seeds: Annotated[str | None, typer.Option(help="As 0,1,2; else as many as the recipe says.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with mnist/ and so on; else CAPSCORE_DATA.")] = None,
    results: Results = RESULTS,
    runs: Annotated[Path, typer.Option(help="Folder for the trainings.", show_default="runs/recipes")] = MADE,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; else a GPU if there is one.")] = None,
) -> None:
    """Train a published network by its recipe, once for each seed; what is done already is kept, and not done again.

    Every network is added to results/recipes.json. Stop it at any moment; the same command goes on.
    """
    backend("torch")  # says what to install
    from lab import published

    lab = _networks(results, runs, IMAGES, data_dir, device)
    if seeds is not None and not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise CapscoreError(f"--seeds are whole numbers with commas between them, as 0,1,2, not {short(seeds)}")
    try:
        published.run(lab, name, None if seeds is None else list(map(int, seeds.split(","))))
    except KeyboardInterrupt:
        lab.say("stopped; the same command goes on")
        raise typer.Exit(130) from None


@app.command("zoo")
def zoo_command(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes; else all whose network is trained.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with mnist/ and so on; else CAPSCORE_DATA.")] = None,
    results: Results = RESULTS,
    runs: Annotated[Path, typer.Option(help="Folder of the trainings.", show_default="runs/recipes")] = MADE,
    out: Annotated[Path, typer.Option(help="The page to write.", show_default="docs/zoo.md")] = ZOO,
    check: Annotated[
        bool, typer.Option("--check", help="Measure what ships again, and compare it with the cards.")
    ] = False,
) -> None:
    """Put trained networks into capscore.zoo, measured on every engine, and write the page of their cards."""
    backend("torch")  # says what to install
    from capscore.zoo import list_models
    from lab import gallery, zoo

    lab = _networks(results, runs, out.parent / "images", data_dir)
    if check:
        wrong = [line for name in names or list_models(pretrained=True) for line in zoo.check(lab, name)]
        if wrong:
            raise CapscoreError("; ".join(wrong))
        lab.say("every file reaches what its card says, on every engine")
        return
    files.check(out)
    for name in names or zoo.shipped(lab):
        path = zoo.ship(lab, name)
        lab.say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    gallery.draw(lab)
    files.write(out, zoo.page(lab).encode())


def _networks(results: Path, runs: Path, images: Path, data_dir: Path | None, device: str | None = None) -> Lab:
    """Return the lab of the recipes and of the zoo."""
    from lab.experiments.trials import Budget, Lab

    return Lab("recipes", "recipe", Budget(0, 1), results, runs, images, data_dir, device, console)


@app.command("playground")
def playground_command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Models or names of `capscore models`; else the page's own.",
            callback=lambda paths: [*map(found, paths or ())],
        ),
    ] = None,
    budget: Annotated[str, typer.Option(help="Of the training: smoke, quick or hour.")] = "quick",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with mnist/; else CAPSCORE_DATA.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the trainings.", show_default="runs/experiments")] = RUNS,
    out: Annotated[Path, typer.Option(help="Folder of the page.", show_default="docs/playground")] = PLAYGROUND,
) -> None:
    """Write the models and the digits of the playground: those that are given, or trained ones."""
    backend("torch")  # says what to install
    from capscore.export.playground import LIST, write
    from lab import playground
    from lab.experiments.trials import Lab

    if budget not in playground.BUDGETS:
        raise TrainingError(f"the playground has no budget {budget!r}; choose one of {', '.join(playground.BUDGETS)}")
    files.check(out / "models" / LIST)
    files.check(out / playground.DIGITS)
    lab = Lab("playground", budget, playground.BUDGETS[budget], RESULTS, runs, IMAGES, data_dir, console=console)
    chosen = [
        playground.drawing(lab, path) if playground.for_two(path) else path for path in models or playground.made(lab)
    ]
    two = [path.stem for path in chosen if playground.for_two(path)]
    about = {"two": two[0]} if two else {}
    for path in write(chosen, out / "models", "int8-weights", note=files.MARK, **about):
        lab.say(f"{path}: {path.stat().st_size:,} bytes")
    playground.write_digits(out / playground.DIGITS)


@app.command("results")
def results_command(
    results: Results = RESULTS,
    out: Annotated[
        Path, typer.Option(help="The page to write; zoo.md comes beside it.", show_default="docs/results.md")
    ] = PAGE,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with mnist/ and so on; else CAPSCORE_DATA.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the trained networks.", show_default="runs/recipes")] = MADE,
) -> None:
    """Write the page of all results, and that of the zoo with its pictures, from the files of the results.

    What ships says what is known today of all seeds of its recipe.

    A picture whose test images or decoder are not at hand stays as it is.
    """
    backend("torch")  # says what to install
    from capscore.zoo import list_models
    from lab import gallery, zoo
    from lab.experiments.page import markdown

    lab = _networks(results, runs, out.parent / "images", data_dir)
    files.check(out)
    files.check(out.with_name(ZOO.name))
    if not out.parent.is_dir():  # before the pictures make it
        raise CapscoreError(f"cannot write {out}: is its folder there and writable?")
    for name in list_models(pretrained=True):
        zoo.refresh(lab, name)
    gallery.draw(lab)
    files.write(out.with_name(ZOO.name), zoo.page(lab).encode())
    files.write(out, markdown(results, out.parent).encode())
    print(out)


@app.command("bench")
def bench_command(
    what: Annotated[str | None, typer.Option(help="Only these comparisons, separated by commas.")] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,32,128",
    preset: Annotated[str, typer.Option(help="Network: mnist or small.")] = "mnist",
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is timed.")] = 7,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of PyTorch and ONNX Runtime.")] = CORES,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    scaling: Annotated[bool, typer.Option("--scaling", help="Also grow the routing layer and plot its cost.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results as JSON and the plots.")] = None,
) -> None:
    """Time capscore beside a textbook network in PyTorch and beside the machine's own limits."""
    from lab.bench import suite
    from lab.bench.contenders import Settings, contenders

    backend("torch")  # says what to install
    known = contenders(device)
    chosen = list(known) if what is None else [name.strip() for name in what.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise CapscoreError(f"there is no comparison {unknown[0]!r}; choose from {', '.join(known)}")
    if preset not in ("mnist", "small"):
        raise CapscoreError(f"the benchmarks know the presets mnist and small, not {preset!r}")
    sizes = batches.replace(",", " ").split()
    if not sizes or not all(size.isdecimal() and int(size) for size in sizes):
        raise CapscoreError(f"batches must be whole numbers of at least 1, such as 1,32,128, not {batches!r}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not backend("torch").torch.cuda.is_available()):
        raise CapscoreError(f"the benchmarks run on cpu, or on cuda where PyTorch finds a GPU, not on {device!r}")
    name = f"{preset}-{device}"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for end in (".json", "-batch.png", "-scaling.png"):  # before, not after half an hour
            files.check(out / f"{name}{end}")
    settings = Settings(preset=preset, threads=threads, device=device)
    results = suite.run(chosen, list(map(int, sizes)), rounds, settings)
    if scaling:
        results["scaling"] = suite.scaling(settings, rounds)
    if out is not None:
        suite.save(out / f"{name}.json", results)
        suite.plots(results, out, name)
        print(f"written: {out}")


def main() -> None:
    """Run the command; an error of the user's ends with one line and exit code 1."""
    try:
        app()
    except (CapscoreError, OSError) as error:
        sys.exit(f"lab: error: {error}")


if __name__ == "__main__":
    main()
