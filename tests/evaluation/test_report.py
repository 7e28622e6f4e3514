"""The page: self-contained, with correct text, safe with any prompt, and working in a browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from h2gen.errors import OutputError, RunError
from h2gen.evaluation.report import (
    RankedRow,
    Ranking,
    Story,
    check_report_folder,
    embed,
    headline_and_summary,
    write_report,
)
from h2gen.evaluation.report.embed import Embedded, fitted, largest_side
from h2gen.evaluation.report.page import page
from h2gen.evaluation.results import Case, Comparison
from tests.evaluation.comparisons import LONG, comparison, picture, pictures
from tests.locked import locked

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "{{7*7}} {% raw %} {# gone? #}",
    "\"'><svg onload=alert(2)> \u2028 & &amp;",
    "a\x07bell \x1b[31m \u202egnirts \ud800",
)


class Parsed(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") or "code" if tag == "script" else tag if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def with_prompts(found: Comparison, prompts: tuple[str, ...]) -> Comparison:
    return replace(found, cases=tuple(Case(prompt, seed) for seed, prompt in enumerate(prompts)))


# What is written.


def test_the_folder_holds_the_page_the_figures_and_the_pictures(tmp_path: Path) -> None:
    found = comparison(4, 2)
    made = pictures(found)
    assert write_report(found, made, tmp_path / "new" / "report") == tmp_path / "new" / "report" / "index.html"
    folder = tmp_path / "new" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "pictures", "results.json"]
    assert len(list((folder / "pictures").iterdir())) == 8
    for method in found.methods:
        for sample in method.samples:
            with Image.open(folder / sample.picture) as kept:
                assert kept.tobytes() == made[method.name, sample.case].tobytes()


def test_the_figures_can_be_read_back(tmp_path: Path) -> None:
    found = comparison(5, 2, truth=True)
    write_report(found, pictures(found), tmp_path)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read == json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["methods"][0]["scores"]["psnr"]["mean"] == "inf"
    assert read["methods"][1]["shots"][0]["trace"][4]["structure"]["outcome"] == "computed"


def test_pictures_that_lie_there_already_stay_as_they_are(tmp_path: Path) -> None:
    found = comparison(3, 1)
    for (name, case), image in pictures(found).items():
        path = tmp_path / found.method(name).samples[case].picture
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").iterdir()}
    html = write_report(found, tmp_path, tmp_path).read_text()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").iterdir()} == before
    assert html == page(found, pictures(found))


def test_pictures_of_another_folder_are_copied(tmp_path: Path) -> None:
    found = comparison(3, 1)
    write_report(found, pictures(found), tmp_path / "one")
    write_report(found, tmp_path / "one", tmp_path / "two")
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two and any(path.suffix == ".png" for path in one)


def test_a_failure_leaves_nothing_half(tmp_path: Path) -> None:
    found = comparison(3, 1)
    (tmp_path / "index.html").mkdir()  # cannot be replaced by a file
    with pytest.raises(RunError, match="could not be written"):
        write_report(found, pictures(found), tmp_path)
    assert not list(tmp_path.glob(".h2gen-*"))
    broken = replace(found, methods=())
    with pytest.raises(ValueError):
        write_report(broken, {}, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    found = comparison(2, 1)
    for path in ("../evil.png", "/tmp/evil.png", "pictures/../../evil.png"):
        samples = (replace(found.methods[1].samples[0], picture=path),)
        odd = replace(found, methods=(found.methods[0], replace(found.methods[1], samples=samples)))
        with pytest.raises(RunError, match="leads out"):
            write_report(odd, pictures(found), tmp_path / "report")
    assert not (tmp_path / "evil.png").exists()
    assert list((tmp_path / "report").iterdir()) == []


def test_a_report_without_pictures_is_still_a_report(tmp_path: Path) -> None:
    html = write_report(comparison(3, 2), {}, tmp_path).read_text()
    assert json.loads(Parsed(html).scripts["uris"]) == []
    assert not (tmp_path / "pictures").exists()


# What is in the page.


def test_nothing_in_the_page_leads_into_the_network() -> None:
    found = comparison(12, 2, truth=True)
    html = page(found, pictures(found))
    without_names = html.replace("http://www.w3.org/2000/svg", "")
    assert "://" not in without_names
    assert not re.search(r"url\(|@import", html)
    for _, attributes in Parsed(html).tags:
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "pictures/")) or value in ("", "results.json")


def test_only_the_pages_own_script_may_run() -> None:
    found = comparison(3, 1)
    tags = Parsed(page(found, pictures(found))).tags
    policy = next(a["content"] or "" for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert sum(tag == "script" and "type" not in attributes for tag, attributes in tags) == 1


def test_prompts_are_text_whatever_they_hold() -> None:
    found = with_prompts(comparison(4, len(HOSTILE)), HOSTILE)
    odd = replace(found.methods[1], label=HOSTILE[0], name=HOSTILE[2])
    found = replace(
        found,
        methods=(found.methods[0], odd, *found.methods[2:]),
        chosen=HOSTILE[2],
        notices=HOSTILE,
        model={**found.model, "name": HOSTILE[0]},
        settings={**found.settings, "negative": HOSTILE[1]},
    )
    html = page(found, {})
    parsed = Parsed(html)
    harmless = Parsed(page(replace(comparison(4, len(HOSTILE)), notices=("a",) * len(HOSTILE)), {}))
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in harmless.tags]
    assert "49" not in parsed.text.replace("{{7*7}}", "").split()
    assert "{{7*7}} {% raw %} {# gone? #}" in parsed.text
    assert "\x07" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    prompts = [case["prompt"] for case in json.loads(parsed.scripts["data"])["cases"]]
    assert prompts[:2] == list(HOSTILE[:2])
    html.encode()  # no lone surrogate is left


def test_pictures_are_embedded_once_and_small_ones_to_the_bit() -> None:
    same, other = picture(1), picture(2)
    embedded = Embedded(768)
    assert [embedded.add(image) for image in (same, same.copy(), other)] == [0, 0, 1]
    raw = base64.b64decode(embedded.uris[0].removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(raw)) as read:
        assert read.convert("RGB").tobytes() == same.tobytes()


def test_large_pictures_are_made_smaller_and_the_page_says_so() -> None:
    found = comparison(2, 1, size=(1024, 640))
    text = Parsed(page(found, pictures(found))).text
    assert "768×480" in text
    assert "the originals are 1024×640" in text
    small = comparison(2, 1)
    text = " ".join(Parsed(page(small, pictures(small))).text.split())
    assert "Shown as made" in text
    assert f"Original files: uncached , {small.method(small.chosen).label} ." in text


def test_many_pictures_are_made_smaller_than_few() -> None:
    assert largest_side([(1024, 1024)] * 20) == 768
    assert largest_side([(1024, 1024)] * 600) == 512
    assert largest_side([(128, 128)] * 600) == 768
    assert largest_side([(1024, 1024)] * 100_000) == min(embed.SIDES)
    assert fitted((2000, 10), 100) == (100, 1)


def test_the_table_has_a_row_a_method_the_fastest_first_and_time_apart_from_blocks() -> None:
    found = comparison(8, 2)
    html = page(found, pictures(found))
    rows = [
        attributes["data-method"]
        for tag, attributes in Parsed(html).tags
        if tag == "tr" and "data-method" in attributes
    ]
    assert rows == [m.name for m in sorted(found.methods, key=lambda method: -method.speedup)]
    head = html[html.index("<thead>") : html.index("</thead>")]
    titles = re.findall(r">([a-z -]+)</button>", head)
    assert titles[:4] == ["method", "times as fast", "mean", "worst"]  # what a phone shows
    assert titles[-3:] == ["seconds", "range", "blocks run"]
    assert html.count('<i class="unbeaten">') == 1 + sum(m.pareto and m.kind != "reference" for m in found.methods)


def test_one_picture_has_neither_mean_nor_worst() -> None:
    html = page(comparison(4, 1), {})
    head = html[html.index("<thead>") : html.index("</thead>")]
    assert head.count(">value</button>") == 4
    assert ">worst</button>" not in head


def test_one_timed_run_has_no_range() -> None:
    found = comparison(4, 1)
    once = [replace(m, seconds=replace(m.seconds, runs=1)) for m in found.methods]
    html = page(replace(found, methods=tuple(once)), {})
    assert ">seconds</button>" in html and ">range</button>" not in html and 'class="range"' not in html


def test_a_report_is_that_of_its_command() -> None:
    rows = [RankedRow("H2-Cache, <b>", ["50 %", "0.01"], True), RankedRow("14 steps", ["50 %", "0.02"], False)]
    story = Story("h2gen frontier", "Found", ["One.", "Two."], [Ranking("At half", ["blocks", "1 - SSIM"], rows)])
    html = page(comparison(4, 2), {}, story)
    assert "<title>Found - h2gen frontier</title>" in html and "h2gen compare" not in html
    assert ">Found</h1>" in html and "closer than fewer steps" not in html
    ranking = html[html.index('id="budgets"') : html.index('id="look"')]
    for words in ("<h3>At half</h3>", "H2-Cache, &lt;b&gt;", "<td>0.02</td>", ">1 - SSIM</th>"):
        assert words in ranking
    assert 'id="budgets"' not in page(comparison(4, 2), {})


def test_settings_versions_sources_and_notices_are_told() -> None:
    found = comparison(3, 1)
    text = Parsed(page(found, pictures(found))).text
    for words in ("2.13.0", "sha256:0a1b2c3d4e5f", "torchmetrics 1.8, AlexNet", "CLIP score was left out", "28"):
        assert words in text


# What it says.


def said(found: Comparison) -> tuple[str, str]:
    headline, sentences = headline_and_summary(found)
    return headline, " ".join(sentences).replace("\u00a0", " ")


def test_the_finding_tells_the_gain_the_price_and_the_rivals() -> None:
    headline, text = said(comparison(5, 3))
    assert headline == "1.85 times as fast, closer than fewer steps at that speed"
    assert "in 0.876 s instead of 1.62 s, 1.85 times as fast, running 53 % of the blocks." in text
    assert re.search(r"PSNR is \d\d\.\d dB on average over 3, \d\d\.\d dB at worst \(“a \w+", text)
    assert re.search(r"15 steps without a cache \(0.890 s\) are farther away: \d\d\.\d dB; UniPC, 15 steps", text)
    assert "better choice" not in text


def test_it_says_so_where_fewer_steps_come_closer() -> None:
    headline, text = said(comparison(5, 3, rival=20.0))
    assert headline == "1.85 times as fast, but fewer steps are closer"
    assert "15 steps without a cache (0.890 s) are closer" in text
    assert "Fewer steps are the better choice here." in text


def test_it_says_so_where_only_the_other_solver_comes_closer() -> None:
    found = comparison(5, 3)
    solver = found.method("unipc 15")
    better = replace(solver.scores["psnr"], mean=50.0)
    methods = [replace(m, scores={**m.scores, "psnr": better}) if m is solver else m for m in found.methods]
    headline, text = said(replace(found, methods=tuple(methods)))
    assert headline == "1.85 times as fast, but another solver is closer"
    assert "UniPC, 15 steps (0.890 s) are closer: 50.0 dB" in text


def test_steps_that_take_longer_are_no_rival() -> None:
    found = comparison(5, 3, rival=20.0)
    slow = [
        replace(m, seconds=replace(m.seconds, median=1.2)) if m.kind in ("steps", "solver") else m
        for m in found.methods
    ]
    headline, text = said(replace(found, methods=tuple(slow)))
    assert headline == "1.85 times as fast"
    assert "No run with fewer steps took the same time. With as many blocks, 15 steps without a cache (1.20 s)" in text


def test_a_cache_that_saves_no_time_is_not_praised() -> None:
    found = comparison(5, 1)
    for speedup, headline in ((1.0, "No time saved"), (0.9, "Slower than without a cache")):
        chosen = found.methods[1]
        slow = replace(chosen, speedup=speedup, seconds=replace(chosen.seconds, median=1.62 / speedup))
        told, text = said(replace(found, methods=(found.methods[0], slow, *found.methods[2:])))
        assert told == headline
        assert "no time is saved" in text


def test_identical_pictures_are_called_identical() -> None:
    found = comparison(5, 3)
    chosen = found.methods[1]
    infinite = replace(chosen.scores["psnr"], mean=math.inf, worst=math.inf)
    same = replace(chosen, identical=3, scores={**chosen.scores, "psnr": infinite})
    headline, text = said(replace(found, methods=(found.methods[0], same, *found.methods[2:])))
    assert headline == "1.85 times as fast, and identical"
    assert "All its 3 pictures are identical to the uncached ones, bit for bit." in text


def test_overlapping_timings_are_mentioned() -> None:
    found = comparison(5, 1)
    chosen = found.methods[1]
    noisy = replace(chosen, seconds=replace(chosen.seconds, high=3.0))
    assert "ranges overlap" in said(replace(found, methods=(found.methods[0], noisy, *found.methods[2:])))[1]
    assert "ranges overlap" not in said(found)[1]


def test_against_the_truth_both_are_told() -> None:
    assert re.search(
        r"picture of 400 steps its PSNR is 2\d\.\d dB; that of the uncached picture is",
        said(comparison(5, 2, truth=True))[1],
    )


@pytest.mark.parametrize("chosen", ["uncached", "euler 15", "truth", "fb 0.12"])
def test_any_method_may_be_the_chosen_one(chosen: str) -> None:
    found = replace(comparison(6, 2, truth=True), chosen=chosen)
    assert said(found)[0]
    assert "0.876 s" not in said(found)[1]
    page(found, {})


def test_without_a_metric_there_is_a_page_all_the_same() -> None:
    found = comparison(4, 1)
    bare = [
        replace(m, scores={}, samples=tuple(replace(sample, scores={}) for sample in m.samples)) for m in found.methods
    ]
    html = page(replace(found, metrics=(), methods=tuple(bare)), {})
    assert 'data-method="h2 0.15 0.15"' in html and "PSNR" not in html


# In a browser.

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from started_browser()


def started_browser() -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS, timeout=300_000)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = with_prompts(comparison(9, 4, contexts=("cond", "uncond"), truth=True), (LONG, *HOSTILE[:3]))
    return write_report(found, pictures(found), tmp_path_factory.mktemp("report"))


Opened = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    """Opens the report; afterwards there must have been no error, and no request but for the file itself."""
    complaints: list[str] = []
    contexts = []

    def opening(width: int = 1280, **options: str | bool) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        tab.goto(report.as_uri())
        return tab

    yield opening
    for context in contexts:
        context.close()
    assert complaints == []


def clip(tab: Page) -> str:
    return str(tab.locator("#after").evaluate("image => getComputedStyle(image).clipPath"))


def source(tab: Page, name: str) -> str:
    """The picture that is shown, once it is loaded; empty if it cannot be."""
    return str(tab.locator(f"#{name}").evaluate("image => image.decode().then(() => image.src, () => '')"))


def point(tab: Page, name: str) -> Locator:
    return tab.locator(f'.pareto:not([hidden]) .wide [data-method="{name}"]')


def mark(tab: Page, name: str) -> Locator:
    """Where to click a point: its centre, without its name."""
    return point(tab, name).locator(".touch")


def highlighted(tab: Page) -> list[str]:
    return list(tab.locator("tr[aria-current]").evaluate_all("rows => rows.map(row => row.dataset.method)"))


def test_the_slider_moves_by_keys_and_by_pointer(opened: Opened) -> None:
    tab = opened()
    assert clip(tab) == "inset(0px 0px 0px 50%)"
    tab.locator("#slider").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert clip(tab) == "inset(0px 0px 0px 52%)"
    assert tab.locator("#slider").get_attribute("aria-valuetext") == "52 % uncached"
    tab.keyboard.press("Home")
    assert clip(tab) in ("inset(0px 0px 0px 0%)", "inset(0px)")
    box = tab.locator("#stage").bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50)
    tab.mouse.down()
    assert clip(tab) == "inset(0px 0px 0px 20%)"
    tab.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60)
    assert clip(tab) == "inset(0px 0px 0px 80%)"
    tab.mouse.up()
    tab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 60)
    assert clip(tab) == "inset(0px 0px 0px 80%)"


def test_the_slider_moves_by_touch(opened: Opened) -> None:
    tab = opened(390, has_touch=True, is_mobile=True)
    stage = tab.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    tab.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 30)
    assert abs(float(tab.locator("#slider").input_value()) - 25) <= 1


def test_a_chosen_point_changes_picture_decisions_figures_and_row(opened: Opened) -> None:
    tab = opened()
    assert highlighted(tab) == ["h2 0.15 0.15"]
    before = source(tab, "before"), source(tab, "after"), tab.locator("#decisions-chart").inner_html()
    assert all(before)
    mark(tab, "h2 0.1 0.1").click()
    assert source(tab, "before") == before[0]
    assert source(tab, "after") not in ("", before[1])
    assert tab.locator("#decisions-chart").inner_html() != before[2]
    assert "threshold 0.1" in tab.locator("#decisions-chart .wide").inner_text()
    assert highlighted(tab) == ["h2 0.1 0.1"]
    assert "H2-Cache, tau1 0.1, tau2 0.1" in tab.locator("#after-label").inner_text()
    assert "tau2 0.1" in tab.locator("#method option:checked").inner_text()
    assert "chosen" in (point(tab, "h2 0.1 0.1").get_attribute("class") or "")
    assert "chosen" not in (point(tab, "h2 0.15 0.15").get_attribute("class") or "")


def test_the_keyboard_chooses_a_point_and_stays_on_it(opened: Opened) -> None:
    tab = opened()
    point(tab, "euler 15").focus()
    tab.keyboard.press("Enter")
    assert highlighted(tab) == ["euler 15"]
    assert tab.evaluate("document.activeElement.dataset.method") == "euler 15"
    assert "has no recorded decisions" in tab.locator("#decisions-which").inner_text()
    assert tab.locator("#decisions-chart svg").count() == 0


def test_another_case_changes_both_pictures_and_the_prompt(opened: Opened) -> None:
    tab = opened()
    before = source(tab, "before"), source(tab, "after")
    assert tab.locator("#prompt").inner_text() == LONG
    tab.locator('input[name="case"][value="1"]').check(force=True)
    after = source(tab, "before"), source(tab, "after")
    assert all(after)
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert tab.locator("#prompt").inner_text() == HOSTILE[0]
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#prompt").inner_text() == HOSTILE[1]


def test_the_table_and_the_list_choose_too(opened: Opened) -> None:
    tab = opened()
    tab.locator('tbody .pick:has-text("UniPC")').click()
    assert highlighted(tab) == ["unipc 15"]
    tab.locator("#method").select_option(label="H2-Cache, tau1 0.1, tau2 0.1")
    assert highlighted(tab) == ["h2 0.1 0.1"]
    worst = tab.locator('tr[data-method="h2 0.15 0.15"] .worst').first
    number = worst.get_attribute("data-case")
    worst.click()
    assert highlighted(tab) == ["h2 0.15 0.15"]
    assert tab.locator('input[name="case"]:checked').input_value() == number


def test_columns_sort_the_table(opened: Opened) -> None:
    tab = opened()

    def column(number: int) -> list[float]:
        cells = tab.locator(f"tbody td:nth-child({number})[data-value]")
        return [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]

    titles = tab.locator("#methods thead button").all_inner_texts()
    blocks = next(number for number, title in enumerate(titles, 1) if "blocks run" in title)
    assert column(2) == sorted(column(2), reverse=True)
    tab.locator("thead button", has_text="blocks run").click()
    assert column(blocks) == sorted(column(blocks))
    tab.locator("thead button", has_text="blocks run").click()
    assert column(blocks) == sorted(column(blocks), reverse=True)
    assert tab.locator("thead th[aria-sort]").count() == 1


def test_another_metric_shows_its_chart(opened: Opened) -> None:
    tab = opened()
    assert "PSNR" in tab.locator("#readout").inner_text()
    tab.locator('input[name="metric"][value="2"]').check(force=True)
    assert tab.locator(".pareto:visible").count() == 1
    assert "LPIPS: higher is closer" in tab.locator(".pareto:visible .wide").inner_text()
    assert "LPIPS" in tab.locator("#readout").inner_text()
    mark(tab, "h2 0.1 0.1").hover()
    assert tab.locator("#readout-label").inner_text() == "H2-Cache, tau1 0.1, tau2 0.1"


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_is_never_wider_than_the_screen(opened: Opened, width: int) -> None:
    tab = opened(width)
    tab.locator("#method").select_option(label="H2-Cache, tau1 0.15, tau2 0.15")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    visible = tab.locator("#decisions-chart svg:visible")
    assert visible.count() == 1
    sizes = visible.locator("text").evaluate_all("texts => texts.map(text => text.getBoundingClientRect().height)")
    assert min(sizes) >= 11


def test_the_page_is_dark_where_the_system_is(opened: Opened) -> None:
    def colours(tab: Page) -> tuple[int, int]:
        shades = "style => [style.backgroundColor, style.color].map(rgb => rgb.match(/[0-9]+/g).slice(0, 3))"
        ground, ink = tab.evaluate(f"({shades})(getComputedStyle(document.body))")
        return sum(map(int, ground)), sum(map(int, ink))

    ground, ink = colours(opened(color_scheme="light"))
    assert ground > 700 > 200 > ink
    ground, ink = colours(opened(color_scheme="dark"))
    assert ground < 120 < 600 < ink


def test_missing_pictures_are_said_to_be_missing(browser: Browser, tmp_path: Path) -> None:
    found = comparison(3, 1)
    made = {key: image for key, image in pictures(found).items() if key[0] == "uncached"}
    tab = browser.new_page()
    tab.goto(write_report(found, made, tmp_path).as_uri())
    assert tab.locator("#missing").is_visible()
    assert not tab.locator("#after").is_visible()
    tab.close()


@pytest.mark.posix
def test_a_folder_that_may_not_be_searched_gets_no_report(tmp_path: Path) -> None:
    with locked(tmp_path) as folder, pytest.raises(OutputError, match="Permission denied"):
        check_report_folder(folder / "r")
