"""What a recipe can say beside the authors' own: optimisers, schedules, averaged weights, losses and their weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import backend
from test_train import RECIPE, TINY, run, stopping
from typer.testing import CliRunner

from capscore import PRESETS, CrossEntropy, Linear, MarginLoss, SpreadLoss, cli, modelfile
from capscore.cli.choices import LOSSES, OPTIMISERS, SCHEDULES, choose, choose_loss
from capscore.data import Dataset, Pairs, balanced, load
from capscore.errors import CapscoreError, TrainingError
from capscore.optim import SGD, Adam, AdamW, Cosine, Exponential, OneCycle, Steps
from capscore.train import BEST, LAST, Recipe, Stopped, accuracy, train
from capscore.values import write

RECIPES = {
    "sgd": Recipe(optimiser=SGD(momentum=0.8, nesterov=True, decay=1e-3), rate=0.05),
    "sgd alone": Recipe(optimiser=SGD(momentum=0.0), rate=0.05, schedule=Steps((2, 7))),
    "adamw": Recipe(optimiser=AdamW(decay=0.1, clip=0.5), schedule=Cosine(warmup=3)),
    "averaged": Recipe(average=0.8, schedule=OneCycle()),
    "averaged sgd": Recipe(optimiser=SGD(), average=0.5, rate=0.02, schedule=Exponential(0.5, 4, 1e-3, warmup=2)),
}


@pytest.fixture(scope="module")
def digits():
    learn, held_out = load("digits")
    some = np.random.default_rng(0).permutation(len(learn))[:150]
    return Dataset(learn.images[some], learn.labels[some], learn.classes), Dataset(
        held_out.images[::20], held_out.labels[::20], held_out.classes
    )


def trained(name, digits, folder, recipe, resume=False, stop=0):
    """Train as a recipe says; return the network, the learner and the log's rows."""
    caps = backend(name)
    net = caps.CapsNet(TINY, seed=recipe.seed, classes=digits[0].classes)
    learner = stopping(caps.Learner(net, recipe.reconstruction, recipe.optimiser, recipe.average), stop)
    return net, learner, train(net, learner, *digits, recipe, folder, resume)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("which", RECIPES)
def test_every_recipe_resumes_to_the_bit(name, which, digits, tmp_path):
    recipe = replace(RECIPES[which], epochs=2, batch=32, seed=3)
    net, _, rows = trained(name, digits, tmp_path / "whole", recipe)
    with pytest.raises(Stopped):
        trained(name, digits, tmp_path / "cut", recipe, stop=7)
    again, _, rows_again = trained(name, digits, tmp_path / "cut", recipe, resume=True)
    for row, other in zip(rows, rows_again, strict=True):
        for key in ("loss", "accuracy", "held_out_accuracy", "rate"):
            assert row[key] == other[key]
    for key, p in net.params.items():
        np.testing.assert_array_equal(backend(name).to_numpy(p), backend(name).to_numpy(again.params[key]))
    for file in (LAST, BEST):
        whole, cut = (modelfile.read(tmp_path / kind / file) for kind in ("whole", "cut"))
        assert whole.state.keys() == cut.state.keys()
        for key, array in (whole.params | whole.state).items():
            np.testing.assert_array_equal(array, (cut.params | cut.state)[key], err_msg=key)


@pytest.mark.parametrize("which", RECIPES)
def test_numpy_and_torch_learn_the_same_by_every_recipe(which, digits, tmp_path):
    recipe = replace(RECIPES[which], epochs=1, batch=32, seed=3)
    ours, theirs = (trained(name, digits, tmp_path / name, recipe)[2] for name in ("numpy", "torch"))
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_what_a_checkpoint_keeps_is_what_the_optimiser_remembers(name, digits, tmp_path):
    kinds = {}
    for which in ("sgd", "sgd alone", "averaged"):
        trained(name, digits, tmp_path / which, replace(RECIPES[which], epochs=1, batch=50))
        state = modelfile.read(tmp_path / which / LAST).state
        kinds[which] = {key.removeprefix(modelfile.STATE).split(".")[0] for key in state}
    assert kinds == {"sgd": {"momentum"}, "sgd alone": set(), "averaged": {"first", "second", "average"}}


