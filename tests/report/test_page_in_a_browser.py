"""The page in a real browser: the slider changes the grid, tables sort, nothing is asked of a network."""

import pytest
from browser import browser, complaints, opened
from test_page import SHORT, WATCHED, comparison_like

from grok.report.page.command import write_report

pytestmark = pytest.mark.browser


@pytest.fixture
def page(grok, tiny_config, tmp_path):
    run = tmp_path / "run"
    assert grok("fit", "--config", tiny_config, "--run_dir", run, *SHORT, *WATCHED)[0] == 0
    assert grok("report", run)[0] == 0
    return run / "report.html"


def cells(chrome):
    return [cell.text for cell in chrome.find_elements("css selector", ".cell")]


def test_the_slider_the_queries_and_the_tables_do_what_they_say(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    with browser() as chrome:
        opened(chrome, page)
        assert len(chrome.find_elements("css selector", ".chart .main-svg")) >= 4
        slider = chrome.find_element("css selector", ".explorer input[type=range]")
        last, label = cells(chrome), chrome.find_element("css selector", ".explorer output")
        assert label.text == "step 30"
        slider.send_keys(Keys.ARROW_LEFT)
        assert label.text == "step 15"
        assert cells(chrome) != last

        Select(chrome.find_elements("css selector", ".explorer select")[0]).select_by_index(1)
        one = cells(chrome)
        assert any("bridge" in cell for cell in one)
        cell = chrome.find_elements("css selector", ".cell")[0]
        chrome.execute_script("arguments[0].focus()", cell)
        assert "chosen" in cell.get_attribute("class")
        head = chrome.find_element("css selector", ".heads table")
        shares = [float(td.text) for td in head.find_elements("css selector", "td")]
        assert sum(shares) == pytest.approx(1, abs=0.03)

        table = chrome.find_element("css selector", "table.sortable")
        button = table.find_elements("css selector", "th button")[3]  # queries in each split
        chrome.execute_script("arguments[0].focus()", button)
        button.send_keys(Keys.ENTER)
        sizes = [
            int(row.find_elements("css selector", "td")[3].text)
            for row in table.find_elements("css selector", "tbody tr")
        ]
        assert sizes == sorted(sizes)
        button.send_keys(Keys.ENTER)
        again = [
            int(row.find_elements("css selector", "td")[3].text)
            for row in table.find_elements("css selector", "tbody tr")
        ]
        assert again == sizes[::-1]
        button = table.find_elements("css selector", "th button")[6]  # 99 % at, which few splits have reached
        for _ in ("up", "down"):
            button.click()
            told = [
                row.find_elements("css selector", "td")[6].text
                for row in table.find_elements("css selector", "tbody tr")
            ]
            reached = [one != "–" for one in told]
            assert reached == sorted(reached, reverse=True), told
        assert complaints(chrome) == []


def test_sixty_checkpoints_of_a_hundred_queries_are_drawn_in_less_than_a_frame_each(tmp_path):
    """Timed inside the page, generously: 100 ms a step would still be a moving picture."""
    import base64

    from grok.report.page.build import html_page

    steps, queries, states, positions = 60, 100, 9, 5
    shape = [steps, queries, states, positions, 1]
    packed = base64.b64encode(bytes(2 * steps * queries * states * positions)).decode()
    keys = ("values", "floors", "low", "high")
    measure = {"name": "lens/mrr/answer", "title": "answer", "n": 100, "rows": [f"S[{i}]" for i in range(states)],
               "columns": [f"p{i}" for i in range(positions)]}  # fmt: skip
    table = [[[0.5] * positions for _ in range(states)] for _ in range(steps)]
    named = {
        "rows": measure["rows"],
        "columns": measure["columns"],
        "of": list(range(steps)),
        "steps": list(range(steps)),
    }
    told = {
        "split": "test", "steps": list(range(steps)), "states": measure["rows"], "count": queries,
        "positions": measure["columns"], "measures": [measure | dict.fromkeys(keys, table)],
        "queries": [[i] * positions for i in range(queries)], "columns": ["answer"], "truth": {}, "tokens": [],
        "arrays": {"lens/answer/rank": named | {"shape": shape, "type": "uint16", "data": packed}},
    }  # fmt: skip
    (tmp_path / "page.html").write_text(html_page("# big\n\n{{explorer:test}}\n", explorers=[told]))
    with browser(dark=True) as chrome:
        opened(chrome, tmp_path / "page.html")
        mean = chrome.execute_script(
            "const e = window.grokExplorers[0]; e.query.value = 3; const began = performance.now();"
            "for (let s = 0; s < 60; s++) { e.slider.value = s; e.draw(); } return (performance.now() - began) / 60;"
        )
        assert mean < 100
        assert complaints(chrome) == []


def test_a_cell_shows_what_was_found_there_and_at_that_step(tmp_path):
    from selenium.webdriver.support.ui import Select

    page, _ = write_report([comparison_like(tmp_path).directory])
    with browser() as chrome:
        opened(chrome, page)
        Select(chrome.find_elements("css selector", ".explorer select")[0]).select_by_index(1)
        assert not any("decide" in cell for cell in cells(chrome))  # step 20: tracing was made at 10 only
        assert "at step 10" in chrome.find_element("css selector", ".heads").text
        chrome.execute_script("const e = window.grokExplorers[0]; e.slider.value = 1; e.draw();")
        s1, s0 = cells(chrome)[:3], cells(chrome)[3:]  # a, q, e1; the last state first
        assert ["decides the answer" in cell for cell in s0] == [False, False, True]
        assert ["does not decide" in cell for cell in s1] == [True, False, True]
        assert "0.25\n" in chrome.find_element("css selector", ".heads").text.replace(" ", "\n")
        chrome.execute_script("arguments[0].focus()", chrome.find_elements("css selector", ".cell")[3])
        assert "no head" in chrome.find_element("css selector", ".heads").text
        assert complaints(chrome) == []
