"""The site: formulas are set, links lead somewhere, papers are named, chapters are notebooks, the languages agree."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from conftest import need

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CHAPTERS = sorted((DOCS / "ideas").glob("*.md"))
CHINESE = sorted((DOCS / "zh").rglob("*.md"))
PRINTED = {"toom-1963", "cook-1966", "winograd-1980"}  # on paper alone
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINE_MATH = re.compile(r"(?<![\\$\w])\$(\S(?:[^$\n]*?\S)?)\$(?![\d$])")


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A Python file of docs/, which is no package."""
    need("mkdocs", "docs")
    monkeypatch.syspath_prepend(str(DOCS))
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def prose(text: str) -> str:
    """A page without its fenced blocks and its comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)


# The built site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    need("mkdocs", "docs")
    need("mkdocstrings", "docs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def built(site: Path) -> dict[str, str]:
    """Every page of the site by its place; 404.html has absolute links, as it is shown anywhere."""
    return {
        str(page.relative_to(site)): page.read_text()
        for page in sorted(site.rglob("*.html"))
        if page.name != "404.html"
    }


def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = built(site)
    assert len(pages) > 25
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\" >]+)", text)
        for link in re.findall(r"<link [^>]*>", text):
            if re.search(r"rel=\"?(?:stylesheet|preload|preconnect)", link):
                loaded += re.findall(r"href=\"?(https?:[^\" >]+)", link)
        assert not loaded, f"{name}: {loaded}"
    assert "capscore.routing.dynamic.dynamic_routing" in pages["api/routing.html"]
    assert "the rate is multiplied by this" in pages["api/train.html"]
    assert "capscore.backends.torch.Learner" in pages["api/backends.html"]
    assert "capscore.export.onnx.export" in pages["api/export.html"]
    assert "Rules of the core" in pages["contributing.html"]


class Links(HTMLParser):
    """What a page links to and loads, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.targets.append(value)
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


def test_every_link_of_every_page_leads_to_a_file_and_an_anchor_of_the_site(site: Path) -> None:
    pages = {name: Links(text) for name, text in built(site).items()}
    seen = 0
    for name, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
            assert (site / there).is_file(), f"{name}: {target}"
            if parts.fragment and there in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[there].anchors, f"{name}: {target}"
            seen += 1
    assert seen > 1000


def test_the_formulas_of_every_page_are_set(site: Path) -> None:
    pages = built(site)
    for page in PAGES:
        text = page.read_text()
        blocks = sum(kind == "math" for kind, _ in FENCE.findall(text))
        lines = len(LINE_MATH.findall(prose(re.sub(r"`[^`\n]*`", "", text))))
        html = pages[str(page.relative_to(DOCS).with_suffix(".html"))]
        assert html.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') == blocks, page
        assert html.count("<math ") == blocks + lines, page
    for name, html in pages.items():
        assert "arithmatex" not in html, name


@pytest.mark.parametrize("folder", ["ideas", "routings", "guides"])
def test_no_formula_is_left_as_plain_text(folder: str) -> None:
    for page in (DOCS / folder).glob("*.md"):
        for kind, block in FENCE.findall(page.read_text()):
            assert kind in ("math", "python") or not re.search(r"[Σ‖ᵢⱼ√∝û]|_ij", block), f"{page.name}: {block}"
        bare = re.sub(r"`[^`\n]*`|\$[^$\n]*\$|!\[.*?\]", "", prose(page.read_text()), flags=re.DOTALL)
        assert not re.search(r"[Σ‖ᵢⱼ√∝û]|_ij|[a-zA-Z]²", bare), page.name


@pytest.mark.parametrize(
    "latex",
    [r"\begin{aligned} a &= b \end{aligned}", r"\nosuchcommand x", r"\text{of $i$}"],
    ids=["columns", "name", "$"],
)
def test_a_formula_that_cannot_be_set_fails_the_build(latex: str, monkeypatch: pytest.MonkeyPatch) -> None:
    formulas = module("formulas", monkeypatch)
    with pytest.raises(ValueError, match="latex2mathml"):
        formulas.mathml(latex, block=True)


