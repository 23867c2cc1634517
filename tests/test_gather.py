"""Requests that share a batch: each gets its own answer, and one that is wrong, or gone, harms no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import need

from capscore.errors import ShapeError

Images = np.ndarray


@pytest.fixture(scope="module")
def gather() -> ModuleType:
    return need("capscore.export.gather", "onnx")


class Model:
    """Doubles images and notes the batches; works only when let."""

    def __init__(self) -> None:
        self.batches: list[Images] = []
        self.may = threading.Event()
        self.may.set()

    def __call__(self, images: Images) -> dict[str, Images]:
        assert self.may.wait(10)
        self.batches.append(images)
        if np.isnan(images).any():
            raise RuntimeError("broken")
        return {"twice": images * 2, "count": np.full(len(images), len(images))}

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await work()

    return asyncio.run(limited())


def images(count: int, value: float) -> Images:
    return np.full((count, 2), value)


def test_what_comes_while_the_session_works_is_the_next_batch(gather: ModuleType) -> None:
    model = Model()

    async def work() -> list[Any]:
        together = gather.Gather(model, most=5)
        model.may.clear()
        first = asyncio.create_task(together(images(1, 0.5)))
        await asyncio.sleep(0.05)  # it is with the session
        others = [asyncio.create_task(together(images(n, n))) for n in (2, 1, 3)]
        await asyncio.sleep(0.05)
        model.may.set()
        return await asyncio.gather(first, *others)

    found = run(work)
    assert model.sizes == [1, 3, 3]  # 2 + 1, and 3 more would be 6
    for answer, (count, value) in zip(found, ((1, 0.5), (2, 2), (1, 1), (3, 3)), strict=True):
        np.testing.assert_array_equal(answer["twice"], images(count, 2 * value))
    assert [answer["count"].tolist() for answer in found] == [[1], [3, 3], [3], [3, 3, 3]]


def test_an_idle_session_waits_for_others_as_long_as_it_is_told(gather: ModuleType) -> None:
    model = Model()

    async def work() -> float:
        together = gather.Gather(model, most=2, wait=0.3)
        begun = asyncio.get_running_loop().time()
        one = asyncio.create_task(together(images(1, 1)))
        await asyncio.sleep(0.05)
        await asyncio.gather(one, together(images(1, 2)))  # full: nothing to wait for
        full = asyncio.get_running_loop().time() - begun
        await together(images(1, 3))
        assert asyncio.get_running_loop().time() - begun - full >= 0.29
        return full

    assert run(work) < 0.29
    assert model.sizes == [2, 1]


def test_a_fixed_batch_is_filled_up(gather: ModuleType) -> None:
    model = Model()

    async def work() -> Any:
        return await gather.Gather(model, most=4, fixed=4)(images(3, 1))

    np.testing.assert_array_equal(run(work)["twice"], images(3, 2))
    np.testing.assert_array_equal(model.batches[0], [*images(3, 1), [0, 0]])


def test_who_has_gone_is_left_out_and_nobody_else_hears_of_it(gather: ModuleType) -> None:
    model = Model()

    async def work() -> Any:
        together = gather.Gather(model, most=8)
        model.may.clear()
        running, with_it = (asyncio.create_task(together(images(1, value))) for value in (1, 2))
        await asyncio.sleep(0.05)
        waiting, stays = (asyncio.create_task(together(images(1, value))) for value in (3, 4))
        await asyncio.sleep(0.05)
        running.cancel()
        waiting.cancel()
        await asyncio.sleep(0.05)
        model.may.set()
        return await with_it, await stays

    found = run(work)
    assert [answer["twice"].tolist() for answer in found] == [[[4, 4]], [[8, 8]]]
    assert sum(model.sizes) == 3  # the one that waited was never run


def test_an_error_is_told_to_its_batch_and_work_goes_on(gather: ModuleType) -> None:
    model = Model()

    async def work() -> Any:
        together = gather.Gather(model, most=3)
        with pytest.raises(ShapeError, match="a request may bring 3 images, not 4: send them in several"):
            await together(images(4, 1))
        failed = await asyncio.gather(together(images(1, np.nan)), together(images(1, 1)), return_exceptions=True)
        assert [str(error) for error in failed] == ["broken", "broken"]
        return await together(images(2, 1))

    np.testing.assert_array_equal(run(work)["twice"], images(2, 2))
