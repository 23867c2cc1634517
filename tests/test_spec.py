"""Specs: sizes and shapes, messages that help, and JSON from anybody."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import NUMPY, SEEDS, random_images, random_params, small_spec, specs
from hypothesis import example, given, settings
from hypothesis import strategies as st

import capscore
from capscore import PRESETS, CapsNetSpec, Conv, Decoder, DenseCaps, DynamicRouting, PrimaryCaps
from capscore.errors import CapscoreError, SpecError
from capscore.net import forward, init_params
from capscore.values import Value, read, write

# ------------------------------------------------------------------------------------------------ sizes and shapes


def test_parameter_counts_of_the_paper() -> None:
    assert PRESETS["mnist"].parameter_count == 8_215_728
    assert PRESETS["mnist"].replace(decoder=None).parameter_count == 6_804_384
    assert PRESETS["multimnist"].parameter_count == pytest.approx(11.36e6, abs=5e3)


@pytest.mark.parametrize(
    ("name", "network", "decoder"),
    [
        ("efficient-mnist", 161_824, 1_411_344),
        ("efficient-multimnist", 154_656, 1_936_144),
        ("efficient-smallnorb", 151_664, 229_570),
        ("inverted-cifar10", 1_828_817, 0),
        ("inverted-cifar100", 2_799_629, 0),
    ],
)
def test_parameter_counts_of_the_authors_code(name: str, network: int, decoder: int) -> None:
    spec = PRESETS[name]
    assert sum(row.parameter_count for row in spec.rows) == network
    assert sum(row.parameter_count for row in spec.decoder_rows) == decoder


def test_the_network_of_figure_1() -> None:
    spec = PRESETS["mnist"]
    rows = {row.name: row for row in (*spec.rows, *spec.decoder_rows)}
    assert list(rows) == ["stem.0", "primary", "capsules.0", "decoder.0", "decoder.1", "decoder.2"]
    assert rows["stem.0"].output == (256, 20, 20)
    assert rows["primary"].output.dims == (1152, 8)
    assert rows["capsules.0"].output.dims == (10, 16)
    assert rows["decoder.0"].output == (512,)
    assert rows["decoder.2"].output == (1, 28, 28)
    assert rows["stem.0"].plan.multiply_adds == 256 * 81 * 400
    assert rows["primary"].plan.multiply_adds == 256 * 256 * 81 * 36
    shapes = {name: param.shape for name, param in rows["capsules.0"].parameters.items()}
    assert shapes == {"capsules.0.weight": (1152, 10, 16, 8), "capsules.0.bias": (10, 16)}
    assert (spec.classes, rows["primary"].output[:4], spec.image) == (10, (32, 6, 6, 8), (1, 28, 28))
    assert spec.multiply_adds == sum(row.plan.multiply_adds for row in rows.values())
    assert spec.parameters["decoder.0.weight"] == (512, 160)


def test_names_of_the_parameters_in_order() -> None:
    spec = small_spec()
    assert list(spec.parameters) == [
        "stem.0.weight", "stem.0.bias", "primary.weight", "primary.bias", "capsules.0.weight", "capsules.0.bias",
        "capsules.1.weight", "decoder.0.weight", "decoder.0.bias", "decoder.1.weight", "decoder.1.bias",
        "decoder.2.weight", "decoder.2.bias",
    ]  # fmt: skip
    assert spec.parameters["capsules.1.weight"] == (4, 3, 6, 5)


class Watch:
    """NumPy's ops, noting the shape of what each convolution and product returns."""

    def __init__(self) -> None:
        self.maps: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(NUMPY, name)

    def conv2d(self, *args: Any) -> Any:
        y = NUMPY.conv2d(*args)
        self.maps.append(y.shape[1:])
        return y


