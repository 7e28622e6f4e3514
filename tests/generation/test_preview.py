"""Previews: what a step expects the picture to become, at no cost to the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ChromaPipeline, Flux2KleinPipeline, Flux2Pipeline, FluxFillPipeline, FluxPipeline
from PIL import Image

from h2gen.generation import painters, preview
from h2gen.generation.preview import Preview, Previews, previewed, previewing
from h2gen.generation.result import pixels_of
from h2gen.models.modular import ModularPipe
from tests import small

FAST: dict[str, Any] = {"steps": 6, "cfg": 1.0, "seed": 7}


def pixels(image: Image.Image) -> Any:
    return np.asarray(image, np.float64)


def error(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(pixels(image.resize((32, 32))) - pixels(other.resize((32, 32)))).mean())


@pytest.mark.parametrize(
    "given",
    [{}, {"cache": None}, {"solver": "heun", "cache": None}, {"solver": "unipc"}, {"cfg": 3.0, "tolerance": 0.01}],
    ids=str,
)
def test_watching_changes_no_bit_and_shows_every_step(tiny: Any, given: dict[str, Any]) -> None:
    seen: list[Preview] = []
    plain = tiny.generate("a cat", **{**FAST, **given})
    watched = tiny.generate("a cat", on_preview=seen.append, **{**FAST, **given})
    assert np.array_equal(pixels(watched.image), pixels(plain.image))
    assert [(each.step, each.steps) for each in seen] == [(step, 6) for step in range(1, 7)]
    assert {each.image.size for each in seen} == {(32, 32)}
    assert "step" not in vars(tiny.pipe.scheduler)


def test_image_to_image_counts_the_steps_that_run(tiny: Any, tmp_path: Path) -> None:
    seen: list[Preview] = []
    path = tmp_path / "cat.png"
    tiny.generate("a cat", **FAST).image.save(path)
    tiny.generate("a dog", image=f"{path}:0.5", on_preview=seen.append, **FAST)
    assert [(each.step, each.steps) for each in seen] == [(1, 3), (2, 3), (3, 3)]


def test_a_preview_shows_the_picture_and_not_its_noise(tiny: Any) -> None:
    seen: list[Image.Image] = []
    result = tiny.generate("a blue car", steps=12, seed=3, on_preview=lambda each: seen.append(each.image))
    mean = Image.new("RGB", (32, 32), tuple(int(c) for c in pixels(result.image).mean((0, 1))))
    flat, errors = error(mean, result.image), [error(image, result.image) for image in seen]
    assert errors[-1] < 0.5 * flat
    assert errors[5] < 0.6 * flat, "halfway through the latents themselves are half noise"
    assert errors[-1] < errors[0]


def test_the_fit_is_close_to_what_the_autoencoder_decodes(tiny: Any) -> None:
    """Pictures that it was not fitted to; 20 dB is a mean error of a tenth of the range."""
    painter = painters.linear_painter(tiny.pipe.vae, torch.device("cpu"))
    for prompt in ("a birthday cake", "three apples"):
        result = tiny.generate(prompt, seed=1, steps=8)
        image = torch.tensor(np.asarray(result.image)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents = tiny.pipe.vae.encode(image).latents
        wanted = pixels(result.image.resize((32, 32), Image.Resampling.BOX))
        assert 10 * np.log10(255**2 / ((painter(latents).numpy() - wanted) ** 2).mean()) > 20


class Catcher:
    """A painter that keeps what it is to decode."""

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder
        self.latents: list[torch.Tensor] = []

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self.latents.append(latents)
        return torch.zeros(2, 2, 3, dtype=torch.uint8)


PIPES: dict[str, Callable[[], Any]] = {
    FluxPipeline.__name__: small.flux_pipeline,
    FluxFillPipeline.__name__: lambda: small.flux_pipeline(FluxFillPipeline),
    ChromaPipeline.__name__: small.chroma_pipeline,
    Flux2Pipeline.__name__: small.flux2_pipeline,
    Flux2KleinPipeline.__name__: small.flux2_klein_pipeline,
    "QwenImage": small.qwen_image_pipeline,
    "ZImage": small.z_image_pipeline,
    "HunyuanVideo": lambda: small.hunyuan_video_pipeline(layers=1, single_layers=1),
    "Wan": lambda: small.wan_pipeline(layers=2),
    "Flux3": lambda: ModularPipe(small.flux3_pipeline()),
    "Flux3Distilled": lambda: ModularPipe(small.flux3_pipeline(flow_map=True)),
}


@pytest.mark.parametrize("name", PIPES)
def test_the_last_step_expects_what_every_family_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PIPES[name]()
    call = {key: value for key, value in small.run_kwargs(pipe, steps=3).items() if key != "generator"}
    decoded: list[torch.Tensor] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, *a, **k: decoded.append(z) or decode(z, *a, **k))
    catcher, steps = Catcher(pipe.vae), []
    size: Any = SimpleNamespace(width=small.SIZE, height=small.SIZE, frames=None, noun="picture")
    pipe.vae.register_to_config(scaling_factor=0.36, shift_factor=0.12)
    if hasattr(pipe.vae, "bn"):
        pipe.vae.bn.running_mean += torch.linspace(-1, 1, len(pipe.vae.bn.running_mean))
        pipe.vae.bn.running_var *= 2
    plain = pixels_of(pipe(**call, generator=torch.Generator().manual_seed(7)))
    with previewing(Previews(lambda each: steps.append(each.step), painter=catcher), pipe, size):  # type: ignore[arg-type]
        watched = pixels_of(pipe(**call, generator=torch.Generator().manual_seed(7)))
    assert np.array_equal(watched, plain)
    assert steps == [1, 2, 3]
    wanted = decoded[-1][:, :, 0] if plain.ndim == 5 else decoded[-1]  # of a video, the first frame
    first, last = (each.view_as(wanted) for each in (catcher.latents[0], catcher.latents[-1]))
    assert torch.allclose(last, wanted, atol=1e-4)
    assert not torch.allclose(first, wanted, atol=1e-2)


def test_previews_may_be_fewer(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.settings("a cat", **FAST)

    def steps(**given: Any) -> list[int]:
        seen: list[int] = []
        with previewed(tiny, Previews(lambda each: seen.append(each.step), **given)):
            tiny.run(settings)
        return seen

    assert steps(every=4) == [4, 6], "and the last one"
    monkeypatch.setattr(preview, "PAUSE", 1e6)
    assert steps(sparing=True) == [1, 6]
    monkeypatch.setattr(preview, "PAUSE", 0.0)
    monkeypatch.setattr(preview, "SHARE", 1e-9)
    assert steps(sparing=True) == [1, 2, 6], "the second one says what they cost"


def test_what_goes_wrong_with_previews_costs_no_picture(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.generate("a cat", **FAST)
    seen: list[Preview] = []

    def full(*_: Any) -> None:
        raise RuntimeError("no room\nfor the preview")

    monkeypatch.setattr(preview, "linear_painter", full)
    with pytest.warns(RuntimeWarning, match=r"There are no previews \(no room\); the picture is made all the same"):
        result = tiny.generate("a cat", on_preview=seen.append, **FAST)
    assert np.array_equal(pixels(result.image), pixels(plain.image)) and not seen


def test_an_interrupt_leaves_nothing_behind(tiny: Any) -> None:
    plain = tiny.generate("a cat", **FAST)
    with pytest.raises(KeyboardInterrupt):
        tiny.generate("a cat", on_preview=lambda _: tiny.interrupt(), **FAST)
    assert "step" not in vars(tiny.pipe.scheduler)
    assert np.array_equal(pixels(tiny.generate("a cat", **FAST).image), pixels(plain.image))


def test_a_batch_shows_its_first_picture(tiny: Any) -> None:
    alone: list[Image.Image] = []
    together: list[Image.Image] = []
    one, two = (tiny.settings("a cat", **{**FAST, "seed": seed, "cache": None}) for seed in (7, 8))
    with previewed(tiny, Previews(lambda each: alone.append(each.image))):
        tiny.run(one)
    with previewed(tiny, Previews(lambda each: together.append(each.image))):
        tiny.run_together([one, two])
    assert len(alone) == len(together) == 6
    assert np.abs(pixels(alone[-1]) - pixels(together[-1])).max() <= 1


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    pipe = small.flux_pipeline().to("cuda")
    size: Any = SimpleNamespace(width=small.SIZE, height=small.SIZE, frames=None, noun="picture")
    seen: list[Preview] = []
    pipe.scheduler.set_timesteps(4, device="cuda")
    tokens = torch.randn(1, (small.SIZE // 16) ** 2, 4 * small.LATENTS, device="cuda")
    with previewing(Previews(seen.append), pipe, size):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for timestep in pipe.scheduler.timesteps.unbind():
                pipe.scheduler.step(tokens, timestep, tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [each.step for each in seen] == [1, 2, 3, 4]
