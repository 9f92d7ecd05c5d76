"""A study's page in a browser: what only one can show. Chromium is driven by its DevTools protocol over a pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guidedgen.studies import page

from .conftest import PROMPTS, MakeRun

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DEADLINE = 60  # seconds for a browser that shares its cores


class Browser:
    """One headless page. Commands go to file descriptor 3, answers and events come from 4, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        commands, self.to = os.pipe()
        self.answers, events = os.pipe()
        start = f'exec "$0" "$@" 3<&{commands} 4>&{events}'
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            "--no-first-run",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", start, str(CHROMIUM), *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, events), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(events)
        self.numbers, self.rest, self.events, self.session = itertools.count(1), b"", [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser has gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path) -> None:
        self.send("Page.navigate", url=file.absolute().as_uri())
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        started = time.monotonic()
        while not self.run(condition):
            assert time.monotonic() - started < DEADLINE, condition
            time.sleep(0.02)

    def size(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def click(self, query: str, place: int = 0) -> None:
        """Presses the mouse in the middle of an element, where it is what lies on top, until the press has arrived.

        While Chromium lays a page out anew it finds nothing at a point and drops what is pressed there. An answered press is
        over: whether it arrived is known then, so that none arrives twice.
        """
        self.run(
            f"document.aim = document.querySelectorAll({json.dumps(query)})[{place}];"
            "document.aim.addEventListener('click', () => { document.aim = null }, {once: true})"
        )
        started = time.monotonic()
        while self.run("document.aim !== null"):
            assert time.monotonic() - started < DEADLINE, f"{query} is covered"
            self.run("document.aim.scrollIntoView({block: 'center', behavior: 'instant'})")
            x, y = self.run(
                "(({left, top, width, height}) => [left + width / 2, top + height / 2])(document.aim.getBoundingClientRect())"
            )
            if self.run(f"document.aim.contains(document.elementFromPoint({x}, {y}))"):
                for kind in ("mousePressed", "mouseReleased"):
                    self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def shot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE)
        os.close(self.to)
        os.close(self.answers)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser, study: Path, make_run: MakeRun) -> Browser:
    """At the page of a study, 1280 x 900, in which nothing has happened yet."""
    make_run(
        "odd", label="<script>document.hacked = 1</script>", reward=3.0, nfe=300, seeds=(0, 1), failed={"circle-0": "<b>nan</b>"}
    )
    file, *_ = page.write(study)
    chromium.size(1280, 900)
    chromium.events.clear()
    chromium.open(file)
    return chromium


def visible(browser: Browser, query: str = ".pair") -> list[str]:
    """Headings of what is visible on the screen."""
    return browser.run(
        f"[...document.querySelectorAll('{query}')].filter(x => x.offsetHeight > 0).map(x => x.querySelector('h3').textContent)"
    )


def write_in_filter(browser: Browser, text: str) -> None:
    browser.click("#filter")
    browser.run("document.querySelector('#filter').select()")
    browser.send("Input.insertText", text=text)


def test_nothing_goes_wrong_and_nothing_is_asked_of_the_network(browser: Browser, study: Path) -> None:
    browser.click(".shot")
    browser.press("Escape")
    problems = [
        event
        for event in browser.events
        if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    ]
    assert problems == []
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert (study / "report.html").as_uri() in asked
    assert all(url.startswith("data:image/") for url in asked if not url.endswith("report.html"))
    assert browser.run("[...document.images].filter(x => x.src && !(x.complete && x.naturalWidth)).length") == 0


def test_what_a_prompt_says_is_shown_and_not_run(browser: Browser) -> None:
    assert browser.run("document.hacked") is None
    assert f"{PROMPTS['hostile']} seed 0" in visible(browser)
    assert browser.run("document.querySelector('.absent').innerText") == "failed: <b>nan</b>"


def test_a_foreign_script_is_refused(browser: Browser) -> None:
    """Were one to get in: the page's policy lets its own run alone."""
    browser.run("document.body.append(Object.assign(document.createElement('script'), {text: 'document.hacked = 1'}))")
    assert browser.run("document.hacked") is None
    assert any("Content Security Policy" in str(event) for event in browser.events)


