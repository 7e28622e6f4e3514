"""Chroma end to end: loaded, generated, cached, counted, batched and replayed, on a small random checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ChromaPipeline
from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers
from PIL import Image

import h2gen
from h2gen.cache import CacheConfig, h2_cache
from h2gen.cli.app import run as command
from h2gen.errors import CacheError, ModelError
from h2gen.evaluation.bench import measure
from h2gen.evaluation.block_count import count_blocks
from h2gen.evaluation.peers import PEERS, Span
from h2gen.evaluation.peers.teacache import teacache
from h2gen.families import family_of, recognize
from h2gen.families.chroma import CHROMA
from h2gen.models import CATALOGUE, load_pipeline, resolve
from h2gen.output.metadata import read_metadata
from tests import checkpoints, small
from tests.cache.drive import assert_same_decisions, between, kinds, noise
from tests.cache.reference import Reference, Rules, reference, sigmas_of

STEPS = 8
PASSES = ("cond", "uncond")
GUIDED = {"guidance_scale": 3.0, "negative_prompt": "a dog"}
SIZE = {"width": small.SIZE, "height": small.SIZE, "steps": STEPS, "max_sequence_length": 16}
PROMPTS = ["a cat", "two dogs in a boat on a lake at night", "an owl"]
"""Of different lengths, so that their attention masks differ."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "chroma"
    small.chroma_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def session(folder: Path) -> h2gen.Session:
    return h2gen.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small.chroma_pipeline()


def call(pipe: Any, steps: int = STEPS, **more: Any) -> np.ndarray[Any, Any]:
    images: np.ndarray[Any, Any] = pipe(**small.run_kwargs(pipe, steps=steps) | more).images
    return images


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image)


def natural(pipe: Any, passes: tuple[str, ...] = ("cond",), **more: Any) -> tuple[list[float], list[float]]:
    """Each stage's changes from step to step, when everything is computed."""
    with reference(pipe.transformer, Rules(1e-12, 1e-12), passes) as decisions:
        call(pipe, **more)
    return (
        sorted(d.structure_change for d in decisions if d.structure_change is not None),
        sorted(d.detail_change for d in decisions if d.detail_change is not None),
    )


def taus(pipe: Any, passes: tuple[str, ...] = ("cond",), **more: Any) -> dict[str, float]:
    structure, detail = natural(pipe, passes, **more)
    return {"tau1": between(structure, 0.5), "tau2": between(detail, 0.7)}


# Loading.


def test_the_catalogue_knows_it_with_its_makers_settings() -> None:
    entry = CATALOGUE["chroma"]
    assert (entry.repo, entry.licence, entry.gated) == ("lodestones/Chroma1-HD", "Apache-2.0", False)
    assert resolve("lodestones/Chroma1-HD").defaults == CHROMA
    assert (CHROMA.steps, CHROMA.cfg, CHROMA.max_sequence_length) == (40, 3.0, 512)


def test_h2gen_models_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("chroma ")]
    assert all(words in line for words in ("lodestones/Chroma1-HD", "Apache-2.0", "8.9 B", "27.5 GB"))


def test_a_folder_paints_what_was_saved_with_its_familys_defaults(folder: Path, pipe: Any) -> None:
    checkpoint = resolve(str(folder))
    assert checkpoint.defaults == CHROMA
    loaded = load_pipeline(checkpoint, device="cpu")
    assert type(loaded) is ChromaPipeline
    assert np.abs(call(loaded) - call(pipe)).max() < 1e-5


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers converts the original names only for a width of 3072; use the small model's instead."""
    convert = convert_chroma_transformer_checkpoint_to_diffusers
    consts = tuple(32 if const == 3072 else const for const in convert.__code__.co_consts)
    monkeypatch.setattr(convert, "__code__", convert.__code__.replace(co_consts=consts))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_single_file_with_original_names_paints_what_was_saved(folder: Path, tmp_path: Path, kind: str) -> None:
    transformer = small.chroma_transformer(seed=5)
    if kind == "gguf":
        file = checkpoints.save_gguf(transformer, tmp_path / "chroma.gguf", "F16", original=True)
    else:
        file = checkpoints.save_single(transformer, tmp_path / "chroma.safetensors", original=True)
    loaded = load_pipeline(resolve(str(file), str(folder)), device="cpu", dtype="fp32")
    expected = call(small.chroma_pipeline(transformer=transformer), 2)
    assert np.abs(call(loaded, 2) - expected).max() < (1e-5 if kind == "safetensors" else 5e-3)


