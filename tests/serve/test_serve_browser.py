"""The page in a real browser, with real models: ask, be refused, look at numbers; nothing is fetched from elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shown import EGOTINY, MATRIX, RESULTS, ROOT, cell_of, write_ok

from egobench.plan.expand import plan
from egobench.records.store import SweepPaths
from egobench.report.metrics import METRICS
from egobench.report.publish import read_published
from egobench.spec.matrix import load_matrix

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no chromium and chromedriver here (apt-get install chromium chromium-driver)", allow_module_level=True)
pytest.importorskip("selenium", reason="pip install selenium")
if importlib.util.find_spec("gradio") is None:  # not imported: that takes seconds
    pytest.skip("pip install 'egobench[serve]'", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip
PATIENCE_S = 90


class Page:
    """A running server and a browser that looks at it."""

    def __init__(self, server: subprocess.Popen[str], url: str, browser: Any) -> None:
        self.server, self.url, self.browser = server, url, browser

    def all(self, css: str) -> list[Any]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, css))

    def until(self, css: str, text: str = "") -> Any:
        """Wait for an element that is shown and holds a text."""

        def found(_: Any) -> Any:
            with contextlib.suppress(Exception):  # it may be replaced while it is looked at
                return next((one for one in self.all(css) if one.is_displayed() and text in one.text), None)
            return None

        return WebDriverWait(self.browser, PATIENCE_S).until(found, f"{css} with {text!r}")

    def upload(self, path: Path) -> None:
        for button in self.all("#picture button[aria-label='Clear'], #picture button[title='Clear']"):
            button.click()
        WebDriverWait(self.browser, PATIENCE_S).until(lambda _: self.all("#picture input[type=file]"))
        self.all("#picture input[type=file]")[0].send_keys(str(path))

    def ask(self, text: str) -> None:
        box = self.until("#question textarea")
        self.browser.execute_script("arguments[0].value = ''", box)
        box.send_keys(text + " ")
        self.browser.execute_script("document.querySelector('#ask').click()")

    def open_tab(self, name: str) -> None:
        next(one for one in self.all("button[role=tab]") if one.text == name and one.is_displayed()).click()


@contextlib.contextmanager
def opened(folder: Path, *flags: str) -> Iterator[Page]:
    command = [sys.executable, "-m", "egobench", "serve", "--port", "0", *flags]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), (folder / "server.log").read_text()
        driver.get(url)
        yield Page(server, url, driver)
    finally:
        driver.quit()
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("browser"), "--runs", str(runs), "--results", str(RESULTS)) as found:
        yield found


def children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
def test_a_picture_and_a_question_are_answered_by_two_models(page: Page, tmp_path: Path) -> None:
    page.until("#models label", "onnxruntime")
    labels = page.all("#models label")
    assert [label.text for label in labels] == [
        "fp32 (as trained, here in torch)", "fp32 / half (as_trained, torch)", "fp32 / ort (as_trained, onnxruntime)",
    ]  # fmt: skip
    labels[2].click()
    labels[1].click()
    cannot = page.until(".eb-cannot")
    assert "needs llama_cpp" in cannot.get_attribute("textContent")
    assert "adapters alone were exported" in cannot.get_attribute("textContent")
    Image.new("RGB", (320, 240), "brown").save(tmp_path / "a.png")
    page.upload(tmp_path / "a.png")
    page.until("#picture img")
    page.ask("where is the <b>cup</b> ${1+1} {{value}}?")
    page.until(".eb-note", "Each model has a process of its own")
    cards = page.all(".eb-card.eb-answered")
    assert [card.get_attribute("data-model") for card in cards] == ["fp32", "fp32 / half"]
    answers = [card.find_element(By.CSS_SELECTOR, ".eb-answer").text for card in cards]
    assert all(answers)
    for card in cards:
        assert all(name in card.text for name in ("First token", "Per token", "Total", "Peak memory", "MiB", "On disk"))
        assert "s\n" in card.find_element(By.CSS_SELECTOR, ".eb-first").text
    assert page.until(".eb-asked").text == "where is the <b>cup</b> ${1+1} {{value}}?"
    assert len(children(page.server.pid)) == 2


def test_a_click_on_an_example_fills_both_fields(page: Page) -> None:
    page.until("#examples tbody tr")
    rows = page.all("#examples tbody tr")
    assert len(rows) == 8
    question = rows[4].text.strip()
    page.browser.execute_script("arguments[0].scrollIntoView()", rows[4])
    rows[4].click()
    box = page.until("#question textarea")
    WebDriverWait(page.browser, PATIENCE_S).until(lambda _: box.get_attribute("value") == question)


def test_what_cannot_be_read_is_said_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 99)
    page.upload(tmp_path / "broken.png")
    page.until("#picture img, #picture [aria-label='Clear']")
    page.ask("what is this?")
    page.until(".eb-failure", "picture: cannot be read")
    Image.new("1", (8000, 8000)).save(tmp_path / "wide.png")
    page.upload(tmp_path / "wide.png")
    page.until("#picture img")
    page.ask("what is this?")
    page.until(".eb-failure", "8000 x 8000 pixels; allowed: at most 50 megapixels")
    page.ask("")
    page.until(".eb-failure", "question: is empty")


def test_a_file_that_is_too_large_never_arrives(page: Page, tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(21 * 2**20)
    page.upload(tmp_path / "large.png")
    page.until(".toast-body", "20")
    for close in page.all(".toast-close"):
        close.click()


def test_performance_shows_the_committed_numbers(page: Page) -> None:
    page.open_tab("Performance")
    page.until("#performance-page h2", "shown")
    box = page.until("#performance-sweep input")
    box.click()
    page.until("#performance-sweep [role=option], ul[role=listbox] li", "results/cpu-amd-epyc/quickstart").click()
    page.until("#performance-page h2", "quickstart")
    text = page.until("#performance-page").text
    rows = read_published(RESULTS / "cpu-amd-epyc" / "quickstart")
    for cell in rows.trained:
        for name in ("tokens_per_s", "peak_memory_bytes", "f1_after"):
            summary = cell.summary(name)
            assert summary is not None and METRICS[name].show(summary).split(" ")[0] in text
    page.browser.switch_to.frame(page.until("#performance-page iframe"))
    drawn = "return document.documentElement.dataset.charts === 'drawn'"
    WebDriverWait(page.browser, PATIENCE_S).until(lambda one: one.execute_script(drawn))
    assert len(page.all("figure svg")) >= 4
    page.browser.switch_to.default_content()
    frame = page.until("#performance-page iframe")
    WebDriverWait(page.browser, PATIENCE_S).until(lambda _: frame.size["height"] > 800)  # no scrolling inside


def test_profile_shows_kernels_and_where_the_trace_is(page: Page) -> None:
    page.open_tab("Profile")
    assert "400" in page.until("#profile-page .eb-kernels").text
    page.until("#profile-page summary").click()
    page.until("#profile-page .eb-trial", "trace-20.json.gz")
    page.until("#profile-page .eb-trial", "aten::mm<script>")


def test_nothing_spills_on_a_phone(page: Page) -> None:
    try:
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        width = "return document.documentElement.scrollWidth"
        for name in ("Performance", "Profile", "Ask"):
            page.open_tab(name)
            WebDriverWait(page.browser, PATIENCE_S).until(lambda one: one.execute_script(width) == 390, name)
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_console_is_clean_and_nothing_is_fetched_from_elsewhere(page: Page) -> None:
    said = [one["message"] for one in page.browser.get_log("browser") if one["level"] == "SEVERE"]
    # Gradio asks how far an upload is, and minds the 404 where a small file was there before it asked.
    assert [text for text in said if "upload_progress" not in text and not text.endswith(" Response")] == []
    events = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith((page.url, "data:", "blob:", "chrome:"))] == []
    assert sum(url.startswith(page.url) for url in urls) > 10


def test_interrupting_it_leaves_nothing(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (320, 240), "brown").save(tmp_path / "a.png")
    page.upload(tmp_path / "a.png")
    page.until("#picture img")
    page.ask("where is the cup?")
    page.until(".eb-note", "Each model has a process of its own")
    asked = children(page.server.pid)
    assert asked
    page.server.send_signal(signal.SIGINT)
    assert page.server.wait(20) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in asked)


@pytest.mark.slow  # a server of its own
def test_without_a_sweep_the_page_says_what_to_run(tmp_path: Path) -> None:
    with opened(tmp_path, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")) as found:
        found.until("#answers", "egobench sweep benchmarks/edge.yaml")
        found.open_tab("Performance")
        found.until("#performance-page", "No sweep was found in")


@pytest.mark.slow  # the export to ONNX takes half a minute
def test_torch_and_onnxruntime_side_by_side(tmp_path: Path) -> None:
    from egobench.infer.runtimes import runtime_of
    from egobench.records.store import write_document
    from egobench.spec.quantization import Quantization

    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "matrix.yaml").write_text(MATRIX, encoding="utf-8")
    sweep = plan(load_matrix(tmp_path / "matrix.yaml"))
    paths = SweepPaths(tmp_path / "runs" / "shown")
    write_document(paths.sweep, sweep)
    for name in (None, "ort"):
        cell_id = cell_of(sweep, "fp32", name)
        write_ok(paths.trial(cell_id, 0), cell_id)
    paths.trial(cell_of(sweep, "fp32", None), 0).model.symlink_to(EGOTINY)
    exported = paths.trial(cell_of(sweep, "fp32", "ort"), 0).model
    runtime_of("onnxruntime").prepare(EGOTINY, exported, "as_trained", Quantization())
    with opened(tmp_path, "shown", "--runs", str(tmp_path / "runs"), "--results", str(RESULTS)) as found:
        found.until("#models label", "onnxruntime")
        found.all("#examples tbody tr")[0].click()
        found.until("#picture img")
        found.browser.execute_script("document.querySelector('#ask').click()")
        found.until(".eb-note", "Each model has a process of its own")
        answers = [one.text for one in found.all(".eb-answered .eb-answer")]
        assert len(answers) == 2 and answers[0] == answers[1]
        os.kill(found.server.pid, signal.SIGTERM)
        assert found.server.wait(20) == 0