def test_the_best_model_is_the_averaged_one_and_the_network_keeps_its_own(digits, tmp_path):
    net, learner, rows = trained("numpy", digits, tmp_path, replace(RECIPES["averaged"], epochs=1, batch=16))
    best, last = modelfile.read(tmp_path / BEST), modelfile.read(tmp_path / LAST)
    for key, p in net.params.items():
        np.testing.assert_array_equal(p, last.params[key])
        np.testing.assert_array_equal(best.params[key], last.state[f"{modelfile.STATE}average.{key}"])
    assert any(not np.array_equal(p, best.params[key]) for key, p in net.params.items())
    assert accuracy(backend("numpy").load(tmp_path / BEST), digits[1]) == rows[0]["held_out_accuracy"]
    with learner.averaged():
        np.testing.assert_array_equal(net.params["primary.weight"], best.params["primary.weight"])
    np.testing.assert_array_equal(net.params["primary.weight"], last.params["primary.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("optimizer.average.primary.bias"), r"average\.primary\.bias is missing"),
        (lambda s: s.pop("optimizer.momentum.primary.bias"), r"momentum\.primary\.bias is missing"),
        (lambda s: s.update({"optimizer.first.primary.bias": np.zeros(8, "f4")}), "belongs to no parameter"),
        (lambda s: s.update({"optimizer.average.primary.bias": np.zeros(8)}), "is stored as float64"),
        (lambda s: s.update({"optimizer.momentum.primary.bias": np.full(8, np.inf, "f4")}), "NaN or infinity"),
    ],
)
def test_a_state_that_is_not_the_optimisers_is_refused(change, message, digits, tmp_path):
    recipe = replace(RECIPES["averaged sgd"], epochs=1, batch=50)
    trained("numpy", digits, tmp_path, recipe)
    model = modelfile.read(tmp_path / LAST)
    state = dict(model.state)
    change(state)
    modelfile.save(tmp_path / LAST, replace(model, state=state))
    with pytest.raises(TrainingError, match=message):
        trained("numpy", digits, tmp_path, replace(recipe, epochs=2), resume=True)


@pytest.mark.parametrize("recipe", [Recipe(), *RECIPES.values()])
def test_a_recipe_survives_json(recipe):
    told = json.loads(json.dumps({"recipe": recipe.as_json()}))
    assert Recipe.of(told) == recipe


def test_a_recipe_of_before_has_the_authors_optimiser_and_schedule():
    told = modelfile.read(Path(__file__).parent / "v01" / "checkpoint.safetensors").provenance
    assert "optimiser" not in told["recipe"]
    recipe = Recipe.of(told)
    assert recipe == Recipe(epochs=2, batch=16, decay_steps=10, seed=5)
    assert (recipe.optimiser, recipe.rates, recipe.average) == (Adam(), Exponential(0.96, 10, 1e-6), 0.0)


@pytest.mark.parametrize(
    "told",
    [
        {"optimiser": {"type": "Momentum"}},
        {"optimiser": {"type": "Cosine"}},
        {"optimiser": None},
        {"optimiser": "adam"},
        {"schedule": {"type": "Steps", "at": [0]}},
        {"schedule": {"type": "Adam"}},
        {"schedule": [1]},
        {"average": 1.0},
        {"average": None},
        {"decay_steps": 10**12},
        {"unknown": 1},
    ],
    ids=repr,
)
def test_a_recipe_that_is_none_is_refused(told):
    with pytest.raises(TrainingError):
        Recipe.of({"recipe": told})


def test_the_log_tells_the_rates_of_the_schedule(digits, tmp_path):
    recipe = Recipe(epochs=2, batch=75, rate=0.01, schedule=Cosine(end=0.1, warmup=1))
    _, _, rows = trained("numpy", digits, tmp_path, recipe)
    assert recipe.rate_at(0, 4) == pytest.approx(0.005)  # the first of two steps up
    assert recipe.rate_at(1, 4) == pytest.approx(0.01)
    assert [row["rate"] for row in rows] == [recipe.rate_at(2, 4), recipe.rate_at(4, 4)]
    assert rows[1]["rate"] == pytest.approx(0.001)


def test_the_learner_and_the_recipe_agree(digits, tmp_path):
    caps = backend("numpy")
    net = caps.CapsNet(TINY, classes=digits[0].classes)
    for recipe in (Recipe(optimiser=SGD()), Recipe(average=0.9)):
        with pytest.raises(TrainingError, match=r"make it as Learner\(net, recipe\.reconstruction, recipe\.optimiser"):
            train(net, caps.Learner(net), *digits, recipe, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": AdamW()}, r"optimiser was Adam\("),
        ({"schedule": OneCycle()}, "schedule was None"),
        ({"average": 0.5}, "average was 0.0"),
    ],
)
def test_resuming_by_another_optimiser_or_schedule_is_refused(change, message, digits, tmp_path):
    run("numpy", digits, tmp_path, replace(RECIPE, epochs=1))
    with pytest.raises(TrainingError, match=message):
        trained("numpy", digits, tmp_path, replace(RECIPE, **change), resume=True)


