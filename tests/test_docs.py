"""The pages: what they link to and name exists, and each regime has a page with what a reader needs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(page for top in ("docs", "configs", "scripts") for page in (ROOT / top).rglob("*.md"))]
REGIMES = [page for page in PAGES if page.parent.name == "regimes" and page.name != "README.md"]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)]*))?\)")
every_page = pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))


def prose(page):
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Names of the headings of a page, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_files_and_headings_that_a_page_links_to_exist(page):
    for path, anchor in LINK.findall(prose(page)):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@every_page
def test_configurations_and_scripts_that_a_page_names_exist(page):
    for path in re.findall(r"(?<![\w/])((?:configs|scripts)/\w[\w/.]*\w)", page.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", REGIMES, ids=lambda page: page.stem)
def test_a_page_of_a_regime_has_an_example_both_findings_and_a_command_and_is_in_the_table(page):
    text = page.read_text()
    titles = " ".join(re.findall(r"^## (.*)", text, re.MULTILINE)).lower()
    for part in ("example", "found"):
        assert part in titles, part
    assert re.search(r"grok (fit|sweep plan)", text)
    assert "arXiv" in text
    table = (ROOT / "docs/regimes/README.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert any(f"({page.name})" in row for row in rows)
    assert {row.count("|") for row in rows} == {6}  # regime, published, ours, seeds, command
