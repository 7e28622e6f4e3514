"""Models that make videos: from single files, and those that h2gen does not run, which a dry run refuses too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_model
from safetensors.torch import load_file, save_file

from h2gen.cli.app import run
from h2gen.errors import ModelError
from h2gen.families import FAMILIES
from h2gen.models import load_pipeline, resolve
from tests import checkpoints, small

PIPELINES: Mapping[str, Callable[[], Any]] = {
    "HunyuanVideo": lambda: small.hunyuan_video_pipeline(layers=2, single_layers=2),
    "Wan": lambda: small.wan_pipeline(layers=3),
}
OTHERS: Mapping[str, Callable[..., Any]] = {
    "HunyuanVideo": lambda **more: small.hunyuan_video_transformer(
        **{"seed": 5, "layers": 2, "single_layers": 2, **more}
    ),
    "Wan": lambda **more: small.wan_transformer(**{"seed": 5, "layers": 3, **more}),
}
both = pytest.mark.parametrize("name", PIPELINES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, make in PIPELINES.items():
        found[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(found[name])
    return found


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers takes HunyuanVideo's single blocks apart only for a width of 3072; use the small model's instead."""

    def of_32(code: CodeType) -> CodeType:
        consts = (of_32(each) if isinstance(each, CodeType) else each for each in code.co_consts)
        return code.replace(co_consts=tuple(32 if each == 3072 else each for each in consts))

    kind = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["HunyuanVideoTransformer3DModel"]
    convert = kind["checkpoint_mapping_fn"]
    monkeypatch.setattr(convert, "__code__", of_32(convert.__code__))