# ---------------------------------------------------------------------------------------------------- the command line


def command(*args, code=0):
    """Run the command in this process; return what it printed, or its error."""
    result = CliRunner().invoke(cli.app, list(map(str, args)))
    if code:
        assert isinstance(result.exception, CapscoreError), result.output
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with few images of three classes, one of them rare, and a small network."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    labels = np.array([0] * 20 + [1] * 15 + [2] * 5)
    images = rng.integers(0, 256, (40, 1, 8, 8), np.uint8)
    np.savez(folder / "few.npz", x_train=images, y_train=labels, x_test=images[::4], y_test=labels[::4])
    spec = {
        "input": [1, 8, 8],
        "layers": [
            {"type": "PrimaryCaps", "types": 2, "dim": 4, "kernel": 3},
            {"type": "DenseCaps", "count": 3, "dim": 4},
        ],
        "decoder": None,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def told(files, out, *options, epochs=1):
    """Train for an epoch with options; return the model that is left."""
    where = ["--data", files / "few.npz", "--spec", files / "spec.json", "--out", out, "--backend", "numpy"]
    command("train", *where, "--epochs", epochs, "--batch", 10, *options)
    return modelfile.read(out / LAST)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], {"optimiser": Adam(), "schedule": None, "average": 0.0}),
        (["--decay", 0.5, "--decay-steps", 7, "--floor", 0.01], {"decay": 0.5, "decay_steps": 7, "floor": 0.01}),
        (["--optimiser", "adamw", "--weight-decay", 0.2], {"optimiser": AdamW(decay=0.2)}),
        (["--optimiser", "sgd", "--momentum", 0.5, "--clip", 1], {"optimiser": SGD(momentum=0.5, clip=1.0)}),
        (["--optimiser", "sgd", "--weight-decay", 0.1], {"optimiser": SGD(decay=0.1)}),
        (["--schedule", "cosine"], {"schedule": Cosine()}),
        (["--schedule", "one-cycle", "--warmup", 2], {"schedule": OneCycle(warmup=2)}),
        (["--schedule", "steps"], {"schedule": Steps((2, 3))}),
        (["--warmup", 3, "--decay", 0.5], {"schedule": Exponential(decay=0.5, warmup=3)}),
        (["--decay-steps", 5, "--warmup", 1], {"schedule": Exponential(steps=5, warmup=1)}),
        (["--average", 0.9], {"average": 0.9}),
    ],
)
def test_options_make_the_recipe(options, wanted, files, tmp_path):
    recipe = Recipe.of(told(files, tmp_path / "run", *options).provenance)
    for name, value in wanted.items():
        assert getattr(recipe, name) == value
    assert json.loads(json.dumps(recipe.as_json()["optimiser"])) == json.loads(json.dumps(write(recipe.optimiser)))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], MarginLoss()),
        (["--loss", "margin"], MarginLoss()),
        (["--loss", "spread"], SpreadLoss()),
        (["--loss", "cross-entropy"], CrossEntropy(scale=10.0)),
        (["--class-weights", "balanced"], MarginLoss(class_weights=(40 / 60, 40 / 45, 40 / 15))),
        (["--loss", "spread", "--class-weights", "balanced"], SpreadLoss(class_weights=(40 / 60, 40 / 45, 40 / 15))),
    ],
)
def test_options_make_the_loss_that_travels_with_the_model(options, wanted, files, tmp_path):
    spec = told(files, tmp_path / "run", *options).spec
    assert type(spec.loss) is type(wanted)
    weights = spec.loss.class_weights
    assert weights == (None if wanted.class_weights is None else pytest.approx(wanted.class_weights))
    assert replace(spec.loss, class_weights=None) == replace(wanted, class_weights=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimiser", "lion"], "there is no optimiser 'lion'; choose one of adam, adamw, sgd"),
        (["--schedule", "flat"], "choose one of exponential, cosine, one-cycle, steps"),
        (["--loss", "hinge"], "choose one of margin, spread, cross-entropy"),
        (["--momentum", 0.5], "--momentum is for the optimiser sgd, not for adam: leave it out"),
        (["--weight-decay", 0.5], "--weight-decay is for the optimiser adamw or sgd, not for adam"),
        (["--schedule", "cosine", "--decay-steps", 5], "--decay-steps is for the schedule exponential, not for cosine"),
        (["--class-weights", "rare"], "--class-weights takes balanced or numbers such as 1,0.5,2, not 'rare'"),
        (["--optimiser", "sgd", "--momentum", 2], "momentum must be a number from 0 to"),
        (["--clip", 0], "clip must be a number from"),
        (["--average", 1], "average must be below 1"),
        (["--warmup", -1], "warmup must be a whole number from 0"),
    ],
)
def test_options_that_do_not_fit_are_told(options, message, files, tmp_path):
    where = ["--data", files / "few.npz", "--spec", files / "spec.json", "--out", tmp_path / "run"]
    assert message in command("train", *where, *options, code=1)
    assert not (tmp_path / "run").exists()


