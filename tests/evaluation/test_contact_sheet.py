"""Pictures side by side, with unchanged pixels, their difference and their labels."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageChops

from h2gen.evaluation.contact_sheet import (
    FACTORS,
    Panel,
    amplification,
    contact_sheet,
    difference_map,
    difference_panel,
)
from tests.evaluation.comparisons import picture

GAP = 16
LABELS = ("Uncached", "H2-Cache")


def lightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=int)


@pytest.mark.parametrize(("size", "factor"), [((128, 128), 3), ((256, 128), 2), ((512, 512), 1), ((1024, 768), 1)])
def test_both_pictures_are_there_to_the_pixel_enlarged_by_a_whole_factor(size: tuple[int, int], factor: int) -> None:
    reference, other = picture(1, size), picture(1, size, 1.0)
    panels = [Panel(image, label) for image, label in zip((reference, other), LABELS, strict=True)]
    sheet = contact_sheet([[*panels, difference_panel(reference, other)]])
    wide, high = factor * size[0], factor * size[1]
    assert sheet.width == 3 * (wide + GAP) + GAP
    for column, expected in enumerate((reference, other)):
        left = GAP + column * (wide + GAP)
        shown = sheet.crop((left, GAP, left + wide, GAP + high))
        enlarged = expected.resize((wide, high), Image.Resampling.NEAREST)
        assert ImageChops.difference(shown, enlarged).getbbox() is None


def test_identical_pictures_have_a_black_map_that_says_so() -> None:
    reference = picture(2)
    assert difference_map(reference, reference.copy())[0].getextrema() == ((0, 0),) * 3
    assert difference_panel(reference, reference.copy()).label == "No difference"


def test_the_map_is_lighter_where_the_difference_is_larger() -> None:
    reference = Image.new("RGB", (256, 8), (0, 0, 0))
    other = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (8, 1, 3)))
    shown, factor = difference_map(reference, other)
    assert factor == 1
    row = lightness(shown)[0]
    assert row[0] == 0
    assert (np.diff(row) >= 0).all()
    assert row[-1] > 240
    assert row[32] > 20  # a small difference can be seen


def test_small_differences_are_amplified_as_far_as_they_fit() -> None:
    reference = Image.new("RGB", (32, 32), (100, 100, 100))
    for change, expected in ((1, 32), (7, 32), (8, 16), (60, 4), (130, 1)):
        other = Image.new("RGB", (32, 32), (100, 100, 100 + change))
        assert difference_map(reference, other)[1] == expected
    assert max(FACTORS) == 32


def test_the_frames_of_videos_are_amplified_as_one_picture_of_them_all_would_be_with_two_in_memory() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 32, 32, 3), dtype=np.uint8)
    alive: list[weakref.ref[Image.Image]] = []

    def pairs(other: np.ndarray) -> Iterator[tuple[Image.Image, Image.Image]]:
        for pair in zip(frames[0], other, strict=True):
            images = Image.fromarray(pair[0]), Image.fromarray(pair[1])
            alive[:] = [image for image in alive if image() is not None] + [weakref.ref(image) for image in images]
            assert len(alive) <= 4  # this pair, and the one before it
            yield images

    for limit in (3, 12, 40, 200):
        other = frames[0] - np.minimum(frames[1] % limit, frames[0])
        together = [Image.fromarray(all_frames.reshape(-1, 32, 3)) for all_frames in (frames[0], other)]
        assert amplification(pairs(other)) == difference_map(*together)[1]


def test_a_given_factor_makes_maps_comparable_and_is_stated() -> None:
    reference, near, far = (Image.new("RGB", (8, 8), (grey,) * 3) for grey in (100, 104, 120))
    maps = [difference_map(reference, other, 8) for other in (near, far)]
    assert [factor for _, factor in maps] == [8, 8]
    assert lightness(maps[0][0])[0, 0] < lightness(maps[1][0])[0, 0]
    assert "8 times" in difference_panel(reference, near, 8).label


def test_a_change_of_hue_alone_is_a_difference() -> None:
    red, blue = Image.new("RGB", (8, 8), (110, 50, 50)), Image.new("RGB", (8, 8), (80, 50, 130))
    assert lightness(difference_map(red, blue, 1)[0]).min() > 40


def test_labels_and_figures_are_beneath_each_picture() -> None:
    reference = picture(3)
    plain = contact_sheet([[Panel(reference, ""), Panel(reference, "")]])
    sheet = contact_sheet([[Panel(reference, "Uncached", ("1.62 s",)), Panel(reference, "")]])
    below = np.asarray(sheet)[GAP + 384 + 2 :]
    ground = np.asarray(plain)[-1, 0]
    changed = (below != ground).any(axis=2)
    assert changed[:, : GAP + 384].any()
    assert not changed[:, GAP + 384 :].any()
    assert sheet.height > plain.height


def test_a_label_too_long_for_its_picture_does_not_reach_the_next() -> None:
    reference = picture(3)
    sheet = contact_sheet([[Panel(reference, "a very long label " * 20, ("and figures " * 30,)), Panel(reference, "")]])
    below = np.asarray(sheet)[GAP + 384 + 2 :]
    assert not (below[:, GAP + 384 :] != below[-1, -1]).any()


def test_any_text_can_be_a_label() -> None:
    label = "na\u00efve \u00d7 \u4e2d\u6587 \U0001f600 \x1b[31m \ud800"
    bare, labelled = (contact_sheet([[Panel(picture(3), text, ("",))]]) for text in ("", label))
    assert labelled.size == bare.size
    assert ImageChops.difference(labelled, bare).getbbox() is not None


def test_rows_may_differ_in_length() -> None:
    one, many = [Panel(picture(1), "a")], [Panel(picture(case), "b", ("x", "y")) for case in range(4)]
    sheet = contact_sheet([one, many])
    assert sheet.width == 4 * (384 + GAP) + GAP
    assert sheet.height > 2 * 384


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="128"):
        difference_map(picture(1), picture(1, (64, 64)))
    with pytest.raises(ValueError, match="same size"):
        contact_sheet([[Panel(picture(1), "a"), Panel(picture(1, (64, 64)), "b")]])
    with pytest.raises(ValueError, match="same size"):
        contact_sheet([])
