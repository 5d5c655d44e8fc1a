"""The variants of a sweep in a real browser: lineage, verdicts, losses by category, sorting, in two widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from synthetic_variants import CATEGORIES, write_variants
from test_report_browser import CHROMIUM, DRIVER, FLAGS, By, Options, Service, WebDriverWait, webdriver

from egobench.report.command import report

WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("variants")
    report(str(write_variants(folder / "runs", "small")), out=folder, formats=["html"])
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get((folder / "small" / "report.html").as_uri())
        WebDriverWait(driver, 90).until(lambda one: one.execute_script("return document.readyState === 'complete'"))
        yield driver
    finally:
        driver.quit()


def names(browser: Any, table: str = "kept") -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(r => r.cells[0].innerText.trim())"
    return list(browser.execute_script(script, f"#variants-{table} > tbody > tr:first-child"))


def row(browser: Any, name: str) -> Any:
    return next(one for one in browser.find_elements(By.CSS_SELECTOR, "#variants-kept > tbody") if name in one.text)


def test_lineage_and_verdicts_are_seen(browser: Any) -> None:
    in_order = ["torch", "small", "student > lossy", "wrong", "orphan"]
    assert names(browser) == names(browser, "speed") == in_order
    assert row(browser, "small").find_elements(By.CSS_SELECTOR, ".mark.yes")
    lossy = row(browser, "student > lossy")
    assert lossy.find_elements(By.CSS_SELECTOR, ".mark.no")
    assert "misses F1 not inferior by 2 points" in lossy.text
    assert "its outputs are not its model" in row(browser, "wrong").text
    assert "which ended as crash" in row(browser, "orphan").text


def test_what_was_lost_unfolds_by_category(browser: Any) -> None:
    lossy = row(browser, "student > lossy")
    details = lossy.find_element(By.TAG_NAME, "details")
    lines = details.find_elements(By.CSS_SELECTOR, "table.categories tbody tr")
    assert [one.is_displayed() for one in lines] == [False] * len(CATEGORIES)
    details.find_element(By.TAG_NAME, "summary").click()
    assert all(one.is_displayed() for one in lines)
    worse = [one.text.split()[0] for one in lines if one.find_elements(By.CSS_SELECTOR, "td.worse")]
    assert worse == ["counting"] and "~" not in lines[1].text and lines[0].text.count("~") == 2
    details.find_element(By.TAG_NAME, "summary").click()


def test_sorting_keeps_a_variant_and_its_categories_together(browser: Any) -> None:
    heads = browser.find_elements(By.CSS_SELECTOR, "#variants-kept > thead th")
    index = next(at for at, head in enumerate(heads) if "EM (points)" in head.text)
    button = heads[index].find_element(By.TAG_NAME, "button")
    button.click()
    assert heads[index].get_attribute("aria-sort") == "ascending"
    assert names(browser)[0] == "student > lossy" and names(browser)[-1] == "orphan"  # no number: last
    assert names(browser, "speed")[0] == "torch"  # the other table has an order of its own
    button.click()
    assert heads[index].get_attribute("aria-sort") == "descending"
    assert names(browser)[-2:] == ["student > lossy", "orphan"]
    assert "student > lossy by category" in row(browser, "student > lossy").text


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits(browser: Any, width: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTHS[width], "height": 1000, "deviceScaleFactor": 1, "mobile": width == "phone"},
    )
    WebDriverWait(browser, 30).until(lambda one: one.execute_script("return window.innerWidth") == WIDTHS[width])
    for details in browser.find_elements(By.CSS_SELECTOR, "#variants details"):
        browser.execute_script("arguments[0].open = true", details)
    page = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert page[0] <= page[1] == WIDTHS[width]
    for table in ("kept", "speed"):
        script = "const b = document.querySelector(arguments[0]).parentElement; return [b.scrollWidth, b.clientWidth]"
        inside = browser.execute_script(script, f"#variants-{table}")
        # On a desk nothing has to be scrolled; on a phone the table scrolls in its own frame.
        assert width == "phone" or inside[0] <= inside[1], (table, inside)


def test_console_is_clean(browser: Any) -> None:
    assert browser.get_log("browser") == []
