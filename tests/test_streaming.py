"""Streaming routing against the generic one: forward and gradient, whatever the sizes and the blocks."""

from __future__ import annotations

import json
import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import DTYPES, FLOAT32, FLOAT64, GRADIENT, NUMPY, SEEDS, TOLERANCE, close
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from capscore.fast import streaming
from capscore.grad import Tape
from capscore.layer import INFERENCE
from capscore.routing import DynamicRouting, LinearVotes, Routing, SelfAttention, VotesShape
from capscore.squash import SQUASHES, squash
from capscore.values import write

torch = pytest.importorskip("torch")

SIZES = st.tuples(*(st.integers(1, most) for most in (4, 9, 4, 5, 4)))  # B, N, J, D, K
SQUASH = st.sampled_from(sorted(SQUASHES))
ROUTINGS = st.one_of(
    st.builds(DynamicRouting, iterations=st.integers(1, 5), leaky=st.booleans(), squash=SQUASH),
    st.builds(SelfAttention, SQUASH),
)
# Blocks of one input capsule, of some, of all; u and weight rearranged once or for every pass; images by one, two, all.
BLOCKS = st.tuples(st.sampled_from([1, 300, 2 << 20]), st.sampled_from([0, 32 << 20]), st.sampled_from([1, 2, 128]))


@pytest.fixture(scope="module")
def caps(eager_caps: ModuleType) -> ModuleType:
    """Each backend that has what is tested here."""
    return eager_caps


def layer(sizes: tuple[int, ...], seed: int, bias: bool, scale: float = 1.0) -> tuple[NDArray[Any], ...]:
    b, n, j, d, k = sizes
    rng = np.random.default_rng(seed)
    shapes = [(b, n, k), (n, j, d, k), *([(j, d)] if bias else []), (b, j, d)]
    u, weight, *rest = (rng.standard_normal(shape) * scale for shape in shapes)
    return u, weight, *([] if bias else [None]), *rest  # type: ignore[return-value]


def learned(routing: Routing, weight: Any, seed: int = 3) -> list[Any]:
    """What the routing learns: the prior of self-attention, for one."""
    n, j, d, k = weight.shape
    params = routing.params(VotesShape(n, j, d, k))
    return [np.random.default_rng(seed).normal(size=param.shape) for param in params.values()]


def generic(routing: Routing, u: Any, weight: Any, bias: Any, g: Any) -> list[Any]:
    """Outputs and gradients of the routing as it is written over the ops, by torch's engine in float64."""
    from capscore.backends import torch as caps

    leaves = [
        None if x is None else torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for x in (u, weight, bias, *learned(routing, weight))
    ]
    n, j, d, k = weight.shape
    votes = LinearVotes(caps, leaves[0], leaves[1], leaves[2], (n, j, d, k))
    own = dict(zip(routing.params(VotesShape(n, j, d, k)), leaves[3:], strict=True))
    v = routing(caps, votes, own, INFERENCE).pose
    v.backward(torch.tensor(g, dtype=torch.float64))
    gradients = [None if x is None else x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves]
    return [None if x is None else x.detach().numpy() for x in (v, *gradients)]


def streamed(caps: ModuleType, routing: Routing, u: Any, weight: Any, bias: Any, g: Any) -> list[Any]:
    own = learned(routing, weight)
    arrays = [None if x is None else caps.asarray(x) for x in (u, weight, bias, *own)]
    kernel = streaming.Streaming(caps)
    v, kept = kernel.forward(routing, *arrays)
    gradients = kernel.backward(routing, caps.asarray(g), kept, *arrays)
    return [None if x is None else caps.to_numpy(x) for x in (v, *gradients)]


