"""`capscore train`: a network from images, or a training taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer

from capscore import CapsNetSpec, backend, modelfile
from capscore.cli.app import app, say
from capscore.cli.choices import OPTIMISERS, SCHEDULES, choose, choose_augment, choose_loss
from capscore.cli.config import Config, read_config
from capscore.cli.datasets import own_size, say_notes, usual_shift
from capscore.cli.options import TrainOptions, taking
from capscore.cli.shared import default_backend, found, preset, read_spec
from capscore.cli.training import Setup, run_training
from capscore.data import NAMES, Samples, by_name, load, rule_of, with_validation
from capscore.data.split import Rule
from capscore.errors import CapscoreError, ModelFileError, TrainingError, short
from capscore.finetune import finetuned, for_classes
from capscore.fit import fitted, pace
from capscore.train import BEST, LAST, Recipe, find_rate, read_last

CHANGEABLE = {"resume", "imports", "report", "epochs", "device", "backend_name", "data", "data_dir"}  # by who resumes


@dataclass(frozen=True)
class Plan:
    """What a training is to be, before its data are read."""

    setup: Setup
    data: str  # as it was typed, for messages
    out: Path
    seed: int
    dtype: str
    spec: CapsNetSpec | None = None  # None: one that fits the data
    recipe: Recipe | None = None  # None: of the options, and of the data
    classes: tuple[str, ...] = ()  # none: those of the data
    rule: Rule | None = None  # how the data are split; None: the usual way
    begins: modelfile.Model | None = None  # whose parameters the network begins with


@app.command("train")
@taking(TrainOptions)
def train_command(context: typer.Context, options: TrainOptions) -> None:
    """Train a network; Ctrl-C (or SIGTERM, or a closed terminal) saves and says how to go on.

    Writes best.safetensors (highest held-out accuracy), last.safetensors (to resume from), log.jsonl, and config.json:
    the settings, those included that were chosen by the data. Edit it and give it back by --config.
    """
    given = [name for name in context.params if "COMMANDLINE" in str(context.get_parameter_source(name))]
    if options.config and not options.resume:
        options = read_config(options.config, options, given)
    plan = _new(options) if options.resume is None else _resumed(given, options)
    setup = plan.setup
    if options.report:
        import capscore.report  # noqa: F401 - what it lacks is told before the training
    train_set, test_set = _data(plan)
    learn, chosen = with_validation(train_set, setup.validation) if setup.validation else (train_set, None)
    net_spec, params = _network(plan, options, learn)
    options = _settled(options, plan, learn)
    recipe = plan.recipe or _recipe(options, len(learn))
    about = modelfile.public(asdict(setup))
    net = backend(setup.backend).CapsNet(
        net_spec,
        params,
        seed=recipe.seed,
        dtype=plan.dtype,
        fast_conv=setup.fast_conv,
        classes=learn.classes,
        provenance=about,
    )
    learner = setup.learner(net, recipe)
    if options.freeze:
        learner.frozen = _begin_with(net_spec, options.freeze)
    tell = say if learner.writes else str  # one of several processes that train together speaks
    say_notes(train_set, test_set, tell)
    choosing = "" if chosen is None else f"{len(chosen):,} to choose the best epoch by, "
    tell(f"{net_spec.parameter_count:,} parameters on {setup.backend}; {len(learn):,} images to learn from, "
         f"{choosing}{len(test_set):,} held out")  # fmt: skip
    if options.find_rate:
        found = find_rate(net, learner, learn, recipe)
        tell(f"a rate that fits: --rate {found.best:g} (of {len(found.rates)} steps from {found.rates[0]:g} to "
             f"{found.rates[-1]:.2g}, the loss was lowest at {10 * found.best:g})")  # fmt: skip
        return
    config = () if plan.recipe else (Config(plan.out, options, net_spec, tell),)
    sets = (learn, test_set, None) if chosen is None else (learn, chosen, test_set)
    rows = run_training(net, learner, sets, recipe, plan.out, bool(plan.recipe), setup, config)
    if options.report and learner.writes:
        tell(_report(plan.out, setup, test_set, rows))
    best = max(rows, key=lambda row: row["held_out_accuracy"])
    if setup.validation:
        told = modelfile.read(plan.out / BEST).provenance
        tell(f"held-out accuracy {told['held_out_accuracy']:.2%} of the model that was best on the validation images, "
             f"{best['held_out_accuracy']:.2%} in epoch {best['epoch']}: {plan.out / BEST}")  # fmt: skip
        return
    tell(f"best held-out accuracy {best['held_out_accuracy']:.2%} in epoch {best['epoch']}: {plan.out / BEST}")


def _new(options: TrainOptions) -> Plan:
    """Return what the options say of a new training."""
    if sum(x is not None for x in (options.preset, options.spec, options.finetune)) > 1:
        raise CapscoreError("--preset, --spec and --finetune each name the network: give one of them")
    begins = modelfile.read(found(options.finetune)) if options.finetune else None
    named = options.preset or options.spec
    spec = (read_spec(options.spec) if options.spec else preset(options.preset or "")) if named else None
    if begins is not None:
        spec = begins.spec
    if not 0 <= options.validation < 1:
        raise CapscoreError(f"--validation is a share of the images from 0 to below 1, not {options.validation}")
    where = None if options.data_dir is None else str(options.data_dir.resolve())  # to be resumed from anywhere
    chosen = options.backend_name or default_backend()
    setup = Setup(
        _lasting(options.data), where, chosen, options.device, options.amp, options.compile, options.fast_conv,
        options.validation,
    )  # fmt: skip
    return Plan(setup, options.data, options.out, options.seed, options.dtype, spec, begins=begins)


def _resumed(given: Sequence[str], options: TrainOptions) -> Plan:
    """Return what the checkpoint in a folder says of its training, and the few things that may change."""
    if other := set(given) - CHANGEABLE:
        named = ", ".join("--" + name.replace("_", "-") for name in sorted(other))
        raise TrainingError(f"a training goes on as it began: without {named}, beside --resume")
    folder = options.resume
    assert folder is not None
    model = read_last(folder) if (folder / LAST).exists() else None
    setup = Setup.of(model.provenance) if model else None
    if model is None or "recipe" not in model.provenance:
        raise ModelFileError(f"there is no training to resume in {folder}: {LAST} is missing or no checkpoint")
    if setup is None:
        raise ModelFileError(
            f"{folder / LAST} does not tell this command where its data are: a training of Python's goes on there, by "
            "train(..., resume=True)"
        )
    recipe = Recipe.of(model.provenance)
    recipe = recipe if options.epochs is None else replace(recipe, epochs=options.epochs)
    data = options.data if "data" in given else setup.data
    if not ("data" in given or data in NAMES or Path(data).exists()):
        raise TrainingError(f"the data of this training, {data}, are not there: name their new place by --data")
    changed: dict[str, Any] = {"data": _lasting(data), "device": options.device or setup.device}
    changed["data_dir"] = str(options.data_dir.resolve()) if options.data_dir else setup.data_dir
    changed["backend"] = options.backend_name or setup.backend
    dtype = str(next(iter(model.params.values())).dtype)
    rule = rule_of(model.provenance)
    return Plan(replace(setup, **changed), data, folder, recipe.seed, dtype, model.spec, recipe, model.classes, rule)


def _lasting(data: str) -> str:
    """Return the name of a dataset, or the absolute path of a file or folder."""
    return data if data in NAMES else str(Path(data).resolve())


def _data(plan: Plan) -> tuple[Samples, Samples]:
    """Return (train, test), their classes in the order of the training that goes on, or of the network begun with."""
    data, where = plan.data, plan.setup.data_dir
    size = plan.spec.input if plan.spec else own_size(data)
    sets = load(data, data_dir=where, size=size, seed=plan.seed, split=plan.rule)
    if plan.classes and set(plan.classes) != set(sets[0].classes):
        raise TrainingError(f"the training was of the classes {', '.join(plan.classes)}; the data now has "
                            f"{', '.join(sets[0].classes)}")  # fmt: skip
    known = plan.classes or (plan.begins.classes if plan.begins else ())
    if set(known) != set(sets[0].classes):
        return sets
    (train_set, _), (test_set, _) = by_name(sets[0], known, "training"), by_name(sets[1], known, "test")
    return train_set, test_set


def _network(plan: Plan, options: TrainOptions, data: Samples) -> tuple[CapsNetSpec, dict[str, Any] | None]:
    """Return the network that is trained: a preset gets as many class capsules as the data has classes.

    With the network come the parameters that it begins with, if they are another model's.
    """
    count = len(data.classes)
    spec = fitted(data.size, count, len(data)) if plan.spec is None else plan.spec
    params = None
    if plan.recipe:
        return spec, params
    if plan.begins:
        spec, params = finetuned(plan.begins, data.classes, options.seed)
    elif not options.spec:
        spec = for_classes(spec, count)
    return spec.replace(loss=choose_loss(spec, data, options.loss, options.class_weights)), params


def _begin_with(spec: CapsNetSpec, starts: str) -> list[str]:
    """Return the names of parameters that begin with one of several words, parted by commas."""
    words = tuple(starts.split(","))
    for word in words:
        if not any(name.startswith(word) for name in spec.parameters):
            raise CapscoreError(
                f"--freeze: no parameter begins with {short(word)}; there are {', '.join(spec.parameters):.300}"
            )
    return [name for name in spec.parameters if name.startswith(words)]


def _settled(options: TrainOptions, plan: Plan, data: Samples) -> TrainOptions:
    """Return the options with what the data decide where they say nothing."""
    fits = pace(data.size, len(data))
    usual: dict[str, Any] = {"batch": fits.batch, "epochs": fits.epochs, "shift": data.shift, "rate": Recipe.rate}
    usual["reconstruction"] = Recipe.reconstruction
    if plan.spec is None:
        usual |= {"rate": fits.rate, "schedule": fits.schedule, "reconstruction": fits.reconstruction}
        usual["shift"] = usual_shift(data)
    if {options.decay, options.decay_steps, options.floor} != {None}:
        usual["schedule"] = "exponential"
    left = {name: value for name, value in usual.items() if getattr(options, name) is None}
    return replace(options, data=plan.setup.data, backend_name=plan.setup.backend, **left)


def _recipe(options: TrainOptions, images: int) -> Recipe:
    """Return the recipe of a new training, of settled options."""
    if options.sampling not in (None, "balanced"):
        raise CapscoreError(f"--sampling takes balanced, not {short(options.sampling)}")
    optimiser = choose(
        "optimiser", OPTIMISERS, options.optimiser,
        momentum=options.momentum, weight_decay=options.weight_decay, clip=options.clip,
    )  # fmt: skip
    settled = {name: getattr(options, name) for name in ("epochs", "batch", "rate", "shift", "reconstruction")}
    recipe = Recipe(
        **settled,
        seed=options.seed,
        optimiser=optimiser,
        average=options.average,
        patience=options.patience,
        augment=choose_augment(options.augment),
        balanced=options.sampling is not None,
    )
    falling: dict[str, Any] = {"decay": options.decay, "decay_steps": options.decay_steps, "floor": options.floor}
    name = options.schedule or "exponential"
    if name == "exponential" and options.warmup is None:
        return replace(recipe, **{name: value for name, value in falling.items() if value is not None})
    total = recipe.total(images)
    at = (max(1, total // 2), max(1, total * 3 // 4)) if name == "steps" else None
    schedule = choose("schedule", SCHEDULES, name, **falling, warmup=options.warmup, at=at)
    return replace(recipe, schedule=schedule)


def _report(out: Path, setup: Setup, data: Samples, rows: list[dict[str, Any]]) -> str:
    """Write the report of the best model, and say where it is."""
    from capscore import report

    report.write(out / "report.html", backend(setup.backend).load(out / BEST), data, rows)
    return f"a report with pictures: {out / 'report.html'}"
