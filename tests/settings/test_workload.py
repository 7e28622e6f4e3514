"""What a picture takes besides the model's weights counts every model that is loaded beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from h2gen.cache import CacheConfig
from h2gen.models.catalogue import resolve
from h2gen.settings.inputs import InputFile
from h2gen.settings.values import Settings
from h2gen.settings.workload import work_of
from tests import small

PLAIN = Settings("a cat", 7, 64, 64, 4)


def count(*models: torch.nn.Module) -> int:
    return sum(tensor.numel() for model in models for tensor in model.state_dict().values())


def test_side_models_count_by_when_they_are_on_the_device(tmp_path: Path) -> None:
    net, prior, tiny = small.controlnet(), small.redux_prior(), AutoencoderTiny(latent_channels=4)
    for name, model in (("net", net), ("redux", prior), ("tiny", tiny)):
        model.save_pretrained(tmp_path / name)
    files = {name: (InputFile(name, "0" * 64, path=tmp_path / name),) for name in ("net", "redux")}
    settings = replace(PLAIN, controlnet=files["net"], redux=files["redux"], redux_model=files["redux"])
    work = work_of(settings, resolve("tiny"), preview_model=tmp_path / "tiny")
    assert (work.beside, work.always) == (count(net), count(tiny))
    assert work.encoding == count(prior.image_encoder, prior.image_embedder) > 0
    without = work_of(PLAIN, resolve("tiny"))
    assert (without.beside, without.encoding, without.always) == (0, 0, 0)
    lost = replace(settings, controlnet=(InputFile("lost", "0" * 64, path=tmp_path / "lost"), *files["net"]))
    assert work_of(lost, resolve("tiny")).beside == count(net)


def test_the_cache_counts_in_the_dtype_that_it_keeps() -> None:
    def kept(how: str, value: int) -> int:
        cache = CacheConfig(tau1=0.1, tau2=0.1, cache_memory=how)
        return work_of(replace(PLAIN, cache=cache), resolve("tiny"), value=value).kept(64)

    assert kept("bf16", 4) * 2 == kept("device", 4) and kept("bf16", 2) == kept("device", 2)
    assert kept("fp8", 2) * 2 * 64 == kept("device", 2) * (64 + 4)
    assert kept("cpu", 2) == 0
