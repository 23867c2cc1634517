"""Adversarial images: the fast gradient sign method, and projected gradient descent in the same box of ±ε."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capscore.data import Dataset
from lab.experiments.trials import Values, outputs

STRENGTHS = (0.05, 0.1, 0.2)  # ε, of intensities from 0 to 1
STEPS = 20


def attacked(
    net: Any, images: NDArray[Any], labels: NDArray[Any], strength: float, steps: int, seed: int = 0
) -> NDArray[Any]:
    """Return images [N, C, H, W] moved by up to `strength` in every pixel towards any other class than labels [N].

    One step goes all the way along the sign of the gradient (Goodfellow et al. 2015); more start at random and go
    2.5·ε/steps each, back into the box after each of them (Madry et al. 2018). What is raised is the longest wrong
    length minus the right one, or the same of the CNN's scores: unlike the losses, which are flat for an image that
    is right by a margin, it has a gradient everywhere, so that no network is safe for want of one.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(net.parameters()).device
    out = []
    for start in range(0, len(images), 100):
        clean = torch.tensor(images[start : start + 100], device=device)
        truth = torch.nn.functional.one_hot(torch.tensor(labels[start : start + 100], device=device), net.spec.classes)
        x = clean
        if steps > 1:
            x = (clean + strength * (2 * torch.rand(clean.shape, generator=generator) - 1).to(device)).clamp(0, 1)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            scores = net(x).scores
            wrong = torch.where(truth == 1, -torch.inf, scores).amax(1)
            (gradient,) = torch.autograd.grad((wrong - (scores * truth).sum(1)).sum(), x)
            x = x + gradient.sign() * (strength if steps == 1 else 2.5 * strength / steps)
            x = torch.minimum(torch.maximum(x, clean - strength), clean + strength).clamp(0, 1)
        out.append(x.detach().cpu().numpy())
    return np.concatenate(out)


def measure(net: Any, digits: Dataset) -> Values:
    """Return the error in percent, of the images as they are and at every strength of both attacks."""
    images, labels = digits.batch(slice(None))

    def error(shown: NDArray[Any]) -> float:
        return 100 * float((outputs(net, shown)[0].argmax(1) != labels).mean())

    values = {"clean": error(images)}
    for name, steps in (("FGSM", 1), ("PGD", STEPS)):
        for strength in STRENGTHS:
            values[f"{name} {strength:g}"] = error(attacked(net, images, labels, strength, steps))
    return values
