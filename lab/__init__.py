"""Experiments, baselines and benchmarks of the library's own networks: `python -m lab`, from the root of a checkout.

The wheel has none of it, and nothing in capscore imports it.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the checkout
