"""The torch backend as PyTorch's users meet it: a module like any other."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, FLOAT64, GRADIENT, NUMPY, backend, close, need, random_images, random_params, small_spec

from capscore import PRESETS, BatchNorm, CapsNetSpec, Conv, DenseCaps, PrimaryCaps
from capscore.errors import BackendError
from capscore.layer import Map, Run
from capscore.model import objective
from capscore.routing import DynamicRouting, dynamic_routing

torch = need("torch", "torch")
SPEC = small_spec()


@pytest.fixture
def net() -> Any:
    return backend("torch").CapsNet(SPEC, random_params(SPEC))


@pytest.fixture
def images() -> Any:
    return torch.from_numpy(random_images(SPEC, 3, dtype="float32"))


def reference(images: Any) -> np.ndarray:
    return NUMPY.CapsNet(SPEC, random_params(SPEC), dtype="float64")(images).lengths


def test_the_state_dict_is_named_as_the_parameters(net: Any) -> None:
    assert isinstance(net, torch.nn.Module)
    assert {name: tuple(p.shape) for name, p in net.state_dict().items()} == SPEC.parameters
    assert [name for name, _ in net.named_parameters()] == list(SPEC.parameters)
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())
    assert list(net.params) == list(SPEC.parameters)
    assert all(net.params[name] is net.get_parameter(name) for name in SPEC.parameters)


def test_a_state_dict_saved_by_torch_loads_again_and_elsewhere(net: Any, images: Any, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    other = backend("torch").CapsNet(SPEC, seed=8)
    other.load_state_dict(weights)
    torch.testing.assert_close(other(images).lengths, net(images).lengths, rtol=0, atol=0)
    close(NUMPY.CapsNet(SPEC, weights)(images).lengths, reference(images), FLOAT32)


def test_to_float64_and_back(net: Any, images: Any) -> None:
    double = copy.deepcopy(net).to(torch.float64)
    assert all(p.dtype == torch.float64 for p in double.parameters())
    out = double(images)  # images follow the network
    assert out.lengths.dtype == torch.float64
    low = {name: p.astype(np.float32) for name, p in random_params(SPEC).items()}
    close(out.lengths.detach().numpy(), NUMPY.CapsNet(SPEC, low, dtype="float64")(images).lengths, FLOAT64)
    assert double.float()(images).lengths.dtype == torch.float32


def test_a_deepcopy_and_a_pickle_are_networks_of_their_own(net: Any, images: Any) -> None:
    before = net(images).lengths
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert (other.spec, other.classes, other.provenance) == (net.spec, net.classes, net.provenance)
        torch.testing.assert_close(other(images).lengths, before, rtol=0, atol=0)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
    torch.testing.assert_close(net(images).lengths, before, rtol=0, atol=0)


def test_assign_keeps_the_parameters_that_an_optimiser_holds(net: Any) -> None:
    held = list(net.parameters())
    net.assign(random_params(SPEC, seed=5))
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    np.testing.assert_array_equal(held[0].detach().numpy(), random_params(SPEC, 5)["stem.0.weight"].astype(np.float32))


def test_predict_is_forward_without_gradients(net: Any, images: Any) -> None:
    found = net.predict(images, batch=2)
    assert isinstance(found, np.ndarray)
    close(found, net(images).lengths.detach().numpy(), FLOAT32)
    assert net.predict(images[:0]).shape == (0, 3)
    with torch.no_grad():
        assert not net(images).lengths.requires_grad


@pytest.mark.parametrize("backend_name", ["eager", "aot_eager"])
def test_compiles_to_one_graph(net: Any, images: Any, backend_name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend_name)
    out = compiled(images)
    close(out.lengths.detach().numpy(), reference(images), FLOAT32)
    out.lengths.sum().backward()
    expected = copy.deepcopy(net)
    expected.zero_grad()
    expected(images).lengths.sum().backward()
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=GRADIENT * q.grad.abs().max().item())


def test_the_objective_compiles_whole(net: Any, images: Any) -> None:
    torch._dynamo.reset()
    targets = torch.eye(3)
    whole = torch.compile(objective, fullgraph=True, backend="eager")
    loss, _ = whole(net.ops, SPEC, net.params, images, targets)
    expected, _ = objective(net.ops, SPEC, net.params, images, targets)
    torch.testing.assert_close(loss, expected, rtol=FLOAT32, atol=0)


def test_exports_with_a_symbolic_batch(net: Any) -> None:
    x = torch.from_numpy(random_images(SPEC, 4, dtype="float32"))
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=False)
    for batch in (2, 4, 9):
        images = torch.from_numpy(random_images(SPEC, batch, seed=batch, dtype="float32"))
        lengths = program.module()(images)[0]
        close(lengths.detach().numpy(), reference(images), FLOAT32)


# What other programs read: no operator of capscore's own, any batch, the same results


@pytest.fixture(params=[None, "6x6"])
def exportable(request: pytest.FixtureRequest) -> Any:
    """A network whose layers have both operators, for maps that the tiles fit."""
    spec = small_spec(input=(2, 20, 20), stem=(Conv(96, kernel=3),))  # what tiles are for
    return backend("torch").CapsNet(spec, random_params(spec), fast_conv=request.param)


class Lengths(torch.nn.Module):
    """A module that holds a network, as an application's does."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Any) -> Any:
        return self.net(images).lengths


