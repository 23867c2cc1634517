"""Networks by name, a file for each paper, and `small` ones of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from capscore.net import CapsNetSpec

from . import deepcaps, efficient, em, heinsen, hvc, inverted, sabour, self_routing, small, variational


class Presets(Mapping[str, CapsNetSpec]):
    """Specs by name; each is made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], CapsNetSpec]]) -> None:
        self._makers, self._made = makers, dict[str, CapsNetSpec]()

    def __getitem__(self, name: str) -> CapsNetSpec:
        """Return the spec of that name."""
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._makers)


PRESETS = Presets(
    sabour.PRESETS
    | small.PRESETS
    | efficient.PRESETS
    | em.PRESETS
    | variational.PRESETS
    | inverted.PRESETS
    | deepcaps.PRESETS
    | self_routing.PRESETS
    | heinsen.PRESETS
    | hvc.PRESETS
)
