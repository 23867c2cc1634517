"""Votes and routings. `base` says what a routing is; every other file is one."""

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .input_softmax import InputSoftmaxRouting
from .votes import ArrayVotes, LinearVotes, Votes

__all__ = [
    "ArrayVotes", "DynamicRouting", "InputSoftmaxRouting", "LinearVotes", "Routing", "Votes", "VotesShape",
    "dynamic_routing",
]  # fmt: skip