def agrees(found: Any, net: Any) -> None:
    """Assert that `found` (images → outputs, the first of them lengths) is the network, at any batch."""
    for batch in (1, 2, 7, 40):
        x = torch.from_numpy(random_images(net.spec, batch, seed=batch, dtype="float32"))
        first = found(x)[0]
        close(
            np.asarray(first.detach() if hasattr(first, "detach") else first), net(x).lengths.detach().numpy(), FLOAT32
        )


def elsewhere(code: str, *args: Any) -> str:
    """Run Python in a process of its own, where capscore is never imported."""
    whole = f"import sys, torch\n{code}\nassert 'capscore' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", whole, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("batch", [1, 3])
def test_a_trace_runs_without_capscore(exportable: Any, batch: int, tmp_path: Path) -> None:
    x = torch.from_numpy(random_images(exportable.spec, batch, dtype="float32"))
    traced = torch.jit.trace(exportable, (x,))
    agrees(traced, exportable)
    torch.jit.save(traced, tmp_path / "net.pt")
    torch.save(x, tmp_path / "x.pt")
    code = "net, x = torch.jit.load(sys.argv[1]), torch.load(sys.argv[2])\nprint(net(x)[0].flatten().tolist())"
    found = np.array(json.loads(elsewhere(code, tmp_path / "net.pt", tmp_path / "x.pt")))
    close(found, exportable(x).lengths.detach().numpy().astype(np.float64).ravel(), FLOAT32)
    inside = torch.jit.trace(Lengths(exportable), (x,))
    agrees(lambda images: [inside(images)], exportable)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_runs_without_capscore(exportable: Any, strict: bool, tmp_path: Path) -> None:
    torch._dynamo.reset()
    x = torch.from_numpy(random_images(exportable.spec, 3, dtype="float32"))
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Lengths(exportable), (x,), dynamic_shapes=shapes, strict=strict)
    module = program.module()
    agrees(lambda images: [module(images)], exportable)
    torch.export.save(program, tmp_path / "net.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = "net, x = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2])\nprint(net(x).flatten().tolist())"
    found = np.array(json.loads(elsewhere(code, tmp_path / "net.pt2", tmp_path / "x.pt")))
    close(found, exportable(x).lengths.detach().numpy().astype(np.float64).ravel(), FLOAT32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")  # `couplings`, which PyTorch makes one
@pytest.mark.parametrize("dynamo", [False, True])
def test_the_onnx_exporters_of_pytorch(exportable: Any, dynamo: bool, tmp_path: Path) -> None:
    ort = need("onnxruntime", "onnx")
    if dynamo:
        need("onnxscript", "onnxscript")
    x, path = torch.from_numpy(random_images(exportable.spec, 3, dtype="float32")), tmp_path / "net.onnx"
    free = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"images": {0: "batch"}}}
    names = {"input_names": ["images"], "output_names": ["lengths", "capsules"]}
    torch.onnx.export(exportable, (x,), path, dynamo=dynamo, verbose=False, **free, **names)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    agrees(lambda images: session.run(["lengths"], {"images": images.numpy()}), exportable)


