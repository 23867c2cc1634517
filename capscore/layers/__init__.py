"""The layers, a file for each kind. `capscore.layer` says what a layer is."""

from .activation import Activation
from .as_caps import AsCaps
from .as_map import AsMap
from .caps_norm import CapsNorm
from .concat import Concat
from .concurrent import Concurrent
from .conv import Conv
from .conv_caps import ConvCaps
from .conv_caps_3d import ConvCaps3D
from .conv_transpose import ConvTranspose
from .coordinates import Coordinates
from .decoder import ChainDecoder, ConvDecoder, Decoder, Drawing
from .dense import DenseCaps
from .dropout import Dropout
from .flat import FlatCaps
from .hvc import BranchScores, HomogeneousCaps
from .linear import Linear
from .logits import Logits
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from .pad_channels import PadChannels
from .pool import AveragePool, GlobalPool, MaxPool
from .primary import PrimaryCaps
from .residual import Residual
from .self_routed import SelfRoutedClasses
from .upsample import Upsample

__all__ = [
    "Activation", "AsCaps", "AsMap", "AveragePool", "BatchNorm", "BranchScores", "CapsNorm", "ChainDecoder",
    "Concat", "Concurrent", "Conv", "ConvCaps", "ConvCaps3D", "ConvDecoder", "ConvTranspose", "Coordinates",
    "Decoder", "DenseCaps", "Drawing", "Dropout", "FlatCaps", "GlobalPool", "GroupNorm", "HomogeneousCaps",
    "InstanceNorm", "LayerNorm", "Linear", "Logits", "MaxPool", "PadChannels", "PrimaryCaps", "Residual",
    "SelfRoutedClasses", "Upsample",
]  # fmt: skip