def loaded(file: Path, base: Path) -> dict[str, torch.Tensor]:
    pipe = load_pipeline(resolve(str(file), str(base)), device="cpu", dtype="fp32")
    weights: dict[str, torch.Tensor] = pipe.transformer.state_dict()
    return weights


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of a run, and of a dry run, which is the same one line."""
    said = []
    for more in ([], ["--dry-run"]):
        assert run(["a cat", *words, *more]) == 2
        said += [line for line in capsys.readouterr().err.splitlines() if line.startswith("h2gen: ")]
    assert len(said) == 2 and said[0] == said[1]
    return said[0]


@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
@both
def test_a_single_file_has_the_weights_that_were_saved(
    folders: dict[str, Path], tmp_path: Path, name: str, original: bool
) -> None:
    transformer = OTHERS[name]()
    file = checkpoints.save_single(transformer, tmp_path / "video.safetensors", original=original)
    for prefix in ("", "model.diffusion_model."):
        save_file({prefix + key: each for key, each in load_file(file).items()}, tmp_path / "prefixed.safetensors")
        found = loaded(tmp_path / "prefixed.safetensors", folders[name])
        assert all(torch.equal(found[key], each) for key, each in transformer.state_dict().items())


@both
def test_models_show_tells_the_stages_of_a_file(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkpoints.save_single(OTHERS[name](), tmp_path / "video.safetensors", original=True)
    assert run(["models", "show", str(file)]) == 0
    shown = capsys.readouterr().out
    title, stages = {"HunyuanVideo": ("HunyuanVideo", (2, 2)), "Wan": ("Wan 2.1", (1, 2))}[name]
    assert title in shown and "structure {} blocks, detail {} blocks".format(*stages) in shown


@both
def test_a_gguf_file_has_them_too(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    transformer = OTHERS[name]()
    found = loaded(checkpoints.save_gguf(transformer, tmp_path / "v.gguf", "F16", original=True), folders[name])
    assert all(torch.allclose(found[key].float(), each, atol=5e-3) for key, each in transformer.state_dict().items())


@both
def test_a_file_that_does_not_go_with_its_base_is_one_line_in_a_dry_run_too(
    folders: dict[str, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(checkpoints.save_single(OTHERS[name](layers=1), tmp_path / "video.safetensors", original=True))
    said = refused(capsys, "-m", file, "--base", str(folders[name]))
    assert f"has 1 {'+ 2 ' if name == 'HunyuanVideo' else ''}blocks and its base" in said
    other = "Wan" if name == "HunyuanVideo" else "HunyuanVideo"
    assert "give a base of" in refused(capsys, "-m", file, "--base", str(folders[other]))
    assert f"such as --base {'wan' if name == 'Wan' else 'hunyuan-video'}." in refused(capsys, "-m", file)
    channels = {"Wan": 36, "HunyuanVideo": 33}[name]
    wide = checkpoints.save_single(OTHERS[name](in_channels=channels), tmp_path / "i2v.safetensors", original=True)
    said = refused(capsys, "-m", str(wide), "--base", str(folders[name]))
    assert f"takes {channels} latent channels (image-to-video) and its base" in said
    assert said.rstrip().endswith("h2gen makes videos from text only.")


def test_a_file_that_takes_no_guidance_scale_does_not_go_with_a_base_that_does(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    transformer = OTHERS["HunyuanVideo"](guidance_embeds=False)
    file = checkpoints.save_single(transformer, tmp_path / "video.safetensors", original=True)
    with pytest.raises(ModelError, match="takes no guidance scale and its base"):
        loaded(file, folders["HunyuanVideo"])


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        (
            "HunyuanVideo",
            {"image_condition_type": "token_replace"},
            "has None; h2gen makes videos from text only.",
        ),
        ("HunyuanVideo", {"text_embed_dim": 48}, "has text_embed_dim 48, but its base"),
        ("Wan", {"text_dim": 48}, "has text_dim 48, but its base"),
        ("Wan", {"in_channels": 36}, "; h2gen makes videos from text only."),
    ],
)
def test_a_transformer_that_does_not_go_with_its_base_is_one_line_in_a_dry_run_too(
    folders: dict[str, Path],
    tmp_path: Path,
    name: str,
    config: dict[str, Any],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    OTHERS[name](**config).save_pretrained(tmp_path / "transformer")
    assert words in refused(capsys, "-m", str(tmp_path / "transformer"), "--base", str(folders[name]))


def test_a_text_encoder_that_the_model_lacks_is_refused_in_a_dry_run_too(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = small.flux_text_encoders()["text_encoder_2"]
    save_file({name: each.clone() for name, each in encoder.state_dict().items()}, tmp_path / "t5.safetensors")
    said = refused(capsys, "-m", str(folders["HunyuanVideo"]), "--text-encoder", str(tmp_path / "t5.safetensors"))
    assert "leave it out, or give another file." in said


def changed(folder: Path, to: Path, **index: Any) -> str:
    shutil.copytree(folder, to)
    checkpoints.edit_json(to / "model_index.json", **index)
    return str(to)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("Wan", "WanImageToVideoPipeline"),
        ("Wan", "WanVideoToVideoPipeline"),
        ("HunyuanVideo", "HunyuanVideoImageToVideoPipeline"),
    ],
)
def test_a_model_that_starts_from_a_picture_or_a_video_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str, pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "-m", changed(folders[name], tmp_path / "i2v", _class_name=pipeline))
    family = FAMILIES[type(OTHERS[name]()).__name__]
    assert f"with {family.title}, h2gen makes videos from text only ({next(iter(family.tasks))})." in said
    assert repr(pipeline) in said and "In Python, load it with diffusers" in said


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "has two transformers, .*such as wan and wan-14b"),
        ({"boundary_ratio": 0.875}, "has two transformers, .*such as wan and wan-14b"),
        (
            {"expand_timesteps": True},
            "uses a separate timestep for each token, as Wan 2.2 5B does, .*such as wan or wan-14b",
        ),
    ],
)
def test_wan_2_2_is_refused(
    folders: dict[str, Path], tmp_path: Path, index: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(folders["Wan"], tmp_path / "wan22", **index)
    refused(capsys, "-m", folder)
    with pytest.raises(ModelError, match=words):
        load_pipeline(resolve(folder), device="cpu")


@pytest.mark.parametrize(
    "file",
    [
        "wan2.2_t2v_high_noise_14B.safetensors",
        "Wan2.2-T2V-A14B-LowNoise.safetensors",
        "Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ.safetensors",
        "wan22_14B_low.safetensors",
    ],
)
def test_half_of_wan_2_2_is_refused_by_the_name_of_its_file(
    folders: dict[str, Path], tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(checkpoints.save_single(small.wan_transformer(layers=3), tmp_path / file, original=True))
    for base in ([], ["--base", str(folders["Wan"])]):
        said = refused(capsys, "-m", path, *base)
        assert f"{file}' is by its name one of the two transformers of Wan 2.2, not a model" in said
        assert said.endswith("h2gen runs models with one, such as wan and wan-14b.")
    assert run(["models", "show", path]) == 2 and "of Wan 2.2" in capsys.readouterr().err
    other = checkpoints.save_single(small.hunyuan_video_transformer(layers=2, single_layers=2), tmp_path / file)
    assert run(["models", "show", str(other)]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "wan2.1-flow-noise",
        "Wan2_1-T2V-14B_low",
        "wan2.2-rapid-mega-aio-v10",
        "wan2.2-rapid_low_vram_fp8",
        "wan2.2-slow_fp8",
        "wan2.2-highres_bf16",
    ],
)
def test_a_name_that_only_looks_like_half_of_wan_2_2_is_no_reason_to_refuse(tmp_path: Path, name: str) -> None:
    whole = checkpoints.save_single(small.wan_transformer(layers=3), tmp_path / f"{name}.safetensors")
    assert run(["models", "show", str(whole)]) == 0


def test_what_a_published_wan_2_1_has_in_its_index_is_no_second_transformer(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = {"transformer_2": [None, None], "boundary_ratio": None, "expand_timesteps": False}
    folder = changed(folders["Wan"], tmp_path / "wan21")
    known = json.loads((tmp_path / "wan21" / "model_index.json").read_text())
    (tmp_path / "wan21" / "model_index.json").write_text(json.dumps(known | index))
    assert run(["a cat", "-m", folder, "--dry-run"]) == 0


@pytest.mark.parametrize("option", ["--image", "--mask"])
@pytest.mark.parametrize("model", ["wan", "hunyuan-video"])
def test_a_picture_for_a_model_that_makes_videos_from_text_is_refused(
    tmp_path: Path, model: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small.picture().save(tmp_path / "a.png")
    given = dict.fromkeys(["--image", option], str(tmp_path / "a.png"))
    said = refused(capsys, "-m", model, *(word for pair in given.items() for word in pair))
    assert f"'{model}' makes videos from text only, so it takes no {option}; leave it out." in said
