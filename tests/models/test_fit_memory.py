"""How a model is loaded follows from its sizes and the free memory, and one line says so."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from h2gen.errors import SettingError
from h2gen.models.catalogue import CATALOGUE, resolve
from h2gen.models.choices import WAYS, memory_limit
from h2gen.models.facts import facts_of
from h2gen.models.fit_memory import Available, Fit, choose_fit, host_line, needed_on_cpu, quantized
from h2gen.models.footprint import Part, Work, footprint
from h2gen.models.load_options import LoadOptions
from h2gen.models.memory_needed import memory_needed
from h2gen.settings.workload import default_work

CARDS = (8, 12, 16, 24, 48, 80)
SMALLEST = {"qwen-image": 12, "wan-14b": 16, "hunyuan-video": 24}
"""The smallest card, in GB, on which a picture or video of the model's own size fits at all: on smaller ones decoding
it does not, or the transformer's activations for all its tokens."""
IN_USE = 2**30
"""What a desktop takes of a card."""


def parts_of(name: str) -> list[Part]:
    checkpoint = resolve(name)
    facts = facts_of(checkpoint)
    assert facts is not None
    needed = memory_needed(checkpoint, facts)
    assert needed is not None
    return list(needed.parts)


def fit(name: str, card: int, limit: int | None = None, host: int | None = None, **more: Any) -> Fit:
    available = Available("cuda:0", card * 2**30 - IN_USE, limit, host)
    return choose_fit(parts_of(name), default_work(resolve(name)), available, **more)


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("tiny", "none none none none none none"),
        ("tiny-video", "none none none none none none"),
        ("dev", "group group group model none none"),
        ("schnell", "group group group model none none"),
        ("kontext", "group group group model none none"),
        ("klein-4b", "group text text none none none"),
        ("klein-9b", "group group group text none none"),
        ("chroma", "group group group text none none"),
        ("flux2-dev", "sequential group group group group text"),
        ("flux3-klein", "group group text none none none"),
    ],
)
def test_each_card_gets_the_fastest_way_that_fits(name: str, ways: str) -> None:
    assert [fit(name, card).offload for card in CARDS] == ways.split()


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_faster_way_would_have_fitted(name: str) -> None:
    for card in CARDS:
        found = fit(name, card)
        assert found.fits == (card >= SMALLEST.get(name, 8))
        assert tuple(found.needs) == WAYS
        faster = WAYS[: WAYS.index(found.offload)]
        assert all(found.needs[way] > found.available.usable for way in faster)
        assert list(found.needs.values()) == sorted(found.needs.values(), reverse=True)


def test_the_line_says_what_was_chosen_what_it_needs_and_what_a_faster_way_would_need() -> None:
    assert str(fit("klein-9b", 24)) == (
        "Memory: the text encoders leave cuda:0 before denoising (needs 20.6 GB of the 24.7 GB that is "
        "free; the whole model at once would need 36.9 GB)."
    )
    assert str(fit("dev", 48)) == "Memory: the whole model is on cuda:0 (needs 36.0 GB of the 50.5 GB that is free)."
    assert str(fit("dev", 24)) == (
        "Memory: each part of the model is on cuda:0 only while it runs (needs 24.6 GB of the 24.7 GB that is "
        "free; keeping the transformer there would need 26.2 GB)."
    )


def test_a_limit_counts_in_place_of_free_memory_unless_it_is_larger() -> None:
    limited = fit("klein-4b", 24, limit=12 * 10**9)
    assert limited.offload == "text" and "of the 12.0 GB that --memory allows" in str(limited)
    assert str(fit("klein-4b", 24, limit=10**12)) == str(fit("klein-4b", 24))


def test_without_room_for_anything_the_smallest_way_is_taken_and_said_not_to_fit() -> None:
    least = fit("flux2-dev", 24, limit=10**9)
    assert (least.offload, least.fits) == ("sequential", False)
    assert "more than the 1.0 GB that --memory allows" in str(least) and "smaller --size" in str(least)


def test_main_memory_is_mentioned_if_it_does_not_suffice_for_what_is_not_on_the_device() -> None:
    assert "main memory" not in str(fit("dev", 12, host=64 * 10**9))
    assert "main memory" not in str(fit("dev", 48, host=10**9))
    line = str(fit("dev", 12, host=16 * 10**9))
    assert "needs 33.7 GB of main memory, but only 16.0 GB is free" in line


def test_quantization_is_offered_where_the_transformer_could_then_stay_and_never_chosen() -> None:
    assert fit("dev", 16, quantizable=True).quantized is not None
    line = str(fit("dev", 16, quantizable=True))
    assert "one block at a time" in line and "--quantize int8" in line and "the result changes a little" in line
    assert "--quantize nf4" in str(fit("dev", 12, quantizable=True))
    assert "--quantize int8 --quantize-text int8" in str(fit("klein-9b", 13, quantizable=True))
    assert "--quantize nf4 --quantize-text nf4" in str(fit("klein-9b", 12, quantizable=True))
    assert "--quantize nf4 --quantize-text nf4" in str(fit("flux2-dev", 24, quantizable=True))
    for name, card in (("dev", 48), ("klein-9b", 24)):
        assert fit(name, card, quantizable=True).quantized is None


