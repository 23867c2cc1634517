"""Votes and routings. `base` says what a routing is; every other file is one."""

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .self_attention import SelfAttention
from .votes import ArrayVotes, LinearVotes, ShiftedVotes, Votes

__all__ = [
    "ArrayVotes", "DynamicRouting", "LinearVotes", "Routing", "SelfAttention", "ShiftedVotes", "Votes", "VotesShape",
    "dynamic_routing",
]  # fmt: skip
