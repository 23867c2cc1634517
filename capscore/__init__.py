"""Capsule networks on NumPy, CuPy, PyTorch and JAX from one spec, trained anywhere and exported to ONNX.

import capscore as caps                        # the backend named by CAPSCORE_BACKEND, NumPy if unset
from capscore.backends import torch as caps    # or say it; two backends can live in one process
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import BackendError, CapscoreError
from .layer import Capsules, Grid, Layer, Map, Vector
from .layers import (
    Activation,
    AsCaps,
    AsMap,
    AveragePool,
    BatchNorm,
    BranchScores,
    CapsNorm,
    ChainDecoder,
    Concat,
    Concurrent,
    Conv,
    ConvCaps,
    ConvCaps3D,
    ConvDecoder,
    ConvTranspose,
    Coordinates,
    Decoder,
    DenseCaps,
    Dropout,
    FlatCaps,
    GlobalPool,
    GroupNorm,
    HomogeneousCaps,
    InstanceNorm,
    LayerNorm,
    Linear,
    Logits,
    MaxPool,
    PadChannels,
    PrimaryCaps,
    Residual,
    SelfRoutedClasses,
    Upsample,
)
from .losses import CrossEntropy, MarginLoss, SpreadLoss
from .net import CapsNetSpec
from .ops import Ops
from .presets import PRESETS
from .routing import (
    DynamicRouting,
    EMRouting,
    HeinsenRouting,
    InvertedAttention,
    Routing,
    SelfAttention,
    SelfRouting,
    VariationalBayes,
    VectorRouting,
)
from .zoo import create, list_models

if TYPE_CHECKING:  # what `__getattr__` finds, as it is on NumPy
    from .backends.numpy import CapsNet as CapsNet
    from .backends.numpy import Learner as Learner
    from .backends.numpy import load as load

__version__ = "0.2.0"
__all__ = [
    "PRESETS", "Activation", "AsCaps", "AsMap", "AveragePool", "BatchNorm", "BranchScores", "CapsNetSpec",
    "CapsNorm", "CapscoreError", "Capsules", "ChainDecoder", "Concat", "Concurrent", "Conv", "ConvCaps",
    "ConvCaps3D", "ConvDecoder", "ConvTranspose", "Coordinates", "CrossEntropy", "Decoder", "DenseCaps", "Dropout",
    "DynamicRouting", "EMRouting", "FlatCaps", "GlobalPool", "Grid", "GroupNorm", "HeinsenRouting",
    "HomogeneousCaps", "InstanceNorm", "InvertedAttention", "Layer", "LayerNorm", "Linear", "Logits", "Map",
    "MarginLoss", "MaxPool", "PadChannels", "PrimaryCaps", "Residual", "Routing", "SelfAttention",
    "SelfRoutedClasses", "SelfRouting", "SpreadLoss", "Upsample", "VariationalBayes", "Vector", "VectorRouting",
    "backend", "backend_names", "create", "list_models",
]  # fmt: skip

_OF_THE_BACKEND = {"CapsNet", "Learner", "Module", "load"} | {name for name in vars(Ops) if not name.startswith("_")}
_CHOSEN = os.environ.get("CAPSCORE_BACKEND") or "numpy"


def backend_names() -> list[str]:
    """Return the names of all backends, installed or not: the modules of `capscore.backends`."""
    from . import backends

    modules = pkgutil.iter_modules(backends.__path__)  # those with an underscore are parts of others
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def backend(name: str) -> ModuleType:
    """Return the backend module of that name. BackendError names the backends, or the pip extra it needs."""
    if name not in backend_names():
        raise BackendError(f"there is no backend {name!r}; choose one of {', '.join(backend_names())}")
    return importlib.import_module(f"capscore.backends.{name}")


def __dir__() -> list[str]:
    """Name those too that `__getattr__` finds."""
    return sorted({*globals(), *_OF_THE_BACKEND})


def __getattr__(name: str) -> Any:
    """Take `CapsNet`, `Learner`, `load` and the ops from the chosen backend, imported at the first need of it.

    `Module` is there with PyTorch alone.
    """
    if name not in _OF_THE_BACKEND:
        raise AttributeError(f"module 'capscore' has no attribute {name!r}")
    chosen = backend(_CHOSEN)
    if not hasattr(chosen, name):
        raise AttributeError(f"the backend {_CHOSEN} has no {name}; from capscore.backends import torch as caps has it")
    return getattr(chosen, name)
