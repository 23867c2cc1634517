"""Convolution by fewer multiplications: the transforms, forward and gradients, in networks, in PyTorch and in ONNX."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import (
    FLOAT64,
    GRADIENT,
    NUMPY,
    SEEDS,
    TRANSFORMED,
    backend,
    close,
    close_gradients,
    need,
    random_images,
    random_params,
    small_spec,
)
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from capscore import PRESETS, CapsNetSpec, PrimaryCaps, im2col
from capscore.agree import SHARE
from capscore.errors import CapscoreError, ShapeError
from capscore.fast import cook_toom, streaming
from capscore.fast.conv import with_tiles
from capscore.model import objective
from capscore.net import init_params

Array = NDArray[Any]
TILES = sorted(cook_toom.TILES)
# Float32 by the transforms against float64: of the paper's layer, relative to its largest output, and of the lengths.
LAYER = {tiles: SHARE[tiles] for tiles in ("3x3", "6x6")}
LENGTHS = {"3x3": 5e-7, "6x6": 5e-6}


@pytest.fixture(scope="module")
def caps(eager_caps: ModuleType) -> ModuleType:
    """Each backend that has what is tested here."""
    return eager_caps


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """Have layers transformed that are narrower than where it pays, so that the tests are fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cook_toom, "CHANNELS", 16)
        yield


SPEC = TRANSFORMED
NO_STEM = small_spec(input=(16, 10, 9), stem=())
X, T = random_images(SPEC, 9), np.eye(3)[np.arange(9) % 3]


def network(caps: ModuleType, fast_conv: str | None, seed: int = 0, dtype: str = "float64", spec: Any = SPEC) -> Any:
    return caps.CapsNet(spec, random_params(spec, seed), dtype=dtype, fast_conv=fast_conv)


# ------------------------------------------------------------------------------------------------------ transforms


