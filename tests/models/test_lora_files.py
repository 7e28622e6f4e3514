"""LoRA files before they are loaded: where they are, what they are for, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from h2gen.errors import ModelError, SettingError, UsageError
from h2gen.models.catalogue import resolve
from h2gen.models.lora_files import check_loras, describe_lora, find_lora, known_lora
from tests import loras, small
from tests.checkpoints import truncate
from tests.models.hub import serve


def shapes(path: Path, found: dict[str, tuple[int, ...]]) -> Path:
    """A file with tensors of these shapes."""
    return loras.save(path, {name: torch.zeros(shape) for name, shape in found.items()})


FLUX1 = {
    "lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": (16, 3072),
    "lora_unet_double_blocks_0_img_mlp_0.lora_up.weight": (12288, 16),
    "lora_unet_double_blocks_0_img_mlp_0.alpha": (),
    "lora_unet_single_blocks_37_linear1.lora_down.weight": (8, 3072),
    "lora_unet_single_blocks_37_linear1.lora_up.weight": (21504, 8),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (16, 768),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": (768, 16),
}
FLUX2 = {
    "diffusion_model.single_blocks.0.linear1.lora_A.weight": (32, 3072),
    "diffusion_model.single_blocks.0.linear1.lora_B.weight": (27648, 32),
}
SDXL = {
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": (4, 640),
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": (640, 4),
}
QWEN = {
    "transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight": (4, 12288),
    "transformer.transformer_blocks.0.img_mlp.net.2.lora_B.weight": (3072, 4),
}


@pytest.mark.parametrize(
    ("found", "family", "layout", "ranks", "parts", "layers", "blocks", "width"),
    [
        (FLUX1, "FLUX.1", "Kohya", (8, 16), ("transformer", "CLIP"), 3, (1, 1), 3072),
        (FLUX2, "FLUX.2", "ComfyUI", (32,), ("transformer",), 1, (0, 1), 3072),
        (SDXL, "Stable Diffusion or SDXL", "Kohya", (4,), ("transformer",), 1, (0, 0), None),
        (QWEN, "Qwen-Image", "diffusers", (4,), ("transformer",), 1, (1, 0), None),
    ],
)
def test_a_file_says_what_it_is_for(
    tmp_path: Path, found: dict[str, tuple[int, ...]], family: str, layout: str, ranks: tuple[int, ...],
    parts: tuple[str, ...], layers: int, blocks: tuple[int, int], width: int | None,
) -> None:  # fmt: skip
    facts = describe_lora(shapes(tmp_path / "a.safetensors", found))
    assert (facts.family, facts.layout, facts.ranks) == (family, layout, ranks)
    assert (set(facts.parts), facts.layers, facts.blocks, facts.width) == (set(parts), layers, blocks, width)
    assert facts.tensors == len(found)


def test_every_layout_is_called_by_its_name(tmp_path: Path) -> None:
    delta = loras.delta(small.flux_transformer(), loras.ATTENTION)
    names = {"diffusers": "diffusers", "kohya": "Kohya", "comfy": "ComfyUI", "bfl": "ComfyUI", "peft": "PEFT",
             "xlabs": "XLabs"}  # fmt: skip
    for layout, name in names.items():
        facts = describe_lora(loras.save(tmp_path / f"{layout}.safetensors", loras.in_layout(layout, delta)))
        assert facts.layout == name and facts.blocks == (2, 0) and facts.ranks == (4,) and facts.width == 32


@pytest.mark.parametrize(
    ("found", "model", "words"),
    [
        (SDXL, "tiny", "is for Stable Diffusion or SDXL: .*; 'tiny' is FLUX.1"),
        (FLUX2, "dev", "is for FLUX.2: rank 32, .*; 'dev' is FLUX.1"), (FLUX1, "klein-4b", "'klein-4b' is FLUX.2"),
        (FLUX1, "tiny", "for a width of 3072; 'tiny' is FLUX.1 with a width of"),
        (QWEN, "dev", "is for Qwen-Image: .*; 'dev' is FLUX.1"), (FLUX1, "z-image", "'z-image' is Z-Image"),
        ({**FLUX1, "lora_unet_x.dora_scale": (3,)}, "dev", "has DoRA scales, which diffusers does not load"),
        ({**FLUX1, "double_blocks.0.img_attn.norm.query_norm.scale": (3,)}, "fill", "for a model that makes pictures"),
    ],
)  # fmt: skip
def test_one_for_another_model_is_refused_before_anything_is_loaded(
    tmp_path: Path, found: dict[str, tuple[int, ...]], model: str, words: str
) -> None:
    file = shapes(tmp_path / "a.safetensors", found)
    with pytest.raises(SettingError, match=words) as caught:
        check_loras([(file, "a.safetensors")], resolve(model))
    assert str(caught.value).startswith("The LoRA 'a.safetensors' ") and "\n" not in str(caught.value)


def test_one_that_fits_as_far_as_it_can_be_told_is_taken(tmp_path: Path) -> None:
    file = shapes(tmp_path / "a.safetensors", FLUX1)
    for model in ("dev", "schnell", "krea", "chroma", "somebody/unknown"):
        check_loras([(file, "a.safetensors")], resolve(model))


def test_what_is_no_lora_is_refused_in_one_line(tmp_path: Path) -> None:
    good = shapes(tmp_path / "good.safetensors", FLUX1)
    cut = shapes(tmp_path / "cut.safetensors", FLUX1)
    truncate(cut, 1000)
    vae = shapes(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": (1, 1)})
    pickle = tmp_path / "a.pt"
    pickle.write_bytes(b"\x80\x04")
    other = tmp_path / "a.zip"
    other.write_bytes(b"PK")
    assert find_lora(str(good)) == (good, "good.safetensors")
    for path, words in [
        (cut, "is cut short"), (vae, "is not a LoRA, but a VAE"), (pickle, "is a pickle"), (other, "is not a LoRA"),
        (tmp_path, "is a folder"), (tmp_path / "no.safetensors", "there is no file"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=words) as caught:
            find_lora(str(path))
        assert "\n" not in str(caught.value)


def test_shapes_that_no_lora_has_are_no_traceback(tmp_path: Path) -> None:
    for shape in ((), (4,)):
        names = ("single_blocks.0.linear1.lora_down.weight", "single_blocks.0.linear1.lora_up.weight")
        assert describe_lora(shapes(tmp_path / "a.safetensors", dict.fromkeys(names, shape))).width is None


@pytest.mark.parametrize("name", ["o/r//x.safetensors", "o/r/.\\x.safetensors", "o/r/./x.safetensors"])
def test_a_path_in_a_repository_stays_in_it(name: str) -> None:
    with pytest.raises(SettingError, match="there is no file"):
        find_lora(name)
    assert known_lora(name) is None


@pytest.mark.parametrize("name", ["tiny/nothing", "o/r/../x.safetensors", "styles/a.safetensors", "o/r/a.ckpt", "x"])
def test_a_name_that_is_nothing_is_refused_without_a_network(name: str) -> None:
    with pytest.raises(SettingError, match="there is no"):
        find_lora(name)
    assert known_lora(name) is None


_FIND = """
import sys
from h2gen.errors import UsageError
from h2gen.models.lora_files import describe_lora, find_lora, known_lora
for name in sys.argv[1:]:
    try:
        path, known = find_lora(name)
        print(known, describe_lora(path).family, known_lora(known) == path)
    except UsageError as error:
        print(error)
