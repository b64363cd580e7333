"""Sphinx settings; `tox -e docs` builds the pages."""

import importlib.metadata

project = "hatbus"
author = "The hatbus authors"
release = importlib.metadata.version("hatbus")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["examples"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"hatbus {release}"
html_show_copyright = False
html_show_sphinx = False
