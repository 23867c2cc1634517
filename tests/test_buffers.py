"""Arrays that are used again, and what is kept of parameters: neither may ever be seen by a caller."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT64, NUMPY, SEEDS, backend, close, need
from hypothesis import given
from hypothesis import strategies as st

from capscore.fast import prepared as module
from capscore.fast import streaming
from capscore.fast.buffers import Buffers, Fresh
from capscore.fast.prepared import MOST, prepared
from capscore.routing import DynamicRouting

Slot = Enum("Slot", "NAME OTHER GROWS")
HOST = pytest.mark.parametrize("library", ["numpy", "torch"])


@pytest.fixture(scope="module")
def caps(eager_caps: ModuleType) -> ModuleType:
    """Each backend that has what is tested here."""
    return eager_caps


def address(x: Any) -> int:
    return int(x.data_ptr() if hasattr(x, "data_ptr") else x.__array_interface__["data"][0])


def elsewhere(function: Callable[[], Any]) -> Any:
    """Return what a function does in a thread of its own, where nothing is kept yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


# -------------------------------------------------------------------------------------------------------- buffers


@HOST
def test_a_name_is_the_same_memory_again(library: str) -> None:
    caps = backend(library)
    buffers, like = Buffers(caps), caps.asarray(np.zeros(3))
    first = buffers.take(Slot.NAME, (4, 6), like)
    assert tuple(first.shape) == (4, 6)
    assert first.dtype == like.dtype
    for shape in ((4, 6), (3, 8), (5,), (0, 2), ()):  # what fits
        again = Buffers(caps).take(Slot.NAME, shape, like)
        assert tuple(again.shape) == shape
        assert caps.contiguous(again)
        if 0 not in shape:
            assert address(again) == address(first)
    assert address(buffers.take(Slot.OTHER, (4, 6), like)) != address(first)


@HOST
def test_too_small_grows_and_stays_grown(library: str) -> None:
    caps = backend(library)
    buffers, like = Buffers(caps), caps.asarray(np.zeros(3))

    def sizes() -> list[int]:
        buffers.take(Slot.GROWS, (2, 3), like)
        large = buffers.take(Slot.GROWS, (50, 30), like)
        large[...] = 7.0
        small = buffers.take(Slot.GROWS, (2,), like)
        return [address(large), address(small), address(buffers.take(Slot.GROWS, (1500,), like)), large.shape[0]]

    large, small, again, rows = elsewhere(sizes)
    assert large == small == again
    assert rows == 50


@HOST
def test_dtypes_do_not_share(library: str) -> None:
    caps = backend(library)
    buffers = Buffers(caps)
    wide, narrow = (
        buffers.take(Slot.NAME, (8,), caps.asarray(np.zeros(1, dtype))) for dtype in (np.float64, np.float32)
    )
    wide[...] = 1.0
    narrow[...] = 2.0
    assert caps.to_numpy(wide).dtype == np.float64
    assert caps.to_numpy(narrow).dtype == np.float32
    assert (caps.to_numpy(wide) == 1).all()


def test_libraries_do_not_share(torch_caps: ModuleType) -> None:
    for _ in range(2):
        for caps in (NUMPY, torch_caps):
            like = caps.asarray(np.zeros(2))
            assert type(Buffers(caps).take(Slot.NAME, (2,), like)) is type(like)


def test_a_parameter_shares_with_tensors(torch_caps: ModuleType) -> None:
    torch = need("torch", "torch")
    like = torch.nn.Parameter(torch.zeros(3))
    first, second, third = (Buffers(torch_caps).take(Slot.NAME, (9,), x) for x in (like, like.detach(), like))
    assert first.data_ptr() == second.data_ptr() == third.data_ptr()
    assert not third.requires_grad


def test_memory_of_inference_is_written_in_training(torch_caps: ModuleType) -> None:
    torch = need("torch", "torch")

    def write() -> bool:
        like = torch.zeros(3)
        with torch.inference_mode():
            Buffers(torch_caps).take(Slot.NAME, (5,), like)[...] = 1
        with torch.enable_grad():
            x = Buffers(torch_caps).take(Slot.NAME, (5,), like)
            x.mul_(2)
            return bool(x.is_inference())

    assert elsewhere(write) is False


@HOST
def test_every_thread_has_its_own(library: str) -> None:
    caps = backend(library)
    like = caps.asarray(np.zeros(3))
    mine = Buffers(caps).take(Slot.NAME, (4,), like)
    theirs = elsewhere(lambda: Buffers(caps).take(Slot.NAME, (4,), like))
    assert address(mine) != address(theirs)
    assert address(mine) == address(Buffers(caps).take(Slot.NAME, (4,), like))


def test_arrays_of_a_gpu_are_fresh() -> None:
    caps = backend("cupy")
    like = caps.asarray(np.zeros(3))
    first, second = (Buffers(caps).take(Slot.NAME, (4,), like) for _ in range(2))
    first[...] = 1.0
    second[...] = 2.0
    assert (caps.to_numpy(first) == 1).all()


