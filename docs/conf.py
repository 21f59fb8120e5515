"""How Sphinx makes the documentation site: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from formulas import add_renderer, set_formulas

from jaxnorm import __version__

project = "jaxnorm"
author = project_copyright = "the jaxnorm authors"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build", "render.py"]
html_math_renderer = "mathml"
html_theme = "furo"  # search, a dark mode, and pages that fit a phone
html_title = f"jaxnorm {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_custom_sections = [("Paper", "returns_style"), ("Papers", "returns_style")]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
suppress_warnings = ["myst.strikethrough"]


def setup(app):
    add_renderer(app)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", set_formulas, priority=100)
