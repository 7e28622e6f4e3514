"""Text encoders run once per prompt, and a picture from kept embeddings is the same, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from h2gen.cache import CacheConfig
from h2gen.generation import text as encoded
from h2gen.generation.session import Session
from h2gen.generation.text import EncodedPrompts
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from tests import small

SIZE = {"width": small.SIZE, "height": small.SIZE, "steps": 3}
BUILDERS: dict[str, Callable[[], Any]] = {
    "flux": small.flux_pipeline,
    "klein": lambda: small.flux2_klein_pipeline(is_distilled=False),
    "flux2": small.flux2_pipeline,
}


def session_of(name: str) -> Session:
    return Session(BUILDERS[name](), Checkpoint("small", "folder", ".", None, CATALOGUE["dev"].defaults))


def count_encoders(session: Session) -> list[str]:
    """The names of the text encoders, once for each time that one runs."""
    runs: list[str] = []
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(session.pipe, name, None)
        if encoder is not None:
            encoder.register_forward_hook(lambda *_, name=name: runs.append(name))
    return runs


@pytest.mark.parametrize("cache", [None, CacheConfig(0.5, 0.5)])
@pytest.mark.parametrize("kind", BUILDERS)
def test_each_prompt_is_encoded_once_whatever_the_order_of_seeds(kind: str, cache: CacheConfig | None) -> None:
    session = session_of(kind)
    runs = count_encoders(session)
    for prompt, seed in (("a cat", 1), ("a dog", 1), ("a cat", 2), ("a dog", 2), ("a cat", 3)):
        session.generate(prompt, seed=seed, cache=cache, cfg=1.0, max_sequence_length=64, **SIZE)
    assert runs.count("text_encoder") == 2
    assert runs.count("text_encoder_2") == (2 if kind == "flux" else 0)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_picture_from_kept_embeddings_is_plain_diffusers_bit_for_bit(kind: str) -> None:
    session = session_of(kind)
    arguments = {"seed": 7, "cfg": 1.0, "guidance": 3.5, "max_sequence_length": 64, **SIZE}
    cold, warm = (np.asarray(session.generate("a cat", **arguments).image) for _ in range(2))
    plain = session.pipe(
        prompt="a cat",
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=3,
        width=small.SIZE,
        height=small.SIZE,
        max_sequence_length=64,
        guidance_scale=1.0 if kind == "klein" else 3.5,
    ).images[0]
    assert np.array_equal(cold, np.asarray(plain))
    assert np.array_equal(warm, np.asarray(plain))


@pytest.mark.parametrize("kind", ["flux", "klein"])
@pytest.mark.parametrize("negative", ["", "a dog"])
def test_true_guidance_from_kept_embeddings_is_plain_diffusers_bit_for_bit(kind: str, negative: str) -> None:
    session = session_of(kind)
    runs = count_encoders(session)
    arguments = {"seed": 7, "cfg": 3.0, "guidance": 3.5, "max_sequence_length": 64, "negative": negative, **SIZE}
    cold, warm = (np.asarray(session.generate("a cat", **arguments).image) for _ in range(2))
    assert runs.count("text_encoder") == 2
    more: dict[str, Any]
    if kind == "flux":
        more = {"true_cfg_scale": 3.0, "negative_prompt": negative, "guidance_scale": 3.5}
    else:
        embeds = session.pipe.encode_prompt(prompt=[negative], max_sequence_length=64)[0]
        more = {"guidance_scale": 3.0, "negative_prompt_embeds": embeds}
    plain = session.pipe(
        prompt="a cat",
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=3,
        width=small.SIZE,
        height=small.SIZE,
        max_sequence_length=64,
        **more,
    ).images[0]
    assert np.array_equal(cold, np.asarray(plain))
    assert np.array_equal(warm, np.asarray(plain))


def test_the_length_of_the_text_belongs_to_the_prompt() -> None:
    pipe = small.flux_pipeline()
    kept = EncodedPrompts()
    assert kept.of(pipe, "a cat", 16)["prompt_embeds"].shape[1] == 16
    assert kept.of(pipe, "a cat", 32)["prompt_embeds"].shape[1] == 32


def test_what_was_not_used_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small.flux_pipeline()
    kept = EncodedPrompts()
    size = sum(tensor.nbytes for tensor in kept.of(pipe, "a", 16).values())
    monkeypatch.setattr(encoded, "LARGEST", 2 * size)
    runs: list[str] = []
    pipe.text_encoder.register_forward_hook(lambda *_: runs.append("ran"))
    for prompt in ("b", "a", "c", "a", "b"):  # c evicts b, and b then c
        kept.of(pipe, prompt, 16)
    assert len(runs) == 3


def test_an_interrupt_while_the_text_is_encoded_runs_no_step() -> None:
    session = session_of("flux")
    session.pipe.text_encoder.register_forward_hook(lambda *_: session.interrupt())
    ran: list[str] = []
    session.pipe.transformer.register_forward_hook(lambda *_: ran.append("ran"))
    with pytest.raises(KeyboardInterrupt):
        session.generate("a cat", seed=1, cfg=1.0, max_sequence_length=16, **SIZE)
    assert ran == []


def test_tiles_are_for_the_picture_that_asks_for_them() -> None:
    session = session_of("flux")
    settings = session.settings("a cat", seed=1, cfg=1.0, max_sequence_length=16, **SIZE)
    assert session.run(settings, tiled=True).tiled and session.pipe.vae.use_tiling
    assert not session.run(settings).tiled and not session.pipe.vae.use_tiling


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloading_makes_the_same_picture(offload: str) -> None:
    import h2gen

    plain = h2gen.load("tiny", device="cuda").generate("a cat", seed=1, steps=2).image
    session = h2gen.load("tiny", device="cuda", offload=offload)
    assert session.offload == offload
    assert np.array_equal(np.asarray(session.generate("a cat", seed=1, steps=2).image), np.asarray(plain))
