"""How Sphinx builds this folder: markdown by MyST, the reference from the docstrings.

``make docs`` makes an error of every warning, and of every reference that is not found.
"""

project = "expertsteer"
html_title = project
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 3  # headings are linked as on GitHub: page.md#heading
highlight_language = "none"  # formulas, and what programs print, are indented blocks

# `name` in a docstring must be in the reference; ``code`` is only shown as such. The types in
# signatures are code too: links where the reference has them.
default_role = "py:obj"
nitpick_ignore_regex = [("py:class", r"[\w.]+")]

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
maximum_signature_line_length = 100


def in_the_package(app, env, node, shown):
    """Modules name what the whole package offers without its name, as their reader does."""
    if node.get("refdomain") != "py" or node.get("py:module") == project:
        return None
    node["py:module"] = project
    where, kind, name = node["refdoc"], node["reftype"], node["reftarget"]
    return env.domains["py"].resolve_xref(env, where, app.builder, kind, name, node, shown)


def readable(app, what, name, subject, options, signature, returned):
    """Python shows the defaults that a dataclass makes anew as what Sphinx cannot read."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app):
    app.connect("missing-reference", in_the_package)
    app.connect("autodoc-process-signature", readable)
