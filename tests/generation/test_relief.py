"""Running out of memory: what is tried instead, in which order, and the message when nothing is left to try."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import h2gen
from h2gen.cache import CacheConfig
from h2gen.errors import OutOfMemory, RunError, Stopped
from h2gen.generation.relief import Relief, advice, free_memory, let_go, next_relief, with_relief
from h2gen.generation.render import Renderer, RenderObserver, RenderOptions, SavedPicture, render
from h2gen.models.choices import WAYS
from h2gen.models.load_options import LoadOptions
from h2gen.output.metadata import origin, read_metadata
from h2gen.output.recorded_decisions import read_decisions
from h2gen.output.save import target_of
from h2gen.settings.resolve import request_from


@pytest.mark.parametrize(
    ("device", "offload", "words"),
    [
        ("cuda", "none", "--offload text"),
        ("cuda", "model", "--offload group"),
        ("cuda", "sequential", "--size"),
        ("cpu", "none", "--size"),
    ],
)
def test_the_advice_names_the_next_stronger_option(device: str, offload: str, words: str) -> None:
    assert words in advice(device, offload)


@pytest.mark.parametrize(
    ("device", "offload", "tiled", "following"),
    [
        ("cpu", "none", False, Relief("cpu", "none", stronger=False)),
        ("cpu", "none", True, None),
        ("cuda:1", "none", False, Relief("cuda:1", "text", stronger=True)),
        ("cuda", "text", True, Relief("cuda", "model", stronger=True)),
        ("cuda", "model", True, Relief("cuda", "group", stronger=True)),
        ("cuda", "group", True, Relief("cuda", "sequential", stronger=True)),
        ("cuda", "sequential", False, Relief("cuda", "sequential", stronger=False)),
        ("cuda", "sequential", True, None),
    ],
)
def test_offloading_grows_and_tiles_come_with_it(
    device: str, offload: str, tiled: bool, following: Relief | None
) -> None:
    assert next_relief(device, offload, tiled) == following
    assert following is None or following.tiled


@pytest.mark.parametrize(
    ("refused", "following"),
    [
        ({"sequential"}, [("text", True), ("model", True), ("group", True), None]),
        ({"group", "sequential"}, [("text", True), ("model", True), None]),
        ({"group"}, [("text", True), ("model", True), ("sequential", True), None]),
    ],
)
def test_a_way_that_the_weights_do_not_work_with_is_never_tried(refused: set[str], following: list[Any]) -> None:
    offload, seen = "none", []
    while (relief := next_relief("cuda:0", offload, True, refused)) is not None:
        seen.append((relief.offload, relief.stronger))
        offload = relief.offload
    assert [*seen, None] == following
    assert all(f"--offload {way}" not in advice("cuda", each, refused) for way in refused for each in WAYS)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_memory_that_a_device_keeps_is_given_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    for each in ("cuda", "xpu", "mps"):
        module = getattr(torch, each)
        monkeypatch.setattr(module, "is_available", lambda each=each: each == kind)
        monkeypatch.setattr(module, "empty_cache", lambda each=each: emptied.append(each))
    free_memory()
    assert emptied == [kind]


SIZE = (128, 128)


class OnAGpu:
    """A fake session on a GPU."""

    device = torch.device("cuda")
    offload = "none"
    is_loaded = True
    pipe = SimpleNamespace(components={})

    def __init__(self) -> None:
        self.attempts: list[tuple[str, bool]] = []
        self.tiled_sizes: set[tuple[int, int]] = set()

    def relieve(self, offload: str) -> None:
        self.offload = offload

    def make(self, tiled: bool) -> str:
        self.attempts.append((self.offload, tiled))
        if self.offload != "group":
            raise OutOfMemory(f"Out of memory with {self.offload}.")
        return "a picture"


def test_more_offloading_is_tried_until_memory_suffices_and_stays() -> None:
    session, seen = OnAGpu(), []
    assert with_relief(session, SIZE, session.make, on_relief=seen.append) == "a picture"  # type: ignore[arg-type]
    assert session.attempts == [("none", False), ("text", True), ("model", True), ("group", True)]
    assert [str(relief) for relief in seen] == [
        f"Out of memory on cuda; trying again with --offload {mode} and tiled decoding."
        for mode in ("text", "model", "group")
    ]
    assert with_relief(session, SIZE, session.make) == "a picture"  # type: ignore[arg-type]
    assert session.attempts[4:] == [("group", True)]
    with_relief(session, (64, 64), session.make)  # type: ignore[arg-type]
    assert session.attempts[5:] == [("group", False)]


def test_where_nothing_is_left_the_error_is_the_last_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = h2gen.load("tiny")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny.pipe.transformer, "forward", full)
    settings, tiles = tiny.settings("a cat", seed=7, steps=2, cache=None), []

    def attempt(tiled: bool) -> Any:
        tiles.append(tiled)
        return tiny.run(settings, tiled=tiled)

    with pytest.raises(OutOfMemory, match="Out of memory on cpu at 128x128; use a smaller --size"):
        with_relief(tiny, SIZE, attempt)
    assert tiles == [False, True]


def test_a_session_is_loaded_again_with_other_offloading(monkeypatch: pytest.MonkeyPatch) -> None:
    session, calls = h2gen.load("tiny"), []
    new = object()
    session.pipe.transformer.to(torch.float16)  # what it was loaded with counts, as a file may hold other types

    def load_placed(checkpoint: Any, options: LoadOptions, *_: object) -> tuple[object, LoadOptions]:
        assert not session.is_loaded, "the old weights must be gone before the new ones come"
        calls.append((checkpoint.name, options))
        return new, options

    monkeypatch.setattr("h2gen.models.load.load_placed", load_placed)
    session.relieve("none")
    assert calls == []
    session.relieve("model")
    assert calls == [("tiny", LoadOptions("cpu", "float32", "model"))]
    assert (session.pipe, session.offload) == (new, "model")


def test_a_session_that_cannot_offload_more_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    session, new = h2gen.load("tiny"), object()

    def load_placed(_checkpoint: Any, options: LoadOptions, *_: object) -> tuple[object, LoadOptions]:
        if options.offload == "model":
            raise MemoryError
        return new, options

    monkeypatch.setattr("h2gen.models.load.load_placed", load_placed)
    with pytest.raises(OutOfMemory, match="while loading 'tiny'"):
        session.relieve("model")
    assert (session.pipe, session.offload) == (new, "none")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_loading_a_session_again_it_is_as_before(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    session, new = h2gen.load("tiny"), object()

    def load_placed(_checkpoint: Any, options: LoadOptions, *_: object) -> tuple[object, LoadOptions]:
        if options.offload == "model":
            raise error
        return new, options

    monkeypatch.setattr("h2gen.models.load.load_placed", load_placed)
    with pytest.raises(error):
        session.relieve("model")
    assert (session.pipe, session.offload) == (new, "none")


def test_a_session_that_cannot_be_loaded_again_at_all_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    session = h2gen.load("tiny")
    settings = session.settings("a cat", steps=1, cache=None)

    def load_placed(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr("h2gen.models.load.load_placed", load_placed)
    with pytest.raises(ValueError, match="no"):
        session.relieve("model")
    for call in (
        lambda: session.run(settings),
        lambda: session.encode(settings),
        lambda: session.pipeline(settings),
        lambda: session.generate("a cat"),
        lambda: Renderer(session, RenderOptions(), Log()),
        lambda: origin(session),
        lambda: session.device,
        lambda: session.dtype,
    ):
        with pytest.raises(RunError, match=r"^'tiny' is no longer loaded, because loading it again failed; restart"):
            call()


class Unloadable(OnAGpu):
    """Cannot be loaded with more offloading."""

    def __init__(self, enough: bool) -> None:
        super().__init__()
        self._enough = enough

    def relieve(self, offload: str) -> None:
        raise ValueError(offload)

    def make(self, tiled: bool) -> str:
        self.attempts.append((self.offload, tiled))
        if tiled and self._enough:
            return "a picture"
        raise OutOfMemory(f"Attempt {len(self.attempts)}.")


def test_where_more_offloading_cannot_be_loaded_tiles_are_tried_without() -> None:
    session, seen = Unloadable(enough=True), []
    assert with_relief(session, SIZE, session.make, on_relief=seen.append) == "a picture"  # type: ignore[arg-type]
    assert session.attempts == [("none", False), ("none", True)]
    assert str(seen[-1]) == "Out of memory on cuda; trying again with tiled decoding."


@pytest.mark.parametrize(("tiled", "attempts"), [(False, 2), (True, 1)])
def test_where_tiles_do_not_help_either_the_first_error_stands(tiled: bool, attempts: int) -> None:
    session = Unloadable(enough=False)
    with pytest.raises(OutOfMemory, match=r"Attempt 1\."):
        with_relief(session, SIZE, session.make, tiled=tiled)  # type: ignore[arg-type]
    assert len(session.attempts) == attempts


def test_an_error_that_is_let_go_holds_no_tensors() -> None:
    held: list[Any] = []

    def fail() -> None:
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError

    def translate() -> None:
        try:
            fail()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory from error

    with pytest.raises(OutOfMemory) as caught:
        translate()
    assert held[0]() is not None
    let_go(caught.value)
    assert held[0]() is None


class Log(RenderObserver):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def relieved(self, notice: str) -> None:
        self.events.append(notice)

    def saved(self, picture: SavedPicture) -> None:
        self.events.append(picture.path.name)


def test_a_picture_that_memory_does_not_suffice_for_is_made_in_tiles_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder runs out of memory at one size, after all steps, unless it decodes in tiles."""
    tiny = h2gen.load("tiny")
    decode = tiny.pipe.vae.decode

    def limited(latents: torch.Tensor, *rest: Any, **more: Any) -> Any:
        if latents.shape[-1] >= 16 and not tiny.pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, *rest, **more)

    monkeypatch.setattr(tiny.pipe.vae, "decode", limited)
    log = Log()
    renderer = Renderer(tiny, RenderOptions(), log)
    target = target_of(str(tmp_path), None)
    settings = [tiny.settings("a cat", CacheConfig(0.5, 0.5), seed=n, steps=4, cfg=1.0) for n in (1, 2)]
    (first,) = renderer.render(settings[:1], [target])
    assert log.events == ["Out of memory on cpu; trying again with tiled decoding.", "a-cat-1.png"]
    assert read_metadata(first.path).tiled and first.result.tiled

    # This size is decoded in tiles from then on, others are not.
    (second,) = renderer.render(settings[1:], [target])
    small = tiny.settings("a cat", seed=3, steps=4, cfg=1.0, width=64, height=64, cache=None)
    (third,) = renderer.render([small], [target])
    assert log.events[2:] == ["a-cat-2.png", "a-cat-3.png"]
    assert (second.result.tiled, third.result.tiled) == (True, False)
    assert np.array_equal(np.asarray(second.result.image), np.asarray(tiny.run(settings[1], tiled=True).image))

    # A trace file holds the steps of the saved picture, not those of the earlier attempt.
    trace = tmp_path / "t.jsonl"
    tiny.tiled_sizes.clear()
    traced = Renderer(tiny, RenderOptions(trace=trace), log)
    traced.render(settings[:1], [target])
    assert len(log.events) == 6
    assert len(trace.read_text().splitlines()) == 1 + 4 + 1
    assert read_decisions(trace).settings["steps"] == 4


