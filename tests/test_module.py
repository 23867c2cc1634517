"""Layers as modules of PyTorch: part of anybody's network, and like any other module."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import dataclass
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, FLOAT64, NUMPY, backend, close, need

import capscore
from capscore import (
    Activation,
    AsCaps,
    AsMap,
    AveragePool,
    BatchNorm,
    BranchScores,
    CapsNetSpec,
    CapsNorm,
    Capsules,
    Concat,
    Concurrent,
    Conv,
    ConvCaps,
    ConvCaps3D,
    ConvDecoder,
    ConvTranspose,
    Coordinates,
    DenseCaps,
    Dropout,
    DynamicRouting,
    FlatCaps,
    GlobalPool,
    Grid,
    GroupNorm,
    HomogeneousCaps,
    InstanceNorm,
    InvertedAttention,
    Layer,
    LayerNorm,
    Linear,
    Logits,
    Map,
    MaxPool,
    PadChannels,
    PrimaryCaps,
    Residual,
    Routing,
    SelfAttention,
    SelfRoutedClasses,
    Upsample,
    Vector,
)
from capscore.errors import ShapeError, SpecError
from capscore.init import Constant
from capscore.layer import INFERENCE, Param, Run
from capscore.values import Value

torch = need("torch", "torch")
caps = backend("torch")

MAP, GRID = Map(4, 7, 6), Grid(3, 2, 2, 4)
BLOCK = Residual((Conv(4, 3, padding="same", activation="none"), BatchNorm()), (Conv(4, 1), GroupNorm(2)))
LAYERS: list[tuple[Layer, Any]] = [
    (Activation("gelu"), MAP),
    (Activation("leaky_relu", 0.3), MAP),
    (Activation("silu"), Vector(5)),
    (AsCaps(2, 2), MAP),
    (AsCaps(1, 3, "none", active=True), MAP),
    (AveragePool(3, 2, 1), MAP),
    (BatchNorm(activation="relu"), MAP),
    (CapsNorm(), GRID),
    (CapsNorm("batch", affine=False), GRID),
    (
        Concurrent((ConvCaps(2, 4, (2, 1), routing=InvertedAttention(1)), DenseCaps(3, 4, InvertedAttention(1))), 3),
        GRID,
    ),
    (Conv(6, (3, 2), (2, 1), (1, 0), "leaky_relu", groups=2), MAP),
    (Conv(3, 2, bias=False), MAP),
    (ConvCaps(2, 5, (2, 1)), GRID),
    (DenseCaps(3, 5), GRID),
    (DenseCaps(4, 6, DynamicRouting(2, leaky=True), bias=False), GRID),
    (DenseCaps(3, 5, DynamicRouting(2, over="inputs")), GRID),
    (Dropout(0.4), MAP),
    (Dropout(0.4, whole=True), GRID),
    (FlatCaps(7), MAP),
    (GlobalPool(), MAP),
    (GroupNorm(2), MAP),
    (InstanceNorm(), MAP),
    (LayerNorm(activation="elu"), MAP),
    (Linear(5), MAP),
    (Linear((2, 3, 4), "sigmoid"), Vector(6)),
    (Logits(), GRID),
    (MaxPool(3, 2, 1), MAP),
    (PrimaryCaps(3, 4, 3, 2), MAP),
    (BLOCK, MAP),
    (Upsample(2), MAP),
    (Coordinates(), MAP),
    (PadChannels(1, 2), MAP),
    (HomogeneousCaps(3), GRID),
    (BranchScores(), GRID),
    (SelfRoutedClasses(3), GRID),
    (Upsample(2, "bilinear"), MAP),
    (AsMap(), GRID),
    (Concat((Conv(2, 3, padding="same"),)), MAP),
    (ConvCaps(2, 4, 2, routing=SelfAttention(), bias=False, pose_rows=2), GRID),
    (ConvCaps3D(2, 3, 2), GRID),
    (ConvTranspose(3, 2), MAP),
    (Logits(), GRID),
]
each_layer = pytest.mark.parametrize(("layer", "input"), LAYERS, ids=lambda value: type(value).__name__)

BLOCK_OF_SIX = Residual((Conv(6, 3, padding=1), BatchNorm()))

# What a head on a backbone looks like, with something of everything that keeps numbers of its own.
HEAD = (
    Conv(6, 3, activation="none"),
    BatchNorm(activation="relu"),
    Dropout(0.2),
    PrimaryCaps(2, 4, 3),
    DenseCaps(3, 5),
)


def numbers(shape: Any, batch: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, (batch, *shape.dims))


def head(dtype: Any = torch.float32, layers: Any = HEAD) -> Any:
    """The head, its statistics and biases not those that it starts with, in `eval`."""
    module = caps.Module(layers, MAP, seed=1, dtype=dtype)
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if array.dim() == 1:
                array += torch.from_numpy(rng.random(array.shape)) * (0.5 if "mean" not in name else 0.1)
    return module.eval()


def reference(module: Any, x: np.ndarray, run: Run = INFERENCE) -> np.ndarray:
    """What NumPy makes of it in float64, by the module's own parameters."""
    row = module.row
    params = {name: array.detach().double().numpy() for name, array in module.state_dict().items()}
    given = Capsules(x) if isinstance(row.input, Grid) else x
    found = row.layer(NUMPY, params, given, run.inside(row.name, row.input, row.output))
    return outcome(found)


