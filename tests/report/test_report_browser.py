"""The page in a real browser: sorts, filters, draws, says nothing on the console and fetches nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from egobench.report.command import report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no chromium and chromedriver here (apt-get install chromium chromium-driver)", allow_module_level=True)
pytest.importorskip("selenium", reason="pip install selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(mixed_sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    report("mixed", runs=mixed_sweep.parent, out=folder, formats=["html"])
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get((folder / "mixed" / "report.html").as_uri())
        drawn = "return document.documentElement.dataset.charts === 'drawn'"
        WebDriverWait(driver, 90).until(lambda one: one.execute_script(drawn))
        yield driver
    finally:
        driver.quit()


def shown(browser: Any, column: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].dataset.value)"
    )
    return list(browser.execute_script(script, column))


def test_charts_are_drawn(browser: Any) -> None:
    for name in ("pareto", "effects", "split", "kernels", "memory", "loss", "accuracy", "usage"):
        script = "return document.querySelectorAll(`#chart-${arguments[0]} svg path`).length"
        assert browser.execute_script(script, name) > 5, name
        assert browser.find_element(By.CSS_SELECTOR, f"#chart-{name} svg").get_attribute("aria-label")


def test_sorting_by_number_and_back(browser: Any) -> None:
    head = browser.find_elements(By.CSS_SELECTOR, "#cells thead th")[6]
    button = head.find_element(By.TAG_NAME, "button")
    assert "Throughput" in button.text
    button.send_keys(Keys.ENTER)  # by keyboard
    values = shown(browser, 6)
    numbers = [float(value) for value in values if value]
    assert head.get_attribute("aria-sort") == "descending" and numbers == sorted(numbers, reverse=True)
    assert len(values) == 48 and len(numbers) == 34 and not any(values[34:])  # no number: last
    button.click()
    numbers = [float(value) for value in shown(browser, 6) if value]
    assert head.get_attribute("aria-sort") == "ascending" and numbers == sorted(numbers)


def test_filter_box_selects_and_count(browser: Any) -> None:
    count, box = browser.find_element(By.ID, "count"), browser.find_element(By.ID, "filter")
    assert count.text == "48 of 48 cells"
    box.send_keys("EAGER bf16")
    assert count.text == "8 of 48 cells" and set(shown(browser, 1)) == {"eager"} and set(shown(browser, 0)) == {"bf16"}
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-column='5']")).select_by_visible_text("hang")
    assert count.text == "4 of 48 cells"
    browser.find_element(By.ID, "reset").click()
    assert count.text == "48 of 48 cells" and len(shown(browser, 0)) == 48


def test_no_script_from_data_ran_and_nothing_spills(browser: Any) -> None:
    page = browser.find_element(By.TAG_NAME, "body").text
    assert "<script>alert(1)</script>" in page  # shown as text
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]


def test_console_is_clean_and_network_silent(browser: Any) -> None:
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file:", "data:", "chrome:"))] == []
    assert any(url.startswith("file:") for url in urls)
