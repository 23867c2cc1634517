"""Benchmarks: `python -m lab bench` runs `suite`; the other files measure one question each. Results in results/."""