@pytest.mark.filterwarnings("ignore")  # of versions that it was not tested with, and of what does not run on Linux
def test_core_ml_converts_a_trace(exportable: Any) -> None:
    ct = need("coremltools", "coreml")
    x = torch.from_numpy(random_images(exportable.spec, 1, dtype="float32"))
    free = ct.Shape((ct.RangeDim(1, 16), *exportable.spec.input))
    taken = [ct.TensorType(name="images", shape=free)]
    given = [ct.TensorType(name="lengths"), ct.TensorType(name="capsules")]
    target = ct.target.iOS16
    made = ct.convert(torch.jit.trace(exportable, (x,)), inputs=taken, outputs=given, minimum_deployment_target=target)
    assert [output.name for output in made.get_spec().description.output] == ["lengths", "capsules"]


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Converting a tensor to a Python integer")  # J is a constant
@pytest.mark.parametrize("leaky", [False, True])
def test_a_routing_of_votes_traces_at_any_batch(leaky: bool) -> None:
    ops = backend("torch")

    def votes(batch: int) -> Any:
        return torch.from_numpy(np.random.default_rng(batch).normal(size=(batch, 12, 4, 5)))

    for example in (1, 3):
        traced = torch.jit.trace(lambda u_hat: dynamic_routing(ops, u_hat, leaky=leaky), (votes(example),))
        for batch in (1, 2, 7):
            expected = dynamic_routing(NUMPY, votes(batch).numpy(), leaky=leaky)
            close(traced(votes(batch)).numpy(), expected, FLOAT64)


def test_the_compiler_keeps_the_operators(exportable: Any) -> None:
    torch._dynamo.reset()
    seen = set()

    def look(module: Any, inputs: Any) -> Any:
        seen.update(str(node.target) for node in module.graph.nodes)
        return module.forward

    torch.compile(exportable, fullgraph=True, backend=look)(torch.zeros(9, 2, 20, 20))
    assert "capscore.routing.default" in seen
    assert ("capscore.fast_conv2d.default" in seen) == (exportable.fast_conv is not None)


def test_autocast_is_close_and_its_lengths_are_float32(net: Any, images: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images)
        drawn = net.reconstruct(out.capsules)
    assert out.lengths.dtype == torch.float32
    np.testing.assert_allclose(out.lengths.detach().numpy(), reference(images), atol=2e-2)
    assert torch.isfinite(drawn).all()
    out.lengths.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())