@given(
    size=st.integers(1, 40),
    kernel=st.integers(2, 9),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    name=st.sampled_from(TILES),
    seed=SEEDS,
)
@example(size=20, kernel=9, stride=2, padding=0, name="3x3", seed=0)  # the paper's
@example(size=20, kernel=9, stride=2, padding=0, name="6x6", seed=0)
@example(size=13, kernel=4, stride=2, padding=1, name="6x6", seed=0)  # phases of two taps each, no crop
@example(size=17, kernel=5, stride=2, padding=2, name="6x6", seed=0)  # of three and two; the last tile is cropped
@example(size=20, kernel=2, stride=4, padding=0, name="3x3", seed=0)  # two phases of four
@example(size=1, kernel=3, stride=1, padding=3, name="3x3", seed=0)  # mostly padding
def test_the_transforms_of_an_axis_are_exact(
    size: int, kernel: int, stride: int, padding: int, name: str, seed: int
) -> None:
    largest, most = cook_toom.TILES[name]
    taps, outputs = -(-kernel // stride), (size + 2 * padding - kernel) // stride + 1
    found = cook_toom.axis(size, kernel, stride, padding, largest, most)
    if taps + 1 > most or outputs < 2:
        assert found is None
        return
    assert found is not None
    m, points = found.inverse.shape
    tiles = -(-outputs // m)
    assert 2 <= m <= largest
    assert points == m + taps - 1 <= most
    assert m - 1 <= outputs / tiles <= m  # as even as can be
    assert found.data.shape == (points, tiles, min(stride, kernel), size)
    assert found.kernel.shape == (points, min(stride, kernel), kernel)
    assert (found.crop is None) == (tiles * m == outputs)

    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(size), rng.standard_normal(kernel)
    products = ((found.data @ x) * (found.kernel @ w)[:, None]).sum(2)  # [P, T]
    y = (found.inverse @ products).T.reshape(-1)
    y = y if found.crop is None else found.crop @ y
    framed = np.pad(x, padding)
    expected = np.array([framed[i * stride :][:kernel] @ w for i in range(outputs)])
    close(y, expected, 1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "name", "m"),
    [
        (28, 6, 1, "3x3", 2),
        (28, 7, 1, "3x3", None),  # seven points would make tiles of one
        (28, 9, 1, "6x6", 2),
        (28, 10, 1, "6x6", None),
        (28, 10, 2, "6x6", 5),
        (10, 9, 2, "3x3", None),  # one output
        (11, 9, 2, "3x3", 2),
        (8, 9, 2, "3x3", None),  # none
        (20, 9, 2, "6x6", 6),
        (22, 9, 2, "6x6", 4),  # seven outputs are two tiles of four, not one of six and one of one
    ],
)
def test_tiles_are_as_large_as_points_and_outputs_allow(
    size: int, kernel: int, stride: int, name: str, m: int | None
) -> None:
    found = cook_toom.axis(size, kernel, stride, 0, *cook_toom.TILES[name])
    assert (None if found is None else len(found.inverse)) == m


def test_what_is_transformed() -> None:
    paper, few = (cook_toom.tiling("3x3", c, 20, 20, 9, 2, 0) for c in (cook_toom.CHANNELS, cook_toom.CHANNELS - 1))
    one_row = cook_toom.tiling("3x3", 256, 9, 20, 9, 2, 0)
    assert paper is not None
    assert paper.axes is not None
    assert [paper.pays(n) for n in (0, 1, cook_toom.FEWEST - 1, cook_toom.FEWEST)] == [False, False, False, True]
    for none in (few, one_row):
        assert none is not None
        assert none.axes is None
        assert not none.pays(128)


# ------------------------------------------------------------------------------------------- one layer, every backend


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """A convolution that tiles fit, with maps in any order of memory and rows of points in blocks of any size."""
    kernel, stride, padding = draw(st.integers(2, 6)), draw(st.integers(1, 3)), draw(st.integers(0, 2))

    def size() -> int:
        outputs, rest = draw(st.integers(2, 7)), draw(st.integers(0, stride - 1))
        return max(1, kernel - 2 * padding + (outputs - 1) * stride + rest)

    shape = draw(st.integers(8, 12)), draw(st.integers(16, 18)), size(), size()
    orders = st.sampled_from([(0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 3, 1), (3, 1, 0, 2)])
    return {
        "shape": shape,
        "outputs": draw(st.integers(1, 5)),
        "how": (kernel, stride, padding),
        "name": draw(st.sampled_from(TILES)),
        "orders": (draw(orders), draw(orders)),
        "gaps": (draw(st.booleans()), draw(st.booleans())),
        "block": draw(st.sampled_from([1, 200_000, 16 << 20])),
        "seed": draw(SEEDS),
    }


def laid(caps: ModuleType, x: Array, order: tuple[int, ...], gaps: bool) -> Any:
    """Return `x` with its axes in this order in memory, numbers that are not its own in between if `gaps`."""
    stored = np.ascontiguousarray(x.transpose(order))
    array = caps.asarray(np.repeat(stored, 2, -1))[:, :, :, ::2] if gaps else caps.asarray(stored)
    return caps.transpose(array, tuple(int(i) for i in np.argsort(order)))


@given(case=convolutions())
def test_forward_and_gradients_are_those_of_the_direct_convolution(caps: ModuleType, case: dict[str, Any]) -> None:
    (_, c, height, width), o, (kernel, stride, padding) = case["shape"], case["outputs"], case["how"]
    tiling = cook_toom.tiling(case["name"], c, height, width, kernel, stride, padding)
    assert tiling is not None
    assume(tiling.axes is not None)
    rng = np.random.default_rng(case["seed"])
    x, w, bias = (rng.standard_normal(shape) for shape in (case["shape"], (o, c, kernel, kernel), o))
    y = im2col.convolve(x, w, bias, (stride,) * 2, (padding,) * 2)
    g = rng.standard_normal(y.shape)
    how = g, x, w, (stride,) * 2, (padding,) * 2
    dx, dw = im2col.input_gradient(*how), im2col.weight_gradient(*how)
    arrays = [laid(caps, a, *how) for a, *how in zip((x, g), case["orders"], case["gaps"], strict=True)]
    weight = caps.asarray(w)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cook_toom, "BLOCK_BYTES", case["block"])
        found = cook_toom.convolve(caps, arrays[0], weight, caps.asarray(bias), tiling)
        gradients = cook_toom.gradients(caps, arrays[1], arrays[0], weight, tiling)
    for actual, desired in zip((found, *gradients), (y, dx, dw), strict=True):
        close(caps.to_numpy(actual), desired, FLOAT64 * max(1, np.abs(desired).max()))
    for array, given_ in zip((*arrays, weight), (x, g, w), strict=True):  # nothing is written into arguments
        np.testing.assert_array_equal(caps.to_numpy(array), given_)


