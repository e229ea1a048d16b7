"Sphinx settings of the site; `make docs`."
project = html_title = "kdda"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]  # MathJax lies in the site
myst_enable_extensions = ["attrs_block", "dollarmath"]
myst_heading_anchors = 2
myst_heading_slug_func = "builtins.str"  # `Row` and `row` are two anchors
smartquotes = False
html_theme = "furo"
html_favicon = "icon.svg"
pygments_dark_style = "github-dark"
html_static_path = html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = html_use_index = False
road = {"light": "#804080", "dark": "#c99ac9"}  # the colour of roads in the label images
html_theme_options = {f"{mode}_css_variables": {
    "color-brand-primary": colour, "color-brand-content": colour, "color-brand-visited": colour,
    "color-sidebar-link-text--top-level": "var(--color-sidebar-link-text)"} for mode, colour in road.items()}