@given(sizes=SIZES, routing=ROUTINGS, bias=st.booleans(), blocks=BLOCKS, seed=SEEDS)
def test_forward_and_gradients_are_those_of_the_generic_routing(
    caps: ModuleType, sizes: Any, routing: Routing, bias: bool, blocks: tuple[int, int, int], seed: int
) -> None:
    arrays = layer(sizes, seed, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BLOCK_BYTES", blocks[0])
        patch.setattr(streaming, "KEPT_BYTES", blocks[1])
        patch.setattr(streaming, "IMAGES", blocks[2])
        found = streamed(caps, routing, *arrays)
    for actual, desired in zip(found, generic(routing, *arrays), strict=True):
        assert (actual is None) == (desired is None)
        if desired is not None:
            close(actual, desired, FLOAT64 * max(1, np.abs(desired).max()))


@given(sizes=SIZES, routing=ROUTINGS, seed=SEEDS, dtype=DTYPES, votes_bytes=st.sampled_from([0, 1 << 20]))
def test_inference_with_and_without_votes_in_memory(
    caps: ModuleType, sizes: Any, routing: Routing, seed: int, dtype: str, votes_bytes: int
) -> None:
    u, weight, bias, g = layer(sizes, seed, bias=True, scale=0.5)
    expected = generic(routing, *(x.astype(dtype) for x in (u, weight, bias)), g)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "VOTES_BYTES", votes_bytes)
        for _ in range(2):  # the second time, from weights that were rearranged the first time
            arrays = [caps.asarray(x.astype(dtype)) for x in (u, weight, bias, *learned(routing, weight))]
            v = caps.FUSED[type(routing)](routing, *arrays)
            close(caps.to_numpy(v), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_the_paper_s_layer_in_float32(name: str) -> None:
    import importlib

    caps = importlib.import_module(f"capscore.backends.{name}")
    rng = np.random.default_rng(0)
    u = squash(NUMPY, rng.standard_normal((5, 1152, 8))).astype(np.float32)
    weight, g = rng.normal(0, 0.1, (1152, 10, 16, 8)).astype(np.float32), rng.standard_normal((5, 10, 16))
    bias = np.full((10, 16), 0.1, np.float32)
    found = streamed(caps, DynamicRouting(3), u, weight, bias, g.astype(np.float32))
    expected = generic(DynamicRouting(3), u, weight, bias, g.astype(np.float32))
    close(found[0], expected[0], FLOAT32)
    for actual, desired in zip(found[1:], expected[1:], strict=True):
        close(actual, desired, GRADIENT * np.abs(desired).max())


@given(seed=SEEDS)
@settings(max_examples=20)
def test_squash_gradient_is_that_of_the_tape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((3, 2, 4)) * 10.0 ** rng.integers(-3, 4, (3, 2, 1))
    s[0, 0] = 0
    g = rng.standard_normal(s.shape)
    tape = Tape(NUMPY)
    x = tape.variable(s)
    v = squash(tape, x)  # type: ignore[type-var]
    loss = tape.sum(v * tape.asarray(g), (0, 1, 2))
    expected = tape.gradients(loss, {"s": x})["s"]
    close(streaming.squash_gradient(NUMPY, s, g), expected, FLOAT64)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_extreme_inputs_stay_finite(caps: ModuleType, scale: float) -> None:
    arrays = [x.astype(np.float32) for x in layer((3, 6, 3, 4, 2), 0, bias=True)]
    arrays[2] *= 0
    arrays[0] *= np.float32(scale)
    for x in streamed(caps, DynamicRouting(3), *arrays):
        assert np.isfinite(x).all()


def test_nan_stays_in_its_image(caps: ModuleType) -> None:
    u, weight, bias, g = layer((4, 6, 3, 4, 2), 0, bias=True)
    clean = streamed(caps, DynamicRouting(3), u, weight, bias, g)
    spoilt = u.copy()
    spoilt[2, 3] = np.nan
    with np.errstate(invalid="ignore"):
        found = streamed(caps, DynamicRouting(3), spoilt, weight, bias, g)
    others = [0, 1, 3]
    close(found[0][others], clean[0][others], FLOAT64)
    close(found[1][others], clean[1][others], FLOAT64)
    assert np.isnan(found[0][2]).all()


def test_memory_does_not_grow_with_the_number_of_votes() -> None:
    """From 1,000 to 16,000 input capsules, what forward and backward take beyond their arguments and results."""

    def peak(n: int) -> int:
        u, weight, _, g = layer((4, n, 4, 8, 4), 0, bias=False)
        kernel = streaming.Streaming(NUMPY)
        for _ in range(2):
            tracemalloc.start()
            _, kept = kernel.forward(DynamicRouting(3), u, weight, None)
            results = kernel.backward(DynamicRouting(3), g, kept, u, weight, None)
            most = tracemalloc.get_traced_memory()[1] - sum(x.nbytes for x in results[:2] if x is not None)
            tracemalloc.stop()
        return most

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BLOCK_BYTES", 1 << 16)
        patch.setattr(streaming, "KEPT_BYTES", 0)
        small, large = peak(1_000), peak(16_000)
    assert large < small + 200_000, (small, large)  # the votes of 16,000 would take 16 MB


def test_inference_follows_weights_that_change(caps: ModuleType) -> None:
    u, weight, bias, _ = (caps.asarray(x) for x in layer((40, 60, 3, 8, 4), 0, bias=True))
    route = caps.FUSED[DynamicRouting]
    before = caps.to_numpy(route(DynamicRouting(3), u, weight, bias))
    weight[3, 1] = weight[3, 1] * 2.0
    after = caps.to_numpy(route(DynamicRouting(3), u, weight, bias))
    assert np.abs(after - before).max() > 1e-6
    fresh = caps.to_numpy(route(DynamicRouting(3), u, weight * 1.0, bias))
    close(after, fresh, FLOAT64)


def test_the_operators_of_torch_keep_their_word() -> None:
    """Shapes, strides and gradients are those that the compiler is told of."""
    from capscore.backends import torch as caps  # noqa: F401 - registers them

    u, weight, bias, g = (torch.tensor(x) for x in layer((4, 6, 3, 4, 2), 0, bias=True))
    u = u.transpose(1, 2).contiguous().transpose(1, 2)  # as the primary capsules come
    routing, back = torch.ops.capscore.routing, torch.ops.capscore.routing_backward
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    how = json.dumps(write(DynamicRouting(3, leaky=True)))
    for leaves in ((u, weight, bias), (u, weight, None)):
        given = [None if x is None else x.clone().requires_grad_() for x in leaves]
        torch.library.opcheck(routing, (*given, [], how, True, "float32"), test_utils=tests)
        torch.library.opcheck(routing, (*leaves, [], how, False, "float32"), test_utils=tests)
        kept = routing(*leaves, [], how, True, "float32")[1]
        torch.library.opcheck(back, (g, kept, *leaves, [], how, "float32"), test_utils=[tests[0], tests[2]])