def test_a_single_file_is_recognised_and_goes_with_its_own_family_only(folder: Path, tmp_path: Path) -> None:
    transformer = small.chroma_transformer()
    assert recognize(transformer.state_dict().keys()) is family_of(transformer)
    assert recognize(checkpoints.original_names(transformer).keys()) is family_of(transformer)
    file = checkpoints.save_single(transformer, tmp_path / "chroma.safetensors", original=True)
    with pytest.raises(
        ModelError, match=r"is a transformer of Chroma, and its base 'tiny' is FLUX.1; give a base of Chroma"
    ):
        load_pipeline(resolve(str(file), "tiny"), device="cpu")
    other = checkpoints.save_single(small.chroma_transformer(layers=1), tmp_path / "short.safetensors", original=True)
    with pytest.raises(ModelError, match=r"has 1 \+ 4 blocks and its base .* has 3 \+ 4 blocks"):
        load_pipeline(resolve(str(other), str(folder)), device="cpu")


# Generating.


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [({"cfg": 1.0}, {}), ({"cfg": 3.0}, {"guidance_scale": 3.0}), ({"cfg": 3.0, "negative": "a dog"}, GUIDED)],
    ids=["no guidance", "guidance", "negative prompt"],
)
def test_without_a_cache_it_is_plain_diffusers_bit_for_bit(
    session: h2gen.Session, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    plain = session.pipe(**small.run_kwargs(session.pipe, steps=STEPS) | arguments).images
    wanted = session.pipe.image_processor.numpy_to_pil(plain)[0]
    for cache in (None, CacheConfig(0, 0)):
        for _ in range(2):  # the second time from kept embeddings
            made = session.generate("a cat", cache=cache, seed=7, **SIZE, **settings).image
            assert np.array_equal(pixels(made), pixels(wanted))


def test_each_prompt_is_encoded_once_with_its_mask(folder: Path) -> None:
    session = h2gen.load(str(folder), device="cpu")
    runs: list[Any] = []
    session.pipe.text_encoder.register_forward_hook(lambda *_: runs.append(None))
    masks: list[list[float]] = []
    session.pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, given: masks.append(given["attention_mask"][0, :16].tolist()), with_kwargs=True
    )
    for seed in (1, 2):
        for prompt in PROMPTS[:2]:
            session.generate(prompt, seed=seed, cfg=3.0, negative="a dog", **SIZE | {"steps": 1})
    assert len(runs) == 3
    assert masks[:4] == masks[4:]
    assert masks[0] != masks[2]
    assert masks[1] == masks[3]


def test_a_prompt_may_be_its_own_negative(session: h2gen.Session) -> None:
    """The pipeline names no passes: the cache tells them apart by their embeddings, which are then the same values."""
    for cache in (CacheConfig(0.3, 0.4), CacheConfig(0, 0, tolerance=0.01), CacheConfig(0, 0, plan="FFFSSFFF")):
        made = session.generate("a cat", seed=7, cfg=3.0, negative="a cat", cache=cache, **SIZE)
        assert made.trace is not None
        assert [(step.context, step.step) for step in made.trace.steps] == [
            (name, step) for step in range(STEPS) for name in PASSES
        ]
        single = session.generate("a cat", seed=7, cfg=1.0, cache=cache, **SIZE)
        assert np.array_equal(pixels(made.image), pixels(single.image))


# Caching.


@pytest.mark.parametrize(("passes", "more"), [(("cond",), {}), (PASSES, GUIDED)], ids=["no guidance", "guidance"])
@pytest.mark.parametrize("config", [{}, {"forecast": 1}, {"hierarchy": "checked", "max_consecutive": 2}], ids=str)
def test_decisions_and_pictures_are_the_papers(
    pipe: Any, config: dict[str, Any], passes: tuple[str, ...], more: dict[str, Any]
) -> None:
    tau = taus(pipe, passes, **more)
    with reference(pipe.transformer, Rules(**tau, **config), passes) as decisions:
        wanted = call(pipe, **more)
    with h2_cache(pipe, **tau, **config) as trace:
        got = call(pipe, **more)
    assert_same_decisions(trace.steps, decisions)
    assert [step.context for step in trace.steps] == [*passes] * STEPS
    assert len(kinds(decisions)) > 1
    assert np.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("plan", ["FFDCRSSF", "FFSFSRDF/FFSFDCRF"])
