"""What the views of a picture and of a batch do when memory runs out or Ctrl-C is pressed."""

from __future__ import annotations

import io
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from h2gen.batches.jobs import Job
from h2gen.batches.messages import PictureMade
from h2gen.batches.observer import Tally
from h2gen.cache.config import CacheConfig
from h2gen.cache.summary import Summary
from h2gen.cli.views.batch import BatchView
from h2gen.cli.views.compare import CompareView
from h2gen.cli.views.picture import PictureView
from h2gen.evaluation.methods import h2, reference
from h2gen.evaluation.results import Sample
from h2gen.settings.values import Settings
from tests.evaluation.comparisons import PSNR


def test_a_batch_says_in_which_way_a_picture_is_tried_again() -> None:
    out = io.StringIO()
    job = Job(1, Settings("a cat", 1, 64, 64, 2), "", None, None, "p.txt:1")
    BatchView(Console(file=out, width=200)).relieved(job, "Out of memory on cpu; trying again with tiled decoding.")
    assert out.getvalue() == "p.txt:1: Out of memory on cpu; trying again with tiled decoding.\n"


def test_ctrl_c_between_two_attempts_at_a_picture_stops_the_next_one() -> None:
    events: list[str] = []
    session = SimpleNamespace(
        interrupt=lambda: events.append("interrupt"), forget_interrupt=lambda: events.append("forget")
    )
    renderer: Any = SimpleNamespace(session=session)
    view, settings = PictureView(Console(file=io.StringIO())), [Settings("a cat", 1, 64, 64, 2)]
    with view.interruptible(renderer):
        with view.making(renderer, settings):
            pass
        signal.raise_signal(signal.SIGINT)  # while the model is loaded again
        with view.making(renderer, settings):
            assert events == ["interrupt"]
    assert events == ["interrupt", "forget"]


@pytest.mark.parametrize(
    ("facts", "shown"),
    [({"device": "cuda:0"}, "cuda:0 bfloat16"), ({"device": "cuda:0", "devices": 4}, "4x cuda bfloat16")],
)
def test_the_header_says_on_how_many_devices_a_picture_is_made(facts: dict[str, Any], shown: str) -> None:
    out = io.StringIO()
    renderer: Any = SimpleNamespace(facts={"model": "dev", "dtype": "bfloat16", **facts})
    view = PictureView(Console(file=out, width=200, height=40, force_terminal=True, color_system=None))
    with view.making(renderer, [Settings("a cat", 1, 64, 64, 2)]):
        pass
    assert f"no cache · {shown}\n" in out.getvalue()


SEED = 4294967295
NARROW = [
    (200, f"tiny-video · 64x64 · 9 frames at 8 fps · 28 steps · seed {SEED} · cfg 3 · no cache · cpu float32"),
    (90, f"tiny-video · 64x64 · 9 frames at 8 fps · 28 steps · seed {SEED} · cfg 3 · no cache"),
    (79, f"tiny-video · 64x64 · 9 frames at 8 fps · 28 steps · seed {SEED} · cfg 3"),
    (60, f"tiny-video · 64x64 · 28 steps · seed {SEED}"),
    (40, f"tiny-video · 64x64 · seed {SEED}"),
    (30, f"tiny-video · seed {SEED}"),
    (20, f"seed {SEED}"),
]


@pytest.mark.parametrize(("width", "shown"), NARROW)
def test_the_header_of_a_narrow_terminal_leaves_out_what_matters_least_and_never_the_seed(
    width: int, shown: str
) -> None:
    out = io.StringIO()
    renderer: Any = SimpleNamespace(facts={"model": "tiny-video", "device": "cpu", "dtype": "float32"})
    view = PictureView(Console(file=out, width=width, height=40, force_terminal=True, color_system=None))
    video = Settings("a cat walks", SEED, 64, 64, 28, cfg=3.0, frames=9, fps=8.0)
    with view.making(renderer, [video]):
        pass
    assert shown in (line.strip() for line in out.getvalue().splitlines())


def test_a_header_of_more_seeds_than_fit_names_the_model_first() -> None:
    out = io.StringIO()
    renderer: Any = SimpleNamespace(facts={"model": "tiny", "device": "cpu", "dtype": "float32"})
    view = PictureView(Console(file=out, width=60, height=40, force_terminal=True, color_system=None))
    with view.making(renderer, [Settings("a cat", SEED - n, 64, 64, 28) for n in range(9)]):
        pass
    assert f"\ntiny · 64x64 · 28 steps · seed {SEED},{SEED - 1}" in out.getvalue()


def test_a_narrow_terminal_shows_the_seed_of_each_worker_of_a_batch() -> None:
    console = Console(file=io.StringIO(), width=40, height=20, force_terminal=True, color_system=None)
    view = BatchView(console)
    with view:
        view.counted(Tally(2), 0, 2)
        for worker in range(2):
            view.began(
                worker, [Job(1, Settings("a cat that walks", SEED - worker, 1024, 1024, 28), "", None, None, "")]
            )
        with console.capture() as shown:
            console.print(view.render())
    for worker in range(2):
        assert f"{worker + 1}: seed {SEED - worker} · 0/28 · 1024x1024" in shown.get()


