"""Random numbers by position: those of image k follow from the seed and k, whatever was drawn before."""

import numpy as np
from numpy.typing import NDArray

Seed = int | tuple[int, ...]


def draws(seed: Seed, index: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """`count` numbers of 64 random bits for each of `index` [B], as [count, B].

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), which reaches
    any place of its sequence at once: a generator of NumPy's would have to be made anew for every image.
    """
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    place = index.astype(np.uint64) * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)[:, None]
    bits: NDArray[np.uint64] = state + place * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def integers_below(bits: NDArray[np.uint64], bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers from 0 to `bound` - 1, which is below 2³²; none is likelier than another by more than 2⁻³²."""
    scaled = (bits >> np.uint64(32)) * np.asarray(bound, np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def uniform(bits: NDArray[np.uint64], low: float, high: float) -> NDArray[np.float64]:
    """Numbers in [low, high)."""
    fractions = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return low + (high - low) * fractions
