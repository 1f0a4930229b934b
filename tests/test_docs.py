"""The pages under docs/: what they link to and name exists, and each regime has a page with what a reader needs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
REGIMES = [page for page in PAGES if page.parent.name == "regimes" and page.name != "README.md"]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "configs/README.md"], ids=lambda page: page.stem)
def test_files_that_a_page_links_to_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_and_scripts_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"(?<![\w/])((?:configs|scripts)/[\w/]+\.(?:yaml|py|sh))", text):
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