def test_the_filter_hides_other_prompts(browser: Browser) -> None:
    everything = visible(browser)
    assert len(everything) == 6
    write_in_filter(browser, "STAR  blue")
    assert visible(browser) == [f"{PROMPTS['square']} seed 0", f"{PROMPTS['square']} seed 1"]
    assert browser.run("document.querySelector('#found').value") == "2 found"
    write_in_filter(browser, "nobody drew this")
    assert visible(browser) == []
    write_in_filter(browser, " ")
    assert visible(browser) == everything


def test_a_click_enlarges_next_to_the_unguided_picture(browser: Browser) -> None:
    small = browser.run("document.querySelectorAll('.shot img')[1].getBoundingClientRect().width")
    assert browser.run("document.querySelector('#viewer').checkVisibility()") is False
    browser.click(".shot", 1)
    assert browser.run("document.querySelector('#viewer').checkVisibility()") is True
    sides = browser.run(
        "[...document.querySelectorAll('#viewer figure')].map(x => [x.querySelector('b').innerText, x.querySelector('img').src])"
    )
    shots = browser.run(
        "[...document.querySelectorAll('.shot')].slice(0, 2).map(x => [x.dataset.name, x.querySelector('img').src])"
    )
    assert sides == shots and [name for name, _ in sides] == ["base", "code"] and sides[0][1] != sides[1][1]
    assert browser.run("document.querySelector('#after img').getBoundingClientRect().width") > 2.5 * small
    assert browser.run("document.querySelector('#prompt').innerText") == f"{PROMPTS['circle']} seed 0"
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('#after b').innerText") == "mpgd"
    browser.click("#previous")
    browser.click("#previous")
    assert browser.run("document.querySelector('#after b').innerText") == "base"
    assert browser.run("document.querySelector('#before').checkVisibility()") is False  # the unguided one alone
    browser.press("ArrowLeft")
    assert browser.run("document.querySelector('#after b').innerText") == "codex"  # around the end
    browser.click("#close")
    assert browser.run("document.querySelector('#viewer').checkVisibility()") is False


def test_rows_are_sorted_by_a_click_and_published_figures_stay_below_theirs(browser: Browser) -> None:
    def order() -> list[str]:
        return browser.run(
            "[...document.querySelectorAll('#figures tbody')].map(x => [...x.rows].map(row => row.cells[0].innerText).join())"
        )

    browser.click("#figures thead button", 0)
    assert order() == ["codex", "code,published", "mpgd", "base", "<script>document.hacked = 1</script>"]
    browser.click("#figures thead button", 0)
    assert order() == ["<script>document.hacked = 1</script>", "base", "mpgd", "code,published", "codex"]
    wins = browser.run("[...document.querySelectorAll('#figures thead button')].findIndex(x => x.innerText === 'wins')")
    browser.click("#figures thead button", wins)
    assert order()[-1] == "base"  # which has none


def test_a_run_s_name_leads_to_its_command(browser: Browser) -> None:
    where = "document.querySelector('#run-code .command')"
    assert browser.run(f"{where}.checkVisibility()") is False
    browser.click("#figures tbody a[href='#run-code']")
    browser.until(f"{where}.checkVisibility()")
    assert browser.run(f"{where}.innerText") == "python run.py method=code 'dataset.prompt=\"it'\"'\"'s\"'"


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 860)])
def test_the_page_fits_its_screen(browser: Browser, width: int, height: int) -> None:
    """Nothing but a table scrolls sideways; a picture enlarges to most of a narrow screen."""
    browser.size(width, height)
    browser.until(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")  # once it is laid out anew
    browser.click(".shot", 1)
    browser.until(f"document.querySelector('#after img').getBoundingClientRect().width > {0.3 * width}")
    box = browser.run("(({left, right, top}) => [left, right, top])(document.querySelector('#after img').getBoundingClientRect())")
    assert box[0] >= 0 and box[1] <= width and 0 <= box[2] < height / 3