@pytest.mark.parametrize("biased", [True, False])
def test_results_are_not_overwritten_by_later_calls(caps: ModuleType, biased: bool) -> None:
    """Buffers hold what lies in between; what is returned is the caller's, whether tiles are cropped or not."""
    rng = np.random.default_rng(0)
    for size in (14, 15):
        tiling = cook_toom.tiling("6x6", 16, size, size, 4, 2, 0)
        assert tiling is not None
        results, copies = [], []
        for _ in range(3):
            x, w, bias = (caps.asarray(rng.standard_normal(shape)) for shape in ((8, 16, size, size), (5, 16, 4, 4), 5))
            y = cook_toom.convolve(caps, x, w, bias if biased else None, tiling)
            g = caps.asarray(rng.standard_normal(tuple(y.shape)))
            for array in (y, *cook_toom.gradients(caps, g, x, w, tiling)):
                results.append(array)
                copies.append(caps.to_numpy(array).copy())
        for array, kept in zip(results, copies, strict=True):
            np.testing.assert_array_equal(caps.to_numpy(array), kept)


def test_the_same_weights_in_several_convolutions(caps: ModuleType) -> None:
    """Sizes, strides and paddings in turns: kernels that were transformed for one are no other's."""
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((5, 16, 4, 4)), rng.standard_normal(5)
    weight, maps = caps.asarray(w), {size: rng.standard_normal((8, 16, size, size + 1)) for size in (5, 7, 10, 13)}
    for _ in range(2):
        for size, x in maps.items():
            for stride, padding in ((1, 0), (1, 2), (2, 1), (3, 2)):
                for name in TILES:
                    tiling = cook_toom.tiling(name, 16, size, size + 1, 4, stride, padding)
                    assert tiling is not None
                    if tiling.axes is not None:
                        found = cook_toom.convolve(caps, caps.asarray(x), weight, caps.asarray(bias), tiling)
                        expected = im2col.convolve(x, w, bias, (stride,) * 2, (padding,) * 2)
                        close(caps.to_numpy(found), expected, FLOAT64 * np.abs(expected).max())


def test_few_images_are_convolved_directly_bit_for_bit(caps: ModuleType) -> None:
    x, w, bias = random_images(NO_STEM, 8), random_params(NO_STEM)["primary.weight"], np.arange(12.0)
    tiling = cook_toom.tiling("6x6", 16, 10, 9, 3, 2, 0)
    for n, equal in ((1, True), (7, True), (8, False)):
        arrays = [caps.asarray(a) for a in (x[:n], w, bias)]
        direct = caps.to_numpy(caps.conv2d(*arrays, (2, 2), (0, 0)))
        found = caps.to_numpy(caps.fast_conv2d(*arrays, tiling))
        assert np.array_equal(found, direct) == equal
        close(found, direct, FLOAT64)


# ------------------------------------------------------------------------------------------------------- accuracy


