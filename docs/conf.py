"""Settings of the documentation site: `make docs` builds it, and fails on any warning."""

from pact_plugins import __version__

project = "pact-plugins"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True
# Only this package's own names have pages here.
nitpick_ignore_regex = [("py:.*", r"(?!pact_plugins\.).*")]

myst_heading_anchors = 4
highlight_language = "none"

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = project
html_show_copyright = False
pygments_style = "friendly"
