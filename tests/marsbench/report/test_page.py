"""report.html: what it says, that it asks the network for nothing, and that it works in a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pytest
from chromium import browser  # noqa: F401 - a fixture

from marsbench.report.data import load_runs
from marsbench.report.page.render import best_of, table_rows
from marsbench.report.page.verdict import verdict
from marsbench.report.table import COLUMNS, report_rows
from marsbench.report.write import write_report

MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def run(make_run):
    factors = {"vllm": 3.0, "mars": 1.0, "mine": 2.0}
    path = make_run(factors, loads=(0.3, 0.9), seeds=(0, 1, 2), num_sessions=8, run_id="run-42")
    (path / "config.yaml").write_text("workload: [swe]\nsystem: [vllm, mars]\n")
    about = {
        "git": {"sha": "0123abc", "dirty": True}, "python": "3.11.7", "seeds": [0, 1, 2],
        "versions": {"marsbench": "0.1.0", "vllm": None}, "host": {"system": "Linux", "cores": 2},
        "command": ["marsbench", "run", "-w", "my trace.jsonl"],
        "input_sha256": {"/data/my trace.jsonl": "ff00"},
        "capacity": [{"workload": "swe", "profile": "h100", "tool_cores": 16,
                      "sessions_per_s": 0.5, "active": 8, "curve": []}],
    }  # fmt: skip
    (path / "environment.json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="module")
def text(run):
    return write_report([run]).html.read_text(encoding="utf-8")


def unpacked(text, name):
    """What the page's script unpacks."""
    packed = re.search(rf'id="{name}">([^<]*)<', text).group(1)
    return gzip.decompress(base64.b64decode(packed)).decode()


def test_one_file_that_asks_for_nothing(text):
    """The page loads no script, style, font or picture from anywhere, and is small enough to send."""
    assert not re.search(r"""(src|href)\s*=\s*['"]?(https?:)?//""", text)
    assert "@import" not in text
    assert len(text.encode()) < MOST_BYTES
    assert "Plotly" in unpacked(text, "plotly")[:400_000]


def test_it_says_where_it_comes_from(text):
    """Command, commit with local changes, versions, inputs, what load 1.0 is, and how to run it again."""
    for fact in (
        "marsbench run -w &#39;my trace.jsonl&#39;", "0123abc with local changes", "ff00", "0.1.0",
        "1800.0 sessions/h", "system: [vllm, mars]", "marsbench run config.yaml",
    ):  # fmt: skip
        assert fact in text, fact
    assert "version of vllm" not in text  # not installed


def test_best_values_are_marked_whoever_has_them(run):
    """The lowest latency and the highest goodput of each load are marked, ties all, and no column whose
    values are equal or that has no better side.
    """
    data = load_runs([run])
    rows = report_rows(data)
    best = best_of(rows)
    for load in (0.3, 0.9):
        here = [k for k, row in enumerate(rows) if row["load"] == load]
        lowest = min(here, key=lambda k: rows[k]["session_latency_s.mean"])
        marked = [k for k in here if (k, "session_latency_s.mean") in best]
        assert marked == [lowest]
        assert rows[lowest]["system"] == "mars"
        assert not [k for k in here if (k, "failed") in best or (k, "arrived") in best]
    swapped = [{**row, "system": {"mars": "vllm", "vllm": "mars"}.get(row["system"], row["system"])}
               for row in rows]  # fmt: skip
    assert best_of(swapped) == best
    shown = table_rows(data)[0]
    assert shown["system"] == "vllm"  # the order of the run
    assert len(shown["cells"]) == len(COLUMNS)


def test_the_verdict_names_the_best_and_the_unstable(run):
    """In words: who has the lowest latency where, whose queue grows, and each system's paired ratio."""
    data = load_runs([run])
    found = verdict(data)
    assert found.summary == ["mars has the lowest mean session latency at load 0.3 and load 0.9."]
    assert [place for place, _ in found.by_load] == ["at load 0.3", "at load 0.9"]
    assert any(text.startswith("mars is ") for text in found.by_load[0][1])
    data.cells.loc[(data.cells["system"] == "vllm") & (data.cells["load"] == 0.9), "unstable"] = 1
    found = verdict(data)
    assert found.summary[1].startswith("vllm is unstable at load 0.9: its queue grows")
    assert all("vllm unstable at load 0.9" in text for text in found.by_load[1][1])


def test_lanes_hold_every_turn_of_the_sessions_they_show(run, text):
    """A lane's pieces add up to the session's latency, in tenths of a second, under every system."""
    (lanes,) = json.loads(unpacked(text, "content"))["lanes"].values()
    data = load_runs([run])
    sessions = data.at(0.9).only(seed=0).sessions()
    assert set(lanes["systems"]) == {"vllm", "mars", "mine"}
    for row in sessions[sessions["system"] == "vllm"].itertuples():
        turns = lanes["systems"]["vllm"][lanes["sessions"].index(row.session_id)]
        assert len(turns) == 3
        assert sum(sum(turn[1:]) for turn in turns) / 10 == pytest.approx(row.latency_s, abs=1.5)


@pytest.mark.browser
@pytest.mark.slow
def test_it_works_in_a_browser(run, text, browser):  # noqa: F811 - the fixture
    """Opened from disk without a network: every figure is drawn, the console is silent, the table sorts
    and filters by keyboard and pointer, a legend hides a system, the theme changes, a session opens
    turn by turn, and a phone sees no sideways scrolling.
    """
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    browser.get((run / "report.html").as_uri() + "#all")
    WebDriverWait(browser, 120).until(
        lambda b: b.execute_script(
            "return document.documentElement.dataset.ready === 'yes' &&"
            " [...document.querySelectorAll('.chart')].every((c) => c.querySelector('.main-svg')) &&"
            " document.querySelector('.detail .main-svg') !== null"
        )
    )

    def shown():
        rows = browser.find_elements(By.CSS_SELECTOR, ".results tbody tr")
        return [row.get_attribute("data-system") for row in rows if row.is_displayed()]

    assert shown() == ["vllm", "mars", "mine"] * 2
    heading = browser.find_elements(By.CSS_SELECTOR, ".results thead button")[2]
    heading.send_keys(Keys.ENTER)
    assert shown()[0] == "mars"
    assert heading.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    heading.click()
    assert shown()[0] == "vllm"
    browser.find_element(By.NAME, "text").send_keys("mine")
    assert shown() == ["mine", "mine"]
    Select(browser.find_element(By.NAME, "place")).select_by_visible_text("load 0.9")
    WebDriverWait(browser, 30).until(lambda _: shown() == ["mine"])
    assert browser.find_element(By.NAME, "count").text == "1 of 6 rows"

    chart = browser.find_element(By.CSS_SELECTOR, "#latency_vs_load-0 .chart")
    button = chart.find_element(By.XPATH, ".//button[contains(., 'vllm')]")
    browser.execute_script("arguments[0].click()", button)
    hidden = "return document.querySelector('#latency_vs_load-0 .panel').data.find((t) => t.name === 'vllm').visible"
    assert browser.execute_script(hidden) is False

    paper = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(paper)
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(paper) != before

    lanes = browser.find_element(By.CSS_SELECTOR, ".lanes")
    Select(lanes.find_element(By.NAME, "session")).select_by_index(3)
    caption = lanes.find_element(By.CSS_SELECTOR, ".turns caption").get_attribute("textContent")
    assert caption == "turns of session 4 under vllm, seconds"
    assert len(lanes.find_elements(By.CSS_SELECTOR, ".turns tbody tr")) == 3

    browser.set_window_size(500, 900)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.documentElement.scrollWidth <= 400")
    )
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
