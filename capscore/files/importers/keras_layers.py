"""The arrays of a Keras file by what kind of layer they belong to, which the ranks of a layer's arrays tell.

Names would not: those of layers are counters (conv2d_4) or free, and files of Keras 3 have none for weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capscore.layers import Decoder

from .family import decoder
from .layouts import Array, first

KINDS = {
    (4, 1): "convolution",  # kernel [kh, kw, in, out], bias
    (2, 1): "dense",  # kernel [in, out], bias
    (1, 1, 1, 1): "batch norm",  # gamma, beta, moving mean, moving variance
    (1, 1): "norm",  # gamma, beta
    (4,): "Guo's capsules",  # W [J, N, D, K]
    (4, 2): "EscVM's primary capsules",  # kernel [kh, kw, in, types·dim], biases [types, dim]
    (3, 2): "EscVM's digit capsules",  # W [N, K, J·D], biases [J, D]
    (4, 3): "self-attention",  # W [J, N, K, D], b [J, N, 1]
}

LENGTH = "their code prints √(n² + 1e-7) for a length n, up to 3e-4 more than it is"

Layers = list[tuple[Array, ...]]


def by_kind(tensors: Mapping[str, Array]) -> dict[str, Layers]:
    """Return the layers of each kind in the order of the file: each is the tuple of its arrays."""
    layers: dict[str, list[Array]] = {}
    for name, array in tensors.items():
        layers.setdefault(name.rpartition("/")[0], []).append(array)
    kinds: dict[str, Layers] = {}
    for arrays in layers.values():
        kinds.setdefault(KINDS.get(tuple(array.ndim for array in arrays), "unknown"), []).append(tuple(arrays))
    return kinds


def dense_decoder(
    dense: Sequence[tuple[Array, ...]], size: tuple[int, int, int]
) -> tuple[Decoder | None, dict[str, Array]]:
    """Return the decoder of dense layers that draw images [H, W, C], and its parameters; None of no layers."""
    matrices = [(kernel.T, bias) for kernel, bias in dense]
    if matrices:
        weight, bias = matrices[-1]
        matrices[-1] = first(weight, size[0]), first(bias, size[0])
    return decoder(matrices, size)
