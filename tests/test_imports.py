"""What importing loads, and what it says when a library is missing: each case in a Python of its own."""

from __future__ import annotations

import ast
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import need

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "cupy", "onnx", "onnxruntime", "matplotlib", "PIL", "rich", "typer", "pooch", "jax", "tensorflow"]
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def python(code: str, blocked: tuple[str, ...] = (), **environment: str) -> str:
    """What a fresh Python prints, warnings being errors."""
    if blocked:
        code = f"BLOCKED = {blocked!r}{BLOCK}{code}"
    environ = {name: value for name, value in os.environ.items() if name != "CAPSCORE_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ | environment,
        cwd=Path(__file__).parent,  # where no folder is called capscore, backends or export
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(code: str, **environment: str) -> set[str]:
    """Which of the heavy libraries a piece of code loads."""
    found = python(f"{code}\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])", **environment)
    return set(found.split())


def test_whoever_runs_a_network_reads_no_data() -> None:
    """The readers of datasets take a third of the time that the import does."""
    found = python("import sys, capscore.backends.numpy as caps; caps.CapsNet; print(*sys.modules)")
    assert not [name for name in found.split() if name.startswith(("capscore.data", "PIL"))]


@pytest.mark.parametrize(
    "code",
    [
        "import capscore",
        "import capscore.backends.numpy",
        "import capscore.train",
        "import capscore as caps; caps.CapsNet, caps.Learner, caps.load, caps.softmax",
        "from capscore.backends import numpy as caps",
        "from capscore import losses, layers, routing, net, grad, init, model, modelfile, errors",
        "import capscore; capscore.backend_names()",
        "from capscore.data import Dataset, load, read_idx",
    ],
)
def test_the_core_loads_no_other_library(code: str) -> None:
    assert loaded_by(code) == set()


def test_numpy_runs_trains_saves_and_loads_without_any_other_library(tmp_path: Path) -> None:
    code = f"""
import numpy as np, capscore as caps
net = caps.CapsNet(caps.CapsNetSpec((1, 6, 6), (caps.PrimaryCaps(2, 3, 3), caps.DenseCaps(2))))
caps.Learner(net).step(np.zeros((2, 1, 6, 6), np.float32), np.eye(2, dtype=np.float32), 1e-3)
net.save({str(tmp_path / "a")!r})
print(caps.load({str(tmp_path / "a")!r})(np.zeros((1, 1, 6, 6), np.float32)).lengths.shape)
"""
    blocked = tuple(HEAVY)
    assert python(code, blocked) == "(1, 2)"


def test_torch_loads_no_library_of_another_backend() -> None:
    need("torch", "torch")
    assert loaded_by("import capscore.backends.torch") <= {"torch"}
    assert loaded_by("import capscore as caps; caps.CapsNet", CAPSCORE_BACKEND="torch") == {"torch"}


def test_jax_loads_no_library_of_another_backend() -> None:
    need("jax", "jax")
    assert loaded_by("import capscore.backends.jax") == {"jax"}
    assert loaded_by("import capscore as caps; caps.CapsNet", CAPSCORE_BACKEND="jax") == {"jax"}


def test_losses_and_specs_wait_for_a_backend_even_when_one_is_chosen() -> None:
    assert loaded_by("from capscore import losses; from capscore import PRESETS", CAPSCORE_BACKEND="torch") == set()


def test_the_exporter_loads_no_other_backend_and_the_runtime_none() -> None:
    need("onnx", "onnx")
    assert loaded_by("import capscore.export") == set()
    assert loaded_by("import capscore.export.onnx") == {"onnx"}
    need("onnxruntime", "onnx")
    assert loaded_by("import capscore.export.runtime") == {"onnx", "onnxruntime"}  # onnx checks a file before it is run


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_the_environment_chooses_the_backend(name: str) -> None:
    need(name, name)
    code = (
        "import capscore as caps; print(caps.CapsNet.__module__, caps.norm.__module__, caps.load.__self__.__module__)"
    )
    assert set(python(code, CAPSCORE_BACKEND=name).split()) == {f"capscore.backends.{name}"}
    assert set(python(code, CAPSCORE_BACKEND="").split()) == {"capscore.backends.numpy"}


def test_two_backends_live_in_one_process() -> None:
    need("torch", "torch")
    code = """
from capscore.backends import torch, numpy
import capscore as caps
print(caps.CapsNet is numpy.CapsNet, torch.CapsNet is caps.backend("torch").CapsNet)
"""
    assert python(code) == "True True"


RAISES = """
from capscore.errors import BackendError
try:
    {}
except BackendError as error:
    print(type(error.__cause__).__name__, "|", error)
"""


def test_an_unknown_backend_names_those_there_are() -> None:
    wanted = "there is no backend 'jaxx'; choose one of cupy, jax, numpy, torch"
    assert python(RAISES.format("import capscore; capscore.backend('jaxx')")) == f"NoneType | {wanted}"
    chosen = python(RAISES.format("import capscore; capscore.CapsNet"), CAPSCORE_BACKEND="jaxx")
    assert chosen == f"NoneType | {wanted}"


@pytest.mark.parametrize("name", ["os", "", "numpy.linalg", "../numpy", "__init__"])
def test_a_backend_is_a_module_of_backends(name: str) -> None:
    assert "there is no backend" in python(RAISES.format(f"import capscore; capscore.backend({name!r})"))


@pytest.mark.parametrize(
    ("module", "blocked", "extra"),
    [
        ("capscore.backends.torch", "torch", "the torch backend needs PyTorch: pip install 'capscore[torch]'"),
        (
            "capscore.backends.cupy",
            "cupy",
            "the cupy backend needs CuPy and an NVIDIA GPU: pip install 'capscore[cupy]'",
        ),
        ("capscore.backends.jax", "jax", "the jax backend needs JAX: pip install 'capscore[jax]'"),
        ("capscore.export.onnx", "onnx", "ONNX export needs the onnx package: pip install 'capscore[onnx]'"),
        ("capscore.export.runtime", "onnxruntime", "'capscore[onnx]' or 'capscore[gpu]'"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(module: str, blocked: str, extra: str) -> None:
    found = python(RAISES.format(f"import {module}"), blocked=(blocked,))
    assert found.startswith("ModuleNotFoundError | ")
    assert found.endswith(extra)


def test_a_backend_error_is_an_import_error() -> None:
    code = "try:\n    import capscore.backends.torch\nexcept ImportError as error:\n    print(type(error).__name__)"
    assert python(code, blocked=("torch",)) == "BackendError"


def test_all_that_is_promised_is_there() -> None:
    code = """
import capscore, capscore.backends.numpy as b
from capscore import *
print(all(hasattr(capscore, n) for n in capscore.__all__), capscore.__version__)
"""
    assert python(code) == "True 0.2.0"


def test_every_function_reads_at_a_glance() -> None:
    lines = {}
    for path in [
        path for folder in ("capscore", "backends", "export", "lab") for path in (ROOT / folder).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines[f"{path.stem}.{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    assert lines["loop.train"] <= 40
    assert {name: count for name, count in lines.items() if count > 60} == {}


# ---------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building writes beside the sources; with text where git cannot make symbolic links, on Windows."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("capscore", "backends", "export", "lab", "docs/playground"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    for link in [path for path in folder.rglob("*") if path.is_symlink()]:
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    return folder


def built(checkout: Path, kind: str) -> Path:
    """The folder of an unpacked wheel, or of an editable one."""
    build = f"from setuptools.build_meta import build_{kind}; print(build_{kind}('{kind}-made'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=checkout, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (file,) = (checkout / f"{kind}-made").glob("*.whl")
    with zipfile.ZipFile(file) as content:
        content.extractall(checkout / kind)
    return checkout / kind


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return built(checkout, "wheel")


def test_a_checkout_without_symbolic_links_installs_for_editing(checkout: Path) -> None:
    code = f"""
import site, sys
site.addsitedir({str(built(checkout, "editable"))!r})
sys.path.append({sysconfig.get_path("purelib")!r})  # last: a capscore installed for editing has a finder of this name
import capscore, capscore.backends.numpy, capscore.export.onnxfile, capscore.data
print(capscore.__file__, capscore.backends.numpy.__file__, capscore.export.__file__)
"""
    files = ["capscore/__init__.py", "backends/numpy.py", "export/__init__.py"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environ, cwd=checkout / "lab", capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(checkout / file) for file in files], done.stderr


def test_the_wheel_holds_every_module_of_capscore_and_nothing_else(wheel: Path) -> None:
    top = {path.name for path in wheel.iterdir()}
    assert top == {"capscore", "capscore-0.2.0.dist-info"}  # no lab, and no backends beside capscore
    modules = {str(path.relative_to(wheel)) for path in wheel.rglob("*.py")}
    assert modules == set(glob.glob("capscore/**/*.py", root_dir=ROOT, recursive=True))
    page = {path.name for path in (ROOT / "docs" / "playground").iterdir() if path.is_file()}
    assert {path.name for path in (wheel / "capscore" / "playground").iterdir()} == page  # the models are the user's


def test_capscore_runs_from_the_wheel_and_asks_nothing_of_the_lab(wheel: Path) -> None:
    code = """
import capscore.cli, capscore.export
from capscore.data import load
print(capscore.__file__, len(load("digits")[0]), capscore.backend_names())
"""
    found = f"{wheel}/capscore/__init__.py 5000 ['cupy', 'jax', 'numpy', 'torch']"
    assert python(code, PYTHONPATH=str(wheel)) == found
    for path in wheel.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) lab\b", path.read_text(), re.MULTILINE), path
