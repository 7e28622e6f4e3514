"""One picture in the terminal: the live table while it is made, then its path, figures and advice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from h2gen.cli.console import complain, route_warnings, say, say_stopping
from h2gen.cli.views.live_table import LiveTable, cost_of, counts, reference_steps, steps_table
from h2gen.cli.views.preview import TerminalPicture
from h2gen.cli.views.request import show_notice, show_notices
from h2gen.cli.views.view import Facts
from h2gen.generation.interrupt import stop_on_ctrl_c
from h2gen.generation.render import Renderer, RenderObserver, SavedPicture, StepCallback
from h2gen.models.choices import SOLVERS
from h2gen.output.metadata_rows import peak_text
from h2gen.wording import plural, printable

if TYPE_CHECKING:
    from h2gen.generation.preview import Preview
    from h2gen.settings.resolve import Request
    from h2gen.settings.values import Settings


class PictureView(RenderObserver):
    """Shows pictures being made and prints what was saved.

    Args:
        console: on stderr.
        as_json: print one JSON object per picture to stdout instead of its path.
        verbose: also print all steps, and the libraries' warnings.
        preview: show previews beside the live table.
        on_loaded: is called once the model is loaded.
    """

    def __init__(
        self,
        console: Console,
        *,
        as_json: bool = False,
        verbose: bool = False,
        preview: bool = False,
        on_loaded: Callable[[Renderer], None] = lambda _renderer: None,
    ) -> None:
        self._console, self._as_json, self._verbose, self._on_loaded = console, as_json, verbose, on_loaded
        self._request: Request | None = None
        self._preview = preview
        self._table: LiveTable | None = None
        self._compiles = False
        self._compiled: set[tuple[int, int]] = set()
        """Sizes of which a picture has been made, if blocks are compiled: the first of each waits for that."""

    @contextmanager
    def loading(self, request: Request) -> Iterator[None]:
        self._request = request
        status = self._console.status(Text(f"Loading {printable(request.checkpoint.name)}"))
        if self._console.is_terminal:
            status.start()
        try:
            import diffusers  # noqa: F401 - sets up its own logging, which is replaced next

            route_warnings(self._console, self._verbose)
            yield
        finally:
            status.stop()

    def loaded(self, renderer: Renderer) -> None:
        assert self._request is not None
        self._compiles = renderer.session.options.compile
        show_notices(self._request.notices, self._console)
        self._on_loaded(renderer)

    def interruptible(self, renderer: Renderer) -> AbstractContextManager[None]:
        return stop_on_ctrl_c(renderer.session, lambda: say_stopping(self._console))

    @contextmanager
    def making(self, renderer: Renderer, settings: Sequence[Settings]) -> Iterator[StepCallback | None]:
        if self._console.quiet or not self._console.is_terminal:
            yield None
            return
        first = settings[0]
        passes = first.passes * len(settings)
        heading: list[RenderableType] = [
            Text(printable(first.title), style="bold", no_wrap=True, overflow="ellipsis"),
            _facts(renderer, settings),
        ]
        asked = first.reference, reference_steps(first), TerminalPicture() if self._preview else None
        with LiveTable(self._console, heading, first.cache, passes, first.cfg > 1, *asked) as self._table:
            yield self._table.on_step

    def previewed(self, preview: Preview) -> None:
        if self._table is not None:
            self._table.show(preview.image)

    def notice(self, text: str) -> None:
        show_notice(text, self._console)

    def remark(self, text: str) -> None:
        say(self._console, text, "yellow")

    def relieved(self, notice: str) -> None:
        say(self._console, notice, "yellow")

    def saved(self, picture: SavedPicture) -> None:
        console, result = self._console, picture.result
        if not picture.described:
            suffix = picture.path.suffix
            say(console, f"The prompt is too long for the metadata of a {suffix}; use png.", "yellow")
        if picture.trace_error is not None:
            incomplete = f"The trace {str(picture.trace)!r} is incomplete: {picture.trace_error}."
            complain(f"{incomplete} The {result.settings.noun} is complete.")
        if self._verbose and result.trace.steps and not console.is_terminal:
            table = steps_table(result.trace.steps, result.settings.cache, 100, contexts=result.settings.cfg > 1)
            console.print(table, width=100, crop=False)  # a pipe has no width to keep to
        self._conclude(picture)
        if self._as_json:
            print(json.dumps(picture.to_json()), flush=True)
        elif console.quiet or not (console.is_terminal and sys.stdout.isatty()):
            print(picture.path, flush=True)  # in a terminal the line above has shown it

    def _conclude(self, picture: SavedPicture) -> None:
        """The last line, and advice if the cache reused nothing."""
        from h2gen.generation.advice import advice, tuned_thresholds

        console, result = self._console, picture.result
        if result.nan_with_cache:
            complain(f"The {result.settings.noun} came out as NaN with the cache; it was made again without it.")
        if self._verbose and result.peak_memory is not None:
            say(console, f"Peak memory: {peak_text(result.peak_memory.bytes, result.peak_memory.of)}.", "dim")
        settings, summary = result.settings, result.summary
        size = settings.width, settings.height
        including = " including compiling" if self._compiles and size not in self._compiled else ""
        self._compiled.add(size)
        line = f"{picture.path}  seed {settings.seed}, {result.seconds:.2f} s{including}"
        if summary is None:
            say(console, line if console.is_terminal else line + cost_of(settings, summary), "bold")
            return
        if not console.is_terminal:  # in a terminal the table has shown the totals
            steps = result.trace.steps
            several = any(step.context != steps[0].context for step in steps) or settings.solver == "heun"
            line = f"{line}, {counts(summary, several, reference_steps(settings))}"
        say(console, line, "bold")
        if self._verbose and result.trace.kept.total:
            say(console, f"The cache kept {result.trace.kept}.")
        tuned = partial(tuned_thresholds, settings, result.origin.changing, result.content_hash)
        sentence = advice(result.trace, settings.cache, tuned)
        if sentence is not None:
            say(console, sentence, "yellow")


def _facts(renderer: Renderer, together: Sequence[Settings]) -> Facts:
    """The table's second line: the shared settings of the pictures of a batch, and their seeds, which are what one
    needs most to make a picture again."""
    settings, made_with = together[0], renderer.facts
    solver = "" if settings.solver == "own" else f" of {SOLVERS[settings.solver]}"
    seeds = ",".join(str(each.seed) for each in together)
    guidance = f"cfg {settings.cfg:g}" if settings.cfg > 1 else f"guidance {settings.guidance:g}"
    cache = settings.cache.words if settings.cache.enabled else "no cache"
    frames = [] if settings.frames is None else [(f"{settings.frames} frames at {settings.fps:g} fps", 4)]
    device = made_with["device"]
    if "devices" in made_with:  # of which the session's own is the first
        device = f"{made_with['devices']}x {device.split(':')[0]}"
    steps = plural(settings.steps, "step")
    return Facts(
        [
            (made_with["model"], 1),
            (f"{settings.width}x{settings.height}", 2),
            *frames,
            (f"{steps}{solver}", 3),
            (f"seed {seeds}", 0),
            (guidance, 5),
            (cache, 6),
            (f"{device} {made_with['dtype']}", 7),
        ]
    )
