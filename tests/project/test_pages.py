"""Pages, README and rendered notebooks: links lead somewhere, nothing is left out, nothing is out of date."""

import pathlib
import re

import pytest

import jaxnorm as jn
from jaxnorm import _functional

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("notebooks/*.md"), *DOCS.glob("reference/*.md")]


def prose(page):
    """A page without its code."""
    return re.sub(r"^```.*?^```$|``.+?``|`[^`\n]+`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Those of its headings, as repositories and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    included = re.search(r"\{include\} (\S+)", page.read_text())
    if included:
        return anchors(page.parent / included[1])
    slug = lambda heading: re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
    return {slug(re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading)) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_the_readme_lists_all_functions():
    listed = (ROOT / "README.md").read_text().split("## All functions")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", listed))
    functions = {name for name in jn.__all__ if name.islower() and callable(getattr(jn, name))}
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`.*?) \|", listed, re.M))))
    assert rows == functions
    assert {name for name in _functional.__all__ if hasattr(jn, name)} <= named
    norms = {name for name in jn.__all__ if name.endswith(("Norm", "Renorm")) or "EvoNorm" in name} - {"FrozenNorm"}
    assert norms <= named


def test_the_readme_is_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) < 130


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_rendered_notebooks_are_current(notebook):
    """What `make rendered` made of it has its cells, in order, no others, and its pictures."""
    cells = re.split(r"^# %%.*\n", notebook.read_text(), flags=re.MULTILINE)[1:]
    kinds = re.findall(r"^# %%(.*)$", notebook.read_text(), flags=re.MULTILINE)
    rendered = DOCS / "notebooks" / f"{notebook.stem}.md"
    text, place = rendered.read_text(), 0
    for kind, cell in zip(kinds, cells, strict=True):
        if "[markdown]" in kind:
            want = re.sub(r"^# ?", "", cell.strip(), flags=re.MULTILINE)
        else:
            want = f"```python\n{cell.strip()}\n```"
        assert want in text[place:], want
        place = text.index(want, place) + len(want)
    code = [cell.strip() for kind, cell in zip(kinds, cells, strict=True) if "[markdown]" not in kind]
    assert re.findall(r"^```python\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE) == code
    assert {page.stem for page in rendered.parent.glob("*.md")} == {source.stem for source in NOTEBOOKS}
    pictures = list((rendered.parent / notebook.stem).iterdir())
    assert len(pictures) == sum("plt.show()" in cell for cell in cells)
    assert sum(picture.stat().st_size for picture in pictures) < 2**20


def test_every_page_is_on_the_site():
    listed = (DOCS / "index.md").read_text().split("{toctree}", 1)[1]
    for page in PAGES:
        if page.is_relative_to(DOCS) and page.name != "index.md":
            assert str(page.relative_to(DOCS).with_suffix("")) in listed, page


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    (date,) = re.findall(rf"^## {jn.__version__} \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert f"\nversion: {jn.__version__}\ndate-released: {date}\n" in citation
