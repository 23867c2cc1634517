"""Sets the formulas of the pages while the site is built, so that a browser needs no script and no network for them.

Pages have them as GitHub has: `$…$` in a line, and blocks fenced as ```math. PyMdown's Arithmatex finds them,
latex2mathml makes MathML of them, which browsers set by themselves. MkDocs loads this file as a hook.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from pymdownx.arithmatex import arithmatex_fenced_format

FOUND = re.compile(
    r'<span class="arithmatex">\\\((?P<line>.*?)\\\)</span>|<div class="arithmatex">\n?\\\[(?P<block>.*?)\\\]\n?</div>',
    re.DOTALL,
)

# What latex2mathml leaves to the browser, and browsers space as operators: bars around, and functions by their name.
BAR = re.compile(r"<mo>(&#x0007C;|&#x02016;)</mo>")
NAME = re.compile(r"<mo(?: movablelimits=\"true\")?>([A-Za-z]{2,})</mo>")
FUNCTION = re.compile(r"(<mi>(?:cos|exp|ln|log|sin)</mi>)(?!<mo)")


def on_config(config: Any) -> None:
    """Let blocks fenced as math be formulas."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "arithmatex", "format": arithmatex_fenced_format(which="generic")})
    config.mdx_configs["pymdownx.arithmatex"] = {"generic": True}


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Replace what Arithmatex found by MathML."""
    try:
        return FOUND.sub(
            lambda found: mathml(html.unescape(found["line"] or found["block"]), bool(found["block"])), content
        )
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def mathml(latex: str, block: bool) -> str:
    """Return a formula as MathML; ValueError if latex2mathml does not know how."""
    latex = latex.strip()
    text = convert(latex, display="block" if block else "inline")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:  # an `&` where latex2mathml does not know the environment
        raise ValueError(
            f"latex2mathml cannot set {latex!r}: align* and array have columns, aligned has not"
        ) from error
    left = [part.strip() for part in root.itertext() if re.search(r"[\\$]", part)]
    if left:
        raise ValueError(f"latex2mathml does not know {left[0]} in {latex!r}")
    text = BAR.sub(r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>', NAME.sub(r"<mi>\1</mi>", text))
    text = FUNCTION.sub(r'\1<mspace width="0.17em"></mspace>', text)
    return f'<div class="formula" tabindex="0">{text}</div>' if block else text
