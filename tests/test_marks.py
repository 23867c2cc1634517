"""Which tests run where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import conftest
import pytest


def skipped(*libraries: str) -> list[str]:
    """Why a test with the mark gpu(*libraries), in a folder called gpu, would be skipped."""
    reasons: list[str] = []
    item: Any = SimpleNamespace(
        keywords={"gpu": True},
        iter_markers=lambda name: [pytest.mark.gpu(*libraries).mark] if libraries else [],
        add_marker=lambda marker: reasons.append(marker.kwargs["reason"]),
    )
    conftest.skip_without_gpu([item])
    return sorted(reasons)


@pytest.mark.parametrize("there", ["cupy", "torch"])
def test_a_test_wants_the_gpu_of_the_libraries_that_it_names(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"cupy": "torch", "torch": "cupy"}[there]
    monkeypatch.setattr(conftest, "REAL_CUPY", there == "cupy")
    monkeypatch.setattr(conftest, "USABLE", {there: lambda: True, absent: lambda: False})
    monkeypatch.setattr(conftest, "REQUIRED", set())
    assert skipped(there) == skipped() == []
    assert skipped(absent) == skipped("cupy", "torch") == [f"no {absent} with a GPU"]
    monkeypatch.setattr(conftest, "REQUIRED", {"gpu", there})
    assert skipped(absent) == [f"no {absent} with a GPU"]
    monkeypatch.setattr(conftest, "REQUIRED", {"gpu", "cupy", "torch"})
    assert skipped(absent) == []  # what is required and absent fails
