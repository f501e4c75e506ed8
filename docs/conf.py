"""How Sphinx builds the site: ``make docs``. Nothing in it is fetched from another host, when built or when read."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from edgead.runtime.version import __version__  # noqa: E402

project = "edgead"
author = "the authors of edgead"
copyright = "the authors of edgead, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.typer"]
exclude_patterns = ["_build"]
root_doc = "index"
default_role = "code"  # docstrings write `Name` as Markdown does
highlight_language = "none"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # the anchors that GitHub makes, so that a link works in both places

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 90
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"edgead {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?!https?:|mailto:|#)[^)\s#]+)(#[^)\s]*)?\)")
# Files beside docs/ that are pages of the site, too.
_PAGES = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


def _without_links_to_sources(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links out of docs/ into their text: the site is read where the source tree is not."""
    folder = (DOCS / docname).parent

    def replace(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if target.is_relative_to(DOCS):
            return found[0]
        page = _PAGES.get(target.relative_to(DOCS.parent).as_posix())
        return f"[{found[1]}](/{page}.md{found[3] or ''})" if page else found[1]

    source[0] = _LINK.sub(replace, source[0])


class JsonSchema(SphinxDirective):
    """``json-schema:: module:Model`` shows the JSON Schema that a pydantic model has now."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        text = json.dumps(getattr(import_module(module), name).model_json_schema(), indent=2)
        return [nodes.literal_block(text, text, language="json")]


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", _without_links_to_sources)
    app.add_directive("json-schema", JsonSchema)
