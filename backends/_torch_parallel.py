"""Training in several processes, on one machine or many, by PyTorch's own engine (DistributedDataParallel).

`torchrun --nproc-per-node=2 -m capscore train …` starts them. Each holds the network and draws the same batches; each
computes on its share of a batch, and the gradients are those of the whole batch: the same training as by one process.
"""

from __future__ import annotations

import gc
import math
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capscore import model
from capscore.errors import TrainingError, short
from capscore.fast.conv import with_tiles


class Team:
    """The processes that train together: this one alone unless torchrun started more."""

    def __init__(self, device: str | None) -> None:
        by_torchrun = any(name in os.environ for name in ("WORLD_SIZE", "RANK"))
        self.size = _number("WORLD_SIZE", 1) if by_torchrun else 1
        self.rank = _number("RANK", 0, self.size - 1) if by_torchrun else 0
        self.device = device
        if self.size > 1:
            cuda = device is not None and device.startswith("cuda")
            if device == "cuda":
                self.device = f"cuda:{_number('LOCAL_RANK', 0)}"
                torch.cuda.set_device(self.device)  # else every process opens the first GPU too
            if not dist.is_initialized():
                _meet("nccl" if cuda else "gloo")

    def share(self, batch: int) -> tuple[slice, float]:
        """Return this process's images of a batch, and the factor that makes the mean of all losses that of the batch.

        A process that gets no image computes on the first, and that counts nothing.
        """
        self.mine = mine = len(range(self.rank, batch, self.size))
        return (slice(self.rank, None, self.size), mine * self.size / batch) if mine else (slice(1), 0.0)

    def mean(self, ops: Any, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return the mean over `axes` and the images of all processes, with kept dimensions and a gradient."""
        total = x.sum(axes, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))  # no count in bfloat16
        count = total.new_tensor([math.prod(x.shape[axis] for axis in axes)])
        here = torch.cat([total.reshape(-1), count]) * bool(self.mine)
        from torch.distributed.nn.functional import all_reduce  # half a second, for several processes alone

        whole: Tensor = all_reduce(here)  # type: ignore[no-untyped-call]
        return (whole[:-1] / whole[-1]).reshape(total.shape)

    def gather(self, loss: Tensor, scores: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the class scores [B, J] of the whole batch; `loss` has the factor of `share` already."""
        if self.size == 1:
            return loss, scores
        share, factor = self.share(batch)
        every = scores.new_zeros(batch, scores.shape[1])
        if factor:
            every[share] = scores
        whole = torch.cat([loss.reshape(1) / self.size, every.reshape(-1)])
        dist.all_reduce(whole)
        return whole[0], whole[1:].reshape(every.shape)


def _number(name: str, least: int, most: int = 65535) -> int:
    """Return a whole number of the environment that torchrun makes; TrainingError for any other environment."""
    given = os.environ.get(name)
    if given is None or not given.isdecimal() or not least <= int(given) <= most:
        what = "is not set" if given is None else f"is {short(given)}, not a whole number of {least} to {most}"
        raise TrainingError(
            f"the environment variable {name} {what}: torchrun sets all that several processes need; "
            "to train in one, unset WORLD_SIZE and RANK"
        )
    return int(given)


def _meet(how: str) -> None:
    port = _number("MASTER_PORT", 1)
    try:
        dist.init_process_group(how)
    except (ValueError, RuntimeError) as error:  # a variable that is not set, a machine that is not there
        where = f"{os.environ.get('MASTER_ADDR')}:{port}"
        raise TrainingError(
            f"the processes of this training cannot meet at MASTER_ADDR and MASTER_PORT, {where} "
            f"({str(error).splitlines()[0]:.120}): start them with torchrun"
        ) from None


class Objective(nn.Module):
    """The training loss as a module, as DistributedDataParallel wants it."""

    def __init__(self, net: Any, reconstruction: float, compile: bool, team: Team) -> None:
        super().__init__()
        self.batch_mean = team.mean if team.size > 1 else None
        self.share = team.rank, team.size
        self.net, self.reconstruction = net, reconstruction
        self.compute = torch.compile(model.objective) if compile else model.objective

    def forward(
        self, images: Tensor, targets: Tensor, parts: list[tuple[Tensor, Tensor]], step: int = 0, seed: int = 0
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss, the class scores [B, J], and the new running statistics by name."""
        net = self.net
        about = {"step": step, "seed": seed, "batch_mean": self.batch_mean, "share": self.share}
        run = net._run(training=True, statistics={}, **about)
        ops = with_tiles(net.ops, net.fast_conv)
        loss, scores = self.compute(ops, net.spec, net.params, images, targets, self.reconstruction, parts, run)
        return loss, scores, run.statistics or {}


class SharedGradients:
    """The objective of one process of several: its gradients are the mean over those of all."""

    def __init__(self, objective: nn.Module, partly: bool) -> None:
        self.objective, self.partly = objective, partly
        self.learning: list[bool] = []
        self.shared: nn.Module = objective

    def __call__(self, *args: Any) -> Any:
        """Return what the objective returns."""
        learning = [p.requires_grad for p in self.objective.parameters()]
        if learning != self.learning:  # PyTorch's engine waits for the gradients that it was told of when it was made
            self.learning, self.shared = learning, self.objective
            gc.collect()  # the former engine would take part as long as it is somewhere
            if any(learning):  # else there is nothing to share, and PyTorch refuses
                self.shared = nn.parallel.DistributedDataParallel(self.objective, find_unused_parameters=self.partly)
        return self.shared(*args)


def share_gradients(objective: nn.Module, team: Team, partly: bool) -> Any:
    """Return the objective whose gradients are the mean over the team's; `partly` if some parameters have no part."""
    return objective if team.size == 1 else SharedGradients(objective, partly)


def lost_process(error: RuntimeError) -> TrainingError:
    """Return what to tell when a process has lost the others."""
    return TrainingError(
        f"another process of this training has ended ({str(error).splitlines()[0]:.120}): start it again with --resume;"
        " it goes on from the last checkpoint, if there is one"
    )
