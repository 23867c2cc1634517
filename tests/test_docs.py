"""The documentation says what is: its Python runs, its results are those it shows, its pictures and links are there."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import need

from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.routing import Routing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN = [page for page in PAGES if "zh" not in page.parts]  # the code of the Chinese pages is the same, says test_site.py
CHAPTERS = sorted((DOCS / "ideas").glob("*.md"))
DRAWN = [
    *CHAPTERS,
    *(DOCS / "routings").glob("*.md"),
    DOCS / "architecture.md",
]  # the pages whose pictures docs/figures.py draws
NOT_RUN = {
    "plugins", "a GPU", "a server", "a Triton server", "three alternatives", "the end of a module of its own",
    "coremltools",
    "it reads a file of yours",
    "tests/test_tools.py runs it where OpenVINO is installed", "tests/test_tools.py runs it where OpenCV is installed",
}  # fmt: skip
IMAGE = re.compile(r"!\[(.*?)\]\((.+?)\)", re.DOTALL)


def module(name: str) -> ModuleType:
    """A Python file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


snippets = module("snippets")


@pytest.fixture
def routings() -> Iterator[None]:
    """What pages add to the routings is gone afterwards; what other tests added is not there."""
    before = dict(Routing.known)
    for name, kind in before.items():
        if not kind.__module__.startswith("capscore."):
            del Routing.known[name]
    yield
    Routing.known.clear()
    Routing.known.update(before)


@pytest.mark.parametrize("page", [p for p in RUN if snippets.blocks(p)], ids=lambda p: str(p.relative_to(DOCS)))
def test_the_python_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, routings: None) -> None:
    code = "\n".join(block.code for block in snippets.blocks(page) if block.why is None)
    wanted = {"torch": "torch", "jax": "jax", "export": "onnxruntime", "onnxruntime": "onnxscript"}
    wanted |= {"lightning": "lightning"}
    for library, module in wanted.items():
        if re.search(rf"^(from|import) .*\b{library}\b", code, re.MULTILINE):
            need(module, "onnx" if "onnx" in module else library)
    monkeypatch.chdir(tmp_path)
    if page.name == "deploy.md":  # it begins with files that the command line has written
        from capscore.export import onnx

        net = caps.CapsNet(PRESETS["small"])
        onnx.export(net, "digits.onnx", verify=False)
        onnx.export_decoder(net, "decoder.onnx", verify=False)
    snippets.run(page)


def test_what_is_not_run_has_a_reason() -> None:
    assert {block.why for page in PAGES for block in snippets.blocks(page)} - {None} == NOT_RUN


def test_no_block_is_overlooked() -> None:
    for page in PAGES:
        assert page.read_text().count("```python") == len(snippets.blocks(page)), page


@pytest.mark.parametrize(
    "code",
    [
        "print(1 + 1)   # → 3",
        "print(1 + 1)\n# → 3",
        "print('a\\nb')\n# → a\n#   c",
        "print('a\\nb')   # → a",
        "x = 2   # → 2",
        "1 + 1   # → 2",
        "import warnings\nwarnings.warn('no')",
        "print([0.1 + 0.2])   # → [0.3]",
    ],
)
def test_a_false_claim_is_found(code: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```python\n{code}\n```\n")
    with pytest.raises((AssertionError, Warning)):
        snippets.run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_what_a_block_shows_it_prints_when_pasted(page: Path) -> None:
    """Also where the block is not run."""
    for block in snippets.blocks(page):
        lines = block.code.splitlines()
        for statement in ast.parse(block.code).body:
            if snippets._claim(lines, statement.end_lineno) is not None:
                where = f"{page.name}, line {block.line + statement.lineno - 1}"
                assert re.match(r"print\(", ast.unparse(statement)), f"{where}: wrap the value in print(…)"


def test_a_true_claim_passes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport numpy as np\nx = np.ones(2)\nprint(x * 2)   # twice → [2. 2.]\n"
        "print('a\\nb')\n# → a\n#   b\n```\n\n"
        "<!-- not run: a reason -->\n```python\n1 / 0\n```\n\n```python\ny = x[0]\n```\n"
    )
    assert snippets.run(page)["y"] == 1


def test_every_chapter_has_code_and_a_picture() -> None:
    assert len(CHAPTERS) == 11
    for page in CHAPTERS:
        assert snippets.blocks(page), page
        assert IMAGE.search(page.read_text()), page


def test_pictures_are_there_small_and_described() -> None:
    used = set()
    for page in PAGES:
        for words, target in IMAGE.findall(page.read_text()):
            path = (page.parent / target).resolve()
            used.add(path)
            assert path.is_file(), f"{page.name}: {target}"
            least = 40 if page in RUN else 12  # a Chinese character says more
            assert len(words) > least, f"{page.name}: {target} needs words for those who cannot see it"
    for path in used:
        assert path.stat().st_size < 150_000, path


def test_every_picture_has_its_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    need("matplotlib", "matplotlib")
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script puts its folder there
    monkeypatch.setitem(sys.modules, "snippets", snippets)
    figures = module("figures")
    drawn = {f"{name}.png" for name in figures.DRAWN}
    assert drawn == {Path(target).name for page in DRAWN for _, target in IMAGE.findall(page.read_text())}
    assert drawn <= {path.name for path in (DOCS / "images").iterdir()}
    figure = figures.DRAWN["iterations"]()  # from the numbers of its chapter, without a trained network
    assert figure.get_size_inches()[0] == figures.WIDTH


def test_the_picture_of_the_code_shows_every_module_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    need("matplotlib", "matplotlib")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "snippets", snippets)
    told = dict(each for rank in module("figures").contract_layers() for each in rank)
    core = {module.name for module in pkgutil.iter_modules([str(ROOT / "capscore")])}
    assert set(told) == core - {"__main__", "backends", "export"}
    assert told["disk"] == "Files that are written whole or not at all."
    assert all(told.values())


def test_the_routing_of_the_guide_is_a_routing(routings: None, tmp_path: Path) -> None:
    """It trains, survives JSON and is exported, and nothing else had to know of it."""
    from capscore import CapsNetSpec, DenseCaps, PrimaryCaps

    need("onnxruntime", "onnx")
    from capscore.export import onnx

    names: dict[str, Any] = {}
    exec(compile(snippets.blocks(DOCS / "guides/add-a-routing.md")[0].code, "add-a-routing.md", "exec"), names)
    layer = DenseCaps(3, 4, names["UniformRouting"]())
    spec = CapsNetSpec((1, 12, 12), (PrimaryCaps(2, 4, 5, 2), layer), decoder=None)
    assert CapsNetSpec.from_json(spec.to_json()) == spec
    net = caps.CapsNet(spec)
    before = {name: p.copy() for name, p in net.params.items()}
    caps.Learner(net).step(np.ones((2, 1, 12, 12)), np.eye(3)[:2], 1e-3)
    assert all((net.params[name] != p).any() for name, p in before.items())
    assert max(onnx.export(net, tmp_path / "m.onnx").differences.values()) < 2e-6