@given(spec=specs(), seed=SEEDS)
def test_inferred_shapes_are_those_of_a_run(spec: CapsNetSpec, seed: int) -> None:
    params, images, watch = random_params(spec, seed), random_images(spec, 2, seed), Watch()
    v = forward(watch, spec, params, images).pose
    rows = {row.name: row for row in spec.rows}
    types, height, width, dim, _ = rows["primary"].output
    assert watch.maps == [rows[f"stem.{i}"].output.dims for i in range(len(spec.stem))] + [(types * dim, height, width)]
    assert rows["primary"].output.dims == (types * height * width, dim)
    assert v.shape[1:] == rows[f"capsules.{len(spec.capsules) - 1}"].output.dims
    assert spec.parameter_count == sum(array.size for array in params.values())
    assert spec.multiply_adds > 0
    if spec.decoder is not None:
        assert spec.decoder_rows[-1].output == spec.input


@given(spec=specs())
def test_a_spec_is_a_value(spec: CapsNetSpec) -> None:
    assert copy.deepcopy(spec) == spec
    assert hash(spec) == hash(CapsNetSpec.from_json(spec.to_json()))
    with pytest.raises(FrozenInstanceError):
        spec.input = (1, 1, 1)  # type: ignore[misc]


def test_lists_are_taken_as_tuples() -> None:
    spec = CapsNetSpec([1, 8, 8], [Conv(2, 3), PrimaryCaps(1, 2, 3), DenseCaps(2)], Decoder([4]))
    assert spec.input == (1, 8, 8)
    assert isinstance(spec.layers, tuple)
    assert spec.decoder == Decoder((4,))


LEAKY = DynamicRouting(3, leaky=True)


def test_presets_are_reached_from_the_package() -> None:
    assert capscore.PRESETS is PRESETS
    small = {
        f"small-{name}"
        for name in ("attention", "inverted", "em", "vb", "self-routing", "heinsen", "vectors", "hvc", "deepcaps")
    }
    assert set(PRESETS) == small | {
        *("mnist", "multimnist", "cifar10", "smallnorb", "svhn", "small", "deepcaps", "deepcaps-64"),
        *("efficient-mnist", "efficient-multimnist", "efficient-smallnorb", "inverted-cifar10", "inverted-cifar100"),
        *(
            "residual-mnist",
            "residual-dynamic-mnist",
            "residual-unrouted-mnist",
            "residual-multimnist",
            "residual-affnist",
            "residual-fashion",
            "dynamic-mnist",
            "unrouted-mnist",
        ),
        *("self-routing-resnet20", "heinsen-smallnorb", "hvc-mnist", "em-smallnorb", "em-small", "vb-smallnorb"),
    }
    leaky = [name for name, p in PRESETS.items() if any(getattr(c, "routing", None) == LEAKY for c in p.capsules)]
    assert leaky == ["cifar10"]


def test_initial_parameters_are_bounded_and_seeded() -> None:
    spec = small_spec()
    first, again, other = init_params(spec, 1), init_params(spec, 1), init_params(spec, 2)
    for name, p in first.items():
        np.testing.assert_array_equal(p, again[name])
        assert p.shape == spec.parameters[name]
        if name.endswith("bias"):
            assert (p == 0.1).all()
        else:
            assert (p != other[name]).any()
    stem = init_params(PRESETS["mnist"])["stem.0.weight"]
    assert np.abs(stem).max() <= 0.1  # truncated at two standard deviations of 0.05
    assert stem.std() == pytest.approx(0.05 * 0.88, rel=0.02)


# ------------------------------------------------------------------------------------------------ messages that help