def test_a_way_that_was_asked_for_is_kept() -> None:
    asked = choose_fit(parts_of("dev"), default_work(resolve("dev")), Available("cuda:0", 10**9), offload="model")
    assert asked.offload == "model" and not asked.fits


def test_a_way_that_the_weights_do_not_go_with_is_not_chosen() -> None:
    found = fit("dev", 16, without=("group", "sequential"))
    assert found.offload == "model" and not found.fits
    assert fit("flux2-dev", 12, without=("group",)).offload == "sequential"
    assert "one block" not in str(fit("flux2-dev", 12, without=("group",)))


def test_larger_pictures_and_batches_need_more_and_tiles_less() -> None:
    parts = parts_of("dev")

    def need(way: str, **work: int | bool) -> int:
        pixels = int(work.pop("pixels", 1024**2))
        return footprint(parts, Work(pixels, tokens=512 + pixels // 256, **{"pictures": 1, **work}))[way]

    for way in WAYS:
        assert need(way, pixels=1280**2) > need(way) and need(way, pictures=4) > need(way)
        if way in ("none", "text"):  # where decoding needs the most
            assert need(way, pixels=1280**2, tiled=True) < need(way, pixels=1280**2)
        assert need(way, kept_tokens=10**6) > need(way)
        assert need(way, pixels=2048**2) < need(way, pixels=1536**2) * 2  # decoded in tiles
    assert need("none", beside=10**9) == need("none") + 2 * 10**9 and need("group", beside=10**9) == need("group")


def test_weights_count_while_they_are_on_the_device() -> None:
    parts, plain = parts_of("dev"), default_work(resolve("dev"))
    before = footprint(parts, plain)
    always = footprint(parts, replace(plain, always=10**9))
    assert all(always[way] == before[way] + 2 * 10**9 for way in WAYS)
    encoding = footprint(parts, replace(plain, encoding=10**9))
    assert encoding["model"] == before["model"]  # the transformer alone needs more than T5 and they do
    assert footprint(parts, replace(plain, encoding=10**10))["model"] > before["model"] + 10**9
    assert footprint(parts, replace(plain, encoding=10**10, value=4))["model"] > 4 * 10**10


def test_what_is_outside_of_the_blocks_stays_as_it_is() -> None:
    part = Part("FluxTransformer2DModel", all=1100, block=200, layer=50, next=100, width=8)  # 10 blocks and 100 outside
    assert quantized(part, 0.5) == Part("FluxTransformer2DModel", all=600, block=150, layer=25, next=50, width=8)


def test_a_cpu_is_mentioned_only_if_its_memory_does_not_suffice() -> None:
    parts, work = [part.times(2) for part in parts_of("dev")], default_work(resolve("dev"), 4)
    needed = needed_on_cpu(parts, LoadOptions(), work)
    assert needed.most == needed.running == footprint(parts, work)["none"]
    assert host_line(needed, work, Available("cpu", 128 * 10**9)) is None
    line = host_line(needed, work, Available("cpu", 16 * 10**9))
    assert line is not None and "of main memory, more than the 16.0 GB that is free" in line and "--dtype bf16" in line


def test_a_cpu_needs_less_once_the_model_is_quantized_and_room_for_each_part_before() -> None:
    parts, work = [part.times(2) for part in parts_of("dev")], default_work(resolve("dev"), 4)
    plain = needed_on_cpu(parts, LoadOptions(), work).most
    transformer = max(part.all for part in parts)
    t5 = sorted(part.all for part in parts)[-2]
    eight = needed_on_cpu(parts, LoadOptions(quantize="int8"), work).most
    assert eight == pytest.approx(sum(part.all for part in parts), rel=1e-6)  # the transformer is whole before
    both = needed_on_cpu(parts, LoadOptions(quantize="int8", quantize_text="int8"), work).most
    assert transformer + 0.25 * t5 < both < transformer + 0.4 * t5 < eight < plain


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[(text, None) for text in ("auto", "none", "None")],
        *[(text, 10**10) for text in ("10GB", "10G", "10g", "10 GB", "10gb", " 10Gb ")],
        *[(text, 10 * 2**30) for text in ("10GiB", "10 gib", "10Gi")],
        ("1.5 gib", 3 * 2**29),
        ("512MB", 512 * 10**6),
    ],
)
def test_a_limit_has_a_unit(text: str, size: int | None) -> None:
    assert memory_limit(text) == size


@pytest.mark.parametrize("text", ["10", "GB", "0GB", "-1GB", "lots", "10B", "1e3GB", "10G\u0131B", "9" * 50 + "GB"])
def test_other_limits_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingError, match="is not supported; give auto, none or a size such as 10GB"):
        memory_limit(text, "--memory")


def test_choosing_loads_no_torch() -> None:
    code = "import sys, h2gen.models.fit_memory, h2gen.settings.workload; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
