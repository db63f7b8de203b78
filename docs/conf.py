"""The site: ``sphinx-build -W --keep-going -b html docs site``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

_PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())

project = _PROJECT["project"]["name"]
version = release = _PROJECT["project"]["version"]
html_title = f"{project} {version}"

extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to headings, as they work on GitHub
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False

# What a browser fetches by itself: a link that is clicked on is no such thing.
_FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*(?:src|href)=\"(?:https?:)?//")
_IMPORTED = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")


def setup(app: Sphinx) -> None:
    """Have every built page looked at."""
    app.connect("build-finished", nothing_from_outside)


def nothing_from_outside(app: Sphinx, error: Exception | None) -> None:
    """Warn, which fails a strict build, of a page that needs a network to be read."""
    if error is not None:
        return
    log = logging.getLogger(__name__)
    for pattern, kind in ((_FETCHED, "*.html"), (_IMPORTED, "*.css")):
        for page in Path(app.outdir).rglob(kind):
            if found := pattern.search(page.read_text(encoding="utf-8")):
                log.warning("%s fetches from outside: %s", page.name, found[0])
