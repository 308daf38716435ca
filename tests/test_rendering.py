"""What the Sphinx extension does to pages, and which buttons `_config.yml` brings."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from studybook import rendering

FIGURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt">'
    '<path d="M 0 0" style="fill: #ffffff; stroke: #000000"/></svg>'
)


def configured():
    """The project's configuration with the marks of comment taken from its repository and launch buttons."""
    text = (ROOT / "_config.yml").read_text()
    lines = r"^( *)# ((?:repository|  url|  path_to_book|  branch|binderhub_url|colab_url|jupyterhub_url):)"
    return re.sub(lines, r"\1\2", text, flags=re.M)


@pytest.fixture(params=["as it is", "configured"])
def built(request, tmp_path):
    """A page of one figure, built with the project's configuration; and whether buttons are configured."""
    book = tmp_path / "book"
    (book / "studies" / "money").mkdir(parents=True)
    shutil.copytree(ROOT / "book" / "_static", book / "_static")
    for name in ("_vendor", "_extra", "_published"):
        (book / name).mkdir()
    shutil.copy(ROOT / "book" / "references.bib", book)
    (book / "intro.md").write_text("# Intro\n")
    (book / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n  - file: studies/money/coins\n")
    cell = new_code_cell("draw()", metadata={"mystnb": {"image": {"alt": "a line"}}})
    cell.outputs = [new_output("display_data", data={"image/svg+xml": FIGURE})]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_markdown_cell("# Coins"), cell], metadata=kernel)
    nbformat.write(notebook, book / "studies" / "money" / "coins.ipynb")
    with_buttons = request.param == "configured"
    (tmp_path / "_config.yml").write_text(configured() if with_buttons else (ROOT / "_config.yml").read_text())
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book", "--path-output", "book"]
    command += ["--config", "_config.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return (book / "_build" / "html" / "studies" / "money" / "coins.html"), with_buttons


@pytest.mark.slow
def test_a_page_has_its_figure_twice_no_live_code_and_only_configured_buttons(built):
    page, with_buttons = built
    text = page.read_text()
    images = re.findall(r'<img class="only-(light|dark)" src="([^"]+)" alt="a line" width="96" height="48"', text)
    assert [theme for theme, _ in images] == ["light", "dark"]
    light, dark = ((page.parent / source).read_text() for _, source in images)
    assert "#ffffff" in light
    assert "#ffffff" not in dark
    assert "thebe" not in text.lower()
    links = re.findall(r'href="(https://(?:mybinder|colab|hub\.)[^"]*)"', text)
    assert len(links) == (3 if with_buttons else 0)
    assert all("notebooks" in link and "studies" not in link and "coins.ipynb" in link for link in links)
    assert ("github.com/OWNER" in text) == with_buttons


def test_launch_buttons_lead_to_the_sources():
    button = {"buttons": [{"url": "https://hub/v2/gh/o/r/main?urlpath=lab/tree/book/studies/money/coins.ipynb"}, {}]}
    rendering._open_the_source(button, "book")
    assert button["buttons"][0]["url"].endswith("lab/tree/notebooks/money/coins.ipynb")
    quoted = {"url": "https://hub/git-pull?urlpath=lab%2Ftree%2Fr%2Fbook%2Fstudies%2Fmoney%2Fcoins.ipynb"}
    rendering._open_the_source(quoted, "book")
    assert quoted["url"].endswith("r%2Fnotebooks%2Fmoney%2Fcoins.ipynb")
