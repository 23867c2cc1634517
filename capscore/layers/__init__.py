"""The layers, a file for each kind. `capscore.layer` says what a layer is."""

from .activation import Activation
from .as_caps import AsCaps
from .as_map import AsMap
from .concat import Concat
from .conv import Conv
from .conv_caps import ConvCaps
from .conv_caps_3d import ConvCaps3D
from .conv_transpose import ConvTranspose
from .decoder import ChainDecoder, ConvDecoder, Decoder, Drawing
from .dense import DenseCaps
from .dropout import Dropout
from .linear import Linear
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from .pool import AveragePool, GlobalPool, MaxPool
from .primary import PrimaryCaps
from .residual import Residual
from .upsample import Upsample

__all__ = [
    "Activation", "AsCaps", "AsMap", "AveragePool", "BatchNorm", "ChainDecoder", "Concat", "Conv", "ConvCaps",
    "ConvCaps3D", "ConvDecoder", "ConvTranspose", "Decoder", "DenseCaps", "Drawing", "Dropout", "GlobalPool",
    "GroupNorm", "InstanceNorm", "LayerNorm", "Linear", "MaxPool", "PrimaryCaps", "Residual", "Upsample",
]  # fmt: skip
