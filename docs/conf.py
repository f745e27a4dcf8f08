"""Sphinx configuration: ``make docs`` writes the site to docs/_build/html."""

from importlib import metadata

from docutils import nodes

project = "sb3-wng"
author = "sb3-wng contributors"
copyright = author
release = version = metadata.version("sb3-wng")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # parameters are described in the docstrings; signatures of fifty arguments stay readable
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports = ["pybullet_envs_gymnasium"]


def skip_member(app, what, name, obj, skip, options):
    """Fields of named tuples: the signature has them, and Python's "Alias for field number" says no more."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def enlargeable(app, doctree):
    """Sphinx links an image that has a width to its file."""
    for image in doctree.findall(nodes.image):
        image["width"] = "100%"


def setup(app):
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", enlargeable)


html_theme = "furo"
html_title = "sb3-wng"
html_theme_options = {"source_edit_link": "", "navigation_with_keys": True}
html_copy_source = False
