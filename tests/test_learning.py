"""What people do about training: end it early, choose by other images, begin with a model, bring parts of their own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need
from test_plain_train import run

from capscore import PRESETS, CapsNorm, DenseCaps, MarginLoss, modelfile, zoo
from capscore.backends import numpy as caps
from capscore.data import Dataset, Framed, Pairs, load, with_validation
from capscore.errors import DataError, SpecError
from capscore.finetune import finetuned, for_classes
from capscore.losses import Loss
from capscore.net import init_params
from capscore.optim import Optimiser
from capscore.train import BEST, LAST, Recipe, accuracy, find_rate, train

SMALL = PRESETS["small"].replace(decoder=None)


def digits(count: int) -> Dataset:
    data = load("digits")[0]
    return Dataset(data.images[:count], data.labels[:count], data.classes)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some digits, and the spec of a small network for them."""
    folder = tmp_path_factory.mktemp("digits")
    some = digits(300)
    np.savez(folder / "digits.npz", images=some.images, labels=some.labels)  # type: ignore[arg-type]
    (folder / "spec.json").write_text(SMALL.to_json())
    return folder


# ------------------------------------------------------------------------------------ when to end, what to choose by


def test_patience_ends_a_training_and_a_resumed_one(tmp_path: Path) -> None:
    data, test = digits(64), digits(32)
    recipe = Recipe(epochs=9, batch=32, rate=1e-12, floor=0.0, patience=2)  # nothing changes, so nothing is better
    net = caps.CapsNet(SMALL)
    rows = train(net, caps.Learner(net, 0.0005), data, test, recipe, tmp_path / "run", reporters=())
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert train(net, caps.Learner(net), data, test, recipe, tmp_path / "run", resume=True, reporters=()) == rows
    rows = [{"held_out_accuracy": x} for x in (0.1, 0.5, 0.4, 0.5)]
    assert [Recipe(patience=n).is_over(rows) for n in (0, 1, 2, 3)] == [False, True, True, False]


def test_a_training_of_python_goes_on_there(tmp_path: Path) -> None:
    net = caps.CapsNet(SMALL)
    train(net, caps.Learner(net), digits(32), digits(32), Recipe(epochs=1), tmp_path, reporters=())
    assert "goes on there, by train(..., resume=True)" in run("train", "--resume", tmp_path, code=1)


def test_validation_images_are_neither_learned_nor_held_out(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run("train", "--data", archive / "digits.npz", "--spec", archive / "spec.json", "--out", out, "--epochs", 2,
               "--batch", 32, "--validation", 0.25, "--backend", "numpy")  # fmt: skip
    learn, test = load(str(archive / "digits.npz"))
    rest, chosen = with_validation(learn, 0.25)
    assert " validation " in next(line for line in said.splitlines() if line.startswith("epoch 1/2 loss"))
    assert len(rest) + len(chosen) == len(learn)
    told = modelfile.read(out / BEST).provenance
    assert told["training_images"] == len(rest)
    assert told["fingerprints"]["held_out"]["images"] == len(test)
    assert told["fingerprints"]["validation"]["images"] == len(chosen)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert told["validation_accuracy"] == max(row["held_out_accuracy"] for row in log)
    assert f"held-out accuracy {told['held_out_accuracy']:.2%} of the model that was best on the validation" in said
    again = run("eval", out / BEST, "--data", archive / "digits.npz", "--backend", "numpy")
    assert f"accuracy {told['held_out_accuracy']:.2%}" in again
    assert "note" not in again
    count = f"{len(rest)} images to learn from, {len(chosen)} to choose the best epoch by, {len(test)} held out"
    assert count in said
    assert "epoch 3/3" in run("train", "--resume", out, "--epochs", 3)
    assert modelfile.read(out / BEST).provenance["training_images"] == len(rest)


def test_a_schedule_counts_the_steps_without_validation_images(archive: Path, tmp_path: Path) -> None:
    run("train", "--data", archive / "digits.npz", "--spec", archive / "spec.json", "--out", tmp_path, "--epochs", 4,
        "--batch", 8, "--validation", 0.5, "--rate", 0.001, "--schedule", "steps", "--backend", "numpy")  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["rate"] for row in log] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-5])  # a tenth at 2/4 and at 3/4


def test_validation_goes_by_content_and_needs_images_one_by_one() -> None:
    data = digits(200)
    first = {x.tobytes() for x in with_validation(data, 0.2)[1].images}
    turned = Dataset(data.images[::-1], data.labels[::-1], data.classes)  # type: ignore[index]
    assert {x.tobytes() for x in with_validation(turned, 0.2)[1].images} == first
    framed, chosen = with_validation(Framed(data, 20, 20), 0.2)
    assert (len(framed), len(chosen)) == (200 - len(first), len(first))
    with pytest.raises(DataError, match="from a Pairs"):
        with_validation(Pairs(data), 0.2)
    with pytest.raises(DataError, match="leaves none"):
        with_validation(data, 1e-9)