def test_a_formula_is_mathml(monkeypatch: pytest.MonkeyPatch) -> None:
    text = module("formulas", monkeypatch).mathml(r"v_j = \operatorname{squash}(\lVert s \rVert)", block=True)
    assert "<msub><mi>v</mi><mi>j</mi></msub>" in text
    assert "<mi>squash</mi>" in text  # a name, without the space around an operator
    assert text.count('<mo lspace="0" rspace="0"') == 2


def test_pictures_open_large_from_files_of_the_site(site: Path) -> None:
    for name, html in built(site).items():
        for picture in re.findall(r"<a [^>]*><img [^>]*></a>", html):
            if "images/" in picture:
                assert 'class="glightbox"' in picture, name
        assert len(re.findall(r'<a [^>]*class="glightbox"', html)) == len(re.findall(r"<img [^>]*images/", html)), name
    assert (site / "assets/javascripts/glightbox.min.js").is_file()


def test_pages_for_maintainers_are_apart(site: Path) -> None:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    (theirs,) = [each["For maintainers"] for each in nav if "For maintainers" in each]
    for page in ("contributing.md", "architecture.md", "decisions.md", "guides/add-a-backend.md"):
        assert page in theirs
        assert str(nav).count(f"'{page}'") == 1
    assert nav[-1] == {"For maintainers": theirs}


# Papers.


