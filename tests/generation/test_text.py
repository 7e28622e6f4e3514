"""Text encoders run once per prompt, and a picture from kept embeddings is the same, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from h2gen.cache import CacheConfig
from h2gen.errors import PromptWarning
from h2gen.families import family_of
from h2gen.generation import text as encoded
from h2gen.generation.session import Session
from h2gen.generation.text import EncodedPrompts
from h2gen.generation.unread import Unread
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from tests import small

SIZE = {"width": small.SIZE, "height": small.SIZE, "steps": 3}
LENGTH = 200
"""Tokens: enough for the chat template of FLUX.2 in the small pipeline's tokenizer, which has one token per byte."""
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
        session.generate(prompt, seed=seed, cache=cache, cfg=1.0, max_sequence_length=LENGTH, **SIZE)
    assert runs.count("text_encoder") == 2
    assert runs.count("text_encoder_2") == (2 if kind == "flux" else 0)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_picture_from_kept_embeddings_is_plain_diffusers_bit_for_bit(kind: str) -> None:
    session = session_of(kind)
    arguments = {"seed": 7, "cfg": 1.0, "guidance": 3.5, "max_sequence_length": LENGTH, **SIZE}
    cold, warm = (np.asarray(session.generate("a cat", cache=None, **arguments).image) for _ in range(2))
    plain = session.pipe(
        prompt="a cat",
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=3,
        width=small.SIZE,
        height=small.SIZE,
        max_sequence_length=LENGTH,
        guidance_scale=1.0 if kind == "klein" else 3.5,
    ).images[0]
    assert np.array_equal(cold, np.asarray(plain))
    assert np.array_equal(warm, np.asarray(plain))