# ----------------------------------------------------------------------------------------------- to begin with a model


def test_other_classes_begin_with_what_was_learned(archive: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    old = caps.CapsNet(PRESETS["small"], seed=5)
    old.save(model)
    some = digits(300)
    keep = some.labels < 3
    np.savez(tmp_path / "three.npz", images=some.images[keep], labels=some.labels[keep], classes=list("abc"))  # type: ignore[arg-type,index]
    run("train", "--data", tmp_path / "three.npz", "--finetune", model, "--freeze", "stem,primary", "--out",
        tmp_path / "run", "--epochs", 1, "--batch", 32, "--backend", "numpy")  # fmt: skip
    new = modelfile.read(tmp_path / "run" / LAST)
    assert (new.classes, new.spec.classes) == (("a", "b", "c"), 3)
    for name in ("stem.0.weight", "primary.bias"):
        np.testing.assert_array_equal(new.params[name], old.params[name])
    assert "no parameter begins with 'steam'" in run("train", "--data", tmp_path / "three.npz", "--finetune", model,
                                                     "--freeze", "primary,steam", code=1)  # fmt: skip
    assert "give one of them" in run("train", "--preset", "small", "--finetune", model, code=1)


def test_classes_in_another_order_are_the_same_classes(tmp_path: Path) -> None:
    model, some = tmp_path / "model.safetensors", digits(200)
    old = caps.CapsNet(SMALL.replace(loss=MarginLoss(class_weights=(9.0, *[1.0] * 9))), seed=5)
    old.save(model)
    np.savez(tmp_path / "back.npz", images=some.images, labels=9 - some.labels, classes=list("9876543210"))
    said = run("train", "--data", tmp_path / "back.npz", "--finetune", model, "--rate", 1e-9, "--epochs", 1, "--out",
               tmp_path / "run", "--backend", "numpy", "--freeze", "stem")  # fmt: skip
    new = modelfile.read(tmp_path / "run" / LAST)
    assert new.classes == tuple("0123456789")
    for name, a in new.params.items():
        np.testing.assert_allclose(a, old.params[name], atol=1e-4, err_msg=name)  # a few steps of 1e-6
    assert new.spec.loss == MarginLoss(), "weights were of other images"
    assert "note" not in said


def test_a_network_that_learns_on_is_no_published_one(tmp_path: Path) -> None:
    some, recipe = digits(64), Recipe(epochs=1)
    net = caps.CapsNet.load(zoo.path("small-mnist"))
    net.provenance |= {"validation_accuracy": 0.5, "by": "somebody"}
    assert {"published", "measured", "seeds"} <= net.provenance.keys()
    train(net, caps.Learner(net, recipe.reconstruction), some, some, recipe, tmp_path, reporters=(), test=some)
    told = modelfile.read(tmp_path / BEST).provenance
    assert not {"published", "measured", "seeds"} & told.keys()
    assert told["by"] == "somebody"
    assert told["validation_accuracy"] == told["held_out_accuracy"] == accuracy(net, some)


def test_what_begins_anew() -> None:
    old = modelfile.Model(PRESETS["small"], init_params(PRESETS["small"], 5), tuple("0123456789"))
    spec, params = finetuned(old, old.classes)
    assert (spec, params) == (old.spec, old.params)
    spec, params = finetuned(old, tuple("abcdefghij"), 0)
    weights = [name for name in params if name.endswith("weight")]  # biases are equal at first
    kept = {name for name in weights if np.array_equal(params[name], old.params[name])}
    assert kept == {"stem.0.weight", "primary.weight", "decoder.1.weight", "decoder.2.weight"}
    odd = PRESETS["small"].replace(layers=(*PRESETS["small"].layers, DenseCaps(4, 8)))
    assert finetuned(modelfile.Model(odd, init_params(odd, 0), tuple("abcd")), tuple("xy"))[0].classes == 2


def test_what_has_a_number_for_each_class_begins_anew() -> None:
    spec = PRESETS["small"].replace(layers=(*PRESETS["small"].layers, CapsNorm("batch")))
    old = modelfile.Model(spec, init_params(spec, 5), tuple("0123456789"))
    new, params = finetuned(old, tuple("abc"), 0)
    assert {name: a.shape for name, a in params.items()} == new.parameters
    np.testing.assert_array_equal(params["stem.0.weight"], old.params["stem.0.weight"])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_other_classes(name: str) -> None:
    spec = PRESETS[name]
    other = for_classes(spec, 3)
    assert other.classes == 3
    assert for_classes(other, spec.classes) == spec
    assert for_classes(spec, spec.classes) is spec


def test_what_begins_anew_within_another_layer() -> None:
    """Of layers that route at the same time the last makes the classes; the scores are the same function of a pose."""
    old = modelfile.Model(PRESETS["small-inverted"], init_params(PRESETS["small-inverted"], 5), tuple("0123456789"))
    spec, params = finetuned(old, tuple("abcdef"), 0)
    anew = {name for name in params if not np.array_equal(params[name], old.params[name])}
    assert {name.rpartition(".")[0] for name in anew} == {"capsules.1.layers.1", "decoder.0"}
    assert spec.classes == 6


def test_a_rate_is_found_between_none_and_too_much(archive: Path, tmp_path: Path) -> None:
    net = caps.CapsNet(SMALL)
    before = {name: p.copy() for name, p in net.params.items()}
    found = find_rate(net, caps.Learner(net), digits(300), Recipe(batch=32), steps=60)
    assert 1e-4 <= found.best <= 3e-2
    assert found.losses[-1] > min(found.losses)
    for name, p in net.params.items():
        np.testing.assert_array_equal(p, before[name])
    said = run("train", "--data", archive / "digits.npz", "--spec", archive / "spec.json", "--out", tmp_path / "run",
               "--find-rate", "--batch", 32, "--backend", "numpy")  # fmt: skip
    assert "a rate that fits: --rate 0.0" in said
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------- parts of one's own


OWN = '''
from dataclasses import dataclass
from capscore import DynamicRouting


@dataclass(frozen=True)
class Calm{n}(DynamicRouting):
    """Routing under another name."""

    iterations: int = 2
'''


def test_layers_of_ones_own_on_the_command_line(archive: Path, tmp_path: Path) -> None:
    own = tmp_path / "my_routing.py"
    own.write_text(OWN.format(n=1))
    spec = json.loads(SMALL.to_json())
    spec["layers"][-1]["routing"] = {"type": "Calm1"}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    told = [
        "train",
        "--data",
        archive / "digits.npz",
        "--spec",
        tmp_path / "spec.json",
        "--epochs",
        1,
        "--backend",
        "numpy",
    ]
    assert "type 'Calm1' is unknown" in run(*told, "--out", tmp_path / "run", code=1)
    run(*told, "--import", own, "--out", tmp_path / "run")
    model = tmp_path / "run" / BEST
    assert "Calm1" in repr(modelfile.read(model).spec)
    assert "accuracy" in run("eval", model, "--data", archive / "digits.npz", "--import", own)
    assert "there is no" in run("eval", model, "--import", tmp_path / "nowhere.py", code=1)


@dataclass(frozen=True)
class Squared(Loss):
    """The squared distance of scores and targets."""

    def each(self, ops: Any, scores: Any, targets: Any, step: int) -> Any:
        gap = scores - targets
        return ops.sum(gap * gap, 1, keepdims=True)


@dataclass(frozen=True)
class Plain(Optimiser):
    """Gradient descent without anything."""

    def update(self, ops: Any, p: Any, g: Any, slots: dict[str, Any], rate: float, step: int) -> Any:
        return p - g * rate, {}


def test_a_loss_and_an_optimiser_of_ones_own_learn_the_same_on_every_backend(tmp_path: Path) -> None:
    torch = need("capscore.backends.torch", "torch")
    data = digits(96)
    recipe = Recipe(epochs=2, batch=32, rate=0.05, optimiser=Plain())
    found = []
    for backend in (caps, torch):
        net = backend.CapsNet(SMALL.replace(loss=Squared()), dtype="float64")
        learner = backend.Learner(net, recipe.reconstruction, recipe.optimiser)
        found.append(train(net, learner, data, data, recipe, tmp_path / backend.__name__, reporters=()))
    assert found[0][1]["loss"] < found[0][0]["loss"]
    assert found[0][1]["loss"] == pytest.approx(found[1][1]["loss"], rel=1e-9)
    assert modelfile.read(tmp_path / caps.__name__ / BEST).spec.loss == Squared()


def test_a_model_that_ends_in_something_else_cannot_have_other_classes() -> None:
    from capscore import Activation, Conv, GlobalPool, Linear

    spec = SMALL.replace(layers=(Conv(4, 5), GlobalPool(), Linear(3, activation="none")))
    model = modelfile.Model(spec, init_params(spec, 0), tuple("abc"))
    assert finetuned(model, ("x", "y"))[0].classes == 2
    activated = spec.replace(layers=(*spec.layers, Activation("relu")))
    assert finetuned(modelfile.Model(activated, init_params(activated, 0), tuple("abc")), ("x", "y"))[0].classes == 2
    odd = spec.replace(layers=(Conv(3, 5), GlobalPool()))
    with pytest.raises(SpecError, match="no layer of this network has its 3 classes as a setting"):
        finetuned(modelfile.Model(odd, init_params(odd, 0), tuple("abc")), ("x", "y"))
