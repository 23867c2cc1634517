"""Votes and routings. `base` says what a routing is; every other file is one."""

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .em import EMRouting
from .self_attention import SelfAttention
from .variational import VariationalBayes
from .votes import ArrayVotes, LinearVotes, ShiftedVotes, Votes

__all__ = [
    "ArrayVotes", "DynamicRouting", "EMRouting", "LinearVotes", "Routing", "SelfAttention", "ShiftedVotes",
    "VariationalBayes", "Votes", "VotesShape", "dynamic_routing",
]  # fmt: skip
