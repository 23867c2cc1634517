"""Images of several requests, run together: what stands between a server's clients and one session."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capscore.errors import ShapeError

Arrays = dict[str, NDArray[Any]]


class _Request(NamedTuple):
    images: NDArray[Any]
    answer: asyncio.Future[Arrays]
    until: float  # by the loop's clock: when it has waited long enough


class Gather:
    """Requests for one session, answered as many at a time as fit into a batch.

    While the session works, what comes waits: batches grow with the load, and a single request is not kept waiting
    for others unless `wait` says so. A request whose client has gone is left out, and changes nothing for the others.

    Parameters
    ----------
    run : images [B, …] → arrays [B, …] by name; called in a thread of its own, for one batch at a time
    most : images in a batch
    wait : seconds that a request waits for others while the session has nothing to do
    fixed : how many images `run` takes, if it takes no other number; what lacks is zeros
    """

    def __init__(
        self, run: Callable[[NDArray[Any]], Arrays], most: int, wait: float = 0.0, fixed: int | None = None
    ) -> None:
        self._run, self._most, self._wait, self._fixed = run, most, wait, fixed
        self._requests: deque[_Request] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "session")
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, images: NDArray[Any]) -> Arrays:
        """Return what `run` says of images [n, …]; ShapeError if they are more than a batch holds."""
        if len(images) > self._most:
            raise ShapeError(f"a request may bring {self._most} images, not {len(images)}: send them in several")
        loop = asyncio.get_running_loop()
        request = _Request(images, loop.create_future(), loop.time() + self._wait)
        self._requests.append(request)
        self._came.set()
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._answer_all())
        return await request.answer

    async def _answer_all(self) -> None:
        while self._requests:
            await self._others(self._requests[0].until)
            if batch := self._next():
                await self._answer(batch)

    async def _others(self, until: float) -> None:
        """Wait until a batch is full, or the first request has waited long enough."""
        try:
            async with asyncio.timeout_at(until):
                while sum(len(request.images) for request in self._requests) < self._most:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            pass

    def _next(self) -> list[_Request]:
        batch: list[_Request] = []
        count = 0
        while self._requests and count + len(self._requests[0].images) <= self._most:
            request = self._requests.popleft()
            if not request.answer.done():  # its client is still there
                batch.append(request)
                count += len(request.images)
        return batch

    async def _answer(self, batch: Sequence[_Request]) -> None:
        images = [request.images for request in batch]
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._together, images)
        except Exception as error:  # whatever it is, all of them are told
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        start = 0
        for request in batch:
            part = slice(start, start := start + len(request.images))
            if not request.answer.done():
                request.answer.set_result({name: array[part] for name, array in found.items()})

    def _together(self, images: list[NDArray[Any]]) -> Arrays:
        """Run several requests' images as one batch."""
        if self._fixed is not None:
            lacking = self._fixed - sum(map(len, images))
            images = [*images, np.zeros((lacking, *images[0].shape[1:]), images[0].dtype)]
        return self._run(np.concatenate(images))