"""


def found(home: Path, *names: str, **environ: str) -> list[str]:
    """What another process finds, one line per name."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", _FIND, *names], capture_output=True, text=True, check=True,
        env={**clean, "HF_HOME": str(home), "NO_PROXY": "*", **environ},
    )  # fmt: skip
    return run.stdout.splitlines()


def test_one_is_downloaded_from_a_repository_once(tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    shapes(one / "style.safetensors", FLUX1)
    (one / "README.md").write_text("a style")
    shapes(several / "a.safetensors", FLUX1)
    shapes(several / "sub" / "b.safetensors", FLUX2)
    names = ["o/one", "o/several", "o/several/sub/b.safetensors", "o/several/c.safetensors", "o/gated/a.safetensors"]
    with serve({"o/one": one, "o/several": several, "o/gated": 403}) as (address, asked):
        first = found(tmp_path / "home", *names, HF_ENDPOINT=address)
        before = len(asked)
        again = found(tmp_path / "home", "o/one", names[2], "o/several", HF_ENDPOINT=address)
        assert again == [first[0], first[2], first[2]] and len(asked) == before  # of several, the one that is here
    assert first[::2][:2] == ["o/one/style.safetensors FLUX.1 True", "o/several/sub/b.safetensors FLUX.2 True"]
    assert "2 .safetensors files; give one as o/several/FILE: a.safetensors, sub/b.safetensors." in first[1]
    assert "the repository 'o/several' has no file 'c.safetensors'" in first[3]
    assert "is gated: accept its licence on https://huggingface.co/o/gated" in first[4]
    offline = found(tmp_path / "home", "o/one", "o/several/a.safetensors", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert offline[0] == first[0] and "huggingface.co cannot be reached; go online to download it" in offline[1]


def test_a_lora_given_as_a_model_is_told_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Give it with --lora, together with the model that it is for"):
        resolve(str(shapes(tmp_path / "a.safetensors", FLUX1)))
