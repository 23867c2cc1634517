"""Votes and routings. `base` says what a routing is; every other file is one."""

from .base import Routing, VotesShape
from .dynamic import DynamicRouting, dynamic_routing
from .votes import ArrayVotes, LinearVotes, Votes

__all__ = ["ArrayVotes", "DynamicRouting", "LinearVotes", "Routing", "Votes", "VotesShape", "dynamic_routing"]
