"""Makes one image with one method: timed, with its blocks counted. Also loads the model for that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from h2gen.cache.trace import StepRecord
from h2gen.errors import BadPicture
from h2gen.evaluation.block_count import BlockCount, count_blocks
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import Case
from h2gen.evaluation.videos import Shown, shown
from h2gen.families import family_of
from h2gen.generation.relief import with_relief
from h2gen.generation.result import Result
from h2gen.generation.session import Session, open_session
from h2gen.models.attention import check_attention
from h2gen.models.content_hash import Identity
from h2gen.models.translate_errors import translated
from h2gen.settings.resolve import Request
from h2gen.settings.values import Settings
from h2gen.settings.workload import work_of


def load_model(request: Request) -> tuple[Session, str]:
    """Load a request's model; returns it with its content hash.

    The hash is read before anything is timed: reading a whole checkpoint would slow the first runs down.

    Raises:
        H2GenError: the model cannot be loaded or read.
    """
    check_attention(request.settings.attention, request.load.device, request.load.dtype)
    identity = Identity(request.checkpoint)  # reads in a thread of its own
    work = work_of(request.settings, request.checkpoint)
    # Offloading is part of what the times were measured with.
    session = open_session(
        request.checkpoint, request.load, work, lambda line: warnings.warn(line, RuntimeWarning, stacklevel=1)
    )
    with translated(request.checkpoint):
        return session, identity.result()


@dataclass(frozen=True)
class MadeImage:
    """An image or a video, seconds of the pipeline call, the share of the blocks that ran, and H2-Cache's decisions."""

    image: Shown
    seconds: float
    share: float
    trace: tuple[StepRecord, ...]


@dataclass
class ImageMaker:
    """A loaded model that makes the images of some cases with any method.

    Args:
        session: the model.
        cases: prompts and seeds.
        settings: shared by all images.
        on_relief: is called with a notice if memory ran out and images are made in another way from then on.
    """

    session: Session
    cases: Sequence[Case]
    settings: Settings
    on_relief: Callable[[str], None] = lambda _notice: None
    _succeeded: bool = field(default=False, init=False)

    @property
    def passes(self) -> int:
        """Passes per step: 2 with true guidance."""
        return 2 if self.settings.cfg > 1 else 1

    @property
    def forward_passes(self) -> int:
        """Forward passes per step; some models run both passes of true guidance as one batch."""
        return 1 if family_of(self.session.pipe.transformer).guides_in_one_pass else self.passes

    def make(self, method: Method, case: int) -> MadeImage:
        """Make one image.

        The text is encoded before timing starts: embeddings are kept, which would favour later methods. A peer's
        blocks are counted by hooks, which take a few microseconds per step.

        If memory runs out for the first image, it and all later ones are made with more offloading and tiled decoding.
        Later failures are not retried: images are comparable only if they are made in the same way.

        Raises:
            OutOfMemory: memory ran out after the first image, or even with all relief.
            BadPicture: the image contains NaN. This includes images with a cache: the uncached image that
                the session then makes says nothing about the cache.
        """
        where = self.cases[case]
        settings = replace(
            self.settings,
            prompt=where.prompt,
            seed=where.seed,
            steps=method.steps,
            cache=method.cache,
            solver=method.solver,
            reference_steps=self.settings.steps,
        )
        size = settings.width, settings.height
        if self._succeeded:
            result, counted = self._run(method, settings, tiled=size in self.session.tiled_sizes)
        else:
            result, counted = with_relief(
                self.session,
                size,
                lambda tiled: self._run(method, settings, tiled),
                on_relief=lambda relief: self.on_relief(str(relief)),
            )
        self._succeeded = True
        if result.nan_with_cache:
            raise BadPicture(f"The {self.settings.noun} of {where.prompt!r} contains NaN.")
        # At a strength below 1 only a part of each method's steps run, rounded up.
        share = 1 / settings.reference if method.share is None or settings.strength < 1 else method.share
        if counted is not None:
            share = counted.share
        elif result.summary is not None:
            share = result.summary.share
        return MadeImage(shown(result), result.seconds, share, tuple(result.trace.steps))

    def _run(self, method: Method, settings: Settings, tiled: bool) -> tuple[Result, BlockCount | None]:
        self.session.encode(settings)
        with ExitStack() as stack:
            counted = None
            if method.kind == "peer":
                counted = stack.enter_context(count_blocks(self.session.pipe.transformer))
            stack.enter_context(method.around(self.session.pipeline(settings)))
            return self.session.run(settings, tiled=tiled), counted