def outcome(found: Any) -> Any:
    """What a layer is compared by: activations where it makes some, else the poses, the map or the vector."""
    if not isinstance(found, Capsules):
        return found
    return found.pose if found.activation is None else found.activation


def test_every_layer_of_capscore_is_tested_here() -> None:
    layers = {kind for kind in Value.known.values() if issubclass(kind, Layer) and not isabstract(kind)}
    assert {type(layer) for layer, _ in LAYERS} == {kind for kind in layers if kind.__module__.startswith("capscore.")}


@each_layer
def test_a_layer_is_the_same_as_on_numpy_and_learns(layer: Layer, input: Any) -> None:
    module = caps.Module(layer, input, seed=3, dtype=torch.float64).eval()
    plan = layer.plan(input)
    assert {name: tuple(a.shape) for name, a in module.state_dict().items()} == {
        n: p.shape for n, p in plan.params.items()
    }
    assert [name for name, _ in module.named_parameters()] == [name for name, p in plan.params.items() if p.learns]
    assert (module.input, module.output) == (input, plan.output)
    rng = np.random.default_rng(3)
    for name, param in plan.params.items():  # the first numbers are those of every backend
        np.testing.assert_array_equal(module.state_dict()[name].numpy(), param.init.draw(rng, param.shape))
    x = torch.from_numpy(numbers(input)).requires_grad_()
    found = outcome(module(x))
    close(found.detach().numpy(), reference(module, x.detach().numpy()), FLOAT64)
    (found * found).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0
    for name, p in module.named_parameters():
        assert p.grad.abs().max() > 0, name


def test_a_tuple_is_named_prints_and_has_hooks_like_a_sequence() -> None:
    module = caps.Module((*HEAD[:2], BLOCK_OF_SIX, *HEAD[2:]), MAP)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.layers.0.weight", "2.layers.0.bias", "2.layers.1.weight"]
    names += ["2.layers.1.bias", "4.weight", "4.bias", "5.weight", "5.bias"]
    assert [name for name, _ in module.named_parameters()] == names
    statistics = [f"{name}.{key}" for name in ("1", "2.layers.1") for key in ("mean", "variance")]
    assert [name for name, _ in module.named_buffers()] == statistics
    shown = str(module)
    assert shown.startswith("Module(\n  (0): Conv(channels=6, kernel=3, activation='none'")
    assert "      (1): BatchNorm()\n" in shown
    assert "  (5): DenseCaps(count=3, dim=5)\n" in shown
    heard: list[str] = []
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *about, name=name: heard.append(name))
    module(torch.zeros(2, *MAP))
    assert heard == ["0", "1", "2.layers.0", "2.layers.1", "2", "3", "4", "5", ""]


def test_a_layer_alone_has_the_names_of_a_layer() -> None:
    module = caps.Module(DenseCaps(10, dim=16), input=Grid(32, 6, 6, 8))
    assert list(module.state_dict()) == ["weight", "bias"]
    assert str(module) == "DenseCaps(count=10)"  # what is not said is as usual


