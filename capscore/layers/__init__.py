"""The layers, a file for each kind. `capscore.layer` says what a layer is."""

from .activation import Activation
from .as_caps import AsCaps
from .conv import Conv
from .conv_caps import ConvCaps
from .decoder import ChainDecoder, ConvDecoder, Decoder, Drawing
from .dense import DenseCaps
from .dropout import Dropout
from .flat import FlatCaps
from .linear import Linear
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from .pool import AveragePool, GlobalPool, MaxPool
from .primary import PrimaryCaps
from .residual import Residual
from .upsample import Upsample

__all__ = [
    "Activation", "AsCaps", "AveragePool", "BatchNorm", "ChainDecoder", "Conv", "ConvCaps", "ConvDecoder", "Decoder",
    "DenseCaps", "Drawing", "Dropout", "FlatCaps", "GlobalPool", "GroupNorm", "InstanceNorm", "LayerNorm", "Linear",
    "MaxPool", "PrimaryCaps", "Residual", "Upsample",
]  # fmt: skip