def ended(tally: Tally, *made: PictureMade) -> list[str]:
    """The lines of a batch that has made these pictures."""
    out = io.StringIO()
    view = BatchView(Console(file=out, width=200, quiet=False))
    for each in made:
        view.saved(Job(1, each.settings, "", None, None, "p.txt:1"), Path("a.png"), each, tally)
    view.ended(tally, 12.0, None, None)
    return out.getvalue().splitlines()[len(made) :]


def test_a_batch_names_existing_pictures_and_skipped_steps_by_different_words_and_no_zeros() -> None:
    steps = Summary(28, 14, 0, 0, 100, 200, 1.0, skipped=14)
    assert ended(Tally(3, made=3, steps=steps)) == ["3 made; est. 2.00x; steps: 50% full, 50% skipped; 0:12 in all."]
    assert ended(Tally(4, skipped=2, made=1, failed=1))[-1] == "1 made, 2 already existed, 1 failed; 0:12 in all."
    assert ended(Tally(4)) == ["0 made; 0:12 in all."]


@pytest.mark.parametrize(("reused", "lines"), [(0, 2), (1, 1)])
def test_a_batch_in_which_nothing_is_reused_gives_the_advice_of_a_single_picture_once(reused: int, lines: int) -> None:
    settings = Settings("a cat", 1, 64, 64, 4)
    summary = Summary(4, 4, 0, 0, 24, 24, 1.0)
    made = PictureMade(b"", None, True, {}, settings, 1.0, summary, False, advice="Use fewer steps.")
    total = Summary(12, 12 - reused, 0, reused, 72 - reused, 72, 3.0)
    told = ended(Tally(3, made=3, steps=total), made, made, made)
    assert len(told) == lines and told[1:] == ["Use fewer steps."][: lines - 1]


def compared_so_far(cases: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a comparison's progress in a pipe, if nothing but the runs took time."""
    monkeypatch.setattr("h2gen.cli.views.evaluation.time", SimpleNamespace(perf_counter=lambda: 0.0))
    plain, cached = reference(28), h2(CacheConfig(tolerance=0.002), 28)
    out = io.StringIO()
    view = CompareView(Console(file=out, width=200), as_json=False)
    view.planned([plain, cached], {"uncached": 2 * cases, cached.name: 2 * cases}, [PSNR])
    for case in range(cases):
        for method, seconds, psnr in ((plain, 2.0, math.inf), (cached, 1.0, 46.94)):
            view.ran(method, case, seconds)
            view.scored(method, Sample(case, "", {"psnr": psnr}, {}, (seconds,), seconds / 2, False))
    return out.getvalue().splitlines()


def test_a_method_is_shown_with_its_figures_as_soon_as_it_has_them_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compared_so_far(1, monkeypatch) == [
        "Measuring 2 methods in 4 runs ...",
        "uncached, 28 steps: 2.00 s; about 4 seconds left",
        "H2-Cache, tolerance 0.002: 1.00 s, 50 % of the blocks, PSNR 46.9 dB",
    ]


def test_a_further_run_is_expected_and_announced() -> None:
    plain, cached = reference(28), h2(CacheConfig(tolerance=0.002), 28)
    out = io.StringIO()
    view = CompareView(Console(file=out, width=200), as_json=False)
    view.planned([plain, cached], {"uncached": 2, cached.name: 2}, [PSNR])
    for seconds in (1.0, 2.0):
        view.ran(plain, 0, seconds)
        view.ran(cached, 0, seconds)
    progress = view._progress
    assert progress is not None and progress.left == 0
    view.repeated([plain, cached], 0)
    assert progress.left is not None and progress.left >= 3
    view._console = Console(file=out, width=200)
    view._console.print(*progress.render(100, 30))
    told = out.getvalue()
    assert "Timing 2 methods once more: the runs so far differ by more than a tenth ..." in told
    assert "4/6 runs" in told
    view.repeated([cached], 1)  # of many prompts only the first says so
    assert progress.expected == 7 and out.getvalue().count("once more") == 1
    view.repeated([cached], 0)
    assert f"Timing {cached.label} once more" in out.getvalue()


def test_of_several_prompts_each_is_one_line_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared_so_far(3, monkeypatch)[3:] == [
        "Prompt 2 ...; about 13 seconds left",
        "Prompt 3 ...; about 10 seconds left",
    ]


def test_a_narrow_terminal_cuts_names_of_methods_and_no_figures() -> None:
    plain, cached = reference(28), h2(CacheConfig(tolerance=0.002), 28)
    view = CompareView(Console(file=io.StringIO()), as_json=False)
    view.planned([plain, cached], {"uncached": 2, cached.name: 2}, [PSNR])
    for method, seconds, psnr in ((plain, 0.905, math.inf), (cached, 0.453, 46.94)):
        view.ran(method, 0, seconds)
        view.scored(method, Sample(0, "", {"psnr": psnr}, {}, (seconds,), seconds / 2, False))
    out = io.StringIO()
    assert view._progress is not None
    Console(file=out, width=42).print(*view._progress.render(42, 30))
    title, first, second = [line for line in out.getvalue().splitlines() if line][1:]
    assert title.split() == ["method", "seconds", "blocks", "PSNR"]
    assert first.split()[-3:] == ["0.905", "45", "%"]  # its PSNR to itself is no figure
    assert second.split()[-4:] == ["0.453", "23", "%", "46.9"] and "\u2026" in second