def test_a_network_prints_as_its_layers_and_its_hooks_fire() -> None:
    spec = CapsNetSpec(
        (1, 16, 16), (Conv(6, 3), BLOCK_OF_SIX, PrimaryCaps(2, 4, 3, 2), DenseCaps(3)), ConvDecoder((4, 2), 3)
    )
    net = caps.CapsNet(spec, seed=2)
    assert list(net.state_dict()) == list(spec.parameters)
    shown = str(net)
    assert shown.startswith("CapsNet(\n  input=(1, 16, 16), loss=MarginLoss(")
    assert "  (primary): PrimaryCaps(types=2, dim=4, kernel=3, stride=2)\n" in shown
    assert "Module()" not in shown
    heard: list[tuple[str, tuple[int, ...]]] = []
    for row in (*spec.rows, *spec.decoder_rows, *spec.rows[1].layer.rows(spec.rows[1].input)):
        name = f"stem.1.{row.name}" if row.name.startswith("layers") else row.name
        net.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: heard.append((name, tuple(y.shape))))
    images = torch.rand(2, 1, 16, 16)
    out = net(images)
    net.reconstruct(out.capsules)
    names = ["stem.0", "stem.1.layers.0", "stem.1.layers.1", "stem.1", "primary", "capsules.0"]
    assert [name for name, _ in heard] == [*names, *(row.name for row in spec.decoder_rows)]
    assert heard[4][1] == (2, 72, 4)
    heard.clear()
    caps.Learner(net).step(images, torch.eye(3)[:2], 1e-3)  # training runs the same modules
    assert [name for name, _ in heard][:6] == names
    expected = NUMPY.CapsNet(spec, net.params)(images).lengths
    close(net.train()(images).lengths.detach().numpy(), expected, FLOAT32)  # no statistics of a batch: as everywhere
    net.get_submodule("capsules.0").register_forward_hook(lambda m, x, y: y * 0)
    assert not net(images).lengths.any()


def test_pruned_weights_stay_pruned_while_a_network_learns() -> None:
    from torch.nn.utils import prune

    net = caps.CapsNet(CapsNetSpec((1, 8, 8), (Conv(4, 3), PrimaryCaps(2, 4, 3), DenseCaps(3))))
    stem = net.get_submodule("stem.0")
    prune.l1_unstructured(stem, "weight", amount=0.5)
    gone, before = stem.weight == 0, stem.weight_orig.detach().clone()
    net(torch.rand(4, 1, 8, 8)).lengths.sum().backward()
    assert stem.weight_orig.grad.abs().max() > 0
    with torch.no_grad():
        stem.weight_orig += 1
    net(torch.rand(4, 1, 8, 8))
    assert ((stem.weight == 0) == gone).all()
    torch.testing.assert_close(stem.weight[~gone], before[~gone] + 1)


def test_training_uses_and_moves_the_statistics_and_eval_neither() -> None:
    layer, x = BatchNorm(momentum=0.3), numbers(MAP, 8)
    module = caps.Module((layer, BLOCK), MAP, seed=0, dtype=torch.float64)
    found = module[0](torch.from_numpy(x))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    close(found.detach().numpy(), (x - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None], FLOAT64)
    state = module.state_dict()
    close(state["0.mean"].numpy(), 0.3 * mean, FLOAT64)
    close(state["0.variance"].numpy(), 0.7 + 0.3 * variance, FLOAT64)
    module(torch.from_numpy(x))
    assert module.state_dict()["1.layers.1.mean"].abs().max() > 0  # of a layer within a layer
    module.eval()
    before = copy.deepcopy(module.state_dict())
    first = module(torch.from_numpy(x))[:1]
    torch.testing.assert_close(module(torch.from_numpy(x[:1])), first)
    assert all(torch.equal(a, before[name]) for name, a in module.state_dict().items())
    module.train()
    module.get_submodule("1.layers.1").eval()  # one layer's statistics held while the others learn
    module(torch.from_numpy(x))
    assert torch.equal(module.state_dict()["1.layers.1.mean"], before["1.layers.1.mean"])
    assert not torch.equal(module.state_dict()["0.mean"], before["0.mean"])
    assert all(b.grad_fn is None for b in module.buffers())


@pytest.mark.parametrize("whole", [False, True])
def test_dropout_draws_from_the_generator_of_pytorch(whole: bool) -> None:
    module = caps.Module(Dropout(0.25, whole=whole), Map(40, 5, 5))
    x = torch.ones(6, 40, 5, 5)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert 0.15 < (first == 0).float().mean() < 0.35
    assert torch.equal(first.amin((2, 3)), first.amax((2, 3))) == whole
    assert module.eval()(x) is x