@pytest.mark.parametrize("kind", ["flux", "klein"])
@pytest.mark.parametrize("negative", ["", "a dog"])
def test_true_guidance_from_kept_embeddings_is_plain_diffusers_bit_for_bit(kind: str, negative: str) -> None:
    session = session_of(kind)
    runs = count_encoders(session)
    arguments = {"seed": 7, "cfg": 3.0, "guidance": 3.5, "max_sequence_length": LENGTH, "negative": negative, **SIZE}
    cold, warm = (np.asarray(session.generate("a cat", cache=None, **arguments).image) for _ in range(2))
    assert runs.count("text_encoder") == 2
    more: dict[str, Any]
    if kind == "flux":
        more = {"true_cfg_scale": 3.0, "negative_prompt": negative, "guidance_scale": 3.5}
    else:
        embeds = session.pipe.encode_prompt(prompt=[negative], max_sequence_length=LENGTH)[0]
        more = {"guidance_scale": 3.0, "negative_prompt_embeds": embeds}
    plain = session.pipe(
        prompt="a cat",
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=3,
        width=small.SIZE,
        height=small.SIZE,
        max_sequence_length=LENGTH,
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
        session.generate("a cat", seed=1, cfg=1.0, max_sequence_length=16, cache=None, **SIZE)
    assert ran == []


def test_tiles_are_for_the_picture_that_asks_for_them() -> None:
    session = session_of("flux")
    settings = session.settings("a cat", seed=1, cfg=1.0, max_sequence_length=16, cache=None, **SIZE)
    assert session.run(settings, tiled=True).tiled and session.pipe.vae.use_tiling
    assert not session.run(settings).tiled and not session.pipe.vae.use_tiling


LONG = "a tiger and a blue car, on a yellow background, " + "with a very small red apple, " * 20 + "at night"


def read_by_t5(pipe: Any, prompt: str, limit: int) -> list[int]:
    tokenizer = getattr(pipe, "tokenizer_2", None) or pipe.tokenizer
    return list(tokenizer(prompt, truncation=True, max_length=limit).input_ids)


def read_by_klein(pipe: Any, prompt: str, limit: int) -> list[int]:
    chat = [{"role": "user", "content": prompt}]
    text = pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return list(pipe.tokenizer(text, truncation=True, max_length=limit).input_ids)


def read_by_flux2(pipe: Any, prompt: str, limit: int) -> list[int]:
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    chat = format_input([prompt], pipe.system_message)
    options = {"tokenize": True, "return_dict": True, "truncation": True, "max_length": limit}
    return list(pipe.tokenizer.apply_chat_template(chat, add_generation_prompt=False, **options)["input_ids"][0])


READERS: dict[str, tuple[Callable[[], Any], Callable[[Any, str, int], list[int]], int]] = {
    "flux": (small.flux_pipeline, read_by_t5, 24),
    "chroma": (small.chroma_pipeline, read_by_t5, 24),
    "klein": (BUILDERS["klein"], read_by_klein, 60),
    "flux2": (BUILDERS["flux2"], read_by_flux2, 250),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_is_left_out_of_a_prompt_changes_nothing_that_the_encoder_reads(kind: str) -> None:
    build, read, limit = READERS[kind]
    pipe = build()
    left, needed = family_of(pipe.transformer).unread(pipe, LONG, limit)
    assert left and LONG.endswith(left)
    kept = LONG.removesuffix(left)
    # Other words in place of what is left out are not read either; another word before it is.
    assert read(pipe, kept + "wolf " * 100, limit) == read(pipe, LONG, limit)
    shorter = kept.rstrip()[:-1] + "$"
    assert read(pipe, shorter + LONG.removeprefix(kept), limit) != read(pipe, LONG, limit)
    assert family_of(pipe.transformer).unread(pipe, LONG, needed).text == ""
    assert family_of(pipe.transformer).unread(pipe, LONG, needed - 60).text


def test_a_prompt_of_the_limit_is_read_whole() -> None:
    pipe = small.flux_pipeline()
    family = family_of(pipe.transformer)
    needed = family.unread(pipe, "a cat beside a dog", 512).needed
    assert family.unread(pipe, "a cat beside a dog", needed) == ("", needed)
    assert family.unread(pipe, "a cat beside a dog", needed - 1).text == "dog"


def test_clip_does_not_decide_what_flux_reads() -> None:
    pipe = small.flux_pipeline()
    assert len(pipe.tokenizer(LONG).input_ids) > 77
    assert family_of(pipe.transformer).unread(pipe, LONG, 512).text == ""


def test_what_is_left_out_is_warned_of_once_and_kept_with_the_picture() -> None:
    session = session_of("flux")
    arguments = {"cfg": 2.0, "negative": LONG, "max_sequence_length": 24, **SIZE}
    with pytest.warns(PromptWarning) as seen:
        results = [session.generate("a dog and " + LONG, seed=seed, **arguments) for seed in (1, 2)]
    assert [str(each.message) for each in seen] == [str(each) for each in results[0].unread]
    assert [each.setting for each in results[1].unread] == ["prompt", "negative"]
    assert results[0].unread[0].text.endswith("at night")


def test_diffusers_own_words_about_it_are_not_logged() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    pipe = small.flux_pipeline()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        EncodedPrompts().of(pipe, LONG, 24)
        assert not records
        pipe.encode_prompt([LONG], None, max_sequence_length=24)
        assert records  # otherwise this test would see nothing
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def test_the_message_says_what_reads_all_of_it() -> None:
    line = str(Unread("prompt", "on a yellow background", 24, 32))
    assert line == (
        "The prompt is truncated to 24 tokens; left out: 'on a yellow background'. "
        "A max-sequence-length of 32 reads all of it."
    )
    assert "the maximum" in str(Unread("negative", "x" * 1000, 24, 600))
    assert str(Unread("prompt", "at night", 512, 600)).endswith("left out: 'at night'.")


def test_a_tokenizer_of_another_kind_costs_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of("flux")
    monkeypatch.setattr(type(family_of(session.pipe.transformer)), "unread", lambda *_: 1 / 0)
    assert session.generate("a cat", seed=1, cfg=1.0, max_sequence_length=16, **SIZE).unread == ()


def test_a_prompt_read_otherwise_than_meant_is_a_warning() -> None:
    session = session_of("flux")
    with pytest.warns(UserWarning, match=r"'\(big:1.3\)' is read as plain words: prompt weights are not supported"):
        session.generate("a (big:1.3) cat", seed=1, cfg=1.0, max_sequence_length=32, **SIZE)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloading_makes_the_same_picture(offload: str) -> None:
    import h2gen

    plain = h2gen.load("tiny", device="cuda").generate("a cat", seed=1, steps=2).image
    session = h2gen.load("tiny", device="cuda", offload=offload)
    assert session.offload == offload
    assert np.array_equal(np.asarray(session.generate("a cat", seed=1, steps=2, cache=None).image), np.asarray(plain))
