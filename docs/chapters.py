"""What the chapters have on the site beyond their text: a notebook each, and the way to the other language.

The page zh/x.md is the Chinese twin of x.md. MkDocs loads this file as a hook.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
import snippets
from mkdocs.structure.files import File
from nbformat import v4

CHAPTER = re.compile(r"(zh/)?ideas/\d\d-[\w-]+\.md")
MATH = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)]+\)")
WORDS = {  # of the line below a chapter's title, and of a notebook's beginning
    "en": ("Notebook", "中文", "A chapter of capscore's documentation. Its code needs `pip install capscore`."),
    "zh": ("笔记本（Notebook）", "English", "capscore 文档中的一章。运行代码前请先执行 `pip install capscore`。"),
}


def on_files(files: Any, config: Any) -> Any:
    """Add a notebook beside every chapter."""
    for file in [each for each in files if CHAPTER.fullmatch(each.src_uri)]:
        content = nbformat.writes(notebook(Path(file.abs_src_path)))
        files.append(File.generated(config, notebook_of(file.src_uri), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the links to the notebook and to the other language below a chapter's title."""
    if not CHAPTER.fullmatch(page.file.src_uri):
        return markdown
    words, name = WORDS[language(page.file.src_uri)], Path(page.file.src_uri).name
    other = "../" * page.file.src_uri.count("/") + twin(page.file.src_uri)
    links = f"[{words[0]}]({notebook_of(name)}){{ download .chapter-link }} [{words[1]}]({other}){{ .chapter-link }}"
    title, _, rest = markdown.partition("\n")
    return f"{title}\n\n{links}\n{rest}"


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """Let the theme speak the language of the page, and its menu of languages lead to the page's twin."""
    here = page.file.src_uri
    config.theme["language"] = language(here)
    known = {each.file.src_uri: each.url for each in nav.pages}
    for each in config.extra["alternate"]:
        other = here if each["lang"] == language(here) else twin(here)
        each["link"] = known.get(other) or known[{"en": "index.md", "zh": "zh/index.md"}[each["lang"]]]
    return context


def language(uri: str) -> str:
    """Return the language of a page, as the theme calls it."""
    return "zh" if uri.startswith("zh/") else "en"


def twin(uri: str) -> str:
    """Return where the page is in the other language, if it is there."""
    return uri.removeprefix("zh/") if uri.startswith("zh/") else f"zh/{uri}"


def notebook_of(uri: str) -> str:
    """Return where the notebook of a chapter is."""
    return f"{uri.removesuffix('.md')}.ipynb"


def notebook(path: Path) -> Any:
    """Return a chapter as a notebook that needs no other file: its blocks of Python, and all else as Markdown."""
    text, cells, at = path.read_text(encoding="utf-8"), [], 0
    for found in snippets.BLOCK.finditer(text):
        if found["why"] is None:  # what is not run stays words
            cells += [_words(text[at : found.start()], path), v4.new_code_cell(found["code"].rstrip("\n"))]
            at = found.end()
    cells.append(_words(text[at:], path))
    about = WORDS["zh" if "zh" in path.parts else "en"][2]
    cells[0].source = re.sub(r"^(# .*\n)", rf"\1\n*{about}*\n", cells[0].source, count=1)
    cells = [cell for cell in cells if cell.source]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # not by chance: the same page makes the same file
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _words(text: str, path: Path) -> Any:
    """Return Markdown as a cell: with its pictures inside, formulas as Jupyter has them, and no links between files."""
    attachments = {}

    def inside(found: re.Match[str]) -> str:
        name = Path(found[2]).name
        content = (path.parent / found[2]).read_bytes()
        attachments[name] = {"image/png": base64.b64encode(content).decode()}
        return f"![{found[1]}](attachment:{name})"

    text = MATH.sub(lambda found: f"$$\n{found[1]}$$", LINK.sub(r"\1", IMAGE.sub(inside, text)))
    cell = v4.new_markdown_cell(text.strip())
    if attachments:
        cell.attachments = attachments
    return cell