def test_a_bfloat16_network_runs(net: Any, images: Any) -> None:
    low = net.to(torch.bfloat16)
    out = low(images)
    assert out.lengths.dtype == torch.bfloat16
    assert torch.isfinite(out.lengths).all()
    assert low.predict(images).dtype == np.float32
    weights = {name: p.float().detach().numpy() for name, p in low.params.items()}
    for name, p in NUMPY.CapsNet(SPEC, low.params).params.items():
        np.testing.assert_array_equal(p, weights[name])


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_any_optimiser_learns(net: Any, images: Any, kind: str) -> None:
    optimiser = getattr(torch.optim, kind)(net.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss, lengths = objective(net.ops, SPEC, net.params, images, torch.eye(3))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        assert lengths.shape == (3, 3)
    assert losses[-1] < losses[0]


def test_frozen_parameters_stay(net: Any, images: Any) -> None:
    net.get_parameter("stem.0.weight").requires_grad_(False)
    before = net.params["stem.0.weight"].clone()
    loss, _ = objective(net.ops, SPEC, net.params, images, torch.eye(3))
    loss.backward()
    assert net.params["stem.0.weight"].grad is None
    torch.testing.assert_close(net.params["stem.0.weight"], before)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_bias_may_learn_alone(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fused routing, in a batch whose votes are not kept; NumPy learns the same."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # derives, and writes no C++
    losses = []
    for caps, options in ((NUMPY, {}), (backend("torch"), {"compile": compiled})):
        learner = caps.Learner(caps.CapsNet(PRESETS["small"], dtype="float64"), **options)
        learner.frozen = [name for name in learner.net.params if name != "capsules.0.bias"]
        images, targets = random_images(PRESETS["small"], 16), np.eye(10)[np.arange(16) % 10]
        losses.append([float(learner.step(images, targets, 1e-2)[0]) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("options", [{"amp": True}, {}], ids=str)
def test_the_learner_with_its_options(net: Any, options: dict[str, bool]) -> None:
    learner = backend("torch").Learner(net, **options)
    x, t = random_images(SPEC, 3, dtype="float32"), np.eye(3, dtype=np.float32)
    losses = [learner.step(x, t, 1e-2)[0] for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_a_device_that_is_not_there(net: Any) -> None:
    with pytest.raises(BackendError, match="PyTorch cannot use the device 'nowhere'"):
        backend("torch").Learner(net, device="nowhere")


def test_batch_norm_is_that_of_the_ops() -> None:
    """PyTorch's own normalisation, where training takes it, and the one over the ops: values and gradients."""
    caps = backend("torch")
    layer, rng = BatchNorm(epsilon=1e-3, momentum=0.3), np.random.default_rng(0)
    x = rng.normal(2, 3, (5, 4, 6, 7))
    x[:, 1] = 0.5  # a channel without variance
    p = {"weight": rng.normal(size=4), "bias": rng.normal(size=4), "mean": np.zeros(4), "variance": np.ones(4)}
    found = []
    for batch_mean in (None, lambda ops, x, axes: x.mean(axes, keepdim=True)):  # the second keeps to the ops
        given = {name: caps.asarray(array).requires_grad_() for name, array in ({"x": x} | p).items()}
        run = Run(training=True, statistics={}, batch_mean=batch_mean, input=Map(4, 6, 7), output=Map(4, 6, 7))
        y = layer(caps, {name: given[name] for name in p}, given["x"], run)
        (y * caps.asarray(np.cos(3 * x))).sum().backward()
        statistics = {name: caps.to_numpy(value) for name, value in run.statistics.items()}
        found.append((caps.to_numpy(y), statistics, [caps.to_numpy(given[n].grad) for n in ("x", "weight", "bias")]))
    fused, plain = found
    close(fused[0], plain[0], FLOAT64)
    for name, value in plain[1].items():
        close(fused[1][name], value, FLOAT64, name)
    for mine, theirs in zip(fused[2], plain[2], strict=True):
        close(mine, theirs, GRADIENT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 4, 7, 4), (3, 4, 1, 7), (3, 4, 7, 1), (1, 4, 1, 7)])
def test_batch_norm_of_one_image_and_of_signals_in_every_order(shape: tuple[int, ...], training: bool) -> None:
    """The gradient that PyTorch's gives is another one where a map has two orders in memory, as of one row."""
    caps, rng = backend("torch"), np.random.default_rng(0)
    layer, p = BatchNorm(), {"weight": torch.ones(4).double(), "bias": torch.zeros(4).double()}
    p |= {"mean": torch.zeros(4).double(), "variance": torch.ones(4).double()}
    x, g = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))

    def gradient(x: Any, g: Any, **plainly: Any) -> Any:
        x = x.requires_grad_()
        run = Run(training=training, statistics={}, input=Map(*shape[1:]), output=Map(*shape[1:]), **plainly)
        return torch.autograd.grad(layer(caps, p, x, run), x, g)[0]

    wanted = gradient(x.clone(), g, batch_mean=lambda ops, x, axes: x.mean(axes, keepdim=True))
    orders = list(itertools.permutations(range(4)))
    for first, second in itertools.product(orders, orders):
        mine = [a.permute(order).contiguous().permute(*np.argsort(order)) for a, order in ((x, first), (g, second))]
        close(caps.to_numpy(gradient(*mine)), caps.to_numpy(wanted), GRADIENT)


STRIDED = """
import torch
from capscore.backends import torch as ops
torch.manual_seed(0)
for channels in (3, 4, 6):
    for stride in (2, 4):
        for _ in range(30):
            x, w = torch.randn(8, channels, 32, 32, requires_grad=True), torch.randn(16, channels, 1, 1)
            x = x.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
            ops.conv2d(x, w.requires_grad_(), None, (stride, stride), (0, 0)).square().sum().backward()
print("whole")
"""


def test_strided_convolutions_of_one_pixel_write_into_their_own_memory() -> None:
    """oneDNN's gradient of few channels that are together does not, on a processor without AVX-512."""
    told, checks = {"ONEDNN_MAX_CPU_ISA": "AVX2"}, Path("/usr/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")
    if checks.exists():
        told |= {"LD_PRELOAD": str(checks), "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", STRIDED], env=os.environ | told, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-2000:]


