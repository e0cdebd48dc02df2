"""The report in a real browser: tables sort, figures show values, filter and download, the first
screen has the conclusion, nothing is fetched, nothing complains.
"""

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from analysis.report import writer
from tests.analysis.report.test_report import hostile
from tests.helpers import devtools_browser, synthetic_campaign
from tests.studies import report_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.requires("chromium")]
SVG = "document.querySelector('.first .plot > svg')"
TIP = "document.querySelector('.first .tip:not([hidden])')?.textContent ?? null"
POINTS = f"{SVG}.dataset.points.split('\\n').filter((line) => line[0] !== '=')"
# Where the first point of the first figure is in the window, and the text that belongs to it.
FIRST_POINT = f"""(() => {{
  const svg = {SVG};
  const [head, first] = svg.dataset.points.split('\\n');
  const [x, y, ...text] = first.split(' ');
  const at = new DOMPoint(+x, +y).matrixTransform(svg.getScreenCTM());
  return {{x: at.x, y: at.y, text: head.split(' ').slice(2).join(' ') + ': ' + text.join(' ')}};
}})()"""


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
        "rows without a number stand last"
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
        "[...document.querySelectorAll('.get a')].map((a) => [a.download, a.href.slice(0, 22)])"
    )
    buttons = opened.ask(
        "[...document.querySelectorAll('.get button')].map((b) => [b.dataset.file, b.hidden])"
    )
    figures = opened.ask("document.querySelectorAll('figure').length")
    assert len(links) == len(buttons) == figures > 5
    assert all(name[-3:] == "csv" and href == "data:text/csv;charset=" for name, href in links)
    assert all(name[-3:] == "png" and not hidden for name, hidden in buttons)
    opened.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for kind, link, begin in (
        ("png", "button", b"\x89PNG"),
        ("csv", "a", b"server,engine,users,rate,runs,output_tokens_per_s,"),
    ):
        opened.ask(f"document.querySelector('.get {link}').click()")
        end = time.monotonic() + 30
        while not (found := [f.read_bytes() for f in tmp_path.glob(f"*.{kind}")]) or not found[0]:
            assert time.monotonic() < end, "it was not downloaded"
            time.sleep(0.05)
        assert found[0].startswith(begin)
    (png,) = tmp_path.glob("*.png")
    colours = Image.open(png).convert("RGB").getcolors(2**20) or []
    assert len(colours) > 20, "something is drawn"


def test_the_pointer_shows_the_nearest_value(opened):
    """By mouse and by touch, of the first figure: latency over load."""
    point = opened.ask(FIRST_POINT)
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=point["x"] + 2, y=point["y"] - 2)
    assert opened.ask(TIP) == point["text"]
    assert re.fullmatch(
        r"architecture_\d\d \(\w+\): E2E P\d\d [\d,.]+ ms, .* at 4 users", point["text"]
    )
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert opened.ask(TIP) is None
    opened.ask(
        f"{SVG}.dispatchEvent(new PointerEvent('pointerdown', {{pointerType: 'touch',"
        f" clientX: {point['x']}, clientY: {point['y']}}}))"
    )
    assert opened.ask(TIP) == point["text"]