def test_a_plan_is_followed(pipe: Any, plan: str) -> None:
    rules = Rules(0, 0, plan=plan, forecast=1)
    call(pipe, **GUIDED)
    with reference(pipe.transformer, rules, PASSES, STEPS, sigmas_of(pipe)) as decisions:
        wanted = call(pipe, **GUIDED)
    with h2_cache(pipe, tau1=0, tau2=0, plan=plan, forecast=1) as trace:
        got = call(pipe, **GUIDED)
    assert [step.structure.outcome for step in trace.steps] == [decision.structure for decision in decisions]
    assert [step.detail.outcome for step in trace.steps] == [decision.detail for decision in decisions]
    assert np.allclose(got, wanted, atol=1e-4)


def test_a_tolerance_skips_steps(pipe: Any) -> None:
    call(pipe, 16, **GUIDED)
    sigmas, skipped = sigmas_of(pipe), 0
    for tolerance in (0.01, 0.05, 0.2):
        with reference(pipe.transformer, Rules(0, 0, tolerance=tolerance), PASSES, 16, sigmas) as decisions:
            wanted = call(pipe, 16, **GUIDED)
        with h2_cache(pipe, tau1=0, tau2=0, tolerance=tolerance) as trace:
            got = call(pipe, 16, **GUIDED)
        assert [step.structure.outcome for step in trace.steps] == [decision.structure for decision in decisions]
        assert np.allclose(got, wanted, atol=1e-4)
        skipped += trace.summary.skipped
    assert skipped > 0


@pytest.mark.parametrize("more", [{}, GUIDED], ids=["no guidance", "guidance"])
def test_thresholds_of_0_are_plain_diffusers_bit_for_bit(pipe: Any, more: dict[str, Any]) -> None:
    plain = call(pipe, **more)
    with h2_cache(pipe, tau1=0, tau2=0) as trace:
        assert np.array_equal(call(pipe, **more), plain)
    assert trace.summary.full == trace.summary.steps > 0
    assert np.array_equal(call(pipe, **more), plain)


def outcomes(result: h2gen.Result) -> list[tuple[Any, ...]]:
    assert result.trace is not None
    return [
        (step.step, step.context, step.structure.outcome, step.detail.outcome, step.picture)
        for step in result.trace.steps
    ]