@cache
def paper_layer() -> tuple[Array, ...]:
    """x, weight and g of the paper's primary convolution in float32; its outputs and gradients in float64."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((8, 256, 20, 20)), 0)
    w, g = rng.standard_normal((256, 256, 9, 9)) / 144, rng.standard_normal((8, 256, 6, 6))
    x, w, g = (a.astype(np.float32) for a in (x, w, g))
    exact = [a.astype(np.float64) for a in (x, w, g)]
    y = im2col.convolve(*exact[:2], np.zeros(256), (2, 2), (0, 0))
    how = exact[2], *exact[:2], (2, 2), (0, 0)
    return x, w, g, y, im2col.input_gradient(*how), im2col.weight_gradient(*how)


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_accuracy_of_the_paper_s_layer_in_float32(library: str, name: str) -> None:
    caps = backend(library)
    x, w, g, y, dx, dw = paper_layer()
    tiling = cook_toom.tiling(name, 256, 20, 20, 9, 2, 0)
    x, w, g = (caps.asarray(a) for a in (x, w, g))
    assert tiling is not None
    found = cook_toom.convolve(caps, x, w, caps.asarray(np.zeros(256, np.float32)), tiling)
    close(caps.to_numpy(found), y, LAYER[name] * np.abs(y).max())
    for actual, desired in zip(cook_toom.gradients(caps, g, x, w, tiling), (dx, dw), strict=True):
        actual = caps.to_numpy(actual)
        assert actual.dtype == np.float32
        close(actual, desired, (GRADIENT if name == "3x3" else LAYER[name]) * np.abs(desired).max())


@cache
def mnist(fresh: bool) -> tuple[CapsNetSpec, dict[str, Array], Array, Array]:
    """The paper's network in float32, images, and their lengths in float64.

    Parameters are fresh ones, or such that every layer speaks up: lengths of 0.2 or 0.9.
    """
    spec = PRESETS["mnist"].replace(decoder=None)
    params = init_params(spec) if fresh else random_params(spec)
    params, x = {name: p.astype(np.float32) for name, p in params.items()}, random_images(spec, 8)
    return spec, params, x, NUMPY.CapsNet(spec, params, dtype="float64")(x).lengths


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("fresh", [True, False])
def test_the_accuracy_of_the_paper_s_network_in_float32(library: str, name: str, fresh: bool) -> None:
    spec, params, x, expected = mnist(fresh)
    assert expected.max() > (0.1 if fresh else 0.8)
    found = backend(library).CapsNet(spec, params, fast_conv=name).predict(x)
    close(found, expected, LENGTHS[name] * (1 if fresh else 2))


# ------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", TILES)
def test_a_network_computes_the_same_at_every_batch(caps: ModuleType, name: str) -> None:
    direct, fast = network(caps, None), network(caps, name)
    for n in (0, 1, 7, 8, 9):
        found, expected = fast(X[:n]), direct(X[:n])
        for actual, desired in zip(found[:2], expected[:2], strict=True):
            close(caps.to_numpy(actual), caps.to_numpy(desired), FLOAT64)
    np.testing.assert_array_equal(
        network(caps, name, spec=NO_STEM).predict(random_images(NO_STEM, 7)),
        network(caps, None, spec=NO_STEM).predict(random_images(NO_STEM, 7)),
    )


def gradients(net: Any, x: Array, t: Array) -> dict[str, Array]:
    """Gradients of the objective by PyTorch."""
    torch = need("torch", "torch")
    images, targets = torch.from_numpy(x), torch.from_numpy(t)
    ops = with_tiles(net.ops, net.fast_conv)
    loss, _ = objective(ops, net.spec, net.params, images, targets)
    found = torch.autograd.grad(loss, list(net.params.values()))
    return {name: g.numpy() for name, g in zip(net.params, found, strict=True)}


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("n", [7, 9])
def test_gradients_of_a_network_are_those_of_the_direct_one(torch_caps: ModuleType, name: str, n: int) -> None:
    found, expected = (gradients(network(torch_caps, how), X[:n], T[:n]) for how in (name, None))
    close_gradients(found, expected, FLOAT64, each=True)


def learn(caps: ModuleType, fast_conv: str | None, dtype: str = "float64") -> tuple[list[float], dict[str, Array]]:
    learner = caps.Learner(network(caps, fast_conv, dtype=dtype))
    losses = []
    for step in range(20):
        x, t = random_images(SPEC, 8, step, dtype), T[step % 2 :][:8].astype(dtype)
        losses.append(float(learner.step(x, t, 1e-3)[0]))
    return losses, {name: caps.to_numpy(p) for name, p in learner.net.params.items()}


@cache
def learned(fast_conv: str | None) -> tuple[list[float], dict[str, Array]]:
    return learn(NUMPY, fast_conv)


@pytest.mark.parametrize("name", TILES)
def test_twenty_steps_of_training_are_the_same(caps: ModuleType, name: str) -> None:
    losses, params = learn(caps, name)
    for expected, wanted in (learned(name), learned(None)):
        np.testing.assert_allclose(losses, expected, rtol=10 * FLOAT64)
        for key, p in params.items():
            close(p, wanted[key], 10 * FLOAT64, key)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_loss_curve_in_float32_is_that_of_the_direct_convolution(library: str) -> None:
    losses, params = learn(backend(library), "3x3", "float32")
    np.testing.assert_allclose(losses, learned(None)[0], rtol=GRADIENT)
    assert all(p.dtype == np.float32 for p in params.values())


@pytest.mark.parametrize("name", TILES)
def test_predictions_follow_training(caps: ModuleType, name: str) -> None:
    """Inference and training in turns: neither leaves the other anything that is stale or cannot be written."""
    net = network(caps, name)
    learner, seen = caps.Learner(net), []
    for _ in range(3):
        seen.append((net.predict(X), {key: caps.to_numpy(p).copy() for key, p in net.params.items()}))
        for _ in range(2):
            learner.step(X, T, 1e-2)
    for (before, _), (after, _) in pairwise(seen):
        assert np.abs(after - before).max() > 1e-4
    for found, params in seen:
        np.testing.assert_array_equal(found, caps.CapsNet(SPEC, params, dtype="float64", fast_conv=name).predict(X))


def test_predictions_follow_training_that_moves_few_weights(torch_caps: ModuleType) -> None:
    """Channels that are always zero, as dead ones of a stem are, give their weights no gradient."""
    spec = small_spec(input=(32, 8, 8), stem=(), primary=PrimaryCaps(types=8, dim=8, kernel=4))
    x = random_images(spec, 8)
    x[:, ::2] = 0
    net = network(torch_caps, "3x3", spec=spec)
    learner = torch_caps.Learner(net)
    net.predict(x)
    learner.step(x, T[:8], 1e-2)
    close(net.predict(x), torch_caps.CapsNet(spec, net.params, dtype="float64").predict(x), FLOAT64)


LAYERS = ["stem.1.weight", "primary.weight", "capsules.0.weight"]


@pytest.mark.parametrize("layer", LAYERS)
def test_inference_notices_what_is_written_into_one_weight(
    caps: ModuleType, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "VOTES_BYTES", 0)  # the routing keeps weights in its own layout too
    net = network(caps, "3x3")
    before = net.predict(X)
    weight = net.params[layer].detach() if hasattr(net.params[layer], "detach") else net.params[layer]
    weight[1, 3, 0, 1] = weight[1, 3, 0, 1] + 0.5
    after = net.predict(X)
    assert np.abs(after - before).max() > 1e-6
    close(after, caps.CapsNet(SPEC, net.params, dtype="float64").predict(X), FLOAT64)


@pytest.mark.parametrize("layer", LAYERS)
def test_inference_notices_what_is_written_through_data(
    torch_caps: ModuleType, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch does not count such writes."""
    monkeypatch.setattr(streaming, "VOTES_BYTES", 0)
    net = network(torch_caps, "3x3")
    seen = [net.predict(X)]
    net.params[layer].data.mul_(1.5)
    seen.append(net.predict(X))
    net.params[layer].data = net.params[layer].data * 1.5
    seen.append(net.predict(X))
    net.assign(random_params(SPEC, 5))
    seen.append(net.predict(X))
    for before, after in pairwise(seen):
        assert np.abs(after - before).max() > 1e-4
    close(seen[-1], network(torch_caps, None, seed=5).predict(X), FLOAT64)


