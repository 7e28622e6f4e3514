"""The sizes in the catalogue, and what forward passes hold, are those of diffusers' and transformers' models."""

from __future__ import annotations

import pytest

from h2gen.families import FAMILIES
from h2gen.models.entries import CATALOGUE_FILE
from h2gen.models.footprint import DECODING, Part, Work
from h2gen.toml import read_toml
from tests import small
from tools.count_activations import held_per_pixel, held_per_token
from tools.count_parameters import count

pytestmark = pytest.mark.no_cover

PARTS = read_toml(CATALOGUE_FILE)["parts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_the_catalogue_has_the_counted_numbers(name: str) -> None:
    with small.no_warning_of_diffusers_own_import():
        counted = count(PARTS[name])
    assert {key: PARTS[name].get(key, 0) for key in ("all", "block", "layer", "next", "width")} == {
        "all": counted.all,
        "block": counted.block,
        "layer": counted.layer,
        "next": counted.next,
        "width": counted.width,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's, about its own layers in 16 bits
@pytest.mark.parametrize(
    "name",
    [
        *("transformer-flux1", "transformer-klein-4b", "transformer-chroma", "transformer-flux3", "transformer-tiny"),
        *("transformer-hunyuan-video", "transformer-tiny-video", "transformer-wan-1b"),
    ],
)
def test_a_family_says_what_its_forward_pass_holds(name: str) -> None:
    with small.no_warning_of_diffusers_own_import():
        counted = held_per_token(PARTS[name])
    said = FAMILIES[PARTS[name]["class"]].held_per_token
    assert counted == pytest.approx(said, rel=0.12 if "tiny" in name else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "values"), [("vae-flux1", DECODING), ("vae-flux2", DECODING), ("vae-tiny", 2)])
def test_decoding_holds_what_was_computed(name: str, values: float) -> None:
    with small.no_warning_of_diffusers_own_import():
        assert held_per_pixel(PARTS[name], 512) == pytest.approx(values, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae-hunyuan-video", "vae-wan"])
def test_decoding_a_tile_of_a_video_holds_what_was_computed(name: str) -> None:
    said = Work(256 * 256 * 17, 1, 0, value=1).held_by(Part(PARTS[name]["class"], 0, 0, 0, width=1))
    counted = held_per_pixel(PARTS[name], 256)
    assert counted == pytest.approx((said - 256 * 256 * 17 * 3 * 4) / (256 * 256 * 17), rel=0.03)
