"""ControlNets and Redux from disk: recognised by their headers, checked against the model, loaded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from h2gen.errors import ModelError, SettingError
from h2gen.families.controlnet import mixture
from h2gen.models.choices import mode_of
from h2gen.models.controlnet import check_fits, find_controlnet, known_controlnet, load_controlnet, read_controlnet
from h2gen.models.redux import check_redux, find_redux, load_redux, text_width
from tests.checkpoints import edit_json, edit_weights, save_single
from tests.small import UNION, XLABS, controlnet, flux_transformer, picture, redux_prior

KINDS: dict[str, dict[str, Any]] = {"plain": {}, "union": UNION, "XLabs": XLABS, "6 + 0": {"single_layers": 0}}


@pytest.mark.parametrize("name", KINDS)
def test_a_controlnet_is_the_same_from_its_folder_and_from_its_file_alone(name: str, tmp_path: Path) -> None:
    net = controlnet(**KINDS[name])
    net.save_pretrained(tmp_path / "net")
    file = save_single(net, tmp_path / "net.safetensors")
    config = dict(flux_transformer(in_channels=net.config.in_channels).config)
    wanted = net.state_dict()
    for path in (tmp_path / "net", file):
        read = read_controlnet(path)
        check_fits("net", read, "small", config)
        loaded = load_controlnet(path, config, torch.float32)
        assert {key: loaded.config[key] for key in net.config if not key.startswith("_")} == {
            key: value for key, value in net.config.items() if not key.startswith("_")
        } | {"axes_dims_rope": loaded.config["axes_dims_rope"]}
        assert tuple(loaded.config["axes_dims_rope"]) == tuple(net.config["axes_dims_rope"])
        assert loaded.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in loaded.state_dict().items())


def test_a_controlnet_of_another_size_is_named_with_what_differs(tmp_path: Path) -> None:
    file = save_single(controlnet(), tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match=r"'net' does not fit the model 'dev': it has 32 channels .* model has 3072"):
        check_fits("net", read_controlnet(file), "dev", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "context_embedder.bias"}, "lacks 1 of its weights, such as 'context_embedder.bias'"),
        ({"reshape": "controlnet_blocks.0.bias"}, "'controlnet_blocks.0.bias' in the shape"),
    ],
)
def test_a_damaged_controlnet_is_reported(change: dict[str, str], message: str, tmp_path: Path) -> None:
    file = save_single(controlnet(), tmp_path / "net.safetensors")
    edit_weights(file, **change)
    with pytest.raises(ModelError, match=message):
        load_controlnet(file, dict(flux_transformer().config), torch.float32)


def test_what_is_not_a_controlnet_of_flux1_is_refused_by_name(tmp_path: Path) -> None:
    save_single(flux_transformer(), tmp_path / "flux.safetensors")
    with pytest.raises(ModelError, match=r"flux.safetensors' is not a ControlNet of FLUX.1"):
        find_controlnet(str(tmp_path / "flux.safetensors"))
    controlnet().save_pretrained(tmp_path / "net")
    edit_json(tmp_path / "net" / "config.json", _class_name="SD3ControlNetModel")
    with pytest.raises(ModelError, match=r"config.json says 'SD3ControlNetModel'"):
        find_controlnet(str(tmp_path / "net"))
    weights = {"controlnet_blocks.0.weight": torch.zeros(1), "double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}
    save_file(weights, tmp_path / "xlabs.safetensors")
    with pytest.raises(ModelError, match=r"XLabs-AI/flux-controlnet-canny-diffusers"):
        find_controlnet(str(tmp_path / "xlabs.safetensors"))
    (tmp_path / "net.pth").touch()
    with pytest.raises(ModelError, match=r"can run code"):
        find_controlnet(str(tmp_path / "net.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config.json"):
        find_controlnet(str(tmp_path / "empty"))
    with pytest.raises(SettingError, match=r"there is no ControlNet './none'; give"):
        find_controlnet("./none")
    with pytest.raises(ModelError, match=r"'owner/none' is not on this machine"):
        find_controlnet("owner/none")


def test_controlnets_that_would_lose_samples_together_do_not_mix() -> None:
    assert mixture([controlnet().config, controlnet(seed=1).config]) is None
    assert mixture([controlnet().config, controlnet(layers=1).config]) == (
        "one has 2 double-stream blocks and another 1"
    )
    assert mixture([controlnet().config, controlnet(guidance_embeds=False).config]) == (
        "one takes a guidance scale and another does not"
    )


def test_a_union_knows_its_kinds() -> None:
    assert mode_of(controlnet().config, "") is None
    union = controlnet(**UNION).config
    assert [mode_of(union, kind) for kind in ("canny", "edges", "depth")] == [0, 0, 2]
    with pytest.raises(LookupError, match=r"canny, edges, tile, depth"):
        mode_of(union, "")


def test_redux_loads_from_its_folder_as_diffusers_does(tmp_path: Path) -> None:
    prior = redux_prior()
    prior.save_pretrained(tmp_path / "redux")
    loaded = load_redux(Path(find_redux(str(tmp_path / "redux"))[0]), torch.float32)
    with torch.no_grad():
        ours, theirs = (each.image_embedder(each.encode_image(picture(), "cpu", 1))[0] for each in (loaded, prior))
    assert torch.equal(ours, theirs)


def test_values_that_are_not_numbers_are_one_line(tmp_path: Path) -> None:
    controlnet().save_pretrained(tmp_path / "net")
    edit_json(tmp_path / "net" / "config.json", num_layers="two")
    with pytest.raises(ModelError, match="is damaged: num_layers is 'two'; download it again"):
        find_controlnet(str(tmp_path / "net"))
    redux_prior().save_pretrained(tmp_path / "redux")
    edit_json(tmp_path / "redux" / "image_embedder" / "config.json", txt_in_features="wide")
    with pytest.raises(ModelError, match="is damaged: txt_in_features is 'wide'; download it again"):
        text_width(tmp_path / "redux")


def test_what_is_not_redux_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "redux"
    redux_prior().save_pretrained(folder)
    weights = folder / "image_embedder" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "kept")
    with pytest.raises(ModelError, match=r"image_embedder' has no weights"):
        check_redux(folder)
    assert load_file(tmp_path / "kept")
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelError, match=r"is not a Redux model"):
        check_redux(folder)
    with pytest.raises(SettingError, match=r"there is no Redux model 'nothing'; give redux, a folder"):
        find_redux("nothing")
    with pytest.raises(ModelError, match=r"'black-forest-labs/FLUX.1-Redux-dev' is not on this machine"):
        find_redux("redux")


@pytest.mark.parametrize("inside", ["../../../../x.safetensors", "/x.safetensors", "sub/..\\x.safetensors", "./x"])
def test_a_name_that_leaves_its_repository_is_that_of_no_controlnet(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a name may stand in a picture of a stranger."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("0" * 40)
    for folder in (tmp_path, snapshot):
        (folder / "x.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert known_controlnet("a/b/x.safetensors") == snapshot / "x.safetensors"
    assert known_controlnet(f"a/b/{inside}") is None
    with pytest.raises(SettingError, match="there is no ControlNet"):
        find_controlnet(f"a/b/{inside}")