def test_every_paper_that_code_names_is_in_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = module("hooks", monkeypatch)
    known, named = hooks.references(), set()
    assert len(known) > 30
    for folder in ("capscore", "backends", "export", "lab"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    for found in hooks.citations(ast.get_docstring(node) or ""):
                        assert (found["first"], found["year"]) in known, f"{file.name}: {found[0]}"
                        named.add((found["first"], found["year"]))
    assert len(named) > 25


def test_every_page_that_names_a_paper_links_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = module("hooks", monkeypatch)
    for page in PAGES:
        if page.name == "references.md":
            continue
        text = " ".join(prose(page.read_text()).split())
        for (first, year), (anchor, title) in hooks.references().items():
            by_name = any((found["first"], found["year"]) == (first, year) for found in hooks.citations(text))
            if by_name or title in text:
                assert f"references.md#{anchor})" in text, f"{page.name} names {title}"
        if re.search(r"\b[Tt]he paper\b(?!s)", text) and page.parent.name != "api":
            assert "references.md#" in text, f"{page.name}: which paper?"


def test_every_reference_has_a_link_and_files_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = module("hooks", monkeypatch)
    text = (DOCS / "references.md").read_text()
    entries = re.split(r'(?=<a id=")', text)[1:]
    assert len(entries) == len(hooks.references()) == text.count("<a id=")
    for entry in entries:
        anchor = re.match(r'<a id="([\w-]+)"', entry)
        assert anchor
        found = re.search(
            r"\]\(https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.|openreview\.net|papers\.nips|proc)", entry
        )
        assert bool(found) != (anchor[1] in PRINTED), anchor[1]
        first, year = re.findall(r"\*\*([^\s,*]+).*?(\d{4})\.", entry, re.DOTALL)[0]
        assert anchor[1] == f"{first.lower()}-{year}"


def test_docstrings_on_the_site_lead_to_the_papers(site: Path) -> None:
    pages = built(site)
    assert 'href="../references.html#sabour-2017"' in pages["api/routing.html"]  # named by its title
    assert 'href="../references.html#kingma-2015"' in pages["api/losses.html"]  # by authors and year
    assert 'href="../references.html#rajasegaran-2019"' in pages["api/layers.html"]  # "et al."


# Notebooks.


def test_every_chapter_is_a_notebook_of_the_same_code(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat

    snippets = module("snippets", monkeypatch)
    chapters = [*CHAPTERS, *(page for page in CHINESE if page.parent.name == "ideas")]
    assert len(chapters) == 22
    for page in chapters:
        place = page.relative_to(DOCS)
        notebook = nbformat.reads((site / place.with_suffix(".ipynb")).read_text(), as_version=4)
        nbformat.validate(notebook)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert code == [block.code.rstrip("\n") for block in snippets.blocks(page) if block.why is None], page
        words = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert re.findall(r"^#+ .*", words, re.MULTILINE) == re.findall(
            r"^#+ .*", prose(page.read_text()), re.MULTILINE
        )
        kept = {name for cell in notebook.cells for name in cell.get("attachments", {})}
        assert kept == {Path(target).name for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())}
        assert not re.findall(r"\]\((?!https?:|attachment:)", words), page  # it stands alone
        assert "```math" not in words
        link = f'<a class="chapter-link" download="" href="{page.with_suffix(".ipynb").name}"'
        html = (site / place.with_suffix(".html")).read_text()
        assert re.search(rf'<a [^>]*href="{page.with_suffix(".ipynb").name}"', html), link


# Chinese.


def structure(text: str) -> dict[str, Any]:
    """What a translation has in common with its original."""
    text = re.sub(r"\\text\{[^}]*\}", r"\\text{}", text)  # words in formulas are translated
    fences = FENCE.findall(text)
    words = prose(text)
    rows = [line.count("|") for line in words.splitlines() if line.startswith("|")]
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]*)(?:#[^)]*)?\)", words)
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", words, re.MULTILINE)],
        "blocks": fences,
        "formulas": Counter(LINE_MATH.findall(words)),
        "pictures": [Path(target).name for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", words)],
        "links": Counter(Path(link).name for link in links),
        "tables": rows,
        "lists": [len(mark) for mark in re.findall(r"^(-|\d+\.) ", words, re.MULTILINE)],
        "percentages": Counter(re.findall(r"[\d.]+ %", words)),
        "decimals": Counter(re.findall(r"\d+\.\d+(?! of| million)", words)),  # which Chinese counts in 万
        "code": Counter(re.findall(r"`[^`\n]+`", words)),
    }


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_in_chinese_has_the_structure_of_the_english_one(chapter: Path) -> None:
    translated = DOCS / "zh" / "ideas" / chapter.name
    ours, theirs = structure(chapter.read_text()), structure(translated.read_text())
    for what, there in ours.items():
        assert there == theirs[what], f"{chapter.name}: {what}"
    chinese = re.findall(r"[\u4e00-\u9fff]", prose(translated.read_text()))
    assert 0.8 < len(chinese) / len(re.findall(r"\w+", prose(chapter.read_text()))) < 3


def test_the_chinese_index_leads_to_all_chapters() -> None:
    text = (DOCS / "zh" / "index.md").read_text()
    for chapter in CHAPTERS:
        title = (DOCS / "zh" / "ideas" / chapter.name).read_text().splitlines()[0].split(". ")[1]
        assert f"[{title}](ideas/{chapter.name})" in text
    for term in ("胶囊网络", "动态路由", "耦合系数", "路由对数", "间隔损失", "等变性"):
        assert term in text


def test_each_language_has_its_theme_and_leads_to_the_other(site: Path) -> None:
    pages = built(site)
    assert '<html lang="en"' in pages["ideas/04-dynamic-routing.html"]
    assert '<html lang="zh"' in pages["zh/ideas/04-dynamic-routing.html"]
    for page, other, lang in (
        ("ideas/04-dynamic-routing.html", "../zh/ideas/04-dynamic-routing.html", "zh"),
        ("zh/ideas/04-dynamic-routing.html", "../../ideas/04-dynamic-routing.html", "en"),
        ("results.html", "zh/index.html", "zh"),  # which has no twin
    ):
        assert re.search(rf'<a href="{other}" hreflang="{lang}" class="md-select__link"', pages[page]), page


def test_a_search_finds_the_chinese_word(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    assert index["config"]["lang"] == ["en", "zh"]
    words = {
        word
        for entry in index["docs"]
        for word in re.split(index["config"]["separator"], entry["title"] + entry["text"])
    }
    assert {"胶囊", "路由", "姿态"} <= words


def test_pages_can_be_heard(site: Path) -> None:
    """What axe-core found in the theme's pages; formulas and code that are wider than the screen take the focus."""
    for name, html in built(site).items():
        assert "<th></th>" not in html, name
        assert not re.search(r'role="dialog"(?! aria-label)', html), name
        assert html.count('<div class="formula"') == html.count('<div class="formula" tabindex="0"'), name
        assert "<pre><span></span><code>" not in html, name
        assert not re.search(r"<h\d[^>]*>- <code>", html), (
            f"{name}: a section of a docstring that docs/hooks.py does not know"
        )
