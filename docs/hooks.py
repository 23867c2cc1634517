"""What MkDocs and mkdocstrings need to know of this project: links out of docs/, and how the docstrings are written.

MkDocs loads this file as a hook, griffe (which reads the docstrings) as an extension.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")
INSIDE = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
SECTION = re.compile(r"^(Parameters|Returns|Raises|Warns|Yields)\n-+\n", re.MULTILINE)
PAGE = "../references.md"  # from the pages of the reference, where docstrings are shown
ITEM = re.compile(r"^(?P<names>[\w*]+(?:, [\w*]+)*)(?: : (?P<text>.*))?$")
ENTRY = re.compile(
    r'<a id="(?P<id>[\w-]+)"></a>\*\*(?P<first>[^\s,*]+)[^*]*?(?P<year>\d{4})\.\*\*\s+\*(?P<title>[^*]+)\.\*'
)
CITED = re.compile(
    r"(?P<first>[A-Z][\w-]+)(?P<others>(?:,\s+[A-Z][\w-]+)*(?:\s+and\s+[A-Z][\w-]+)?(?:\s+et\s+al\.)?)(?:'s)?\s+\(?(?P<year>\d{4})\b"
)
COMMENT = re.compile(r"^[^#]*?\s{1,2}#\s+(?!noqa|type:)(.+)$")


def on_files(files: Any, config: Any) -> Any:
    """Add CONTRIBUTING.md, which lies where GitHub looks for it, to the pages for maintainers."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = INSIDE.sub(lambda found: f"]({os.path.relpath(found[1], 'docs')})", text)
    files.append(File.generated(config, "contributing.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to files of the repository outside docs/ lead to copies of them in the site."""
    here = Path(config.docs_dir) / page.file.src_uri

    def link(found: re.Match[str]) -> str:
        target = (here.parent / found[1]).resolve()
        if target.is_relative_to(config.docs_dir) and target.suffix != ".py":
            return found[0]  # MkDocs checks it
        if not target.is_file() or not target.is_relative_to(ROOT):
            raise PluginError(f"{page.file.src_uri}: the link {found[1]} leads to no file of the repository")
        copy = f"source/{target.relative_to(ROOT)}" + (".txt" if target.suffix in (".md", ".html") else "")
        if copy not in files.src_uris:
            files.append(File.generated(config, copy, abs_src_path=str(target)))
        return f"]({'../' * page.file.src_uri.count('/')}{copy})"

    return LINK.sub(link, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """For those who hear the page or have no mouse: search has a name, no head is empty, wide code takes the focus."""
    output = output.replace('role="dialog"', 'role="dialog" aria-label="Search"').replace("<th></th>", "<td></td>")
    return output.replace("<pre><span></span><code>", '<pre><span></span><code tabindex="0">')


class Docstrings(griffe.Extension):
    """Turns "name : what it is" under Parameters, Returns and Raises into lists, and comments of fields into docs.

    numpydoc has a type after the colon; here types stand in the signature and words after the colon.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = _sections(_cited(obj.docstring.value))

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """List the fields that have a comment at the end of their line."""
        fields = [
            f"- `{name}`: {found[1].strip()}"
            for name, field in cls.attributes.items()
            if field.lineno and (found := COMMENT.match(cls.lines_collection[field.filepath][field.lineno - 1]))
        ]
        if fields and cls.docstring:
            cls.docstring.value += "\n\n**Fields**\n\n" + "\n".join(fields)


@cache
def references() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the papers of references.md: first author and year → anchor and title."""
    text = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    return {
        (found["first"], found["year"]): (found["id"], " ".join(found["title"].split()))
        for found in ENTRY.finditer(text)
    }


def citations(text: str) -> list[re.Match[str]]:
    """Return where authors and a year name a paper."""
    return [found for found in CITED.finditer(text) if "1900" < found["year"] < "2100"]


def _cited(text: str) -> str:
    """Let every paper that a docstring names by authors and year, or by its title, lead to the references."""
    for found in reversed(citations(text)):
        if known := references().get((found["first"], found["year"])):
            text = f"{text[: found.start()]}[{found[0]}]({PAGE}#{known[0]}){text[found.end() :]}"
    for anchor, title in references().values():
        if f"#{anchor})" not in text:
            text = text.replace(f'"{title}"', f'"[{title}]({PAGE}#{anchor})"')
    return text


def _sections(text: str) -> str:
    head, *rest = SECTION.split(text)
    out = [head.rstrip()]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        lines: list[str] = []
        for line in body.strip("\n").splitlines():  # what stands indented below an item belongs to it in Markdown too
            found = ITEM.match(line) if title != "Returns" else None
            if found:
                names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
                line = f"- {names}: {found['text'] or ''}".rstrip()
            lines.append(line)
        out.append(f"**{title}**\n\n" + "\n".join(lines))
    return "\n\n".join(out)
