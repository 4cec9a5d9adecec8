"""Settings of the site that Sphinx builds of these pages: python -m sphinx -W docs docs/_build."""

import os
import re
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import anyv2v

ROOT = Path(__file__).parents[1]

project = "anyv2v"
author = "The anyv2v authors"
version = release = anyv2v.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = "anyv2v"
html_copy_source = False
html_show_sphinx = html_show_copyright = False
# fonts of the system; nothing is loaded from another host
html_theme_options = {"footer_icons": []}

# links to headings, as code hosts make them
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# the pages have comments that tools read, such as <!-- bench:unet -->
myst_enable_checkboxes = False

smartquotes = False
# docstrings are prose in which `x` is code
default_role = "code"
html_static_path = ["_static"]
html_css_files = ["wrap.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 88
autodoc_default_options = {"members": True, "undoc-members": False}
python_use_unqualified_type_names = True

ELSEWHERE = {
    "bench": "bench/README.md",
    "contributing": "CONTRIBUTING.md",
    "demo-model": "weights/demo/README.md",
    "flow-model": "weights/flow/README.md",
    "kernels": "kernels/README.md",
}
"""Page of the site -> the file of the repository that it shows; the page only links there."""

LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def elsewhere(app, docname, source):
    """Shows the files of `ELSEWHERE`, and lets links to them lead to their pages."""
    here = there = (ROOT / "docs" / docname).parent
    if docname in ELSEWHERE:
        path = ROOT / ELSEWHERE[docname]
        source[0], there = path.read_text(encoding="utf-8"), path.parent
    pages = {file: f"docs/{page}.md" for page, file in ELSEWHERE.items()}

    def place(match):
        target = os.path.relpath(there / match[1], ROOT)
        target = pages.get(target, target)
        shown = os.path.relpath(ROOT / target, here)
        # a Markdown file that is no page is offered for download
        is_page = target.startswith("docs/") or not target.endswith(".md")
        return shown if is_page else f"path:{shown}"

    source[0] = LINK.sub(place, source[0])


def as_rst(app, what, name, obj, options, lines):
    """Turns a docstring, which is prose, into reStructuredText.

    A paragraph with columns or an indented one stays as it is written; elsewhere what looks like
    markup and is none, such as *arguments or name_, is taken literally.
    """
    if what == "data" and (module := anyv2v._MODULE_OF.get(name.removeprefix("anyv2v."))):
        # a value has no docstring; that of its definition is in the source alone
        found = ModuleAnalyzer.for_module(module).find_attr_docs()
        lines[:] = found["", name.removeprefix("anyv2v.")]
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines.clear()
    for text in paragraphs:
        is_list = text.lstrip().startswith(("- ", "1. "))
        if not is_list and re.search(r"^ |\S {2,}\S", text, re.MULTILINE):
            text = "::\n\n" + re.sub("^", "    ", text, flags=re.MULTILINE)
        else:
            pieces = re.split(r"(`[^`]*`)", text)
            pieces[::2] = [re.sub(r"([*|\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", x) for x in pieces[::2]]
            for i in range(2, len(pieces), 2):
                # code that a letter follows, as in `Task`s, needs an empty separator
                pieces[i] = "\\ " * pieces[i][:1].isalnum() + pieces[i]
            text = "".join(pieces)
        lines += [*text.split("\n"), ""]


def signature(app, what, name, obj, options, args, returns):
    """Leaves out a signature that says nothing, as that of a Protocol."""
    return ("" if args == "(*args, **kwargs)" else args), returns


def setup(app):
    """Connects what changes pages and docstrings before they are read."""
    app.connect("source-read", elsewhere)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", signature)
