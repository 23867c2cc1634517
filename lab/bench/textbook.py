"""The network of the paper in PyTorch the way public code writes it: what capscore is compared with.

Votes by `W[None] @ u[:, None, :, :, None]`, routing by broadcast products and sums, gradients through all of it.
Imports nothing of capscore, and leaves PyTorch and its allocator as they are.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def squash(s: Tensor) -> Tensor:
    n2 = (s**2).sum(-1, keepdim=True)
    return n2 / (1 + n2) * s / (n2.sqrt() + 1e-8)


class Routing(nn.Module):
    """u [B, N, K] → v [B, J, D]."""

    def __init__(self, n: int = 1152, k: int = 8, j: int = 10, d: int = 16, iterations: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(j, n, d, k))
        self.iterations = iterations

    def forward(self, u: Tensor) -> Tensor:
        u_hat = (self.weight[None] @ u[:, None, :, :, None]).squeeze(-1)  # [B, J, N, D]
        b = torch.zeros(*u_hat.shape[:3], 1, dtype=u.dtype, device=u.device)
        for i in range(self.iterations):
            c = F.softmax(b, dim=1)
            v = squash((c * u_hat).sum(2, keepdim=True))
            if i + 1 < self.iterations:
                b = b + (u_hat * v).sum(-1, keepdim=True)
        return v.squeeze(2)


class CapsNet(nn.Module):
    """Images [B, 1, 28, 28] → lengths [B, 10], capsules [B, 10, 16]; by default the paper's sizes."""

    def __init__(
        self,
        channels: int = 256,
        types: int = 32,
        kernel: int = 9,
        stride: int = 1,
        hidden: tuple[int, ...] = (512, 1024),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel, stride)
        self.primary = nn.Conv2d(channels, types * 8, kernel, stride=2)
        side = ((28 - kernel) // stride + 1 - kernel) // 2 + 1
        self.routing = Routing(types * side**2)
        sizes = [160, *hidden, 784]
        layers: list[nn.Module] = []
        for i, o in pairwise(sizes):
            layers += [nn.Linear(i, o), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = self.primary(F.relu(self.conv(x)))
        u = u.view(x.shape[0], -1, 8, u.shape[2] * u.shape[3]).transpose(2, 3).reshape(x.shape[0], -1, 8)
        v = self.routing(squash(u))
        return v.norm(dim=-1), v

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        lengths, v = self(x)
        t = F.one_hot(labels, 10).float()
        margin = t * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - t) * F.relu(lengths - 0.1) ** 2
        drawn = self.decoder((v * t[:, :, None]).flatten(1))
        loss: Tensor = margin.sum(1).mean() + 0.0005 * ((drawn - x.flatten(1)) ** 2).sum(1).mean()
        return loss
