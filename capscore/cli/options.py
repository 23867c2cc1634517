"""The options of `train`, in one table, and how a command takes a table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from capscore import PRESETS
from capscore.cli.choices import LOSSES, OPTIMISERS, SCHEDULES
from capscore.cli.shared import Backend, Data, DataDir, Import
from capscore.data import AUGMENTATIONS
from capscore.train import Recipe

Network = f"Network: {', '.join(PRESETS)}; else one like small that fits the data."

ADVANCED = (  # what help lists in a panel of its own
    "freeze", "find_rate", "schedule", "decay", "decay_steps", "floor", "warmup", "optimiser", "momentum",
    "weight_decay", "clip", "average", "loss", "reconstruction", "dtype", "device", "amp", "compile", "fast_conv",
)  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """What a command line says of a training; None where it says nothing and something else decides."""

    preset: Annotated[str | None, typer.Option(help=Network)] = None
    spec: Annotated[Path | None, typer.Option(help="Network: a JSON file instead of a preset.")] = None
    data: Data = "digits"
    data_dir: DataDir = None
    out: Annotated[Path, typer.Option(help="Folder for model, checkpoint and log.")] = Path("runs/capsnet")
    resume: Annotated[Path | None, typer.Option(help="Go on with the training in this folder, exactly.")] = None
    finetune: Annotated[
        Path | None, typer.Option(help="Begin with this model's parameters, for these classes; or one that ships.")
    ] = None
    freeze: Annotated[str | None, typer.Option(help="Parameters that stay, by how names begin: stem,primary.")] = None
    find_rate: Annotated[bool, typer.Option("--find-rate", help="Look for a learning rate, and end.")] = False
    validation: Annotated[float, typer.Option(help="Share of the training images to choose the best epoch by.")] = 0.0
    patience: Annotated[int, typer.Option(help="End after so many epochs without a better one; 0: never.")] = 0
    imports: Import = None
    config: Annotated[Path | None, typer.Option(help="Settings from the config.json of a training.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; else by their number.")] = None
    batch: Annotated[int | None, typer.Option(help="Images per step; else by their number.")] = None
    rate: Annotated[float | None, typer.Option(help=f"Learning rate; else {Recipe.rate}, or what fits the data.")] = (
        None
    )
    schedule: Annotated[str | None, typer.Option(help=f"How the rate goes: {', '.join(SCHEDULES)}.")] = None
    decay: Annotated[float | None, typer.Option(help=f"exponential: factor per decay-steps, {Recipe.decay}.")] = None
    decay_steps: Annotated[int | None, typer.Option(help=f"exponential: for it, {Recipe.decay_steps}.")] = None
    floor: Annotated[float | None, typer.Option(help=f"exponential: smallest rate, {Recipe.floor}.")] = None
    warmup: Annotated[int | None, typer.Option(help="Steps over which the rate rises at the start.")] = None
    optimiser: Annotated[str, typer.Option(help=f"{', '.join(OPTIMISERS)}.")] = "adam"
    momentum: Annotated[float | None, typer.Option(help="sgd: share of the last step in the next one.")] = None
    weight_decay: Annotated[float | None, typer.Option(help="adamw, sgd: how fast weights shrink.")] = None
    clip: Annotated[float | None, typer.Option(help="Largest norm of all gradients together.")] = None
    average: Annotated[float, typer.Option(help="Decay of averaged weights, such as 0.998; 0: none.")] = Recipe.average
    loss: Annotated[
        str | None, typer.Option(help=f"{', '.join(LOSSES)}; else the network's own, if it suits the labels.")
    ] = None
    class_weights: Annotated[str | None, typer.Option(help="balanced: rare classes count as much; or as 1,0.5,2.")] = (
        None
    )
    sampling: Annotated[str | None, typer.Option(help="balanced: images of rare classes come more often.")] = None
    shift: Annotated[int | None, typer.Option(help="Random shift, pixels each way; else the dataset's own.")] = None
    augment: Annotated[str | None, typer.Option(help=f"Changes of images: {', '.join(AUGMENTATIONS)}.")] = None
    reconstruction: Annotated[float | None, typer.Option(help="Weight of the reconstruction loss.")] = None
    report: Annotated[bool, typer.Option("--report", help="Write report.html in the end, with pictures.")] = False
    seed: Annotated[int, typer.Option(help="Of parameters, order and shifts.")] = Recipe.seed
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32"
    backend_name: Backend = None
    device: Annotated[str | None, typer.Option(help="torch: cpu, cuda, cuda:1, mps.")] = None
    amp: Annotated[bool, typer.Option("--amp", help="torch: bfloat16 in convolutions and products.")] = False
    compile: Annotated[bool, typer.Option("--compile", help="torch: compile the loss.")] = False
    fast_conv: Annotated[str | None, typer.Option(help="3x3 or 6x6: convolutions by fewer multiplications.")] = None


def taking(table: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: a command (context, options) takes every field of the dataclass `table` as an option."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(context: typer.Context, **given: Any) -> None:
            command(context, table(**given))

        hints = {"context": typer.Context} | get_type_hints(table, include_extras=True)
        for name in ADVANCED:
            hints[name].__metadata__[0].rich_help_panel = "Advanced"
        usual = {field.name: field.default for field in fields(table)}
        kind = inspect.Parameter.KEYWORD_ONLY
        with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, kind, default=usual.get(name, inspect.Parameter.empty), annotation=hint)
                for name, hint in hints.items()
            ]
        )
        with_options.__annotations__ = hints
        return with_options

    return decorate