@pytest.mark.parametrize("stride", [(2, 2), (3, 1)])
def test_a_strided_convolution_of_one_pixel_is_pytorch_s(stride: tuple[int, int]) -> None:
    ops, rng = backend("torch"), np.random.default_rng(0)
    x, w, bias = (torch.from_numpy(rng.normal(size=s)).requires_grad_() for s in ((5, 4, 9, 8), (6, 4, 1, 1), (6,)))
    mine, theirs = ops.conv2d(x, w, bias, stride, (0, 0)), torch.nn.functional.conv2d(x, w, bias, stride)
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad((y * y).sum(), (x, w, bias)) for y in (mine, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_depthwise_convolution_over_the_whole_map_is_a_sum() -> None:
    caps, rng = backend("torch"), np.random.default_rng(1)
    x, weight, bias = (caps.asarray(rng.normal(size=s)).requires_grad_() for s in ((3, 6, 5, 4), (6, 1, 5, 4), (6,)))
    mine = caps.conv2d(x, weight, bias, (1, 1), (0, 0), 6)
    theirs = caps.torch.nn.functional.conv2d(x, weight, bias, groups=6)
    close(caps.to_numpy(mine), caps.to_numpy(theirs), FLOAT64)
    gradients = [caps.torch.autograd.grad((y * y).sum(), (x, weight, bias)) for y in (mine, theirs)]
    for a, b in zip(*gradients, strict=True):
        close(caps.to_numpy(a), caps.to_numpy(b), GRADIENT)
    assert mine.grad_fn is not None
    assert "Convolution" not in type(mine.grad_fn).__name__, "PyTorch's takes several times longer"


def test_a_depthwise_convolution_may_have_several_kernels_a_channel() -> None:
    caps, rng = backend("torch"), np.random.default_rng(2)
    x, weight, bias = (rng.normal(size=s) for s in ((3, 4, 5, 4), (8, 1, 5, 4), (8,)))
    mine = caps.conv2d(*map(caps.asarray, (x, weight, bias)), (1, 1), (0, 0), 4)
    close(caps.to_numpy(mine), NUMPY.conv2d(x, weight, bias, (1, 1), (0, 0), 4), FLOAT64)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (2, 3, 1), (5, 2, 2), (1, 1, 0)])
def test_few_patches_are_one_product(kernel: int, stride: int, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = backend("torch")
    rng = np.random.default_rng(0)
    x, w, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((1, 3, 7, 9), (4, 3, kernel, kernel), (4,)))
    expected = torch.nn.functional.conv2d(x, w, bias, stride, padding)
    w.requires_grad_()
    torch.testing.assert_close(
        ops.conv2d(x, w, bias, (stride,) * 2, (padding,) * 2), expected
    )  # with a gradient: as ever
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    with torch.inference_mode():
        torch.testing.assert_close(ops.conv2d(x, w, bias, (stride,) * 2, (padding,) * 2), expected)
        with pytest.raises(TypeError):
            ops.conv2d(x.repeat(90, 1, 1, 1), w, bias, (stride,) * 2, (padding,) * 2)


def test_maps_that_are_learned_from_have_their_channels_together() -> None:
    ops, rng = backend("torch"), np.random.default_rng(3)
    x, w, bias = (torch.from_numpy(rng.normal(size=s)).requires_grad_() for s in ((5, 4, 9, 8), (6, 4, 3, 3), (6,)))
    mine, theirs = ops.conv2d(x, w, bias, (1, 1), (1, 1)), torch.nn.functional.conv2d(x, w, bias, padding=1)
    assert mine.is_contiguous(memory_format=torch.channels_last), "PyTorch trains slower on maps in the other order"
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad((y * y).sum(), (x, w, bias)) for y in (mine, theirs)]
    torch.testing.assert_close(*gradients)