def test_the_arrow_keys_show_every_value(opened):
    opened.ask(f"{SVG}.focus()")
    number = opened.ask(f"{POINTS}.length")
    texts = []
    for key in ["Home", *["ArrowRight"] * (number - 1)]:
        opened.ask(f"{SVG}.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        texts.append(opened.ask(TIP))
    assert number > 20 and len(set(texts)) == number and None not in texts
    opened.ask(f"{SVG}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Escape'}}))")
    assert opened.ask(TIP) is None
    assert opened.ask(f"{SVG}.getAttribute('tabindex')") == "0"
    assert opened.ask(f"{SVG}.parentElement.hasAttribute('tabindex')") is False


def test_a_table_shows_the_chosen_families(opened):
    visible = (
        "[...document.querySelector('table.sortable').tBodies[0].rows].filter((r) =>"
        " r.getBoundingClientRect().height).map((r) => r.dataset.family)"
    )
    everything = opened.ask(visible)
    assert everything == ["frameworks", "engines"] * 10
    button = "document.querySelector('.filter button')"
    assert opened.ask(f"{button}.textContent") == "engines (10)"
    opened.ask(f"{button}.click()")
    assert opened.ask(visible) == ["engines"] * 10
    assert opened.ask(f"{button}.ariaPressed") == "true"
    opened.ask(f"{button}.click()")
    assert opened.ask(visible) == everything


def test_the_legend_filters_series(opened):
    button = "document.querySelectorAll('.first .legend button')[1]"
    visible = (
        f"[...{SVG}.querySelectorAll('[data-s]')].filter((g) =>"
        " getComputedStyle(g).visibility === 'visible').map((g) => g.dataset.s)"
    )
    everything = opened.ask(visible)
    assert len(set(everything)) > 15 and opened.ask(f"{button}.ariaPressed") == "false"
    opened.ask(f"{button}.click()")
    assert set(opened.ask(visible)) == {"1"} and opened.ask(f"{button}.ariaPressed") == "true"
    opened.ask(f"{SVG}.focus()")
    for key in ("Home", "End"):
        opened.ask(f"{SVG}.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        assert opened.ask(TIP).startswith(opened.ask(f"{button}.textContent").strip())
    opened.ask(f"{button}.click()")
    assert opened.ask(visible) == everything


@pytest.mark.parametrize(("width", "screens"), [(1300, 1), (420, 2)])
def test_the_first_screen_has_all_that_decides(page, large, width, screens):
    """The conclusion, the numbers, the figure and the concerns, in this order."""
    page.events.clear()
    page.open(large, width)
    assert page.ask("document.querySelector('.first').getBoundingClientRect().bottom") <= (
        screens * 800
    )
    order = page.ask("[...document.querySelector('.first').children].map((e) => e.className)")
    assert order == ["answer", "numbers", "", "concerns"]
    assert page.fetched() == [] and page.complaints() == []


def test_the_tables_of_servers_fit_a_desktop(page, large):
    """The deciding numbers above, the others in a folded table below."""
    page.events.clear()
    page.open(large, 1300)
    page.ask("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    boxes = page.ask(
        "[...document.querySelectorAll('.wide:has(table.sortable)')].map((box) =>"
        " [box.ariaLabel, box.scrollWidth - box.clientWidth])"
    )
    assert len(boxes) >= 2 and [box for box in boxes if box[1] > 0] == []


def test_without_a_script_the_page_has_the_same_content(page, large):
    page.events.clear()
    words = {}
    for disabled in (False, True):
        page.call("Emulation.setScriptExecutionDisabled", value=disabled)
        page.open(large)
        words[disabled] = (
            page.ask("document.querySelectorAll('table, .legend:not(.filter), figcaption').length"),
            page.ask("document.querySelector('.first').textContent.replace(/\\s+/g, ' ')"),
        )
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert words[True] == words[False]


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
    shown = page.ask(f"getComputedStyle({SVG}).filter")
    assert shown == ("invert(0.9) hue-rotate(180deg)" if dark else "none")
    assert page.fetched() == [] and page.complaints() == []


def test_print_shows_what_is_folded_and_cuts_nothing_off(page, large):
    page.open(large, dark=True)
    assert page.print().startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="print")
    # A4 without its margins, at 96 dpi.
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
    """The page's own policy would also stop it, with a complaint in the console."""
    page.events.clear()
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.alert = () => { window.attacked = true }",
    )
    page.open(writer.write_report(hostile(tmp_path / "campaign")).campaign.folder / "report.html")
    assert page.ask("window.attacked") is None and page.complaints() == [] and page.fetched() == []


def test_the_driver_would_notice(page, tmp_path):
    """The tests above would notice a request, an exception and a log entry."""
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
