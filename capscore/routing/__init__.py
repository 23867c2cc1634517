"""Votes and routings. `base` says what a routing is; every other file is one."""

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .em import EMRouting
from .heinsen import HeinsenRouting
from .inverted import InvertedAttention
from .self_attention import SelfAttention
from .self_routing import SelfRouting
from .variational import VariationalBayes
from .vectors import VectorRouting
from .votes import ArrayVotes, LinearVotes, SharedVotes, ShiftedVotes, Votes

__all__ = [
    "ArrayVotes", "DynamicRouting", "EMRouting", "HeinsenRouting", "InvertedAttention", "LinearVotes", "Routing",
    "SelfAttention", "SelfRouting", "SharedVotes", "ShiftedVotes", "VariationalBayes", "VectorRouting", "Votes",
    "VotesShape", "dynamic_routing",
]  # fmt: skip