PRIMARY = PrimaryCaps(types=1, dim=2, kernel=1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: small_spec(input=(1, 5, 9), stem=(Conv(1, kernel=6),)),
            r"layers\.0: kernel 6 is larger than its 5×9 input map with padding 0; "
            r"a kernel of at most 5 or a padding of at least 1 would fit",
        ),
        (
            lambda: small_spec(input=(1, 28, 28), stem=(Conv(1, 9), Conv(1, 9, stride=2), Conv(1, 9, padding=1))),
            r"layers\.2: kernel 9 is larger than its 6×6 .* a kernel of at most 8 or a padding of at least 2",
        ),
        (
            lambda: small_spec(input=(1, 6, 6), primary=PrimaryCaps(1, 1, kernel=9), stem=()),
            r"layers\.0: kernel 9 .* 6×6 .* at most 6 or a padding of at least 2",
        ),
        (lambda: small_spec(capsules=()), "not one capsule for each class: end with DenseCaps"),
        (lambda: small_spec(capsules=DenseCaps(3)), "capsules must be layers, not DenseCaps"),
        (lambda: small_spec(stem=(PRIMARY,)), "PrimaryCaps takes a map, not Grid"),
        (lambda: small_spec(primary=Conv(1, 1)), "capsules, not Map.*: PrimaryCaps makes them"),
        (lambda: small_spec(decoder=(1, 2)), r"decoder must be a Drawing such as Decoder\(\) or None, not \(1, 2\)"),
        (lambda: small_spec(input=(28, 28)), r"three sizes, not \(28, 28\)"),
        (lambda: small_spec(input=(1, 0, 28)), r"input must be whole numbers from 1 .* not \(1, 0, 28\)"),
        (lambda: small_spec(input=(1, 28.0, 28)), "input must be whole numbers"),
        (lambda: Conv(0, 3), "Conv: channels must be a whole number from 1 to 1,000,000, not 0"),
        (lambda: Conv(1, True), "Conv: kernel must be a whole number"),
        (lambda: Conv(1, 3, padding=-1), "Conv: padding must be a whole number from 0"),
        (lambda: Conv(1, 3, activation="tanh"), 'activation must be "relu" or .* or "none", not \'tanh\''),
        (lambda: PrimaryCaps(1, 2, 3, stride=0), "PrimaryCaps: stride must be"),
        (lambda: DenseCaps(10, dim=2.5), "DenseCaps: dim must be a whole number .* not 2.5"),
        (lambda: DenseCaps(10, routing=3), "routing must be a Routing such as .* not 3"),
        (lambda: DenseCaps(10, bias=1), "bias must be true or false, not 1"),
        (lambda: Decoder((1, "2")), "Decoder: hidden must be whole numbers"),
        (lambda: DynamicRouting(0), "iterations must be a whole number from 1 to 100, not 0"),
        (lambda: DynamicRouting(leaky=1), "leaky must be true or false, not 1"),
        (lambda: small_spec(input=(1, 40_000, 40_000)), r"holds 1,600,000,000 numbers, .* smaller input"),
        (lambda: small_spec(capsules=(DenseCaps(10_000, dim=2_000),)), r"capsules\.0\.weight of shape .* would fit"),
    ],
)
def test_messages(build: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_the_cure_in_the_message_works() -> None:
    """A kernel or a padding that a message proposes does fit."""
    small_spec(input=(1, 5, 9), stem=(Conv(1, kernel=5),), primary=PRIMARY)
    small_spec(input=(1, 5, 9), stem=(Conv(1, kernel=6, padding=1),), primary=PRIMARY)


def test_spec_errors_are_value_errors_and_capscore_errors() -> None:
    assert issubclass(SpecError, ValueError)
    assert issubclass(SpecError, CapscoreError)


@pytest.mark.parametrize("value", [10**5000, -(10**5000), "x" * 10**6, [[0] * 10**5]], ids=["+", "-", "text", "list"])
def test_messages_stay_short(value: Any) -> None:
    for build in (
        lambda: Conv(value, 3),
        lambda: Conv(3, 3, activation=value),
        lambda: DynamicRouting(value),
        lambda: DynamicRouting(leaky=value),
        lambda: DenseCaps(3, routing=value),
        lambda: DenseCaps(3, bias=value),
        lambda: Decoder((value,)),
        lambda: small_spec(input=(value, 3, 3)),
        lambda: small_spec(stem=value),
        lambda: small_spec(primary=value),
        lambda: small_spec(decoder=value),
    ):
        with pytest.raises(SpecError) as caught:
            build()
        assert len(str(caught.value)) < 500


# ---------------------------------------------------------------------------------------------------- JSON from anybody


@settings(max_examples=200)
@given(spec=specs())
def test_json_round_trip(spec: CapsNetSpec) -> None:
    assert CapsNetSpec.from_json(spec.to_json()) == spec
    assert CapsNetSpec.from_json(spec.to_json().encode()) == spec


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert CapsNetSpec.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_json_may_leave_out_what_has_a_default() -> None:
    text = '{"input": [1, 8, 8], "primary": {"types": 1, "dim": 2, "kernel": 3}, "capsules": [{"count": 2}]}'
    assert CapsNetSpec.from_json(text) == CapsNetSpec((1, 8, 8), (PrimaryCaps(1, 2, 3), DenseCaps(2)))


WORDS = [
    "input", "stem", "primary", "capsules", "decoder", "hidden", "routing", "type", "DynamicRouting", "iterations",
    "leaky", "channels", "kernel", "stride", "padding", "activation", "relu", "none", "types", "dim", "count", "bias",
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, 10**6, 10**6 + 1, 10**18, 10**4000, 1e308, -0.0]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(WORDS), st.text(max_size=5))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), inner)
    ),
    max_leaves=12,
)


