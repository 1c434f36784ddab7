"""The report in a real browser, from the disk: it draws, sorts, searches, explains its tokens, and asks for nothing."""

import json
import math
import shutil

import pytest

from tutelage.reports.curves import Plot
from tutelage.reports.page import Answer, Cell, Page, Section, Shown, Table, write_page
from tutelage.reports.token_view import Choice, Token

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium with its chromedriver here")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
HOSTILE = "</script><script>document.title='taken'</script><img src=https://example.org/x.png>"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


def tokens(*divergences):
    own, other = Choice(" own", 0.6), Choice(" teacher's", 0.9)
    rest = [Choice(f" r{place}", 0.01) for place in range(4)]
    return [
        Token(f" t{place}", f" t{place}", value, value / 2, min(1.0, value), math.log(0.6), math.log(0.05),
              (own, *rest), (other, *rest))
        for place, value in enumerate(divergences)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    samples = [
        Shown("first prompt", [Answer("Reference", HOSTILE), Answer("Student after", "", tokens(0.0, 0.03))]),
        Shown("second prompt", [Answer("Reference", "long" * 500), Answer("Student after", "", tokens(3.0, 0.1))]),
        Shown("third prompt", [Answer("Reference", "שלום"), Answer("Student after", "", tokens(*[0.3] * 60))]),
    ]
    lines = [{"type": "scatter", "mode": "lines", "name": "loss", "x": [1, 2, 3], "y": [3.0, None, 1.0],
              "line": {"color": "var(--series-1)"}}]  # fmt: skip
    wide = Table([f"column {n}" for n in range(20)], [[Cell(str(n), "(1–2)") for n in range(20)]])
    sections = [
        Section("Curves", plots=[Plot(f"plot {n}", lines) for n in range(14)]),
        Section("Samples", samples=samples, texts=[("config.yaml", "key: " + "value" * 100)]),
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, Page("untouched", "kicker", f"GKD taught {HOSTILE}.", [wide], sections))
    return path


@pytest.fixture
def browser(page, tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def wait(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(f"return {script}"))


def order(browser):
    return [element.get_attribute("data-number") for element in find(browser, ".sample") if element.is_displayed()]


def panel(browser):
    element = find(browser, "#panel")[0]
    return element.text if element.is_displayed() else None


def choose(browser, selector, value):
    from selenium.webdriver.support.ui import Select

    Select(find(browser, selector)[0]).select_by_value(value)


def requests(browser, page):
    """What the page asked for; the browser's own first page asks for things too."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [request["request"]["url"] for request in sent if request["documentURL"] == page.as_uri()]


def test_it_draws_and_neither_complains_nor_asks_for_anything(browser, page):
    wait(browser, "document.querySelectorAll('[data-drawn]').length > 0")
    assert find(browser, ".plot")[-1].get_attribute("data-drawn") is None  # a plot is drawn when it comes into view
    for plot in find(browser, ".plot"):
        browser.execute_script("arguments[0].scrollIntoView()", plot)
    wait(browser, "document.querySelectorAll('[data-drawn]').length === 14")
    assert len(find(browser, ".plot .main-svg .scatterlayer path.js-line")) >= 14
    assert browser.title == "untouched"
    assert find(browser, "img") == []
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser, page) if not url.startswith("data:")] == [page.as_uri()]


def test_samples_are_sorted_and_searched(browser):
    assert order(browser) == ["0", "1", "2"]
    choose(browser, "#order", "high")
    assert order(browser) == ["1", "2", "0"]
    choose(browser, "#order", "low")
    assert order(browser) == ["0", "2", "1"]
    find(browser, "#search")[0].send_keys("SECOND")
    assert order(browser) == ["1"]
    assert find(browser, "#count")[0].text == "1 of 3"


def test_colours_follow_the_measure(browser):
    first = find(browser, "[data-number='1'] .token")[0]
    assert "d5" in first.get_attribute("class")
    choose(browser, "#measure", "forward_kl")
    assert "d4" in first.get_attribute("class")
    assert [box.text for box in find(browser, ".legend .token")][:2] == ["< 0.01", "≥ 0.01"]


def test_a_token_shows_both_top_fives_by_mouse_and_by_keys(browser):
    from selenium.webdriver import ActionChains, Keys

    first, second = find(browser, "[data-number='1'] .token")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", first)
    assert panel(browser) is None
    ActionChains(browser).move_to_element(first).perform()
    for expected in ("␣own", "60.0 %", "␣teacher's", "90.0 %", "reverse KL 3.0", "teacher 5.0 %"):
        assert expected in panel(browser)
    assert len(find(browser, "#panel li")) == 10
    ActionChains(browser).move_to_element(find(browser, "h3")[0]).perform()
    assert panel(browser) is None
    second.click()
    assert "reverse KL 0.10" in panel(browser)
    ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
    assert "reverse KL 3.0" in panel(browser)
    assert browser.switch_to.active_element == first
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert panel(browser) is None
    tab_stops = [t for t in find(browser, "#samples .token") if t.get_attribute("tabindex") == "0"]
    assert len(tab_stops) == 3  # one an answer


def test_the_theme_is_switched_and_remembered_and_plots_follow(browser):
    browser.execute_script("document.querySelector('.plot').scrollIntoView()")
    wait(browser, "document.querySelector('.plot [class*=main-svg]') !== null")
    colour = "getComputedStyle(document.body).backgroundColor"
    curve = "getComputedStyle(document.querySelector('.plot path.js-line')).stroke"
    before = browser.execute_script(f"return [{colour}, {curve}]")
    find(browser, "#theme")[0].click()
    wait(browser, f"{curve} !== '{before[1]}'")
    after = browser.execute_script(f"return {colour}")
    assert after != before[0]
    browser.refresh()
    assert browser.execute_script(f"return {colour}") == after
    assert browser.get_log("browser") == []


def test_a_phone_never_scrolls_sideways_and_a_tap_opens_the_panel(browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.refresh()
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    last = find(browser, "[data-number='2'] .token")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", last)
    last.click()
    box = find(browser, "#panel")[0].rect
    assert panel(browser) is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
