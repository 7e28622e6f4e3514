"""The samples of a comparison that can be continued: each is made once, and kept as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from h2gen.evaluation import methods
from h2gen.evaluation.make_image import ImageMaker, MadeImage
from h2gen.evaluation.methods import Method
from h2gen.evaluation.options import CompareObserver
from h2gen.evaluation.results import Case, Sample
from h2gen.evaluation.videos import Shown

Score = Callable[[Method, int, MadeImage, Shown], Sample]
"""Scores a method's image of a case against the uncached one."""


class SampleStore(Protocol):
    """Keeps samples across runs of the program. ``notices`` are lines about them for the user."""

    @property
    def notices(self) -> Sequence[str]: ...

    def recall(self, method: Method, case: int) -> Sample | None:
        """The sample of an image, if it was measured before."""

    def picture(self, method: Method, case: int) -> Shown | None:
        """The image itself, if it was kept."""

    def keep(self, method: Method, case: int, sample: Sample, image: Shown) -> None:
        """Store a sample, and its image if the store keeps such images."""

    def value(self, method: Method, case: Case, make: Callable[[], float]) -> float:
        """A method's score on another case: the stored one, or that of ``make``, which is then stored."""


class KeptSamples:
    """The samples in a store; those that are missing are made, scored and stored, one image after the other.

    Args:
        store: where samples are kept.
        maker: makes the images.
        score: scores them.
        observer: receives progress events.
        images: whether a sample without its image counts as missing, because a report will show the image.
    """

    def __init__(
        self, store: SampleStore, maker: ImageMaker, score: Score, observer: CompareObserver, *, images: bool
    ) -> None:
        self._store, self._maker, self._score, self._observer, self._images = store, maker, score, observer, images
        self._reference = methods.reference(maker.settings.steps)
        self._plain: tuple[int, Shown] | None = None

    @property
    def notices(self) -> Sequence[str]:
        return self._store.notices

    def recall(self, method: Method, case: int) -> Sample | None:
        """A sample of the store; None if it has to be made."""
        found = self._store.recall(method, case)
        if found is not None and self._images and self._store.picture(method, case) is None:
            return None
        return found

    def sample(self, method: Method, case: int) -> Sample:
        """A sample, which is made if it is missing.

        Raises:
            H2GenError: it cannot be made, or cannot be stored.
        """
        found = self.recall(method, case)
        if found is not None:
            return found
        plain = None if method.kind == "reference" else self._plain_image(case)
        made = self._maker.make(method, case)
        self._observer.ran(method, case, made.seconds)
        if plain is None:
            self._plain = case, made.image
        sample = self._score(method, case, made, plain or made.image)
        self._store.keep(method, case, sample, made.image)
        return sample

    def value(self, method: Method, case: Case, make: Callable[[], float]) -> float:
        """A method's score on a case of the search, which is made if it is missing."""
        return self._store.value(method, case, make)

    def image(self, method: Method, case: int) -> Shown:
        """The image of a sample, if images were asked for."""
        image = self._store.picture(method, case)
        return self._maker.make(method, case).image if image is None else image

    def _plain_image(self, case: int) -> Shown:
        """The uncached image of a case: the last one made, the store's, or made once more."""
        if self._plain is None or self._plain[0] != case:
            self.sample(self._reference, case)
        if self._plain is None or self._plain[0] != case:
            self._plain = case, self.image(self._reference, case)
        return self._plain[1]