@given(seed=SEEDS, axes=st.permutations(range(4)))
def test_transpose_is_a_view_if_it_can_be(caps: ModuleType, seed: int, axes: list[int]) -> None:
    shape = tuple(np.random.default_rng(seed).integers(1, 4, 4))
    x = caps.asarray(np.random.default_rng(seed).standard_normal(shape))
    kept = caps.to_numpy(x).copy()
    y = Buffers(caps).transpose(Slot.NAME, x, tuple(axes))
    assert caps.contiguous(y)
    np.testing.assert_array_equal(caps.to_numpy(y), kept.transpose(axes))
    plain = caps.contiguous(caps.transpose(x, tuple(axes)))
    y[...] = 0.0
    assert (not caps.to_numpy(x).any()) == plain  # a view of x, or else not of x at all
    back = Buffers(caps).transpose(Slot.NAME, caps.transpose(caps.asarray(kept), tuple(axes)), tuple(np.argsort(axes)))
    np.testing.assert_array_equal(caps.to_numpy(back), kept)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 2, 3), (3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((2, 3), (6, 5, 3, 4)),
        ((2, 3), (0, 3, 4)),
    ],
)
def test_products_are_numpy_s(caps: ModuleType, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(a), rng.standard_normal(b)
    found = caps.to_numpy(Buffers(caps).matmul(Slot.NAME, caps.asarray(x), caps.asarray(y)))
    close(found, x @ y, FLOAT64)
    close(caps.to_numpy(Fresh(caps).matmul(Slot.NAME, caps.asarray(x), caps.asarray(y))), x @ y, FLOAT64)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (2, 3)), ((4, 2, 1, 3), (2, 5, 3)), ((2, 5, 3), (4, 2, 1, 3)), ((3,), (2, 3)), ((2, 3), (1,))]
)
def test_entry_by_entry_products_are_numpy_s(caps: ModuleType, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(a), rng.standard_normal(b)
    close(caps.to_numpy(Buffers(caps).multiply(Slot.NAME, caps.asarray(x), caps.asarray(y))), x * y, FLOAT64)


@pytest.mark.parametrize("limits", [(2 << 20, 32 << 20), (300, 32 << 20), (300, 0)])
def test_routing_returns_nothing_that_is_used_again(
    caps: ModuleType, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", limits[0])
    monkeypatch.setattr(streaming, "KEPT_BYTES", limits[1])
    rng = np.random.default_rng(0)
    kernel, routing = streaming.Streaming(caps), DynamicRouting(3)
    results, copies = [], []
    for votes_bytes in (0, 0, 1 << 20):
        monkeypatch.setattr(streaming, "VOTES_BYTES", votes_bytes)
        shapes = (3, 6, 4), (6, 2, 5, 4), (2, 5), (3, 2, 5)
        u, weight, bias, g = (caps.asarray(rng.standard_normal(shape)) for shape in shapes)
        v, kept = kernel.forward(routing, u, weight, bias)
        arrays = v, *kept, *kernel.backward(routing, g, kept, u, weight, bias), kernel(routing, u, weight, bias)
        results.extend(arrays)
        copies.extend(caps.to_numpy(x).copy() for x in arrays)
    for array, wanted in zip(results, copies, strict=True):
        np.testing.assert_array_equal(caps.to_numpy(array), wanted)


# ------------------------------------------------------------------------------------------------------- prepared


def doubled(caps: ModuleType, weight: Any, name: str = "doubled") -> tuple[Any, int]:
    """Return twice the weight, as kept, and how often it was made for that."""
    calls = []

    def make(_: Any) -> Any:
        calls.append(1)
        return weight * 2.0

    return prepared(name, weight, make), len(calls)


@HOST
def test_what_is_prepared_is_made_again_when_the_weight_changes(library: str) -> None:
    caps = backend(library)

    def run() -> None:
        weight = caps.asarray(np.arange(6.0))
        for value, calls in ((0.0, 1), (0.0, 0), (5.0, 1), (5.0, 0), (0.0, 1)):
            if calls:
                weight[3] = value
            found, made = doubled(caps, weight)
            assert made == calls
            np.testing.assert_array_equal(caps.to_numpy(found), caps.to_numpy(weight) * 2)
        assert doubled(caps, weight, "another name")[1] == 1
        assert doubled(caps, weight)[1] == 0
        other = caps.asarray(np.arange(6.0) + 1)
        found, made = doubled(caps, other)
        assert made == 1
        np.testing.assert_array_equal(caps.to_numpy(found), caps.to_numpy(other) * 2)
        np.testing.assert_array_equal(caps.to_numpy(doubled(caps, weight)[0]), caps.to_numpy(weight) * 2)

    elsewhere(run)


@pytest.mark.parametrize("through", ["data", "numpy", "detach", "inference mode"])
def test_every_way_of_writing_into_one_element_is_noticed(through: str) -> None:
    torch = pytest.importorskip("torch")
    caps = backend("torch")

    def run() -> None:
        weight = torch.nn.Parameter(torch.zeros(7, 997))
        doubled(caps, weight)
        for place in (1, 500, 3491, 6978):
            with torch.inference_mode(through == "inference mode"), torch.no_grad():
                flat = weight.view(-1)
                into = {"data": flat.data, "numpy": weight.detach().numpy().reshape(-1), "detach": flat.detach()}
                into.get(through, flat)[place] += 1.0
            found, made = doubled(caps, weight)
            assert made == 1
            assert found.reshape(-1)[place] == 2

    elsewhere(run)


@HOST
def test_parameters_of_one_shape_in_turns_keep_their_own_until_they_are_gone(library: str) -> None:
    caps = backend(library)

    def run() -> None:
        weights = [caps.asarray(np.full(4, value)) for value in (1.0, 2.0)]
        assert [doubled(caps, weight)[1] for weight in weights * 2] == [1, 1, 0, 0]
        assert [caps.to_numpy(doubled(caps, weight)[0])[0] for weight in weights] == [2, 4]
        assert len(module._of_thread.kept) == 2
        weights.pop()
        doubled(caps, weights[0])
        assert len(module._of_thread.kept) == 1

    elsewhere(run)


@HOST
def test_what_was_made_before_is_given_to_be_written_over(library: str) -> None:
    caps = backend(library)

    def run() -> None:
        weight, given_ = caps.asarray(np.arange(6.0)), []

        def make(before: Any) -> Any:
            given_.append(before)
            return weight * 2.0

        first = prepared("name", weight, make)
        weight[0] = 9.0
        prepared("name", weight, make)
        assert given_[0] is None
        assert given_[1] is first
        assert doubled(caps, caps.asarray(np.arange(7.0)), "name")[1] == 1  # of another shape: nothing to write over

    elsewhere(run)


@HOST
def test_an_error_on_the_way_leaves_nothing_half_made(library: str) -> None:
    caps = backend(library)

    def run() -> None:
        weight = caps.asarray(np.arange(6.0))
        doubled(caps, weight)
        weight[1] = 4.0

        def fail(_: Any) -> Any:
            raise MemoryError

        with pytest.raises(MemoryError):
            prepared("doubled", weight, fail)
        assert doubled(caps, weight)[1] == 1

    elsewhere(run)


@HOST
def test_the_one_unused_for_the_longest_goes_first(library: str) -> None:
    caps = backend(library)

    def run() -> None:
        weights = [caps.asarray(np.zeros(n)) for n in range(1, MOST + 2)]
        for weight in weights[:MOST]:
            doubled(caps, weight)
        assert doubled(caps, weights[0])[1] == 0  # used again, so that the second is now the oldest
        assert doubled(caps, weights[MOST])[1] == 1
        assert len(module._of_thread.kept) == MOST
        assert [doubled(caps, weight)[1] for weight in weights[2:]] == [0] * (MOST - 1)
        assert doubled(caps, weights[0])[1] == 0
        assert doubled(caps, weights[1])[1] == 1

    elsewhere(run)


@HOST
def test_every_thread_prepares_its_own(library: str) -> None:
    caps = backend(library)
    weight = caps.asarray(np.zeros(4))
    mine = doubled(caps, weight, "threads")[0]
    theirs, calls = elsewhere(lambda: doubled(caps, weight, "threads"))
    assert calls == 1
    assert theirs is not mine


@HOST
def test_nan_is_prepared_every_time_rather_than_wrongly(library: str) -> None:
    caps = backend(library)

    def run() -> None:
        weight = caps.asarray(np.array([1.0, np.nan]))
        for _ in range(2):
            np.testing.assert_array_equal(caps.to_numpy(doubled(caps, weight)[0]), [2, np.nan])
        weight[1] = 3.0
        np.testing.assert_array_equal(caps.to_numpy(doubled(caps, weight)[0]), [2, 6])

    elsewhere(run)


def test_a_gpu_prepares_every_time_and_is_not_waited_for() -> None:
    caps = backend("cupy")
    weight = caps.asarray(np.arange(6.0))
    assert [doubled(caps, weight)[1] for _ in range(3)] == [1, 1, 1]


def test_networks_with_nan_weights_give_nan(caps: ModuleType) -> None:
    from test_cook_toom import X, network

    net = network(caps, "3x3")
    clean = net.predict(X)
    weight = net.params["primary.weight"]
    weight = weight.detach() if hasattr(weight, "detach") else weight
    kept = caps.to_numpy(weight).copy()
    weight[2, 3, 1, 1] = np.nan
    for _ in range(2):
        with np.errstate(invalid="ignore"):
            assert np.isnan(net.predict(X)).all()
    weight[2, 3, 1, 1] = kept[2, 3, 1, 1]
    np.testing.assert_array_equal(net.predict(X), clean)


def test_weights_made_in_inference_are_not_trusted(torch_caps: ModuleType) -> None:
    """PyTorch does not count what is written into them."""
    torch = need("torch", "torch")

    def run() -> None:
        with torch.inference_mode():
            weight = torch.zeros(4096)
            doubled(torch_caps, weight)
            weight[1] = 5
            assert doubled(torch_caps, weight)[0][1] == 10

    elsewhere(run)
