"""trace, of runs in which every text is hostile: nothing reaches a terminal or a browser but text."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import termios
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browser, there
from conftest import environment
from payloads import PAYLOADS
from traces import Story

from mllm_pipe.terminal import safe

needs_browser = pytest.mark.skipif(not there(), reason="needs chromium and chromium-driver of Debian")


def stories() -> bytes:
    """A run for each payload, which stands in every field that may hold a text."""
    lines = []
    for number, text in enumerate(PAYLOADS.values()):
        story = Story(f"run{number} {text}", f"t{number} {text}")
        question = story.ask(f"q {text}", at=number * 1000)
        answer = story.call(question, number * 1000, 400, f"a {text}", agent=f"g{text}", runtime=f"r{text}", model=f"m{text}",
                            group=f"group {text}", stage=f"s{text}", system=f"y {text}", status="unknown", cost_usd=0.1,
                            attempts=[{"runtime": text, "model": text, "status": "error", "code": text, "wait_ms": 1}],
                            losses=[{"what": text, "action": "dropped", "why": text}])  # fmt: skip
        verdict = story.verdict(number * 1000 + 900, [answer], False, rubric=f"b{text}",
                                criteria=[{"name": f"c{text}", "score": 0.1, "reason": f"w {text}"}])  # fmt: skip
        story.call(answer, number * 1000 + 500, 300, op="judge", slot=text, runtime=text, model=text, output_ids=[verdict])
        story._add("route", number * 1000 + 950, router=text, target=text, by="default", reason=text)
        story._add("error", number * 1000 + 960, code=text, message=text)
        lines.append(story.stream())
    return b"".join(lines)


# -- terminals


def at_a_terminal(line: str, work: Path, home: Path) -> bytes:
    """All that a terminal gets of a line of shell, on stdout and stderr."""
    ours, its = pty.openpty()
    modes = termios.tcgetattr(its)
    modes[1] &= ~termios.OPOST  # newlines stay what they are
    termios.tcsetattr(its, termios.TCSANOW, modes)
    with subprocess.Popen(["bash", "-c", line], cwd=work, env=environment(home, COLUMNS="120", TERM="xterm"), stdin=its,
                          stdout=its, stderr=its, start_new_session=True) as child:  # fmt: skip
        os.close(its)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the last one at the terminal has left
                break
            if not piece:
                break
            shown += piece
        child.wait()
    os.close(ours)
    return shown


FORMS = ["", "--format tree", "--format table", "--format csv", "--format json", "--format ndjson", "--format html", "--format otlp --content",
         "--handoffs", "--by model", "--by thread --format csv", "--export", "--tee"]  # fmt: skip


@pytest.mark.parametrize("flags", FORMS)
def test_a_terminal_gets_nothing_but_text(work, home, flags):
    (work / "t").write_bytes(stories())
    shown = at_a_terminal(f"trace {flags} < t", work, home).decode()
    assert shown.count("pwned") + shown.count("evil") > 0 or flags == "--by model", "the texts are there"
    assert [hex(ord(one)) for one in sorted(set(shown)) if not one.isprintable() and one != "\n"] == []


def test_neither_does_stderr(work, home):
    bad = b'{"v":1,"type":"span","thread":"t\\u001b[2J","id":"\\u009b2J","op":"\\u202e"}\n{"\x1b]0;x\x07\n'
    (work / "t").write_bytes(bad)
    shown = at_a_terminal("trace < t; trace $'\\x1b[2J' < t; trace --thread $'no\\x1b[2J'; trace --sql $'\\x1b[2J'", work, home)
    assert len(shown.splitlines()) >= 4
    assert [one for one in sorted(set(shown.decode())) if not one.isprintable() and one != "\n"] == []


# -- pages


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}


def test_a_page_is_one_file_without_scripts(sh, work):
    (work / "t").write_bytes(stories())
    page = Page(sh("trace --format html < t").out)
    assert page.tags == {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "h3", "div",
                         "span", "b", "i", "p", "a", "dl", "dt", "dd", "ul", "li", "pre", "code", "small", "time", "table",
                         "tr", "th", "td", "details", "summary"}  # fmt: skip
    assert {name for name, _ in page.attributes} == {"lang", "charset", "http-equiv", "content", "name", "class", "id", "style",
                                                     "href", "title"}  # fmt: skip
    assert all(re.fullmatch(r"#run-\w+", value) for name, value in page.attributes if name == "href")
    assert all(re.fullmatch(r"(left|width|padding-left):[\d.]+(%|rem)(;width:[\d.]+%)?", value)
               for name, value in page.attributes if name == "style")  # fmt: skip
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'") in page.attributes
    sheet = (Path(__file__).parent.parent / "mllm_pipe" / "data" / "page.css").read_text()
    assert not re.search(r"url\(|@import|@font-face|</", sheet)


def test_a_page_grows_with_its_thread_and_not_with_its_square(sh, work):
    sizes = []
    for turns in (50, 200):
        story = Story()
        story.ask("SYSTEM", role="system")
        for number in range(turns):
            story.call(story.ask(f"question {number}", at=number * 10), number * 10, 5, "answer " * 50)
        (work / "t").write_bytes(story.stream())
        page = sh("trace --format html < t").out
        sizes.append(len(page))
    assert sizes[1] < 5 * sizes[0]
    assert page.count("388 earlier messages, which stand in the thread below, and then:") == 1
    assert page.count("question 199") == 2 and page.count("SYSTEM") == 201


@needs_browser
def test_a_browser_runs_nothing_and_shows_the_texts(sh, work, tmp_path):
    (work / "t").write_bytes(stories())
    page = tmp_path / "page.html"
    page.write_text(sh("trace --format html < t").out)
    with browser() as window:
        window.open(page)
        window.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        shown = window.run("return [...document.querySelectorAll('.run > .turn pre')].map(one => one.textContent)")
        assert shown == [f"{word} {safe(text)}" for text in PAYLOADS.values() for word in "qa"]
        titles = window.run("return [...document.querySelectorAll('.run h1')].map(one => one.firstChild.textContent)")
        assert titles == [f"Group group {safe(text).partition('/')[0]} ".replace("\n", " ") for text in PAYLOADS.values()], "of groups in groups the outer one"
        reasons = window.run("return [...document.querySelectorAll('.run > .said li')].map(one => one.textContent)")
        assert reasons == [f"c{safe(text)} 0.10 w {safe(text)}".replace("\n", " ") for text in PAYLOADS.values()]
        assert (window.dialog(), window.run("return window.pwned ?? null"), window.log()) == (None, None, [])
        assert window.run("return performance.getEntriesByType('resource').map(one => one.name)") == []
        assert window.run("return location.href") == page.as_uri()
        assert window.run("return document.querySelectorAll('script, iframe, img, svg, link, base, form').length") == 0


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_a_person_can_read_the_page(sh, work, tmp_path, width):
    """Text of at least 11 pixels, of a contrast of 4.5 (WCAG 2.2, AA) in light and in dark, and nothing beside the page."""
    from test_trace_tree import sequential

    (work / "t").write_bytes(sequential().stream())
    page = tmp_path / "page.html"
    page.write_text(sh("trace --format html < t").out)
    backgrounds = set()
    with browser(width) as window:
        window.cdp("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        window.open(page)
        for scheme in ("light", "dark"):
            window.scheme(scheme)
            window.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            picture = window.picture(tmp_path / f"{scheme}-{width}.png")
            if os.environ.get("MLLM_TEST_PICTURES"):
                shutil.copy(tmp_path / f"{scheme}-{width}.png", os.environ["MLLM_TEST_PICTURES"])
            assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
            backgrounds.add(window.run("return getComputedStyle(document.body).backgroundColor"))
            assert window.run("return document.documentElement.scrollWidth") <= width
            assert window.run(READABLE) == []
    assert len(backgrounds) == 2


# Every element that has text of its own: what its colour, background and size are. What falls short is returned.
READABLE = """
const parts = colour => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].map(one => one / 255);
};
const over = (above, below) => above.slice(0, 3).map((one, place) => one * above[3] + below[place] * (1 - above[3]));
const behind = element => {
  const own = parts(getComputedStyle(element).backgroundColor);
  return own[3] === 1 || !element.parentElement ? own : [...over(own, behind(element.parentElement)), 1];
};
const light = colour => colour.slice(0, 3).map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
  .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
return [...document.querySelectorAll('main *')].filter(one => one.checkVisibility() &&
    [...one.childNodes].some(child => child.nodeType === 3 && child.data.trim())).map(one => {
  const style = getComputedStyle(one), [a, b] = [light(parts(style.color)), light(behind(one))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), size = parseFloat(style.fontSize);
  return contrast >= 4.5 && size >= 11 ? null : [one.className, one.textContent, contrast, size];
}).filter(one => one);
"""
