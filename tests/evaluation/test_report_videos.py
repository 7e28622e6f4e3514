"""The report of videos: all frames of both, shown at the same time."""

from __future__ import annotations

import base64
import io
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from h2gen.evaluation.contact_sheet import contact_sheet
from h2gen.evaluation.report import write_report
from h2gen.evaluation.report.embed import PIXELS, SHEET, Embedded, Sheet
from h2gen.evaluation.report.page import page
from h2gen.evaluation.results import Comparison
from h2gen.evaluation.save_images import save_images
from h2gen.evaluation.videos import Video, webp_video
from tests.evaluation import test_report
from tests.evaluation.comparisons import comparison

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FRAMES = 5


def colour(method: int, number: int) -> tuple[int, int, int]:
    """Of a method's frame."""
    return 40 * number, 60 * method, 200


def compared() -> tuple[Comparison, dict[tuple[str, int], Video]]:
    """A comparison of three methods on two prompts, and videos of plain colours."""
    found = comparison(3, 2, (32, 24))
    found = replace(found, settings={**found.settings, "frames": FRAMES, "fps": 50.0})
    videos = {}
    for place, method in enumerate(found.methods):
        for case in (0, 1):
            frames = np.empty((FRAMES, 24, 32, 3), np.uint8)
            frames[:] = np.array([colour(place, number) for number in range(FRAMES)])[:, None, None]
            videos[method.name, case] = Video(frames, 50.0)
    methods = tuple(
        replace(
            method,
            samples=tuple(
                replace(sample, picture=sample.picture.replace(".png", ".webp")) for sample in method.samples
            ),
        )
        for method in found.methods
    )
    return replace(found, methods=methods), videos


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found, videos = compared()
    return write_report(found, videos, tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from test_report.started_browser()


def test_videos_side_by_side_are_laid_out_frame_by_frame_and_are_webp_where_mp4_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def laid_out(rows: Any) -> Any:
        sheet = contact_sheet(rows)
        sheets.append(weakref.ref(sheet))
        alive.append(sum(each() is not None for each in sheets))
        return sheet

    def fails(*_args: Any) -> bytes:
        raise ValueError("no encoder")

    monkeypatch.setattr("h2gen.evaluation.save_images.contact_sheet", laid_out)
    monkeypatch.setattr("h2gen.output.video_file._mp4", fails)
    found, videos = compared()
    path, *_ = save_images(found, {name: video for (name, case), video in videos.items() if case == 0}, tmp_path)
    assert path.suffix == ".webp" and len(webp_video(path, 50.0).frames) == FRAMES
    assert max(alive) <= 2


def test_the_videos_lie_beside_the_page_and_it_speaks_of_videos(report: Path) -> None:
    found, videos = compared()
    for method in found.methods:
        for sample in method.samples:
            kept = webp_video(report.parent / sample.picture, 50.0)
            assert np.array_equal(kept.frames, videos[method.name, sample.case].frames)
    text = test_report.Parsed(report.read_text(encoding="utf-8")).text
    assert "2 videos per method" in text and "5 frames" in text and "picture" not in text.replace(found.notices[0], "")


def test_the_chart_of_a_videos_steps_speaks_of_a_video() -> None:
    found, videos = compared()
    tolerance = {"tau1": 0.0, "tau2": 0.0, "tolerance": 0.002}
    with_tolerance = [replace(method, detail=tolerance) if method.kind == "h2" else method for method in found.methods]
    html = page(replace(found, methods=tuple(with_tolerance)), videos)
    assert "error of the video if the step is skipped" in html and "error of the picture" not in html


@pytest.mark.parametrize(
    ("size", "frames", "words"),
    [
        ((64, 64), 9, "Shown as made, enlarged to fit."),
        ((112, 112), 5, "Slightly compressed."),  # the sheet of all frames has room for a sixth
    ],
)
def test_the_page_says_whether_a_video_is_shown_as_made(size: tuple[int, int], frames: int, words: str) -> None:
    found = comparison(3, 1, size)
    found = replace(found, settings={**found.settings, "frames": frames, "fps": 8.0})
    assert words in test_report.Parsed(page(found, {})).text
    sheet = Sheet.of(size, frames, 3)
    noise = np.random.default_rng(0).integers(0, 256, (frames, size[1], size[0], 3), np.uint8)
    embedded = Embedded(768, sheet)
    embedded.add(Video(noise, 8.0))
    with Image.open(io.BytesIO(base64.b64decode(embedded.uris[0].partition(",")[2]))) as read:
        same = np.array_equal(np.asarray(read.convert("RGB")), np.asarray(sheet(Video(noise, 8.0))))
    assert same == words.startswith("Shown as made")


def test_frames_are_made_smaller_before_some_are_left_out() -> None:
    assert Sheet.of((64, 64), 9, 20) == Sheet((64, 64), 1, 9, 3)
    large = Sheet.of((1280, 720), 129, 4)
    assert large.every == 1 and large.frames == 129 and 129 * large.size[0] * large.size[1] <= SHEET
    many = Sheet.of((1280, 720), 129, 400)
    assert many.size == (256, 144) and many.every > 1
    assert 400 * many.frames * 256 * 144 <= PIXELS * 1.1 and many.columns**2 >= many.frames


@pytest.mark.slow
def test_both_show_the_same_frame_and_can_be_stopped(browser: Browser, report: Path) -> None:
    tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.goto(report.as_uri())
    wait_for_another_frame(tab, "0")  # it plays by itself
    tab.click("#play")
    assert tab.locator("#play").text_content() == "Play"
    names = [method.name for method in compared()[0].methods]
    chosen = names.index(compared()[0].chosen)
    for number in (0, 3, 4):
        tab.locator("#frame").evaluate(
            f"slider => {{ slider.value = {number}; slider.dispatchEvent(new Event('input')) }}"
        )
        assert pixel(tab, "before") == colour(0, number) and pixel(tab, "after") == colour(chosen, number)
        assert tab.locator("#frame-words").text_content() == f"frame {number + 1} of {FRAMES}"
    assert tab.locator("#after-link").text_content() == compared()[0].methods[chosen].label
    assert tab.locator("#cases img").first.evaluate("image => image.naturalWidth") == 32
    tab.click("#play")
    wait_for_another_frame(tab, "4")
    assert wrong == []


def wait_for_another_frame(tab: Page, number: str) -> None:
    tab.wait_for_function("number => document.querySelector('#frame').value !== number", arg=number, timeout=120_000)


def pixel(tab: Page, name: str) -> tuple[int, ...]:
    """The colour in the middle of what a canvas shows."""
    script = "canvas => [...canvas.getContext('2d').getImageData(16, 12, 1, 1).data].slice(0, 3)"
    return tuple(tab.locator(f"#{name}").evaluate(script))