def refuses_or_reads(text: str | bytes) -> None:
    """Whatever comes, it is a spec or a SpecError with a short message, without much memory."""
    message = ""
    tracemalloc.start()
    try:
        spec = CapsNetSpec.from_json(text)
    except SpecError as error:
        message = str(error)
    else:
        assert CapsNetSpec.from_json(spec.to_json()) == spec
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(message) < 500
    assert peak < 2_000_000 + 100 * len(text)


@settings(max_examples=200)
@given(value=JSON)
def test_any_json(value: Any) -> None:
    refuses_or_reads(json.dumps(value))


@settings(max_examples=100)
@given(text=st.one_of(st.text(max_size=50), st.binary(max_size=50)))
def test_any_text(text: str | bytes) -> None:
    refuses_or_reads(text)


@st.composite
def mutated(draw: st.DrawFn, of: st.SearchStrategy[CapsNetSpec]) -> str:
    """The JSON of a spec with one to three of its values, keys or items changed, dropped or repeated."""
    tree = json.loads(draw(of).to_json())
    for _ in range(draw(st.integers(1, 3))):
        places: list[tuple[Any, Any]] = []

        def walk(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            for key in keys:
                places.append((node, key))
                walk(node[key])

        walk(tree)
        if not places:
            break
        node, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "drop", "rename", "repeat"])):
            case "replace":
                node[key] = draw(JSON)
            case "drop":
                del node[key]
            case "rename" if isinstance(node, dict):
                node[draw(st.sampled_from(WORDS))] = node.pop(key)
            case _:
                node[key] = [node[key]] * draw(st.sampled_from([0, 2, 50]))
    return json.dumps(tree)


@settings(max_examples=300)
@given(text=mutated(specs()))
def test_json_of_a_spec_gone_wrong(text: str) -> None:
    refuses_or_reads(text)


SPEC = PRESETS["mnist"].to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "{" * 5,
        SPEC[:-1],
        SPEC + SPEC,
        SPEC.replace("28, 28", "NaN, 28"),
        SPEC.replace("28, 28", "Infinity, -Infinity"),
        SPEC.replace("28, 28", "1e999, 28"),
        SPEC.replace("28, 28", "28.0, 28"),
        SPEC.replace("28, 28", "9" * 5001 + ", 28"),
        SPEC.replace("28, 28", "9" * 4000 + ", 28"),
        SPEC.replace("28, 28", "1000000, 1000000"),
        SPEC.replace('"kernel": 9', '"kernel": 1000000, "padding": 1000000'),
        SPEC.replace('"iterations": 3', '"iterations": 1000000000'),
        SPEC.replace('"type": "DynamicRouting"', '"type": "Routing"'),
        SPEC.replace('"type": "DynamicRouting"', '"type": ["DynamicRouting"]'),
        SPEC.replace('"type": "DynamicRouting"', '"type": "' + "x" * 10**6 + '"'),
        SPEC.replace('"type": "DynamicRouting"', '"type": "__class__"'),
        SPEC.replace("[512, 1024]", json.dumps([1] * 10**6)),
        SPEC.replace("[512, 1024]", '"abc"'),
        SPEC.replace("[512, 1024]", "{}"),
        SPEC.replace('"layers": [', '"layers": [' + '{"type": "Conv", "channels": 1, "kernel": 1},' * 2000),
        SPEC.replace('"bias": true', '"bias": true, "bias": 1'),
        SPEC.replace('"input"', '"\\ud800"'),
        SPEC.replace('"input"', '"' + "k" * 10**6 + '"'),
        json.dumps({f"key{i}": 0 for i in range(10_000)}),
        SPEC.encode("utf-16"),
        b"\xff\xfe\xfa" + SPEC.encode(),
    ],
    ids=lambda text: str(text[:20]),
)
def test_hostile_json(text: str | bytes) -> None:
    refuses_or_reads(text)
    if text != SPEC.encode("utf-16"):  # which is JSON too
        with pytest.raises(SpecError):
            CapsNetSpec.from_json(text)


