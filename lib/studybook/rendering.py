"""A Sphinx extension: figures for light and dark pages, no script that asks for a network, buttons to the sources."""

import hashlib
import html
import os
from pathlib import Path
from typing import Any

from studybook import figures

_FROM_ELSEWHERE = ("thebe",)  # scripts and styles that the theme brings along and that load from elsewhere


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    from docutils import nodes

    code = b"".join(Path(module).read_bytes() for module in (__file__, figures.__file__))
    app.add_config_value("studybook_code", hashlib.sha256(code).hexdigest(), "html")  # changed: every page is written
    app.connect("config-inited", _without_answers)
    app.connect("builder-inited", _one_page_as_many)
    app.add_node(nodes.image, override=True, html=(_image, None))
    app.connect("doctree-resolved", _forget_live_code, priority=900)
    app.connect("html-page-context", _page_context, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _without_answers(app: Any, config: Any) -> None:
    if os.environ.get("STUDYBOOK_ANSWERS") == "0":
        config.hide_solutions = True


def _one_page_as_many(app: Any) -> None:
    """The book on one page is written as on many: where one extension names that builder, Sphinx forgets the others."""
    known = app.registry.translation_handlers
    known["singlehtml"] = {**known.get("html", {}), **known.get("singlehtml", {})}


def _image(translator: Any, node: Any) -> None:
    """Figures of notebooks twice, the light one and the dark one, of which the page shows one; else as ever."""
    source = Path(translator.builder.srcdir) / node["uri"]
    if source.suffix != ".svg" or "jupyter_execute" not in node["uri"]:
        type(translator).visit_image(translator, node)
        return
    folder = Path(translator.builder.outdir) / translator.builder.imagedir
    folder.mkdir(parents=True, exist_ok=True)
    figure, alt, links = source.read_text(encoding="utf-8"), html.escape(node.get("alt", "")), []
    width, height = figures.size(figure)
    when = "eager" if translator.builder.name == "singlehtml" else "lazy"  # what was never on a screen is not printed
    for theme in (figures.LIGHT, figures.DARK):
        name = f"{source.stem[:16]}.{theme.name}.svg"
        (folder / name).write_text(figures.themed(figure, theme), encoding="utf-8")
        links.append(
            f'<a class="only-{theme.name}" href="{translator.builder.imgpath}/{name}" title="The figure alone">'
            f'<img class="only-{theme.name}" src="{translator.builder.imgpath}/{name}" alt="{alt}" '
            f'width="{width:g}" height="{height:g}" style="--drawn: {width:g}px" loading="{when}"></a>'
        )
    translator.body.append(f'<div class="figure">{"".join(links)}</div>\n')


def _forget_live_code(app: Any, doctree: Any, docname: str) -> None:
    from docutils import nodes

    for node in list(doctree.findall(nodes.raw)):
        if "x-thebe-config" in node.astext() or "kernelName =" in node.astext():
            node.parent.remove(node)


def _page_context(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _asks_for_a_network(file)]
    for button in context.get("header_buttons", []):
        _open_the_source(button, app.config.html_theme_options.get("path_to_docs", "").strip("/"))


def _asks_for_a_network(file: Any) -> bool:
    words = f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', '')}".lower()
    return any(word in words for word in _FROM_ELSEWHERE)


def _open_the_source(button: dict[str, Any], docs: str) -> None:
    """Launch buttons lead to the notebook that the repository holds, not to the executed copy, which it does not."""
    for inner in button.get("buttons", []):
        _open_the_source(inner, docs)
    if isinstance(url := button.get("url"), str):
        copies = f"{docs}/studies/".lstrip("/")
        for slash in ("/", "%2F", "%252F"):
            url = url.replace(copies.replace("/", slash), f"notebooks{slash}")
        button["url"] = url
