"""PyTorch checkpoints. They are pickles, which can run any code when they are read: only tensors and plain values are.

Reading them needs PyTorch, whose restricted reader (`weights_only`) names every class that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from capscore.data.memory import Budget
from capscore.errors import BackendError, ModelFileError, short

# Where training scripts put the tensors of a network beside an epoch, an optimiser's state and so on.
USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")

CURE = "load it where its code is, and save model.state_dict() alone: torch.save(model.state_dict(), 'weights.pt')"


def read(path: Path, memory: Budget) -> dict[str, NDArray[Any]]:
    """Return the tensors of a network's state by name, as arrays; of bfloat16 as float32."""
    try:
        import torch
    except ImportError:
        raise BackendError("PyTorch files need PyTorch: pip install 'capscore[torch]'") from None
    memory.check(path.stat().st_size, "the file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises nearly anything on a damaged file
        if stranger := re.search(r"(?:GLOBAL|[Cc]lass|function) `?([\w.]+)`?", str(error)):
            raise ModelFileError(
                f"it holds {stranger[1]:.60}, no tensor, and reading it could run code: {CURE}"
            ) from None
        raise ModelFileError(f"it is damaged, or not PyTorch's ({error!s:.100}); take another copy of it") from None
    return {str(name): _array(name, tensor, memory) for name, tensor in _tensors(state).items()}


def _tensors(state: Any) -> dict[str, Any]:
    """Return the tensors of the one network in a checkpoint."""
    if not isinstance(state, Mapping):
        raise ModelFileError(f"it holds {short(type(state).__name__)}, no tensors by name: {CURE}")
    if all(_is_tensor(value) for value in state.values()):
        return dict(state)
    inner = {name: value for name, value in state.items() if isinstance(value, Mapping) and _all_tensors(value)}
    name = next((name for name in USUAL if name in inner), next(iter(inner), None) if len(inner) == 1 else None)
    if name is None:
        raise ModelFileError(f"it holds {', '.join(map(short, [*state][:8]))}, and no network by itself: {CURE}")
    return dict(inner[name])


def _all_tensors(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(map(_is_tensor, value.values()))


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _array(name: Any, tensor: Any, memory: Budget) -> NDArray[Any]:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ModelFileError(f"{short(name)} is {tensor.layout} on {tensor.device.type}, not plain numbers: {CURE}")
    memory.take(tensor.numel() * max(4, tensor.element_size()), f"{short(name)} of shape {tuple(tensor.shape)}")
    plain = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    array: NDArray[Any] = plain.numpy().copy()
    return array