def test_maps_and_their_gradients_are_in_the_same_order() -> None:
    """Of every layer, from the image's one channel on: PyTorch's gradients are slow where they differ."""
    ops, orders = backend("torch"), []
    from torch.utils._python_dispatch import TorchDispatchMode

    class Orders(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "native_batch_norm_backward" in str(func):
                orders.append([x.is_contiguous(memory_format=torch.channels_last) for x in args[:2]])
            return func(*args, **(kwargs or {}))

    convs = (Conv(4, 3), BatchNorm(), Conv(6, 3), BatchNorm())
    spec = CapsNetSpec((1, 9, 9), (*convs, PrimaryCaps(2, 3, 5, groups=6), DenseCaps(3, 4)), decoder=None)
    learner = ops.Learner(ops.CapsNet(spec), 0)
    with Orders():
        learner.step(random_images(spec, 5), np.eye(3)[[0, 1, 2, 0, 1]], 1e-3)
    assert orders == [[True, True]] * 2


def test_gradients_reach_the_image(net: Any, images: Any) -> None:
    x = images.clone().requires_grad_()
    net(x).lengths[:, 0].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("fast_conv", [None, "3x3"])
def test_second_derivatives_go_through_the_generic_routing(fast_conv: str | None, monkeypatch: Any) -> None:
    ops = backend("torch")
    net = ops.CapsNet(SPEC, random_params(SPEC), dtype="float64", fast_conv=fast_conv)
    x = torch.tensor(random_images(SPEC, 2), dtype=torch.float64, requires_grad=True)

    def slope(x: Any) -> Any:
        return torch.autograd.grad(net(x).lengths.sum(), x, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="no autograd formula"):
        slope(x).sum().backward()
    monkeypatch.setattr(ops, "FUSED", {})
    assert torch.autograd.gradcheck(slope, x)


def test_tensors_in_the_place_of_parameters_are_used(net: Any, images: Any) -> None:
    from torch.nn.utils import prune

    before = net(images).lengths
    doubled = {"stem.0.weight": net.get_parameter("stem.0.weight") * 2}
    called = torch.func.functional_call(net, doubled, (images,)).lengths
    assert not torch.equal(called, before)
    torch.testing.assert_close(net(images).lengths, before, rtol=0, atol=0)
    prune.l1_unstructured(net.get_submodule("stem.0"), "weight", amount=0.5)
    pruned = net(images).lengths
    assert not torch.equal(pruned, before)
    assert (net.params["stem.0.weight"] == 0).float().mean() >= 0.4


def test_tf32_is_off(net: Any) -> None:
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "on", "off"), [("allow_tf32", True, False), ("fp32_precision", "tf32", "ieee")])
def test_tf32_is_used_where_pytorch_allows_it_by_either_name(
    name: str, on: Any, off: Any, compiled: bool, monkeypatch: Any
) -> None:
    """The flag is read in the forward pass; the backward one computes the same votes, whatever it says by then."""
    from capscore.backends import _torch_fused

    matmul, told = torch.backends.cuda.matmul, []
    if not hasattr(matmul, name):
        pytest.skip(f"this PyTorch has no {name}")

    class Kernels:
        @staticmethod
        def forward(u: Any, weight: Any, bias: Any, iterations: int, leaky: bool, precision: str) -> Any:
            told.append(precision)
            (b, _, _), (_, j, d, _) = u.shape, weight.shape
            return u.new_zeros(b, j, d), u.new_zeros(2, iterations, b, j, d)

        @staticmethod
        def backward(g: Any, kept: Any, u: Any, weight: Any, bias: Any, *how: Any) -> Any:
            told.append(how[-1])
            return torch.zeros_like(u), torch.zeros_like(weight), torch.zeros_like(bias)

    def loss(u: Any, weight: Any, bias: Any) -> Any:
        return _torch_fused.route(DynamicRouting(2), u, weight, bias).sum()

    monkeypatch.setattr(_torch_fused, "_kernels", lambda u, weight, routing: Kernels)
    shapes, before = ((2, 3, 4), (3, 5, 6, 4), (5, 6)), getattr(matmul, name)
    arrays = [torch.ones(shape, requires_grad=True) for shape in shapes]
    run = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
    try:
        for flag, other in ((off, on), (on, off), (off, on)):
            setattr(matmul, name, flag)
            value = run(*arrays)
            setattr(matmul, name, other)
            value.backward()
        setattr(matmul, name, on)
        with torch.autocast("cpu", torch.bfloat16):
            run(*arrays).backward()
    finally:
        setattr(matmul, name, before)
        torch._dynamo.reset()
    assert told == ["float32"] * 2 + ["tf32"] * 2 + ["float32"] * 2 + ["bf16"] * 2


# ------------------------------------------------------------------------------------------------- threads and turns


