"""LoRAs on a loaded model: every layout, switched on and off, refused if they do not fit; no weight is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import h2gen
from h2gen.errors import ModelError
from h2gen.models.adapters import Adapters
from h2gen.settings.inputs import FileRule, InputFile
from tests import loras, small
from tests.checkpoints import save_gguf
from tests.loras import ATTENTION, FEED_FORWARD

RULE = FileRule(scale=1.0)


def given(path: Path, scale: float = 1.0) -> InputFile:
    (found,) = RULE.resolve("lora", path)
    return InputFile(found.name, found.sha256, scale, path=found.path)


def picture(pipe: Any, **more: Any) -> np.ndarray[Any, Any]:
    return np.asarray(small.quiet(pipe)(**{**small.run_kwargs(pipe, steps=2), "output_type": "np", **more}).images)


@pytest.fixture
def pipe() -> Any:
    return small.flux_pipeline()


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "comfy", "bfl", "peft", "xlabs"])
def test_every_layout_changes_the_model_as_its_weights_say(pipe: Any, tmp_path: Path, layout: str) -> None:
    layers = ATTENTION if layout == "xlabs" else (*ATTENTION, *FEED_FORWARD)
    delta = loras.delta(pipe.transformer, layers)
    file = loras.save(tmp_path / "style.safetensors", loras.in_layout(layout, delta))
    plain = picture(pipe)
    Adapters().use(pipe, [given(file, 0.5)])
    found = picture(pipe)
    other = small.flux_pipeline()
    loras.merged(other.transformer, delta, 0.5)
    assert np.abs(found - picture(other)).max() < 1e-4 < np.abs(found - plain).max()


@pytest.mark.parametrize("make", [small.flux2_klein_pipeline, small.chroma_pipeline])
@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
def test_the_other_families_take_theirs(make: Callable[[], Any], tmp_path: Path, layout: str) -> None:
    pipe, other = make(), make()
    delta = loras.delta(pipe.transformer, ATTENTION)
    file = loras.save(tmp_path / "style.safetensors", loras.in_layout(layout, delta))
    plain = picture(pipe)
    Adapters().use(pipe, [given(file)])
    loras.merged(other.transformer, delta)
    assert np.abs(picture(pipe) - picture(other)).max() < 1e-4 < np.abs(picture(pipe) - plain).max()


@pytest.mark.parametrize("make", [small.flux_pipeline, small.flux2_klein_pipeline])
@pytest.mark.parametrize("layout", ["diffusers", "comfy", "prefixed", "bare"])
def test_an_alpha_counts_whatever_the_names_are(make: Callable[[], Any], tmp_path: Path, layout: str) -> None:
    pipe, other = make(), make()
    delta = loras.delta(pipe.transformer, ATTENTION)
    tensors = loras.in_layout(layout, delta)
    loras.merged(other.transformer, delta)
    right = picture(other)
    for each in (tensors, loras.with_alphas(tensors), loras.in_kohyas_words(loras.with_alphas(tensors))):
        file = loras.save(tmp_path / "style.safetensors", each)
        Adapters().use(pipe, [given(file)])
        assert np.abs(picture(pipe) - right).max() < 1e-4


def test_layers_outside_the_blocks_are_loaded_too(pipe: Any, tmp_path: Path) -> None:
    delta = loras.delta(pipe.transformer, ["x_embedder", "context_embedder"])
    (a, b), (c, d) = delta.values()
    names = {"img_in.lora_down": a, "img_in.lora_up": b, "txt_in.lora_down": c, "txt_in.lora_up": d}
    file = loras.save(tmp_path / "in.safetensors", {f"lora_unet_{name}.weight": each for name, each in names.items()})
    Adapters().use(pipe, [given(file)])
    other = small.flux_pipeline()
    loras.merged(other.transformer, delta)
    assert np.abs(picture(pipe) - picture(other)).max() < 1e-4


def test_several_add_up_and_taking_them_off_leaves_the_model_bit_identical(pipe: Any, tmp_path: Path) -> None:
    one, two = (loras.delta(pipe.transformer, ATTENTION, seed) for seed in (1, 2))
    first = loras.save(tmp_path / "one.safetensors", loras.in_layout("diffusers", one))
    second = loras.save(tmp_path / "two.safetensors", loras.in_layout("kohya", two))
    plain, adapters = picture(pipe), Adapters()
    adapters.use(pipe, [given(first, 0.5), given(second, -1.0)])
    both = picture(pipe)
    adapters.use(pipe, [])
    assert np.array_equal(picture(pipe), plain)
    other = small.flux_pipeline()
    loras.merged(loras.merged(other.transformer, one, 0.5), two, -1.0)
    assert np.abs(both - picture(other)).max() < 1e-4 < np.abs(both - plain).max()
    adapters.use(pipe, [given(second, -1.0), given(first, 0.5)])
    assert np.abs(picture(pipe) - both).max() < 1e-4


def test_a_change_is_a_switch_and_only_so_many_stay_loaded(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for seed in range(3):
        delta = loras.delta(pipe.transformer, ATTENTION, seed)
        files.append(given(loras.save(tmp_path / f"{seed}.safetensors", loras.in_layout("diffusers", delta))))
    loaded: list[str] = []
    load = type(pipe).load_lora_weights
    monkeypatch.setattr(
        type(pipe),
        "load_lora_weights",
        lambda *args, **more: (loaded.append(more["adapter_name"]), load(*args, **more)),
    )
    adapters = Adapters(most=2)
    pictures = {}
    for number in (0, 1, 0, 1):
        adapters.use(pipe, [files[number]])
        found = picture(pipe)
        assert np.array_equal(pictures.setdefault(number, found), found)
    assert len(loaded) == 2
    adapters.use(pipe, [files[2]])  # 0 is the one that was not used for longest
    adapters.use(pipe, [files[1]])
    assert len(loaded) == 3 and np.array_equal(picture(pipe), pictures[1])
    adapters.use(pipe, [files[0]])
    assert len(loaded) == 4 and np.array_equal(picture(pipe), pictures[0])


def test_a_model_that_is_loaded_again_gets_its_loras_again(pipe: Any, tmp_path: Path) -> None:
    file = given(
        loras.save(tmp_path / "a.safetensors", loras.in_layout("kohya", loras.delta(pipe.transformer, ATTENTION)))
    )
    adapters = Adapters()
    adapters.use(pipe, [file])
    again = small.flux_pipeline()
    adapters.use(again, [file])
    assert np.array_equal(picture(again), picture(pipe))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_on_quantized_weights_they_stay_unfused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "flux"
    whole = small.flux_pipeline()
    whole.save_pretrained(folder)
    file = save_gguf(whole.transformer, tmp_path / "flux.gguf", kind)
    session = h2gen.load(str(file), base=str(folder), device="cpu")
    delta = loras.delta(whole.transformer, ATTENTION)
    lora = loras.save(tmp_path / "a.safetensors", loras.in_layout("kohya", delta))
    before = {name: tensor.clone() for name, tensor in session.pipe.transformer.state_dict().items()}
    common: dict[str, Any] = {"seed": 1, "size": 64, "steps": 2, "progress": False, "cache": None}
    plain = session.generate("a cat", **common)
    styled = session.generate("a cat", lora=str(lora), **common)
    assert np.abs(np.asarray(styled.image).astype(int) - plain.image).max() > 1
    assert np.array_equal(session.generate("a cat", **common).image, plain.image)
    after = session.pipe.transformer.state_dict()
    for name, tensor in before.items():
        stem, _, ending = name.rpartition(".")
        assert torch.equal(after[name if name in after else f"{stem}.base_layer.{ending}"], tensor), name


def tensors(pipe: Any, **changes: Any) -> dict[str, torch.Tensor]:
    found = loras.in_layout("diffusers", loras.delta(pipe.transformer, ATTENTION))
    return {name: tensor for name, tensor in {**found, **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("elsewhere", "does not fit this FLUX.1"), ("one more", "only partly: no layer matches 2 of its 18 tensors"),
        ("too wide", "only partly"), ("dropped", "no layer matches 1 of its"),
        ("kohya", "cannot be converted"), ("flat", "no layer matches 1 of its"),
        ("half", r"cannot be loaded|only partly"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_nothing_behind(
    pipe: Any, tmp_path: Path, case: str, words: str
) -> None:
    plain, layer = picture(pipe), "transformer.transformer_blocks.9.attn.to_q"
    one = {f"{layer}.lora_A.weight": torch.ones(4, 32), f"{layer}.lora_B.weight": torch.ones(32, 4)}
    inside = "transformer.transformer_blocks.0.attn.to_q"
    odd = "lora_unet_blocks_0_x"
    found = {
        "elsewhere": one,
        "one more": tensors(pipe, **one),
        "too wide": tensors(pipe, **{f"{inside}.lora_A.weight": torch.ones(4, 64)}),
        "dropped": tensors(pipe, **{f"{inside}.lora_magnitude_vector": torch.ones(32)}),
        "kohya": {f"{odd}.lora_down.weight": torch.ones(4, 32), f"{odd}.lora_up.weight": torch.ones(32, 4)},
        "flat": tensors(pipe, **{f"{inside}.lora_A.weight": torch.ones(128)}),
        "half": tensors(pipe, **{f"{inside}.lora_B.weight": None}),
    }[case]  # fmt: skip
    file = loras.save(tmp_path / "odd.safetensors", found)
    adapters = Adapters()
    good = given(loras.save(tmp_path / "good.safetensors", tensors(pipe)))
    adapters.use(pipe, [good])
    with pytest.raises(ModelError, match=words) as caught:
        adapters.use(pipe, [good, given(file)])
    assert str(caught.value).startswith("The LoRA 'odd.safetensors' ") and "\n" not in str(caught.value)
    adapters.use(pipe, [])
    assert np.array_equal(picture(pipe), plain)


def test_one_that_changed_or_is_damaged_is_refused_in_one_line(pipe: Any, tmp_path: Path) -> None:
    file = loras.save(tmp_path / "a.safetensors", tensors(pipe))
    before = given(file)
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F99"'))
    with pytest.raises(ModelError, match=r"'a\.safetensors' has changed since this command began"):
        Adapters().use(pipe, [before])
    with pytest.raises(ModelError, match=r"'a\.safetensors' is damaged: its header does not fit its tensors"):
        Adapters().use(pipe, [given(file)])


def test_an_interrupt_while_one_is_loaded_leaves_nothing_behind(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, file = picture(pipe), given(loras.save(tmp_path / "a.safetensors", tensors(pipe)))
    load, adapters = type(pipe).load_lora_weights, Adapters()

    def interrupted(*args: Any, **options: Any) -> None:
        load(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(pipe), "load_lora_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapters.use(pipe, [file])
    adapters.use(pipe, [])
    assert np.array_equal(picture(pipe), plain)
    with torch.inference_mode():
        adapters.use(pipe, [file])
    assert not np.array_equal(picture(pipe), plain)


def test_what_diffusers_logs_about_one_that_it_refuses_is_not_printed(
    pipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    file = tensors(pipe, **{"transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(32, 9)})
    with pytest.raises(ModelError, match="cannot be loaded"):
        Adapters().use(pipe, [given(loras.save(tmp_path / "a.safetensors", file))])
    assert not caplog.records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flux")
    small.flux_pipeline().save_pretrained(path)
    return path


def test_a_session_uses_them_with_the_cache_and_without(folder: Path, tmp_path: Path) -> None:
    session = h2gen.load(str(folder), device="cpu")
    file = loras.save(
        tmp_path / "a.safetensors", loras.in_layout("kohya", loras.delta(session.pipe.transformer, ATTENTION))
    )
    common: dict[str, Any] = {"seed": 1, "size": 64, "steps": 4, "progress": False}
    plain, cached = session.generate("a cat", cache=None, **common), session.generate("a cat", tau1=1, tau2=1, **common)
    styled = session.generate("a cat", cache=None, lora=f"{file}:0.7", **common)
    exact = session.generate("a cat", plan="FFFF", lora=f"{file}:0.7", **common)
    hits = session.generate("a cat", tau1=1, tau2=1, lora=f"{file}:0.7", **common)
    assert np.array_equal(styled.image, exact.image) and not np.array_equal(styled.image, plain.image)
    # Nothing of a picture before is left in the model or in the cache.
    assert np.array_equal(session.generate("a cat", cache=None, **common).image, plain.image)
    assert np.array_equal(session.generate("a cat", tau1=1, tau2=1, **common).image, cached.image)
    fresh = h2gen.load(str(folder), device="cpu")
    assert np.array_equal(fresh.generate("a cat", tau1=1, tau2=1, lora=f"{file}:0.7", **common).image, hits.image)
    assert styled.metadata["settings"]["lora"][0]["name"] == "a.safetensors"


def test_text_encoded_under_another_adapter_is_not_reused(folder: Path, tmp_path: Path) -> None:
    session = h2gen.load(str(folder), device="cpu")
    width = session.pipe.text_encoder.config.hidden_size
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        name = f"lora_te1_text_model_encoder_layers_0_self_attn_{projection}"
        found |= {f"{name}.lora_down.weight": torch.randn(4, width), f"{name}.lora_up.weight": torch.randn(width, 4)}
    found |= loras.in_layout("kohya", loras.delta(session.pipe.transformer, ATTENTION))
    file = loras.save(tmp_path / "text.safetensors", found)
    common: dict[str, Any] = {"seed": 1, "size": 64, "steps": 2, "progress": False, "cache": None}
    plain = session.generate("a cat", **common)
    with_text = session.generate("a cat", lora=str(file), **common)
    fresh = h2gen.load(str(folder), device="cpu").generate("a cat", lora=str(file), **common)
    assert np.array_equal(with_text.image, fresh.image) and not np.array_equal(plain.image, with_text.image)
    assert np.array_equal(session.generate("a cat", **common).image, plain.image)
    assert len({key[2] for key in session._encoded._kept}) == 2
