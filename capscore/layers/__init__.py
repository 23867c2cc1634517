"""The layers, a file for each kind. `capscore.layer` says what a layer is."""

from .activation import Activation
from .as_caps import AsCaps
from .caps_norm import CapsNorm
from .concurrent import Concurrent
from .conv import Conv
from .conv_caps import ConvCaps
from .decoder import ChainDecoder, ConvDecoder, Decoder, Drawing
from .dense import DenseCaps
from .dropout import Dropout
from .linear import Linear
from .logits import Logits
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from .pool import AveragePool, GlobalPool, MaxPool
from .primary import PrimaryCaps
from .residual import Residual
from .upsample import Upsample

__all__ = [
    "Activation", "AsCaps", "AveragePool", "BatchNorm", "CapsNorm", "ChainDecoder", "Concurrent", "Conv", "ConvCaps",
    "ConvDecoder", "Decoder", "DenseCaps", "Drawing", "Dropout", "GlobalPool", "GroupNorm", "InstanceNorm", "LayerNorm",
    "Linear", "Logits", "MaxPool", "PrimaryCaps", "Residual", "Upsample",
]  # fmt: skip
