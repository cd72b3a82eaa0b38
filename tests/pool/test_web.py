"""The page in a browser, on a run of a real pool whose jobs write what would be HTML."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Condorctl
from tests.pool.conftest import Status

_CHROMIUM = shutil.which("chromium")
_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    _CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"
)

# The cores are the jobs' and other tests' as well.
expect.set_options(timeout=90_000)

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
SPEC = """
defaults: {request_memory: 64 MB, request_disk: 50 MB}
tables:
  - title: "Figures of <b>models</b>"
    columns: {clean: clean}
    rows: [{label: m, match: {model: m}}]
stages:
  train:
    command: [python, slow.py]
    inputs: [slow.py]
    outputs: [metrics.jsonl]
  hostile:
    command: [python, hostile.py]
    inputs: [hostile.py]
    outputs: [metrics.jsonl]
    retries: 0
"""
SLOW = """
import time
from condorctl import job
for epoch in range(1, 21):
    print("this is epoch", epoch, flush=True)
    job.progress(epoch, 20, loss=1 / epoch)
    time.sleep(1)
job.result(model="m", clean=0.5)
"""
HOSTILE = f"""
import sys
from condorctl import job
evil = {EVIL!r}
print(evil, "\\x1b[31mred\\x1b[0m \\u202e reversed")
print("0%\\r100%", evil, file=sys.stderr)
job.progress(1, 2, **{{evil: 1.0}})
job.result(**{{evil: evil}})
sys.exit(3)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab in which nothing may go wrong, ask anything, or leave this host."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: wrong.append(asked.url) if _is_foreign(asked.url) else None)
    yield page
    page.close()
    assert wrong == []


def _is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "file://", "data:"))


@pytest.fixture
def address(submit: Callable[..., str], project: Path) -> Iterator[tuple[str, str]]:
    """A run that has just been submitted, and the whole address of a page that begins with it."""
    (project / "hostile.py").write_text(HOSTILE, encoding="utf-8")
    (project / "slow.py").write_text(SLOW, encoding="utf-8")
    run = submit(SPEC)
    server = subprocess.Popen(
        [sys.executable, "-m", "condorctl", "web", run], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    yield run, server.stdout.readline().strip()
    server.terminate()
    server.wait(10)


def test_a_run_as_its_reader_sees_it(
    address: tuple[str, str],
    tab: Page,
    browser: Browser,
    wait: Callable[..., Status],
    condorctl: Condorctl,
    project: Path,
) -> None:
    run, url = address
    tab.goto(url)
    expect(tab.locator("h1")).to_contain_text(run)
    assert "token" not in tab.url
    row = tab.locator("#s-stages tbody tr", has_text="train")
    # It moves by itself: nothing is loaded anew.
    expect(row).to_contain_text("running")
    expect(row.locator("progress")).to_have_attribute("max", "20")
    expect(row).to_contain_text(re.compile(r"\d/20"))
    # What it has printed so far comes out of its sandbox, and goes on by itself.
    row.get_by_role("link").click()
    printed = tab.locator("#s-stage pre")
    expect(printed).to_contain_text("this is epoch 1")
    seen = printed.inner_text()
    expect(printed).not_to_have_text(seen, use_inner_text=True)
    wait(run, lambda view: bool(view["finished"]))
    expect(row).to_contain_text("done")
    expect(tab.locator("h1")).to_contain_text("failed")

    expect(tab.locator("#s-trouble")).to_contain_text("exit code 3")
    expect(tab.locator("#s-results h3")).to_have_text("Figures of <b>models</b>")
    expect(tab.locator("#s-results")).to_contain_text("50")
    expect(tab.locator("#s-curves figcaption").filter(has_text=EVIL)).to_have_count(1)
    loss = tab.locator("#s-curves figure", has_text="loss")
    twenty = re.compile(r"^M[^L]*(?:L[^L]*){19}$")
    expect(loss.locator("path.line").first).to_have_attribute("d", twenty)
    expect(tab.locator("#s-cost")).to_contain_text("CPU h")

    # The output of the job that wrote what would be HTML, reached by the keyboard alone.
    tab.locator("#s-stages a", has_text="hostile").focus()
    tab.keyboard.press("Enter")
    output = tab.locator("#s-stage pre")
    expect(output).to_have_text(f"100% {EVIL}")
    tab.get_by_role("button", name="stdout").click()
    expect(output).to_have_text(f"{EVIL} red \N{REPLACEMENT CHARACTER} reversed")
    assert tab.locator("main img, main script").count() == 0
    tab.get_by_role("link", name="All runs").click()
    expect(tab.locator("tbody tr", has_text=run)).to_contain_text("failed")

    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 800})
        tab.goto(f"{tab.url.partition('#')[0]}#/{run}/train")
        expect(tab.locator("#s-stage")).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

    # Who only has the page's own address, without the token, sees nothing.
    with browser.new_context() as other:
        stranger = other.new_page()
        answer = stranger.goto(tab.url)
        assert answer and answer.status == 403

    # The same in a file, without a server.
    written = condorctl("web", run, "--export", "run.html")
    assert written.returncode == 0, written
    tab.goto((project / "run.html").as_uri() + "#/x/hostile")
    expect(tab.locator("h1")).to_contain_text(run)
    expect(tab.locator("#s-stage pre")).to_have_text(f"100% {EVIL}")
    assert tab.locator("main img, main script").count() == 0