def test_first_numbers_follow_the_generator_or_a_seed() -> None:
    def weight(**how: Any) -> Any:
        return caps.Module(DenseCaps(3), GRID, **how).weight.detach()

    torch.manual_seed(3)
    first, second = weight(), weight()
    torch.manual_seed(3)
    assert torch.equal(weight(), first)
    assert not torch.equal(first, second)  # two heads of a network do not begin alike
    assert torch.equal(weight(seed=4), weight(seed=4))
    assert weight(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert weight(device="meta").is_meta
    with torch.device("meta"):
        assert weight().is_meta


def test_it_is_copied_pickled_saved_moved_and_put_in_another_network(tmp_path: Path) -> None:
    module, x = head(), torch.from_numpy(numbers(MAP)).float()
    before = module(x)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    loaded = caps.Module(HEAD, MAP).eval()
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        torch.testing.assert_close(other(x), before, rtol=0, atol=0)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)
    whole = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 1), module)
    assert {name.split(".")[0] for name, _ in whole.named_parameters()} == {"0", "1"}
    assert whole(torch.rand(2, 2, 7, 6)).shape == (2, 3, 5)
    double = copy.deepcopy(module).to(torch.float64)
    close(double(x.double()).detach().numpy(), reference(double, x.double().numpy()), FLOAT64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(module(x.bfloat16())).all()


@dataclass(frozen=True)
class Votes(Routing):
    """A routing that learns and gives activations."""

    activates = True

    def params(self, votes: Any) -> dict[str, Param]:
        return {"beta": Param((votes.n_out,), Constant(0.5))}

    def multiply_adds(self, votes: Any) -> int:
        return 0

    def __call__(self, ops: Any, votes: Any, p: Any, run: Run) -> Any:
        v = ops.transpose(votes.combine(1 / votes.n_out), (1, 0, 2))
        return Capsules(v, ops.sigmoid(ops.norm(v, -1) - p["beta"]))


@pytest.fixture
def activating() -> Any:
    yield Votes()
    Value.known.pop("Votes", None)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_capsules_with_activations_are_two_tensors(activating: Any) -> None:
    layer = DenseCaps(3, 5, activating)
    module = caps.Module((PrimaryCaps(2, 4, 3), layer), MAP, seed=0, dtype=torch.float64)
    assert list(module.state_dict())[-1] == "1.routing.beta"
    assert "(routing): Parameters(beta=[3])" in str(module)
    found = module(torch.from_numpy(numbers(MAP)))
    assert isinstance(found, Capsules)
    assert (found.pose.shape, found.activation.shape) == ((3, 3, 5), (3, 3))
    found.activation.sum().backward()
    assert module[1].routing.beta.grad.abs().max() > 0
    after = caps.Module(Dropout(), module.output, dtype=torch.float64)
    assert isinstance(after(found), Capsules)
    traced = torch.jit.trace(after.eval(), (Capsules(*(part.detach() for part in found)),))
    assert [tuple(part.shape) for part in traced(Capsules(*(part[:2] for part in found)))] == [(2, 3, 5), (2, 3)]
    program = torch.export.export(module.eval(), (torch.from_numpy(numbers(MAP)),), strict=False)
    assert isinstance(program.module()(torch.from_numpy(numbers(MAP))), Capsules)
    with pytest.raises(ShapeError, match=r"takes capsules with activations: give Capsules\(pose \[B, N, D\], act"):
        after(found.pose)
    with pytest.raises(ShapeError, match=r"takes capsules without activations: give x.pose alone"):
        caps.Module(DenseCaps(2), Grid(3, 1, 1, 5))(found)


@pytest.mark.parametrize(
    ("layer", "input", "x", "words"),
    [
        (Conv(2, 3), MAP, torch.zeros(4, 7, 6), r"Conv: .* shape \[4, 7, 6\]; wanted \[batch, 4, 7, 6\].*; x\[None\]"),
        (Conv(2, 3), MAP, torch.zeros(2, 7, 6, 4), r"shape \[2, 7, 6, 4\].*x.permute\(0, 3, 1, 2\) puts the channels"),
        (Conv(2, 3), MAP, torch.zeros(2, 5, 9, 9), r"shape \[2, 5, 9, 9\].*input=Map\(5, 9, 9\) takes this one"),
        (Linear(2), Vector(12), torch.zeros(2, 3, 4), r"shape \[2, 3, 4\].*x.flatten\(1\)"),
        (Linear(2), Vector(12), torch.zeros(2, 3), r"shape \[2, 3\].*input=Vector\(3\)"),
        (
            DenseCaps(3),
            GRID,
            torch.zeros(2, 8, 4, 5),
            r"PrimaryCaps: begin the layers with it, and input=Map\(8, 4, 5\)",
        ),
        (
            DenseCaps(3),
            GRID,
            torch.zeros(2, 6, 8),
            r"wanted \[batch, 12, 4\] .*input=Grid\(6, 1, 1, 8\) takes this one",
        ),
        (DenseCaps(3), GRID, torch.zeros(2, 12, 4).long(), r"dtype torch.int64; wanted floats: x.float\(\)"),
        (DenseCaps(3), GRID, torch.zeros(2, 12, 4).double(), r"torch.float64, .* torch.float32; x.to\(torch.float32\)"),
        (DenseCaps(3), GRID, np.zeros((2, 12, 4)), r"takes a tensor, not ndarray: torch.as_tensor\(x\)"),
        (Conv(2, 3), MAP, Capsules(torch.zeros(2, 12, 4)), r"takes a tensor \[batch, 4, 7, 6\].*x.pose is their"),
        ((BatchNorm(), Conv(2, 3)), MAP, torch.zeros(2, 9), r"Module: the input has shape \[2, 9\]"),
    ],
)
def test_a_wrong_input_is_told_with_a_cure(layer: Any, input: Any, x: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        caps.Module(layer, input)(x)


@pytest.mark.parametrize(
    ("layers", "input", "words"),
    [
        ("Conv", MAP, r"layers must be a layer such as DenseCaps\(10\), or a tuple of some, not 'Conv'"),
        ((), MAP, r"or a tuple of some, not \(\)"),
        ((Conv(2, 3), DenseCaps(3)), MAP, r"layers.1: DenseCaps takes capsules"),
        (Conv(2, 3), (4, 7, 6), r"input must be Map\(channels, height, width\), .* not \(4, 7, 6\)"),
        (Conv(2, 3), Map(4, 0, 6), r"sizes of input Map must be whole numbers from 1"),
        (Conv(2, 8), MAP, "kernel 8 is larger than its 7×6 input map"),
    ],
)
def test_what_cannot_be_built_is_told(layers: Any, input: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        caps.Module(layers, input)


def test_the_core_names_what_a_module_needs() -> None:
    for name in ("Capsules", "Grid", "Layer", "Map", "Routing", "Vector"):
        assert name in capscore.__all__
        assert hasattr(capscore, name)
    with pytest.raises(
        AttributeError, match=r"backend numpy has no Module; from capscore.backends import torch as caps"
    ):
        capscore.Module  # noqa: B018
    assert issubclass(caps.Module, torch.nn.Module)


# What reads modules: any batch, the same numbers


def agrees(found: Any, module: Any) -> None:
    """Assert that `found` (tensor → array) is the module at any batch."""
    for batch in (1, 2, 7):
        x = torch.from_numpy(numbers(module.input, batch, batch)).float()
        y = found(x)
        close(np.asarray(y.detach() if hasattr(y, "detach") else y), reference(module, x.double().numpy()), FLOAT32)


@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_to_one_graph(training: bool) -> None:
    torch._dynamo.reset()
    module = head().train(training)
    other = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.from_numpy(numbers(MAP)).float()
    torch.manual_seed(0)
    found = compiled(x)
    found.sum().backward()
    if not training:  # what is drawn differs
        torch.testing.assert_close(found, other(x), rtol=0, atol=FLOAT32)
    assert all(p.grad is not None for p in module.parameters())
    other(x)
    moved, plain = module.state_dict()["1.mean"], other.state_dict()["1.mean"]
    torch.testing.assert_close(moved, plain, rtol=0, atol=FLOAT32)


LARGE = (
    *(Conv(6, 3), BLOCK_OF_SIX, AveragePool(2), Upsample(2), LayerNorm(), MaxPool(2, 1), Activation("gelu")),
    *(PrimaryCaps(2, 4, 2), DenseCaps(3, 5, DynamicRouting(2, leaky=True)), DenseCaps(2, 3)),
)
each_head = pytest.mark.parametrize("layers", [HEAD, LARGE], ids=["small", "large"])


@pytest.mark.parametrize(("layers", "strict"), [(HEAD, False), (LARGE, True)], ids=["small", "large"])
def test_an_exported_program_is_the_module(layers: Any, strict: bool) -> None:
    torch._dynamo.reset()
    module, x = head(layers=layers), torch.from_numpy(numbers(MAP)).float()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
    agrees(program.module(), module)
    assert not [node for node in program.graph.nodes if "capscore" in str(node.target)]


@each_head
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_trace_is_the_module(layers: Any) -> None:
    module = head(layers=layers)
    agrees(torch.jit.trace(module, (torch.from_numpy(numbers(MAP)).float(),)), module)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_pytorch_saves_runs_without_capscore(tmp_path: Path) -> None:
    module, x = head(), torch.from_numpy(numbers(MAP)).float()
    torch.jit.save(torch.jit.trace(module, (x,)), tmp_path / "trace.pt")
    torch.export.save(torch.export.export(module, (x,), strict=False), tmp_path / "program.pt2")
    torch.save((x, module(x)), tmp_path / "xy.pt")
    code = """
import sys, torch
x, y = torch.load(sys.argv[1])
for found in torch.jit.load(sys.argv[2]), torch.export.load(sys.argv[3]).module():
    torch.testing.assert_close(found(x), y, rtol=0, atol=2e-6)
assert "capscore" not in sys.modules
"""
    files = [str(tmp_path / name) for name in ("xy.pt", "trace.pt", "program.pt2")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("layers", "dynamo"), [(HEAD, False), (LARGE, False), (LARGE, True)])
def test_both_onnx_exporters_of_pytorch_take_it(layers: Any, dynamo: bool, tmp_path: Path) -> None:
    ort = need("onnxruntime", "onnx")
    if dynamo:
        need("onnxscript", "onnx")
    module, path = head(layers=layers), tmp_path / "head.onnx"
    x = torch.from_numpy(numbers(MAP)).float()
    free = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(module, (x,), path, dynamo=dynamo, verbose=False, input_names=["x"], output_names=["v"], **free)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    agrees(lambda images: session.run(["v"], {"x": images.numpy()})[0], module)


@pytest.mark.filterwarnings("ignore")  # of versions that it was not tested with, and of what does not run on Linux
def test_core_ml_converts_its_trace() -> None:
    ct = need("coremltools", "coreml")
    module, x = head(), torch.from_numpy(numbers(MAP, 1)).float()
    shape = ct.Shape((ct.RangeDim(1, 16), *MAP))
    how = {"inputs": [ct.TensorType(name="x", shape=shape)], "minimum_deployment_target": ct.target.iOS16}
    made = ct.convert(torch.jit.trace(module, (x,)), outputs=[ct.TensorType(name="v")], **how)
    assert [output.name for output in made.get_spec().description.output] == ["v"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, at the first `jvp`
@pytest.mark.parametrize("routing", [DynamicRouting(), SelfAttention()], ids=["dynamic", "attention"])
def test_functions_of_torch_func_derive_a_module(routing: Any) -> None:
    """They know no derivative of capscore's operators; PyTorch's `jvp` would take it for 0, without a word."""
    from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

    def made(seed: int) -> Any:
        return caps.Module((PrimaryCaps(4, dim=8, kernel=3), DenseCaps(10, dim=16, routing=routing)),
                           input=Map(8, 5, 5), seed=seed, dtype=torch.float64).eval()  # fmt: skip

    net = made(0)
    rng = np.random.default_rng(0)
    x, t = (torch.from_numpy(rng.normal(size=(2, 8, 5, 5))) for _ in range(2))
    slope = jvp(net, (x,), (t,))[1]
    close(slope.detach().numpy(), ((net(x + 1e-6 * t) - net(x - 1e-6 * t)) / 2e-6).detach().numpy(), 1e-7)
    assert slope.abs().max() > 0.1
    close(jacfwd(net)(x[:1]).detach().numpy(), jacrev(net)(x[:1]).detach().numpy(), FLOAT64)
    z = x.clone().requires_grad_()
    net(z).square().sum().backward()
    close(grad(lambda y: net(y).square().sum())(x).detach().numpy(), z.grad.numpy(), FLOAT64)
    close(vmap(lambda y: net(y[None])[0])(x).detach().numpy(), net(x).detach().numpy(), FLOAT64)
    nets = [made(seed) for seed in range(3)]
    parameters, buffers = stack_module_state(nets)
    found = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(parameters, buffers)
    for each, one in zip(found, nets, strict=True):
        close(each.detach().numpy(), one(x).detach().numpy(), FLOAT64)