def test_networks_of_equal_shapes_do_not_mix(caps: ModuleType) -> None:
    nets = [network(caps, name, seed) for seed in range(3) for name in TILES]
    nets.append(copy.deepcopy(nets[0]))
    expected = [network(caps, None, seed).predict(X) for seed in range(3) for _ in TILES]
    for _ in range(2):
        for net, wanted in zip(nets, [*expected, expected[0]], strict=True):
            close(net.predict(X), wanted, FLOAT64)


def test_a_deepcopy_is_a_network_of_its_own(caps: ModuleType) -> None:
    net = network(caps, "3x3")
    before = net.predict(X)
    other = copy.deepcopy(net)
    assert other.fast_conv == "3x3"
    caps.Learner(other).step(X, T, 1e-2)
    assert np.abs(other.predict(X) - before).max() > 1e-4
    np.testing.assert_array_equal(net.predict(X), before)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_two_threads_at_the_same_time(library: str) -> None:
    caps, together = backend(library), Barrier(2, timeout=60)

    def work(seed: int, wait: bool) -> list[Array]:
        net = network(caps, TILES[seed], seed)
        learner, x, found = caps.Learner(net), random_images(SPEC, 9, seed), []
        for _ in range(6):
            if wait:
                together.wait()
            found.append(net.predict(x))
            learner.step(x, T, 1e-2)
        return found

    expected = [work(seed, wait=False) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, (0, 1), (True, True)))
    for actual, desired in zip(found, expected, strict=True):
        close(np.array(actual), np.array(desired), FLOAT64)