def test_a_batch_that_memory_does_not_suffice_for_is_made_smaller_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, log = h2gen.load("tiny"), Log()
    forward = session.pipe.transformer.forward

    def limited(*arguments: Any, **more: Any) -> Any:
        if len(more["hidden_states"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **more)

    monkeypatch.setattr(session.pipe.transformer, "forward", limited)
    renderer = Renderer(session, RenderOptions(batch_size=2), log)
    settings = [session.settings("a cat", seed=n, steps=2, cfg=1.0, cache=None) for n in (1, 2)]
    saved = renderer.render(settings, [target_of(str(tmp_path), None)] * 2)
    assert log.events == ["Out of memory on cpu; making one picture at a time.", "a-cat-1.png", "a-cat-2.png"]
    assert [(picture.result.together, picture.result.tiled) for picture in saved] == [(1, False)] * 2


def full_after(session: Any, monkeypatch: pytest.MonkeyPatch, calls: int, end: type[BaseException]) -> None:
    """One picture fits at a time, and after so many calls of the transformer there is an end."""
    forward, seen = session.pipe.transformer.forward, []

    def limited(*arguments: Any, **more: Any) -> Any:
        if len(more["hidden_states"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(1)
        if len(seen) > calls:
            raise end
        return forward(*arguments, **more)

    monkeypatch.setattr(session.pipe.transformer, "forward", limited)


def test_pictures_finished_before_memory_runs_out_are_saved_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, log = h2gen.load("tiny"), Log()
    full_after(session, monkeypatch, 4, torch.OutOfMemoryError)
    made: list[int] = []
    monkeypatch.setattr(log, "making", lambda _renderer, settings: made.append(len(settings)) or nullcontext())
    renderer = Renderer(session, RenderOptions(batch_size=4), log)
    settings = [session.settings("a cat", seed=n, steps=2, cfg=1.0, cache=None) for n in (1, 2, 3, 4)]
    with pytest.raises(OutOfMemory):
        renderer.render(settings, [target_of(str(tmp_path), None)] * 4)
    assert made == [4, 2]
    assert log.events[-2:] == ["a-cat-1.png", "a-cat-2.png"]
    assert not read_metadata(tmp_path / "a-cat-1.png").tiled


def test_a_finished_picture_records_the_offloading_that_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = h2gen.load("tiny")
    make = session.run_together

    def once(settings: Any, **more: Any) -> Any:
        if session.offload == "none":
            make(settings[:1], **more)
            raise OutOfMemory("Full.")
        return make(settings, **more)

    monkeypatch.setattr(session, "run_together", once)
    monkeypatch.setattr("h2gen.generation.relief.next_relief", lambda *_: Relief("cuda", "model", stronger=True))
    monkeypatch.setattr(session, "relieve", lambda mode: setattr(session, "options", LoadOptions(offload=mode)))
    renderer = Renderer(session, RenderOptions(batch_size=2), RenderObserver())
    settings = [session.settings("a cat", seed=n, steps=1, cfg=1.0, cache=None) for n in (1, 2)]
    saved = renderer.render(settings, [target_of(str(tmp_path), None)] * 2)
    found = [read_metadata(picture.path) for picture in saved]
    assert [(each.everything["offload"], each.tiled) for each in found] == [("none", False), ("model", True)]


def test_pictures_finished_before_an_interrupt_are_saved_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, log = h2gen.load("tiny"), Log()
    full_after(session, monkeypatch, 2, KeyboardInterrupt)
    monkeypatch.setattr("h2gen.generation.session.open_session", lambda *_, **__: session)
    request = request_from("a cat", [("option", {"steps": 2, "cfg": 1.0, "out": str(tmp_path)})])
    with pytest.raises(Stopped, match="1 of 4 pictures are saved"):
        render(request, [1, 2, 3, 4], RenderOptions(batch_size=4), log)
    assert log.events[-1:] == ["a-cat-1.png"]


def test_an_interrupt_while_a_model_is_loaded_again_stops_the_next_attempt() -> None:
    """The view turns Ctrl-C into an interrupt of the session around all attempts, so that it is not forgotten."""
    session, events = h2gen.load("tiny"), []

    class Around(RenderObserver):
        @contextmanager
        def interruptible(self, renderer: Renderer) -> Iterator[None]:
            events.append("begin")
            yield
            events.append("end")

        def relieved(self, notice: str) -> None:
            events.append("relieved")
            session.interrupt()

        def making(self, renderer: Renderer, settings: Any) -> Any:
            events.append("making")
            return nullcontext()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    session.pipe.transformer.forward = full
    renderer = Renderer(session, RenderOptions(), Around())
    with pytest.raises(KeyboardInterrupt):
        renderer.render([session.settings("a cat", seed=1, steps=2, cache=None)], [target_of(".", None)])
    assert events == ["begin", "making", "relieved", "making"]


def test_ctrl_c_is_not_forgotten_when_the_same_attempt_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    session, tiles = h2gen.load("tiny"), []
    settings = session.settings("a cat", seed=7, steps=2, cfg=1.0, cache=None)
    forward = session.pipe.transformer.forward

    def full(*arguments: Any, **more: Any) -> Any:
        forward(*arguments, **more)
        session.interrupt()  # in the middle of a step
        raise torch.OutOfMemoryError("CUDA out of memory")

    def attempt(tiled: bool) -> Any:
        tiles.append(tiled)
        return session.run(settings, tiled=tiled)

    monkeypatch.setattr(session.pipe.transformer, "forward", full)
    with pytest.raises(KeyboardInterrupt):
        with_relief(session, SIZE, attempt)
    assert tiles == [False]
    monkeypatch.undo()
    assert session.run(settings).image.size == SIZE


def test_running_out_of_memory_while_text_is_encoded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    session = h2gen.load("tiny")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "_arguments", full)
    with pytest.raises(OutOfMemory, match="Out of memory on cpu at 128x128"):
        session.encode(session.settings("a cat"))
