"""The documentation as a site: it builds strictly, no link is broken, nothing is asked of other hosts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from chromium import browser  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]
BASE = "https://site.example/"
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
LOOKED_AT = ("", "tutorial/", "howto/notebook/", "results/reference/claims/trace/", "reference/python/",
             "workloads/", "deploy/")  # fmt: skip

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Links, what is loaded, and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        told_only = tag == "link" and found.get("rel") in {"canonical", "next", "prev"}
        if tag in LOADING and found.get(LOADING[tag]) and not told_only:
            self.loaded.append(found[LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if path.name != "404.html"  # its links are absolute
    }


def test_no_link_is_broken(site, pages):
    """Every link inside the site leads to a file of it, and to an anchor that the page has."""
    assert len(pages) > 50
    broken = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            target = urlsplit(urljoin(BASE + name, link))
            if target.netloc != urlsplit(BASE).netloc:
                continue
            path = unquote(target.path).lstrip("/")
            path = path + "index.html" if not path or path.endswith("/") else path
            anchor = unquote(target.fragment)
            if not (site / path).is_file() or (
                anchor and path in pages and anchor not in pages[path].anchors
            ):
                broken.append((name, link))
    assert not broken


def test_nothing_is_loaded_from_elsewhere(pages):
    """No script, style, font or picture comes from another host."""
    elsewhere = {link for page in pages.values() for link in page.loaded if "//" in link}
    assert not elsewhere


def test_repository_links_name_files(pages):
    """Links to the sources name what is in the repository."""
    prefix = "https://github.com/marsbench/marsbench/"
    found = {link for page in pages.values() for link in page.links if link.startswith(prefix)}
    paths = {link.removeprefix(prefix).split("/main/", 1)[-1].partition("#")[0] for link in found}
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_reference_is_made_from_the_code(site):
    """Each command, metric, system and protocol has its place."""
    from marsbench.cli import COMMANDS
    from marsbench.cli.catalogue import catalogue

    commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f'id="marsbench-{name}"' not in commands]
    names = (site / "reference/names/index.html").read_text(encoding="utf-8")
    listed = [*catalogue("metrics"), *catalogue("systems"), *catalogue("importers")]
    assert not [name for name in listed if f"<code>{name}</code>" not in names]
    policies = (site / "reference/policies/index.html").read_text(encoding="utf-8")
    for protocol in (
        "SchedulingPolicy",
        "RetentionPolicy",
        "AdmissionPolicy",
        "ToolDispatchPolicy",
    ):
        assert f'id="marsbench.{"scheduler" if protocol[0] in "SR" else "admission"}.base.{protocol}"' in policies  # fmt: skip


@pytest.mark.browser
def test_it_works_in_a_browser(site, browser):  # noqa: F811 - the fixture
    """The console is silent, search finds a word, dark differs from light, and no page scrolls sideways
    on a phone.
    """
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        browser.get(url)
        browser.find_element(By.CSS_SELECTOR, ".md-search__input").click()
        browser.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys("goodput")
        WebDriverWait(browser, 120).until(
            lambda b: b.find_elements(By.CSS_SELECTOR, ".md-search-result__item")
        )
        papers = {}
        for scheme in ("light", "dark"):
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
                "features": [{"name": "prefers-color-scheme", "value": scheme}]})  # fmt: skip
            browser.get(url)
            papers[scheme] = browser.execute_script(
                "return getComputedStyle(document.body).backgroundColor"
            )
        assert papers["light"] != papers["dark"]
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True})  # fmt: skip
        for page in LOOKED_AT:
            browser.get(url + page)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 400, (
                page
            )
            loaded = "return [...document.images].every((i) => i.complete && i.naturalWidth > 0)"
            WebDriverWait(browser, 60).until(lambda b: b.execute_script(loaded))  # noqa: B023
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
