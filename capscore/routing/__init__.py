"""Votes and routings. `base` says what a routing is; every other file is one."""

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .heinsen import HeinsenRouting
from .self_attention import SelfAttention
from .self_routing import SelfRouting
from .votes import ArrayVotes, LinearVotes, ShiftedVotes, Votes

__all__ = [
    "ArrayVotes", "DynamicRouting", "HeinsenRouting", "LinearVotes", "Routing", "SelfAttention", "SelfRouting",
    "ShiftedVotes", "Votes", "VotesShape", "dynamic_routing",
]  # fmt: skip
