"""How Sphinx builds these pages: ``make docs``."""

project = "django_sse"
copyright = "the django_sse contributors"  # noqa: A001
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
# Links to headings, as on GitHub: [stores](stores-and-processes.md#stores).
myst_heading_anchors = 3
myst_enable_extensions = ["tasklist"]
# A link that leads nowhere is a warning, and `make docs` makes warnings errors.
nitpicky = True
html_theme = "furo"
html_title = "django_sse"
