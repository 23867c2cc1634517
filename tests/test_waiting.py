"""How threads wait for each other, and how many there are: what importing sets, each case in a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need

WAYS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "KMP_BLOCKTIME"}


def python(code: str, **environment: str) -> tuple[str, str]:
    """What a fresh Python prints and complains of, in an environment that says nothing of threads."""
    unsaid = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environ = {name: value for name, value in unsaid.items() if not name.endswith("_NUM_THREADS")} | environment
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


SETS = """
import os
before = dict(os.environ)
{}
print(sorted(name for name, value in os.environ.items() - before.items()))
"""


@pytest.mark.parametrize("code", ["import capscore", "import capscore.backends.numpy", "import capscore.cli"])
def test_what_does_not_load_pytorch_sets_nothing(code: str) -> None:
    assert python(SETS.format(code))[0] == "[]"


def test_pytorchs_threads_spin_for_a_short_time_only() -> None:
    need("torch", "torch")
    code = "import os, capscore.backends.numpy, capscore.backends.torch; print(os.environ['GOMP_SPINCOUNT'])"
    count, said = python(code, OMP_DISPLAY_ENV="verbose")
    assert count == "3000"
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this PyTorch has another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '3000'" in said  # it was set in time


@pytest.mark.parametrize("name", sorted(WAYS))
def test_a_way_to_wait_that_is_set_is_respected(name: str) -> None:
    need("torch", "torch")
    value = {"OMP_WAIT_POLICY": "active"}.get(name, "0")
    code = f"import os, capscore.backends.torch\nprint({{n: os.environ[n] for n in {WAYS} if n in os.environ}})"
    assert python(code, **{name: value})[0] == str({name: value})


def test_pytorch_that_is_there_already_is_left_alone() -> None:
    need("torch", "torch")
    assert "OMP" not in python(SETS.format("import torch, capscore.backends.torch"))[0]


THREADS = """
import os, threading
import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_limits
from capscore import PRESETS, CapsNetSpec, DenseCaps, PrimaryCaps, model
from capscore.backends import numpy as caps

def blas():
    return max([i["num_threads"] for i in ThreadpoolController().info() if i["user_api"] == "blas"], default=None)

if "_NUM_THREADS" not in str(os.environ):  # on a machine of one core too; the thread that sets it stays its master
    setting = threading.Thread(target=threadpool_limits, args=(2, "blas"))
    setting.start(), setting.join()
seen = [blas()]
look = lambda real: lambda *args, **how: seen.append(blas()) or real(*args, **how)
model.forward = look(model.forward)
caps.model.objective = look(model.objective)
"""
SMALL = "spec = CapsNetSpec((1, 6, 6), (PrimaryCaps(2, 3, 3), DenseCaps(2)))\n"
LARGE = "spec = CapsNetSpec((8, 28, 28), (PrimaryCaps(32, 8, 9), DenseCaps(2)))\n"
RUN = """
images = np.zeros((1, *spec.input), np.float32)
net = caps.CapsNet(spec)
net(images), net.predict(images)
caps.Learner(net).step(images, np.eye(2, dtype=np.float32)[:1], 1e-3)
print(*seen, blas())
"""


def test_numpys_products_of_a_small_network_have_one_thread() -> None:
    said = python(THREADS + SMALL + RUN)[0].split()
    if "None" in said:
        pytest.skip("threadpoolctl does not know this NumPy's BLAS")
    assert said == ["2", *["1"] * (len(said) - 2), "2"]
    assert len(said) >= 5
    assert set(python(THREADS + LARGE + RUN)[0].split()) == {"2"}


def test_a_number_of_threads_that_is_set_is_respected() -> None:
    said = python(THREADS + SMALL + RUN, OPENBLAS_NUM_THREADS="2")[0].split()
    assert len(set(said)) == 1


def test_threads_that_overlap_leave_blas_as_it_was() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from capscore.backends._numpy_threads import threads_for
first, second = threads_for(PRESETS["small"]), threads_for(PRESETS["small"])
with ThreadPoolExecutor(1) as a, ThreadPoolExecutor(1) as b:  # of which each enters and leaves in its own thread
    for pool, act in ((a, first.__enter__), (b, second.__enter__)):
        pool.submit(act).result()
    seen.append(blas())
    for pool, context in ((a, first), (b, second)):
        pool.submit(context.__exit__, None, None, None).result()
    with threads_for(PRESETS["small"]):
        seen.append(blas())
print(*seen, blas())
"""
    said = python(THREADS + code)[0].split()
    if "None" in said:
        pytest.skip("threadpoolctl does not know this NumPy's BLAS")
    assert said == ["2", "1", "1", "2"]