@pytest.mark.parametrize("where", ["{}", '{{"input": {}}}', '{{"primary": {}}}', '{{"capsules": [{}]}}', '{{"x": {}}}'])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_deep_json(where: str, pair: str) -> None:
    """At any depth: where the parser gives up, and just before, where printing the value might."""
    opening, closing = ("[", "]") if pair == "[]" else ('{"a":', "}")
    for depth in (*range(1, 200, 20), *range(700, 1010), 5000, 100_000):
        text = where.format(opening * depth + "1" + closing * depth)
        with pytest.raises(SpecError):
            CapsNetSpec.from_json(text)


@example(value=10**5000)
@given(value=NUMBERS)
def test_numbers_in_every_place(value: Any) -> None:
    for place in ("28, 28", "[512, 1024]"):
        try:
            text = SPEC.replace(place, f"{json.dumps(value)}, 28" if place == "28, 28" else f"[{json.dumps(value)}]")
        except ValueError:  # Python itself does not print an integer this long
            continue
        refuses_or_reads(text)


# ------------------------------------------------------------------------------------------------ names of classes


LOSS = """
from dataclasses import dataclass
from capscore.losses import Loss

@dataclass(frozen=True)
class {name}(Loss):
    power: float = {power}

    def each(self, ops, scores, targets, step):
        return ops.sum((scores - targets) * (scores - targets), 1, keepdims=True)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write a loss into a module, which is importable by its name until the test ends."""
    before, modules = dict(Value.known), set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two texts of one size and second would share their code

    def write(module: str, power: float = 2.0, name: str = "Powered") -> str:
        (tmp_path / f"{module}.py").write_text(LOSS.format(name=name, power=power))
        return module

    yield write
    Value.known.clear()
    Value.known.update(before)
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def test_a_second_class_of_a_name_is_refused_and_the_first_stays(written: Callable[..., str]) -> None:
    first = importlib.import_module(written("one_loss"))
    with pytest.raises(SpecError, match=r"a class Powered is there already, in one_loss \(.*one_loss\.py, Powered\).*"
                                        r"give the one in other_loss .* another name"):  # fmt: skip
        importlib.import_module(written("other_loss"))
    assert Value.known["Powered"] is first.Powered
    assert read(write(first.Powered(3.0)), "loss") == first.Powered(3.0)
    with pytest.raises(SpecError, match=r"a class Conv is there already, in capscore\.layers\.conv"):
        importlib.import_module(written("own_conv", name="Conv"))
    assert Value.known["Conv"] is Conv


def test_a_class_is_defined_again_by_a_reload_and_a_notebook(written: Callable[..., str], tmp_path: Path) -> None:
    first = importlib.import_module(written("one_loss"))
    before = first.Powered
    written("one_loss", 4.0)
    importlib.reload(first)
    assert Value.known["Powered"] is first.Powered is not before
    assert first.Powered().power == 4.0
    script = importlib.util.spec_from_file_location("a_script", tmp_path / "one_loss.py")  # as __main__ is, beside it
    assert script
    sys.modules["a_script"] = importlib.util.module_from_spec(script)
    script.loader.exec_module(sys.modules["a_script"])  # type: ignore[union-attr]
    sys.modules["a_notebook"] = notebook = ModuleType("a_notebook")
    for power in (5.0, 6.0):
        exec(LOSS.format(name="Celled", power=power), vars(notebook))
    assert Value.known["Celled"] is notebook.Celled
    assert notebook.Celled().power == 6.0
