"""Names become checkpoints, or a one-line error that says what to do."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from hypothesis import given
from hypothesis import strategies as st

import h2gen.models
from h2gen.errors import ModelError
from h2gen.families.flux1 import DEV, SCHNELL
from h2gen.families.flux2 import FLUX2_DEV, KLEIN
from h2gen.models.catalogue import BUNDLED, CATALOGUE, ModelDefaults, resolve
from tests import small
from tests.checkpoints import edit_json, save_single


def refusal(*args: str) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(*args)
    message = str(caught.value)
    assert message.isprintable() and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("tiny", ModelDefaults(128, 128, 28, 1.0, 3.0, 24, 16)),
        ("tiny-video", ModelDefaults(64, 64, 28, 0.0, 3.0, 16, 16, frames=9, fps=8.0)),
    ],
)
def test_a_bundled_model_is_inside_the_package(name, defaults):
    checkpoint = resolve(name)
    assert (checkpoint.kind, checkpoint.location) == ("bundled", BUNDLED.with_name(name))
    assert checkpoint.defaults == defaults


@pytest.mark.parametrize("name", [name for name in CATALOGUE if not name.startswith("tiny")])
def test_an_alias_is_its_repository_with_its_makers_defaults(name):
    checkpoint = resolve(name)
    assert (checkpoint.kind, checkpoint.location) == ("hub", CATALOGUE[name].repo)
    assert checkpoint.defaults == CATALOGUE[name].defaults


def test_distilled_models_take_four_steps():
    four = {name for name, entry in CATALOGUE.items() if entry.defaults.steps == 4}
    assert four == {"schnell", "klein-4b", "klein-9b"}


def test_each_entry_has_what_its_makers_recommend():
    defaults = {name: (each.steps, each.guidance, each.cfg) for name, each in _defaults().items()}
    assert defaults == {
        "tiny": (28, 1.0, 3.0),
        "tiny-video": (28, 0.0, 3.0),
        "dev": (50, 3.5, 1.0),
        "schnell": (4, 0.0, 1.0),
        "krea": (28, 4.5, 1.0),
        "kontext": (28, 2.5, 1.0),
        "fill": (50, 30.0, 1.0),
        "depth": (30, 10.0, 1.0),
        "canny": (50, 30.0, 1.0),
        "klein-4b": (4, 1.0, 1.0),
        "klein-base-4b": (50, 1.0, 4.0),
        "klein-9b": (4, 1.0, 1.0),
        "klein-base-9b": (50, 1.0, 4.0),
        "flux2-dev": (50, 4.0, 1.0),
        "chroma": (40, 0.0, 3.0),
        "flux3-klein-base": (50, 0.0, 3.5),
        "flux3-klein": (16, 0.0, 1.0),
        "qwen-image": (50, 0.0, 4.0),
        "z-image": (50, 0.0, 4.0),
        "z-image-turbo": (8, 0.0, 1.0),
        "hunyuan-video": (50, 6.0, 1.0),
        "wan": (50, 0.0, 5.0),
        "wan-14b": (50, 0.0, 5.0),
    }


def _defaults():
    return {name: entry.defaults for name, entry in CATALOGUE.items()}


def test_download_sizes_are_those_of_sixteen_bit_weights():
    sizes = {name: entry.download_gb for name, entry in CATALOGUE.items()}
    assert sizes | {"dev": 33.7, "klein-4b": 16.0, "klein-9b": 34.7, "flux2-dev": 113, "chroma": 27.5} == sizes


def test_models_of_videos_have_frames_and_others_have_none():
    found = {name: (each.width, each.height, each.frames, each.fps) for name, each in _defaults().items()}
    assert {name: shape for name, shape in found.items() if any(shape[2:])} == {
        "tiny-video": (64, 64, 9, 8.0),
        "hunyuan-video": (1280, 720, 129, 24.0),
        "wan": (832, 480, 81, 16.0),
        "wan-14b": (1280, 720, 81, 16.0),
    }
    for name, entry in CATALOGUE.items():
        assert entry.of_family.makes_video == (entry.defaults.frames > 0) == (entry.defaults.fps > 0), name
        assert entry.defaults.frames % entry.of_family.frame_step in (0, 1)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_names_classes_of_diffusers_with_the_arguments_of_their_configurations(name):
    entry = CATALOGUE[name]
    assert hasattr(diffusers, entry.index["_class_name"])
    known = inspect.signature(getattr(diffusers, entry.config["_class_name"]).__init__).parameters
    assert {*entry.config} - {"_class_name"} <= {*known}


def test_a_known_repository_keeps_the_defaults_of_its_alias_in_any_case_of_letters():
    assert resolve("black-forest-labs/FLUX.1-schnell").defaults == SCHNELL
    assert resolve("Black-Forest-Labs/flux.1-SCHNELL").location == "black-forest-labs/FLUX.1-schnell"


def test_an_unknown_repository_has_the_defaults_of_dev():
    checkpoint = resolve("someone/some-flux")
    assert (checkpoint.kind, checkpoint.location, checkpoint.defaults) == ("hub", "someone/some-flux", DEV)


def test_a_folder_that_exists_is_taken_before_a_repository(tmp_path, monkeypatch):
    (tmp_path / "someone" / "flux").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("someone/flux").kind == "folder"


def test_an_alias_is_taken_before_a_folder_and_a_path_says_otherwise(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (resolve("dev").kind, resolve("./dev").kind) == ("hub", "folder")


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    (tmp_path / "flux").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve("~/flux").location == tmp_path / "flux"


@pytest.mark.parametrize(
    "name, meant", [("tny", "tiny"), ("shnell", "schnell"), ("DEV", "dev"), ("klein4b", "klein-4b")]
)
def test_a_misspelt_alias_is_told_the_closest(name, meant):
    assert f"did you mean {meant!r}?" in refusal(name)


def test_a_name_like_nothing_is_told_what_is_accepted():
    message = refusal("zzzzzz")
    assert all(part in message for part in (*CATALOGUE, "folder", ".gguf", "owner/name"))


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "~/missing", "a/b/c", "C:\\flux"])
def test_a_path_to_nothing_is_called_a_path(name):
    assert "no model folder or file" in refusal(name)


@pytest.mark.parametrize("base", [(), ("dev",)], ids=["alone", "with a base"])
@pytest.mark.parametrize("name", ["x.safetensors", "flux1-dev-Q4_K_S.gguf", "./x.GGUF", "x.ckpt"])
def test_a_file_that_is_not_there_is_called_a_file(name, base):
    assert refusal(name, *base) == f"There is no file {name!r}; check the path."


def test_a_file_in_a_repository_is_told_how_to_download():
    message = refusal("city96/FLUX.1-dev-gguf/flux1-dev-Q4_K_S.gguf", "dev")
    assert "run `hf download city96/FLUX.1-dev-gguf flux1-dev-Q4_K_S.gguf` and give the path that it prints" in message
    refusal("owner/name/\x1b[31m.gguf")


def test_a_web_address_is_told_the_repository():
    assert "give the repository, 'someone/flux', or" in refusal("https://huggingface.co/someone/flux/tree/main")
    assert "such as owner/name" in refusal("http://example.org/flux.safetensors", "dev")


def test_a_name_that_is_nothing_is_the_fault_and_not_its_base():
    assert "did you mean 'tiny'?" in refusal("tny", "dev")
    assert "no model folder or file" in refusal("./missing", "dev")


@pytest.mark.parametrize(
    "name", ["", " ", "\x1b[31m", "a\nb", "\0", "x" * 5000, "~nobody-of-this-name/x", "~\0", "\u202etxt"]
)
def test_odd_names_are_refused_in_one_printable_line(name):
    refusal(name)


@given(st.text(max_size=30))
def test_any_text_is_a_checkpoint_or_refused_in_one_printable_line(name):
    try:
        resolve(name)
    except ModelError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".GGUF"])
def test_a_single_file_takes_its_other_parts_and_defaults_from_its_base(tmp_path, suffix):
    file = tmp_path / f"flux{suffix}"
    file.touch()
    checkpoint = resolve(str(file), base="schnell")
    assert (checkpoint.kind, checkpoint.location, checkpoint.defaults) == ("file", file, SCHNELL)
    assert checkpoint.base == resolve("schnell")


def test_a_single_file_without_a_base_is_told_of_base(tmp_path):
    file = save_single(small.flux_transformer(), tmp_path / "flux.safetensors")
    assert "holds only a transformer" in refusal(str(file)) and "--base dev" in refusal(str(file))


def test_a_single_file_cannot_be_a_base(tmp_path):
    (tmp_path / "flux.gguf").touch()
    assert "single file too" in refusal(str(tmp_path / "flux.gguf"), str(tmp_path / "flux.gguf"))


def test_a_misspelt_base_is_told_the_closest(tmp_path):
    (tmp_path / "flux.gguf").touch()
    assert "did you mean 'dev'?" in refusal(str(tmp_path / "flux.gguf"), "dve")


@pytest.mark.parametrize("name", ["dev", "someone/flux", "."])
def test_what_is_not_a_single_file_takes_no_base(name):
    assert "takes no base" in refusal(name, "dev")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth", ".PTH"])
def test_a_pickle_is_refused(tmp_path, suffix):
    (tmp_path / f"flux{suffix}").touch()
    assert "pickle" in refusal(str(tmp_path / f"flux{suffix}"), "dev")


def test_any_other_file_is_refused(tmp_path):
    (tmp_path / "flux.png").touch()
    assert "is not a model" in refusal(str(tmp_path / "flux.png"))


def test_a_folder_has_the_defaults_of_the_model_it_resembles(flux_folder, klein_folder, flux2_folder, tmp_path):
    assert [resolve(str(folder)).defaults for folder in (flux_folder, klein_folder, flux2_folder)] == [
        DEV, KLEIN, FLUX2_DEV,
    ]  # fmt: skip
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    edit_json(tmp_path / "transformer" / "config.json", _class_name="FluxTransformer2DModel", guidance_embeds=False)
    assert resolve(str(tmp_path)).defaults == SCHNELL


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_folder_whose_config_is_no_json_can_still_be_named(tmp_path, text):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(text, "latin-1")
    assert resolve(str(tmp_path)).defaults == DEV


def test_a_folder_can_say_its_defaults(tmp_path):
    (tmp_path / "defaults.toml").write_text("width = 256\nguidance = 2\n")
    assert resolve(str(tmp_path)).defaults == ModelDefaults(width=256, guidance=2.0)


@pytest.mark.parametrize(
    "text, words",
    [
        ("widht = 256", ("'widht'", "did you mean 'width'?")),
        ("width = 'wide'", ("width", "'wide'", "whole number")),
        ("width = 12.5", ("width", "12.5", "whole number")),
        ("steps = true", ("steps", "True")),
        ("steps = 0", ("steps", "1 or more")),
        ("cfg = -1", ("cfg", "0 or more")),
        ("cfg = nan", ("cfg", "0 or more")),
        ("guidance = inf", ("guidance", "0 or more")),
        ("'\\u001b[31m' = 1", ("unknown key",)),
        ("width = ", ("not valid TOML",)),
    ],
)
def test_a_wrong_defaults_file_is_named_with_the_key(tmp_path, text, words):
    (tmp_path / "defaults.toml").write_text(text)
    message = refusal(str(tmp_path))
    assert all(word in message for word in ("defaults.toml", *words))


def test_the_catalogue_is_read_without_loading_torch():
    heavy = "{'torch', 'diffusers', 'transformers', 'huggingface_hub', 'safetensors', 'numpy'}"
    code = (
        "import sys, h2gen.models.catalogue, h2gen.models; h2gen.models.resolve('dev'); "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    root = Path(h2gen.models.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_all_there():
    assert all(hasattr(h2gen.models, name) for name in h2gen.models.__all__)
    assert dir(h2gen.models) == sorted(h2gen.models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = h2gen.models.nothing
