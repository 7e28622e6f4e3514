"""One picture by one method: made, timed, and its blocks counted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from PIL import Image

from h2gen.cache.trace import StepRecord
from h2gen.errors import BadPicture
from h2gen.evaluation.block_count import BlockCount, count_blocks
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import Case
from h2gen.generation.session import Session
from h2gen.models.choices import evaluations
from h2gen.settings.values import Settings


@dataclass(frozen=True)
class MadeImage:
    """A picture, the seconds of the pipeline's call, the share of the blocks that ran, and H2-Cache's decisions."""

    image: Image.Image
    seconds: float
    share: float
    trace: tuple[StepRecord, ...]


@dataclass(frozen=True)
class ImageMaker:
    """A loaded model that makes the pictures of some cases, by any method; ``settings`` are what all of them share."""

    session: Session
    cases: Sequence[Case]
    settings: Settings

    @property
    def passes(self) -> int:
        """Forward passes a step."""
        return 2 if self.settings.cfg > 1 else 1

    def make(self, method: Method, case: int) -> MadeImage:
        """One picture.

        The text is encoded before the clock starts: kept embeddings would make whoever comes second faster. A peer's
        blocks are counted while it runs, by hooks that take some microseconds a step.

        Raises:
            BadPicture: it came out as NaN. With a cache that is a failure too: the picture that the session then makes
                without one says nothing about it.
        """
        where = self.cases[case]
        settings = replace(
            self.settings,
            prompt=where.prompt,
            seed=where.seed,
            steps=method.steps,
            cache=method.cache,
            solver=method.solver,
        )
        self.session.encode(settings)
        with ExitStack() as stack:
            counted: BlockCount | None = None
            if method.kind == "peer":
                counted = stack.enter_context(count_blocks(self.session.pipe.transformer))
            stack.enter_context(method.around(self.session.pipe))
            result = self.session.run(settings)
        if result.uncached:
            raise BadPicture(f"{where.prompt!r} came out as NaN.")
        # Of the reference's blocks, whatever the number of steps.
        whole = evaluations(method.steps, method.solver) / self.settings.steps
        share = whole if method.share is None else method.share
        if counted is not None:
            share = counted.share
        elif result.trace is not None:
            share = result.trace.summary.share * whole
        return MadeImage(result.image, result.seconds, share, () if result.trace is None else tuple(result.trace.steps))
