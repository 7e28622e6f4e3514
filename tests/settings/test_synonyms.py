"""Names of other programs lead to ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from h2gen.errors import PresetError, SettingError
from h2gen.settings import synonyms
from h2gen.settings.presets import load_preset
from h2gen.settings.synonyms import meant, meant_or_close, suggestion
from h2gen.settings.table import BY_NAME
from h2gen.settings.user_defaults import config_file, user_defaults

NAMES = {
    # diffusers
    "num_inference_steps": "steps",
    "negative_prompt": "negative",
    "guidance_scale": "guidance",
    "true_cfg_scale": "cfg",
    "num_images_per_prompt": "count",
    "torch_dtype": "dtype",
    # AUTOMATIC1111 and Forge
    "Seed": "seed",
    "CFG scale": "cfg",
    "Distilled CFG Scale": "guidance",
    "Sampler": "solver",
    "sd_model": "model",
    "n_iter": "count",
    # sd-scripts, ComfyUI, mflux, InvokeAI, the API of FLUX's makers
    "sample_steps": "steps",
    "outdir": "out",
    "sampler_name": "solver",
    "noise_seed": "seed",
    "ckpt_name": "model",
    "--negative-prompt": "negative",
    "--low-ram": "offload",
    "positive_prompt": "prompt",
    "numInferenceSteps": "steps",
    "output_format": "format",
    "aspect_ratio": "size",
    "num_frames": "frames",
    "frame_rate": "fps",
    # our own, misspelt only in case or dashes
    "MaxSequenceLength": "max_sequence_length",
    "no-cache": "no_cache",
}


@pytest.mark.parametrize(("foreign", "ours"), NAMES.items())
def test_a_name_of_another_program_is_understood(foreign: str, ours: str) -> None:
    assert meant(foreign) == ours


def test_what_nobody_calls_a_setting_is_unknown() -> None:
    assert [meant(name) for name in ("category", "url", "colour", "", "--")] == [None] * 5


def test_only_what_can_be_given_is_meant() -> None:
    assert meant("num_inference_steps", ("size", "seed")) is None


def test_width_means_size_where_width_cannot_be_given() -> None:
    assert meant("--width", ("size", "steps")) == "size"
    assert meant("image_height", ("size", "width", "height")) == "height"


def test_a_misspelling_is_the_closest_name_of_ours() -> None:
    assert meant_or_close("stpes") == "steps"
    assert meant_or_close("num_inference_steps") == "steps"
    assert meant_or_close("xyz") is None


def test_a_suggestion_ends_a_sentence() -> None:
    assert suggestion("num_inference_steps", BY_NAME) == "; did you mean 'steps'?"
    assert suggestion("xyz", BY_NAME) == "."


def test_a_configuration_and_a_preset_name_the_key_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("rel_l1_thresh = 0.002\n")
    with pytest.raises(PresetError, match="unknown key 'rel_l1_thresh'; did you mean 'tolerance'"):
        load_preset(str(file))
    config = config_file()  # in a home of its own
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("num_inference_steps = 8\n")
    with pytest.raises(SettingError, match="unknown key 'num_inference_steps'; did you mean 'steps'"):
        user_defaults({})


def test_every_row_named_in_the_list_exists_and_no_name_means_two_rows() -> None:
    assert synonyms._FOREIGN.keys() <= BY_NAME.keys()
    words = [synonyms._plain(word) for words in synonyms._FOREIGN.values() for word in words.split()]
    assert not {word for word in words if words.count(word) > 1}
    assert not {word for word in words if synonyms._OURS.get(word)}