@pytest.mark.parametrize(
    "policy",
    [{}, {"tau1": 0, "tau2": 0, "tolerance": 0.05}, {"forecast": 1, "tolerance": 0.05}],
    ids=["paper", "tolerance", "both"],
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_batch_of_prompts_of_other_lengths_makes_each_as_it_is_made_alone(
    session: h2gen.Session, pipe: Any, cfg: float, policy: dict[str, Any]
) -> None:
    more = {"cfg": cfg, "negative": "a dog" if cfg > 1 else "", **SIZE, "steps": 12}
    config = CacheConfig(**({"tau1": 0.35, "tau2": 0.5} | policy))
    rows: list[int] = []
    masks: set[int] = set()

    def note(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        rows.append(len(given["hidden_states"]))
        masks.add(len(given["attention_mask"]) - len(given["hidden_states"]))

    handle = session.pipe.transformer.single_transformer_blocks[0].attn.register_forward_pre_hook(
        note, with_kwargs=True
    )
    settings = [session.settings(text, config, seed=3 + row, **more) for row, text in enumerate(PROMPTS)]
    together = session.run_together(settings)
    handle.remove()
    steps = [step for result in together for step in result.trace.steps]
    assert sum(rows) == sum(not step.skipped for step in steps)
    assert masks == {0}
    for result, each in zip(together, settings, strict=True):
        alone = session.run(each)
        assert outcomes(result) == outcomes(alone)
        assert np.abs(pixels(result.image).astype(int) - pixels(alone.image)).max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("counts", [(3, 4), (2, None), (None, 2)], ids=str)
def test_with_controlnet_samples_it_decides_as_the_paper_does(counts: tuple[int | None, int | None]) -> None:
    """The model adds those of single-stream blocks in place."""
    model = small.chroma_transformer()
    inputs = family_of(model).example_inputs(model, 16, 5)
    names = ("controlnet_block_samples", "controlnet_single_block_samples")
    for name, count in zip(names, counts, strict=True):
        if count is not None:
            inputs[name] = [0.5 * noise(1, 16, 32, seed=1000 + index) for index in range(count)]
    other = noise(*inputs["hidden_states"].shape, seed=1)
    latents = inputs.pop("hidden_states")

    def run(forward: Callable[..., Any]) -> list[torch.Tensor]:
        sigmas = [1 - step / STEPS for step in range(STEPS)]
        return [
            forward(hidden_states=sigma * latents + (1 - sigma) * other, timestep=torch.tensor([sigma]), **inputs)[0]
            for sigma in sigmas
        ]

    measuring = Reference(model, Rules(1e-12, 1e-12))
    run(measuring)
    seen = measuring.decisions[1:]
    rules = Rules(
        between(sorted(decision.structure_change for decision in seen), 0.5),
        between(sorted(decision.detail_change for decision in seen), 0.8),
    )
    stand_in = Reference(model, rules)
    wanted = run(stand_in)
    with h2_cache(model, tau1=rules.tau1, tau2=rules.tau2) as trace:
        got = run(model)
    assert_same_decisions(trace.steps, stand_in.decisions, rel=1e-4)
    assert len(kinds(stand_in.decisions)) > 1
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


# Evaluating.


def test_its_blocks_are_counted(pipe: Any) -> None:
    with count_blocks(pipe.transformer) as plain:
        call(pipe, 4)
    with count_blocks(pipe.transformer) as cached, h2_cache(pipe.transformer, tau1=1e9) as trace:
        call(pipe, 4)
    assert (plain.run, plain.total) == (28, 28)
    assert (cached.run, cached.total) == (trace.summary.blocks_run, 28) == (7 + 3 * 2, 28)


def test_bench_measures_its_steps() -> None:
    measured = measure(small.chroma_transformer(), image_tokens=16, text_tokens=5, steps=5, repeats=1)
    assert (measured.blocks, measured.image_tokens, measured.text_tokens) == (7, 16, 5)
    assert all(value > 0 for value in (measured.plain, measured.full, measured.all_reused, measured.skipped))


needs_cache_dit = pytest.mark.skipif(find_spec("cache_dit") is None, reason="cache-dit is not installed")


@pytest.mark.parametrize("name", ["tea", "taylor", pytest.param("dbcache", marks=needs_cache_dit)])
def test_other_caches_work(pipe: Any, name: str) -> None:
    peer, plain = PEERS[name], call(pipe)
    values = peer.values(STEPS)
    value = values.high if isinstance(values, Span) else values[-1]
    with count_blocks(pipe.transformer) as count, peer.applied(pipe, value, steps=STEPS):
        first, second = call(pipe), call(pipe)
    assert count.share < 0.75
    assert np.array_equal(first, second) and not np.array_equal(first, plain)
    assert np.array_equal(call(pipe), plain)


@pytest.mark.parametrize("name", ["fb", "block", "mag", "sea"])
def test_other_caches_that_do_not_work_say_so(pipe: Any, name: str) -> None:
    with pytest.raises(CacheError, match=rf"^{name} \(diffusers [\d.]+ \w+\) does not work on Chroma; leave it out"):
        PEERS[name].applied(pipe, 0.1, steps=STEPS).__enter__()
    if name == "mag":
        with pytest.raises(CacheError, match=r"^mag .* does not work on Chroma; leave it out"):
            PEERS[name].calibrated(pipe, [lambda: call(pipe)], steps=STEPS)


@torch.no_grad()
def test_a_skipped_step_of_teacache_adds_what_all_blocks_added_before() -> None:
    transformer = small.chroma_transformer()
    inputs = family_of(transformer).example_inputs(transformer, 16, 5)
    image = inputs.pop("hidden_states")
    before_out: list[torch.Tensor] = []
    handle = transformer.norm_out.register_forward_pre_hook(lambda _, args: before_out.append(args[0]))
    with teacache(transformer, 1e9, steps=3):
        for step, scale in enumerate((1.0, 0.7)):
            with transformer.cache_context("cond"):
                transformer(hidden_states=scale * image, timestep=torch.tensor([1 - 0.3 * step]), **inputs)
    handle.remove()
    embedded = [transformer.x_embedder(scale * image) for scale in (1.0, 0.7)]
    torch.testing.assert_close(before_out[1] - embedded[1], before_out[0] - embedded[0], atol=1e-4, rtol=1e-4)


# The command line.


def test_the_command_makes_describes_and_replays_a_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "a cat",
        "-m",
        str(folder),
        "--steps",
        "6",
        "--size",
        "64x64",
        "--seed",
        "7",
        "--max-sequence-length",
        "16",
    ]
    assert command([*words, "--negative", "a dog", "--tau1", "0.3", "--tau2", "0.4", "-o", "one.png", "-q"]) == 0
    known = read_metadata(tmp_path / "one.png")
    assert (known.settings.cfg, known.settings.negative, known.settings.guidance) == (3.0, "a dog", 0.0)
    assert known.everything["model"]["name"] == "chroma"
    assert known.everything["cache"]["passes"] == 12
    assert command(["replay", "one.png", "-m", str(folder), "-o", "two.png", "-q"]) == 0
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert np.array_equal(pixels(one), pixels(two))
    capsys.readouterr()