def test_the_command_resumes_every_option_to_the_bit(files, tmp_path):
    options = ["--optimiser", "sgd", "--momentum", 0.7, "--average", 0.9, "--clip", 2, "--decay-steps", 3]
    options += ["--warmup", 2, "--loss", "cross-entropy", "--class-weights", "balanced", "--rate", 0.02]
    whole = told(files, tmp_path / "whole", *options, epochs=2)
    told(files, tmp_path / "cut", *options)
    command("train", "--resume", tmp_path / "cut", "--epochs", 2)
    cut = modelfile.read(tmp_path / "cut" / LAST)
    assert whole.spec == cut.spec
    for key, array in (whole.params | whole.state).items():
        np.testing.assert_array_equal(array, (cut.params | cut.state)[key], err_msg=key)
    assert "without --loss, --momentum, beside" in command(
        "train", "--resume", tmp_path / "cut", "--momentum", 0.1, "--loss", "margin", code=1
    )


def test_a_checkpoint_of_before_goes_on_by_the_command(tmp_path):
    from test_v01 import digits as of_v01

    learn, test = of_v01(96), of_v01(40)
    arrays = {"x_train": learn.images, "y_train": learn.labels, "x_test": test.images, "y_test": test.labels}
    np.savez(tmp_path / "digits.npz", **arrays)
    model = modelfile.read(Path(__file__).parent / "v01" / "checkpoint.safetensors")
    setup = {"data": str(tmp_path / "digits.npz"), "data_dir": None, "backend": "numpy", "device": None}
    setup |= {"amp": False, "compile": False, "fast_conv": None}  # as the command of 0.1 kept it, beside the rest
    (tmp_path / "run").mkdir()
    modelfile.save(tmp_path / "run" / LAST, replace(model, provenance=model.provenance | setup))
    assert "epoch 2/2" in command("train", "--resume", tmp_path / "run")
    wanted = modelfile.read(Path(__file__).parent / "v01" / "trained.safetensors")
    found = modelfile.read(tmp_path / "run" / LAST)
    for key, array in wanted.params.items():
        np.testing.assert_array_equal(array, found.params[key], err_msg=key)


def test_every_kind_can_be_chosen_as_it_is():
    assert [choose("optimiser", OPTIMISERS, name) for name in OPTIMISERS] == [Adam(), AdamW(), SGD()]
    schedules = [choose("schedule", SCHEDULES, name, at=(1,) if name == "steps" else None) for name in SCHEDULES]
    assert schedules == [Exponential(), Cosine(), OneCycle(), Steps((1,))]
    assert [choose("loss", LOSSES, name) for name in LOSSES] == [MarginLoss(), SpreadLoss(), CrossEntropy()]


def test_cross_entropy_fits_the_scores_and_the_labels(digits):
    scores = TINY.replace(layers=(*TINY.layers[:1], Linear(10)), decoder=None)
    several = Pairs(digits[0], 0, 1)
    found = [choose_loss(spec, data, "cross-entropy", None) for spec in (TINY, scores) for data in (digits[0], several)]
    assert found == [CrossEntropy(10.0), CrossEntropy(10.0, False), CrossEntropy(1.0), CrossEntropy(1.0, False)]


def test_balanced_weights_count_what_is_shown(digits):
    images, classes = np.zeros((6, 1, 2, 2), np.uint8), ("a", "b", "absent")
    data = Dataset(images, np.array([0, 0, 0, 0, 1, 1]), classes)
    assert balanced(data) == (0.75, 1.5, 1.0)
    assert balanced(Pairs(data, 0, 3)) == (0.75, 1.5, 1.0)
    weights = np.array(balanced(digits[0]))
    assert weights[digits[0].labels].mean() == pytest.approx(1)
    assert len(weights) == PRESETS["small"].classes
