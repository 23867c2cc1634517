"""Decoders: from class capsules to an image (figure 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from capscore.errors import SpecError
from capscore.layer import Layer, Map
from capscore.values import Value, check_flags, check_whole, sizes

from .chain import check_layers
from .conv import Conv
from .linear import Linear
from .upsample import Upsample


@dataclass(frozen=True)
class Drawing(Value, ABC):
    """A chain of layers from the numbers of the class capsules, [B, J·D], to an image in [0, 1].

    The image is of the network's input size unless `image` (channels, height, width) says otherwise. Then the input is
    averaged to that size for the loss, so each size must divide the input's. If `class_independent`, the chain is given
    the numbers [B, D] of the class capsule that is drawn, and not which class it is (Rajasegaran et al. 2019, section
    3.4).
    """

    image: tuple[int, ...] | None = field(default=None, kw_only=True)
    class_independent: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the image's size."""
        check_flags(self, "class_independent")
        if self.image is not None:
            image = sizes(self.image, f"{type(self).__name__}: image")
            if len(image) != 3:
                raise SpecError(f"{type(self).__name__}: image must be (channels, height, width), not {image}")
            object.__setattr__(self, "image", image)

    @abstractmethod
    def layers(self, image: Map) -> tuple[Layer, ...]:
        """Return the layers that draw an image of this size."""


@dataclass(frozen=True)
class Decoder(Drawing):
    """Fully connected layers with ReLU, and one with a sigmoid for the pixels."""

    hidden: tuple[int, ...] = (512, 1024)

    def __post_init__(self) -> None:
        """Check every size; any sequence is taken as a tuple."""
        object.__setattr__(self, "hidden", sizes(self.hidden, "Decoder: hidden"))
        super().__post_init__()

    def layers(self, image: Map) -> tuple[Layer, ...]:
        """Return the layers."""
        return (*(Linear(size) for size in self.hidden), Linear(tuple(image), "sigmoid"))


@dataclass(frozen=True)
class ConvDecoder(Drawing):
    """A fully connected layer that draws a small map, then upsampling and convolution until it is an image.

    Each of `channels` is a map: the first is fully connected, every later one, and the image, is twice as large as the
    one before. For images too large for `Decoder`.
    """

    channels: tuple[int, ...] = (64, 32, 16)
    kernel: int = 5

    def __post_init__(self) -> None:
        """Check every size."""
        object.__setattr__(self, "channels", sizes(self.channels, "ConvDecoder: channels"))
        if not self.channels:
            raise SpecError("ConvDecoder: channels is empty; it needs at least one map")
        check_whole(self, "kernel")
        if self.kernel % 2 == 0:
            raise SpecError(f"ConvDecoder: kernel must be odd, not {self.kernel}: the maps keep their size")
        super().__post_init__()

    def layers(self, image: Map) -> tuple[Layer, ...]:
        """Return the layers; SpecError if the image cannot be halved so often."""
        first, *later = self.channels
        factor = 2 ** len(self.channels)
        if image.height % factor or image.width % factor:
            raise SpecError(
                f"ConvDecoder: {len(self.channels)} maps: a factor of {factor}; {image.height}×{image.width} is no "
                f"multiple of {factor}: fewer channels, or an image whose sides are multiples, would fit"
            )
        made: list[Layer] = [Linear((first, image.height // factor, image.width // factor))]
        for size in later:
            made += [Upsample(2), Conv(size, self.kernel, padding="same")]
        return (*made, Upsample(2), Conv(image.channels, self.kernel, padding="same", activation="sigmoid"))


@dataclass(frozen=True)
class ChainDecoder(Drawing):
    """The layers that are given, one after another; the last makes the image."""

    chain: tuple[Layer, ...]

    def __post_init__(self) -> None:
        """Check that they are layers; any sequence is taken as a tuple."""
        check_layers(self, "chain")
        super().__post_init__()

    def layers(self, image: Map) -> tuple[Layer, ...]:
        """Return the layers, whatever the image."""
        return self.chain