@pytest.mark.parametrize("call", ["predict", "forward", "reconstruct", "save"])
@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_what_runs_while_parameters_are_assigned_sees_one_network(name: str, call: str, tmp_path: Path) -> None:
    caps = backend(name)
    x = random_images(SPEC, 6, dtype="float32")
    ways = [random_params(SPEC, seed, dtype="float32") for seed in (1, 2)]
    net = caps.CapsNet(SPEC, ways[0])

    def ask(net: Any, thread: int = 0) -> bytes:
        if call == "predict":
            return net.predict(x, batch=2).tobytes()  # type: ignore[no-any-return]
        if call == "forward":
            return caps.to_numpy(net(x[:2]).capsules).tobytes()  # type: ignore[no-any-return]
        if call == "reconstruct":
            return caps.to_numpy(net.reconstruct(np.ones((2, 3, 6), np.float32), [0, 1])).tobytes()  # type: ignore[no-any-return]
        net.save(tmp_path / str(thread))
        return b"".join(caps.to_numpy(p).tobytes() for p in caps.load(tmp_path / str(thread)).params.values())

    wanted = {ask(caps.CapsNet(SPEC, params)) for params in ways}
    found: list[bytes] = []
    done = threading.Event()

    def asks(thread: int) -> None:
        while not done.is_set():
            found.append(ask(net, thread))

    before, interval = list(net.parameters()) if name == "torch" else [], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=asks, args=(i,)) for i in range(3)]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            for params in ways:
                net.assign(params)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert set(found) == wanted
    if name == "torch":
        assert all(a is b for a, b in zip(before, net.parameters(), strict=True))


def test_an_assignment_waits_for_a_prediction_and_the_next_prediction_for_it(net: Any, images: Any) -> None:
    order: list[str] = []
    within, asked = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        if not within.is_set():
            within.set()
            assert asked.wait(10)
            time.sleep(0.05)  # the other thread has begun to assign
            net.predict(images)  # who reads already may read again
            order.append("predicted")

    handle = net.register_forward_hook(hold)

    def assigns() -> None:
        assert within.wait(10)
        asked.set()
        net.assign(random_params(SPEC, 7))
        order.append("assigned")

    thread = threading.Thread(target=assigns)
    thread.start()
    before = net.predict(images, batch=1)
    thread.join()
    handle.remove()
    assert order == ["predicted", "assigned"]
    close(before, reference(images), FLOAT32)  # three batches, all by the former parameters
    assert np.abs(net.predict(images) - before).max() > 1e-3


@pytest.mark.parametrize("name", ["torch", "numpy", "jax"])
def test_a_step_waits_for_a_prediction(name: str, images: Any) -> None:
    caps = backend(name)
    net = caps.CapsNet(SPEC)
    learner, before = caps.Learner(net), {key: caps.to_numpy(p).copy() for key, p in net.params.items()}
    thread = threading.Thread(target=learner.step, args=(images, np.eye(3)[np.zeros(len(images), int)], 0.1))
    with net._reading():
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        for key, p in net.params.items():
            np.testing.assert_array_equal(caps.to_numpy(p), before[key])
    thread.join()
    assert any((caps.to_numpy(p) != before[key]).any() for key, p in net.params.items())


def test_a_thread_may_assign_what_it_reads_itself(net: Any, images: Any) -> None:
    handle = net.register_forward_hook(lambda *_: net.assign(random_params(SPEC, 7)))
    net.predict(images)
    handle.remove()
    close(net.predict(images), NUMPY.CapsNet(SPEC, random_params(SPEC, 7))(images).lengths, FLOAT32)


def test_a_backward_pass_after_an_assignment_is_refused(net: Any, images: Any) -> None:
    loss = net(images).lengths.sum()
    net.assign(random_params(SPEC, 7))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_copy_is_read_and_assigned_by_itself(net: Any, images: Any) -> None:
    with net._reading():
        copies = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    changing = threading.Thread(target=lambda: [other.assign(random_params(SPEC, 7)) for other in copies])
    with net._reading(), copies[0]._reading():
        changing.start()
        changing.join(0.2)
        assert changing.is_alive()  # the first copy is read by this thread, and not by the one that assigns
    changing.join()
    for other in copies:
        assert not np.array_equal(other.predict(images), net.predict(images))