@pytest.mark.parametrize("name", ["9x9", "", True, 3])
def test_an_unknown_name_is_refused_with_the_choices(caps: ModuleType, name: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    network(caps, None).save(path)
    for make in (caps.CapsNet, lambda spec, fast_conv: caps.load(path, fast_conv=fast_conv)):
        with pytest.raises(ShapeError, match="fast_conv must be None, '3x3' or '6x6', not "):
            make(SPEC, fast_conv=name)


@pytest.mark.parametrize("name", TILES)
def test_a_file_is_loaded_with_any_tiles(caps: ModuleType, name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    net = network(caps, name)
    net.save(path)  # a choice of the machine that runs it, and none of the file's
    assert caps.load(path).fast_conv is None
    loaded = caps.load(path, "float64", fast_conv=name)
    assert loaded.fast_conv == name
    np.testing.assert_array_equal(loaded.predict(X), net.predict(X))


# --------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize(("mode", "batches"), [("eager", (3, 9)), ("aot_eager", (9,))])
def test_the_objective_compiles_whole(torch_caps: ModuleType, mode: str, batches: tuple[int, ...]) -> None:
    """Two transformed layers and their gradients, in one graph."""
    torch = need("torch", "torch")
    torch._dynamo.reset()
    net = network(torch_caps, "3x3")
    whole = torch.compile(objective, fullgraph=True, backend=mode)
    for n in batches:
        x, t = torch.from_numpy(X[:n]), torch.from_numpy(T[:n])
        results = []
        for function in (whole, objective):
            loss, _ = function(with_tiles(net.ops, "3x3"), SPEC, net.params, x, t)
            found = torch.autograd.grad(loss, list(net.params.values()))
            results.append((loss.item(), {key: g.numpy() for key, g in zip(net.params, found, strict=True)}))
        assert results[0][0] == pytest.approx(results[1][0], rel=FLOAT64)
        close_gradients(results[0][1], results[1][1], FLOAT64, each=True)


@pytest.mark.parametrize("name", TILES)
def test_the_compiler_sees_no_transforms(torch_caps: ModuleType, name: str) -> None:
    """It follows all Python but a custom op; the fractions would make a graph of many hundred nodes."""
    torch = need("torch", "torch")
    torch._dynamo.reset()
    sizes = []

    def count(graph: Any, _: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph

    for how in (None, name):
        with torch.no_grad():
            torch.compile(network(torch_caps, how), fullgraph=True, backend=count)(torch.from_numpy(X))
    assert sizes[1] < sizes[0] + 20


def test_exports_with_a_symbolic_batch(torch_caps: ModuleType) -> None:
    torch = need("torch", "torch")
    net, batch = network(torch_caps, "6x6"), torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (torch.from_numpy(X),), dynamic_shapes=({0: batch},), strict=False)
    for n in (2, 8, 9):
        lengths = program.module()(torch.from_numpy(X[:n]))[0]
        close(lengths.detach().numpy(), network(NUMPY, None).predict(X[:n]), FLOAT64)


@pytest.mark.parametrize("n", [3, 9])
@pytest.mark.parametrize("name", TILES)
def test_the_ops_are_what_they_declare(torch_caps: ModuleType, name: str, n: int) -> None:
    """Shapes, strides and gradients as the compiler believes them."""
    torch = need("torch", "torch")
    rng = np.random.default_rng(0)
    x, w, bias, g = (
        torch.from_numpy(rng.standard_normal(shape)) for shape in ((n, 16, 9, 8), (5, 16, 3, 3), 5, (n, 4, 3, 5))
    )
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for leaf in (x, x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
        leaves = leaf.detach().requires_grad_(), w.clone().requires_grad_(), bias.clone().requires_grad_()
        torch.library.opcheck(torch.ops.capscore.fast_conv2d, (*leaves, 2, 0, name), test_utils=tests)
        back = torch.ops.capscore.fast_conv2d_backward
        torch.library.opcheck(back, (g, leaf, w, 2, 0, name), test_utils=[tests[0], tests[2]])


def test_autocast_is_close_and_its_lengths_are_float32(torch_caps: ModuleType) -> None:
    torch = need("torch", "torch")
    net = network(torch_caps, "3x3", dtype="float32")
    with torch.autocast("cpu", torch.bfloat16):
        out = net(X)
    assert out.lengths.dtype == torch.float32
    np.testing.assert_allclose(out.lengths.detach().numpy(), network(NUMPY, None).predict(X), atol=2e-2)
    out.lengths.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())
    learner = torch_caps.Learner(net, amp=True)
    losses = [learner.step(X, T, 1e-2)[0] for _ in range(8)]
    assert losses[-1] < losses[0]


def test_a_bfloat16_network_runs(torch_caps: ModuleType) -> None:
    torch = need("torch", "torch")
    net = network(torch_caps, "3x3", dtype="float32")
    net.predict(X)
    low = net.to(torch.bfloat16)
    out = low(X)
    assert out.lengths.dtype == torch.bfloat16
    np.testing.assert_allclose(out.lengths.detach().float().numpy(), network(NUMPY, None).predict(X), atol=5e-2)
    assert low.predict(X).dtype == np.float32


def test_gradients_reach_the_image(torch_caps: ModuleType) -> None:
    torch = need("torch", "torch")
    found = []
    for how in ("6x6", None):
        x = torch.from_numpy(X).requires_grad_()
        network(torch_caps, how)(x).lengths[:, 0].sum().backward()
        found.append(x.grad.numpy())
    close(found[0], found[1], FLOAT64 * np.abs(found[1]).max())


# ------------------------------------------------------------------------------------------------------------ ONNX


@pytest.mark.parametrize("name", TILES)
def test_an_export_runs_in_two_engines(onnx_export: ModuleType, tmp_path: Path, name: str) -> None:
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    net = network(NUMPY, None, dtype="float32")
    path = onnx_export.export(net, tmp_path / "m.onnx", fast_conv=name).path
    graph = onnx.load(path).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [node.name for node in graph.node if node.op_type == "Conv"] == ["stem.0/conv"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    truth = NUMPY.CapsNet(SPEC, net.params, dtype="float64")
    for n in (1, 8, 9):
        x, expected = X[:n].astype(np.float32), truth(X[:n].astype(np.float32))
        for engine in (session, ReferenceEvaluator(str(path))):
            lengths, capsules = engine.run(["lengths", "capsules"], {"images": x})
            close(lengths, expected.lengths, LENGTHS[name])
            close(capsules, expected.capsules, LENGTHS[name])


@pytest.mark.parametrize(("batch", "direct"), [(1, 3), (cook_toom.FEWEST - 1, 3), (cook_toom.FEWEST, 1), (None, 1)])
def test_an_export_for_few_images_convolves_directly(
    onnx_export: ModuleType, tmp_path: Path, batch: int | None, direct: int
) -> None:
    import onnx

    path = onnx_export.export(network(NUMPY, None), tmp_path / "m.onnx", fast_conv="3x3", batch=batch).path
    assert [node.op_type for node in onnx.load(path).graph.node].count("Conv") == direct


def test_an_export_is_the_same_twice_whatever_tiles_the_network_uses(onnx_export: ModuleType, tmp_path: Path) -> None:
    content = []
    for name in (None, "3x3", "6x6"):
        path = onnx_export.export(network(NUMPY, name), tmp_path / "m.onnx", fast_conv="3x3", verify=False).path
        content.append(path.read_bytes())
    assert content[0] == content[1] == content[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16", "fast_conv": "3x3"}, "fast_conv needs precision fp32: fp16 would round too much"),
        ({"precision": "int8", "fast_conv": "6x6"}, "fast_conv needs precision fp32: int8 would round too much"),
        ({"fast_conv": "9x9"}, "fast_conv must be None, '3x3' or '6x6', not '9x9'"),
    ],
)
def test_exports_that_are_not_offered(
    onnx_export: ModuleType, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(CapscoreError, match=message):
        onnx_export.export(network(NUMPY, None), tmp_path / "m.onnx", calibration=X, **options)
    assert not list(tmp_path.iterdir())
