"""The report in a real browser: tables sort, figures download, nothing is fetched, nothing
complains.
"""

import re
import time
from pathlib import Path

import pytest

from analysis.report import writer
from tests.analysis.report.test_report import hostile
from tests.helpers import devtools_browser, synthetic_campaign
from tests.studies import report_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.requires("chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with devtools_browser.page(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    folder = report_benchmark.campaign(
        tmp_path_factory.mktemp("results") / "large", 6000, 4, loads=(4, 16)
    )
    return writer.write_report(folder).campaign.folder / "report.html"


@pytest.fixture
def opened(page, large):
    page.events.clear()
    page.open(large)
    yield page
    assert page.fetched() == [] and page.complaints() == []


def column(page, number):
    return page.ask(
        "[...document.querySelector('table.sortable').tBodies[0].rows].map((r) =>"
        f" r.cells[{number}]?.dataset.value ?? null)"
    )


def test_a_table_sorts_by_mouse_and_by_keyboard(opened):
    heads = opened.ask(
        "[...document.querySelector('table.sortable').tHead.rows[0].cells].map((c) =>"
        " c.textContent)"
    )
    p99 = next(i for i, head in enumerate(heads) if head.startswith("E2E P99"))
    head = f"document.querySelector('table.sortable').tHead.rows[0].cells[{p99}]"
    opened.ask(f"{head}.querySelector('button').click()")
    up = column(opened, p99)
    numbers = [float(v) for v in up if v]
    assert opened.ask(f"{head}.getAttribute('aria-sort')") == "ascending" and len(set(numbers)) > 3
    assert numbers == sorted(numbers) and up[: len(numbers)] == [v for v in up if v], (
        "what has no number stands last"
    )
    assert len(numbers) < len(up), "some have none"
    opened.ask(f"{head}.querySelector('button').focus()")
    for kind in ("rawKeyDown", "char", "keyUp"):
        text = "\r" if kind == "char" else ""
        opened.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            windowsVirtualKeyCode=13,
            text=text,
        )
    down = column(opened, p99)
    assert opened.ask(f"{head}.getAttribute('aria-sort')") == "descending"
    assert [float(v) for v in down if v] == sorted(numbers, reverse=True) and down[
        : len(numbers)
    ] == [v for v in down if v]
    opened.ask(
        "document.querySelector('table.sortable').tHead.rows[0].cells[0].querySelector('button').click()"
    )
    names = opened.ask(
        "[...document.querySelector('table.sortable').tBodies[0].rows].map((r) =>"
        " r.cells[0].textContent)"
    )
    assert names == sorted(names) and opened.ask(f"{head}.hasAttribute('aria-sort')") is False


def test_figures_download(opened, tmp_path):
    links = opened.ask(
        "[...document.querySelectorAll('.get a')].map((a) => [a.download, a.href.slice(0, 22),"
        " a.hidden])"
    )
    figures = opened.ask("document.querySelectorAll('figure').length")
    assert len(links) == 2 * figures > 10
    begins = {"png": "data:image/png;base64,", "csv": "data:text/csv;charset="}
    assert all(href == begins[name[-3:]] and not hidden for name, href, hidden in links)
    opened.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for kind, begin in (
        ("png", b"\x89PNG"),
        ("csv", b"server,engine,users,rate,runs,output_tokens_per_s,"),
    ):
        opened.ask(f"document.querySelector('.get a[download$={kind}]').click()")
        end = time.monotonic() + 30
        while not (found := [f.read_bytes() for f in tmp_path.glob(f"*.{kind}")]) or not found[0]:
            assert time.monotonic() < end, "it was not downloaded"
            time.sleep(0.05)
        assert found[0].startswith(begin)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [devtools_browser.DESKTOP, devtools_browser.PHONE])
def test_no_page_is_wider_than_its_screen_and_its_text_can_be_read(page, large, width, dark):
    page.events.clear()
    page.open(large, width, dark)
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(
        "[...document.querySelectorAll('nav a')].every((a) =>"
        " document.getElementById(a.hash.slice(1)))"
    )
    text, back = (
        page.ask(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (text, back)]
    assert (light[0] > light[1]) == dark and abs(light[0] - light[1]) > 500
    shown = page.ask("getComputedStyle(document.querySelector('figure img')).filter")
    assert shown == ("invert(0.9) hue-rotate(180deg)" if dark else "none")
    assert page.fetched() == [] and page.complaints() == []


def test_print_shows_what_is_folded_and_cuts_nothing_off(page, large):
    page.open(large, dark=True)
    assert page.print().startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="print")
    # A4 less its margins, at 96 dpi
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=1032,
        height=730,
        deviceScaleFactor=1,
        mobile=False,
    )
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.ask("dispatchEvent(new Event('beforeprint'))")
    assert page.ask("document.querySelectorAll('details:not([open])').length") == 0
    assert (
        page.ask(
            "Math.max(...[...document.querySelectorAll('table')].map((t) =>"
            " t.getBoundingClientRect().right))"
        )
        <= 1032
    )
    page.ask("dispatchEvent(new Event('afterprint'))")
    assert page.ask("document.querySelectorAll('details:not([open])').length") > 0
    page.call("Emulation.setEmulatedMedia", media="")


def test_markup_in_names_stays_text(page, tmp_path):
    """The page's own policy would stop it, too: then it would complain."""
    page.events.clear()
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.alert = () => { window.attacked = true }",
    )
    page.open(writer.write_report(hostile(tmp_path / "campaign")).campaign.folder / "report.html")
    assert page.ask("window.attacked") is None and page.complaints() == [] and page.fetched() == []


def test_the_driver_would_notice(page, tmp_path):
    """What the tests above hold against the page is seen where it is."""
    file = tmp_path / "bad.html"
    file.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); throw new"
        " Error('bad')</script>"
    )
    page.events.clear()
    page.open(file)
    assert page.fetched() == ["http://127.0.0.1:9/x.png"] and len(page.complaints()) >= 2


def test_a_campaign_without_a_number_opens(page, tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    synthetic_campaign.schema.write_json(
        folder / "campaign.json",
        synthetic_campaign.campaign_data([synthetic_campaign.run()["case"]]),
    )
    page.events.clear()
    page.open(writer.write_report(folder).campaign.folder / "report.html")
    assert page.ask("document.querySelectorAll('figure').length") == 0 and page.complaints() == []
