"""Checkpoints of other people's networks, read as the untrusted input they are and made into capscore's models."""

from .convert import FAMILIES, convert
from .tensors import read_tensors

__all__ = ["FAMILIES", "convert", "read_tensors"]
