"""Qwen-Image and Z-Image end to end: loaded, generated, cached, batched and replayed, on small random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import h2gen
from h2gen.cache import CacheConfig, h2_cache
from h2gen.cli.app import run as command
from h2gen.errors import CacheError, ModelError
from h2gen.evaluation.bench import measure
from h2gen.evaluation.block_count import count_blocks
from h2gen.evaluation.compare import prepare_comparison
from h2gen.evaluation.options import CompareOptions
from h2gen.evaluation.peers import PEERS, Span, default_peers
from h2gen.families import family_of
from h2gen.generation.painters import linear_painter
from h2gen.models import CATALOGUE, load_pipeline, resolve
from h2gen.models.compiling import compile_blocks
from h2gen.models.facts import facts_of
from h2gen.models.offload_blocks import BlockOffload
from h2gen.output.metadata import read_metadata
from tests import checkpoints, small
from tests.matrix.drive import attention_of

STEPS = 6
QWEN, Z = "QwenImagePipeline", "ZImagePipeline"
MAKERS: Mapping[str, Callable[..., Any]] = {QWEN: small.qwen_image_pipeline, Z: small.z_image_pipeline}
SCALE = {QWEN: "true_cfg_scale", Z: "guidance_scale"}
LENGTHS = {QWEN: 256, Z: 64}
PROMPTS = ["a cat", "a dog", "two dogs in a boat"]
both = pytest.mark.parametrize("name", MAKERS)


def size_of(name: str) -> dict[str, Any]:
    return {"width": small.SIZE, "height": small.SIZE, "steps": STEPS, "max_sequence_length": LENGTHS[name]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, make in MAKERS.items():
        made[name] = tmp_path_factory.mktemp("checkpoints") / name
        make().save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> dict[str, h2gen.Session]:
    return {name: h2gen.load(str(folder), device="cpu") for name, folder in folders.items()}


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def call(pipe: Any, **more: Any) -> np.ndarray[Any, Any]:
    images: np.ndarray[Any, Any] = pipe(**small.run_kwargs(pipe, steps=STEPS) | more).images
    return images


@pytest.mark.parametrize(
    ("alias", "repo", "size"),
    [
        ("qwen-image", "Qwen/Qwen-Image", 1328),
        ("z-image", "Tongyi-MAI/Z-Image", 1024),
        ("z-image-turbo", "Tongyi-MAI/Z-Image-Turbo", 1024),
    ],
)
def test_the_catalogue_knows_them_with_their_makers_size(alias: str, repo: str, size: int) -> None:
    entry = CATALOGUE[alias]
    assert (entry.repo, entry.licence, entry.gated) == (repo, "Apache-2.0", False)
    assert resolve(repo).defaults == entry.defaults
    assert (entry.defaults.width, entry.defaults.height) == (size, size)
    assert entry.takes == ("image", "mask")


@both
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_without_a_cache_it_is_plain_diffusers_bit_for_bit(
    sessions: dict[str, h2gen.Session], name: str, cfg: float
) -> None:
    session = sessions[name]
    guided = {SCALE[name]: cfg, "negative_prompt": "a dog"} if cfg > 1 else {}
    (wanted,) = session.pipe.image_processor.numpy_to_pil(call(session.pipe, **guided))
    negative = {"negative": "a dog"} if cfg > 1 else {}
    for cache in (None, CacheConfig(0, 0)):
        for _ in range(2):  # the second time from kept embeddings
            made = session.generate("a cat", cache=cache, seed=7, cfg=cfg, **negative, **size_of(name)).image
            assert np.array_equal(pixels(made), pixels(wanted))


@both
def test_a_prompt_and_its_negative_matter(sessions: dict[str, h2gen.Session], name: str) -> None:
    given = {"seed": 7, "cfg": 3.0, "cache": None, **size_of(name)}
    first = sessions[name].generate("a cat", negative="a dog", **given).image
    for prompt, negative in (("a house", "a dog"), ("a cat", "a house")):
        assert not np.array_equal(
            pixels(sessions[name].generate(prompt, negative=negative, **given).image), pixels(first)
        )


@both
@pytest.mark.parametrize("policy", [{"pfs": "stable"}, {"tau1": 0, "tau2": 0, "tolerance": 0.2}])
def test_a_batch_with_guidance_makes_each_picture_as_it_is_made_alone(
    sessions: dict[str, h2gen.Session], name: str, policy: dict[str, Any]
) -> None:
    session = sessions[name]
    rows: list[int] = []
    blocks = family_of(session.pipe.transformer).block_lists(session.pipe.transformer)[1]
    handle = attention_of(blocks[-1]).register_forward_hook(
        lambda _module, _args, output: rows.append(len(output[0] if isinstance(output, tuple) else output))
    )
    more = {"cfg": 3.0, "negative": "a bird", **size_of(name), "steps": 10}
    taus = {QWEN: {"tau1": 0.35, "tau2": 0.5}, Z: {"tau1": 1.1, "tau2": 1.15}}
    settings = [
        session.settings(text, CacheConfig(**taus[name] | policy), seed=3 + row, **more)
        for row, text in enumerate(PROMPTS)
    ]
    together = session.run_together(settings)
    handle.remove()
    steps = [step for result in together for step in result.trace.steps]
    assert sum(rows) == sum(step.detail.outcome.ran for step in steps) < len(steps)
    for result, each in zip(together, settings, strict=True):
        alone = session.run(each)
        got, wanted = (
            [(step.step, step.context, step.structure.outcome, step.detail.outcome) for step in made.trace.steps]
            for made in (result, alone)
        )
        assert got == wanted
        assert [context for _, context, *_ in got] == ["cond", "uncond"] * 10
        assert np.abs(pixels(result.image) - pixels(alone.image)).max() <= 1


@both
def test_each_pass_of_guidance_may_have_its_own_plan(name: str) -> None:
    pipe, parts = MAKERS[name](), ("FFDFRF", "FRFFSF")
    guided = {SCALE[name]: 3.0, "negative_prompt": "a dog"}
    with h2_cache(pipe, plan="/".join(parts)) as trace:
        call(pipe, **guided)
    for context, plan in zip(("cond", "uncond"), parts, strict=True):
        steps = [step for step in trace.steps if step.context == context]
        assert [step.full for step in steps] == [letter == "F" for letter in plan]
    with (
        pytest.raises(CacheError, match="has 3 parts, one per pass, but each step of this run has 2"),
        h2_cache(pipe, plan="/".join((*parts, parts[0]))),
    ):
        call(pipe, **guided)


def test_the_refiners_of_the_text_of_z_image_run_once_and_again_for_another_text() -> None:
    pipe = small.z_image_pipeline()
    runs: list[None] = []
    attention_of(pipe.transformer.context_refiner[1]).register_forward_hook(lambda *_: runs.append(None))
    plain = call(pipe, guidance_scale=3.0, negative_prompt="a dog")
    assert len(runs) == STEPS
    for prompt in ("a cat", "an owl"):
        runs.clear()
        with h2_cache(pipe, tau1=1e-12, tau2=1e-12) as trace:
            got = call(pipe, guidance_scale=3.0, negative_prompt="a dog", prompt=prompt)
        assert len(runs) == 1
        assert np.array_equal(got, plain) == (prompt == "a cat")
        assert all(step.exact > 0 for step in trace.steps if step.step)


@both
def test_controlnets_are_refused_while_blocks_are_reused(name: str) -> None:
    transformer = MAKERS[name]().transformer
    family = family_of(transformer)
    inputs = family.example_inputs(transformer, 16, 5)
    samples: Any = [torch.ones(1)] if name == QWEN else {0: torch.ones(1)}
    given = family.at(inputs, torch.tensor([1.0])) | {"controlnet_block_samples": samples}
    with pytest.raises(CacheError, match="ControlNet"), h2_cache(transformer, tau1=0.1, tau2=0.1), torch.no_grad():
        transformer(**given)


@both
def test_the_end_of_a_prompt_that_is_not_read_is_told(sessions: dict[str, h2gen.Session], name: str) -> None:
    session, long = sessions[name], "a cat " + "and a dog " * 30 + "under a tree"
    pipe = session.pipe
    family, limit = family_of(pipe.transformer), LENGTHS[name]
    end = family.unread(pipe, long, limit)
    assert end.text.endswith("under a tree") and end.needed > limit
    assert family.unread(pipe, "a cat", limit).text == ""
    read = long.removesuffix(end.text)
    one, two = (family.encode(pipe, text, limit)["prompt_embeds"] for text in (long, f"{read}or a house on a hill"))
    assert one.shape[1] == limit
    assert torch.allclose(one, two[:, :limit], atol=1e-5)


@both
@pytest.mark.parametrize("original", [False, True])
def test_a_single_file_paints_what_was_saved(
    folders: dict[str, Path], tmp_path: Path, name: str, original: bool
) -> None:
    transformer = {QWEN: small.qwen_image_transformer, Z: small.z_image_transformer}[name](seed=5)
    file = checkpoints.save_single(transformer, tmp_path / "single.safetensors", original=original)
    loaded = load_pipeline(resolve(str(file), str(folders[name])), device="cpu", dtype="fp32")
    assert np.abs(call(loaded) - call(MAKERS[name](transformer=transformer))).max() < 1e-5


@both
def test_a_lora_is_used_and_let_go(sessions: dict[str, h2gen.Session], tmp_path: Path, name: str) -> None:
    session, random = sessions[name], torch.Generator().manual_seed(3)
    weights = {}
    for layer, module in session.pipe.transformer.named_modules():
        if layer.endswith((".attn.to_q", ".attention.to_q")) and "refiner" not in layer:
            sizes = {"lora_A": (4, module.in_features), "lora_B": (module.out_features, 4)}
            for part, size in sizes.items():
                weights[f"transformer.{layer}.{part}.weight"] = torch.randn(size, generator=random)
    save_file(weights, tmp_path / "style.safetensors")
    given = {"seed": 7, "cache": None, "cfg": 1.0, **size_of(name)}
    plain = session.generate("a cat", **given)
    changed = session.generate("a cat", lora=[str(tmp_path / "style.safetensors")], **given)
    assert not np.array_equal(pixels(changed.image), pixels(plain.image))
    assert np.array_equal(pixels(session.generate("a cat", **given).image), pixels(plain.image))


@both
def test_group_offloading_changes_nothing(name: str) -> None:
    pipe, guided = MAKERS[name](), {SCALE[name]: 3.0, "negative_prompt": "a dog"}
    with h2_cache(pipe, plan="FRSFRF"):
        wanted = call(pipe, **guided)
        offload = BlockOffload(pipe.transformer, torch.device("cpu"))
        assert np.array_equal(call(pipe, **guided), wanted)
    assert offload.moves.fetched > 0


@both
@pytest.mark.slow
def test_compiled_blocks_make_the_same_picture(name: str) -> None:
    pipe, guided = MAKERS[name](), {SCALE[name]: 3.0, "negative_prompt": "a dog"}
    with h2_cache(pipe, plan="FRSFRF"):
        wanted = call(pipe, **guided)
        compile_blocks(pipe.transformer, "eager")
        assert np.array_equal(call(pipe, **guided), wanted)
    torch._dynamo.reset()


@both
def test_a_quantized_transformer_is_cached_too(
    folders: dict[str, Path], sessions: dict[str, h2gen.Session], name: str
) -> None:
    given = {"seed": 7, "cfg": 3.0, "cache": CacheConfig(0, 0, plan="FRSFRF"), **size_of(name)}
    made = h2gen.load(str(folders[name]), device="cpu", quantize="int8").generate("a cat", **given)
    assert made.trace is not None and made.trace.summary.skipped == 2
    assert not np.array_equal(pixels(made.image), pixels(sessions[name].generate("a cat", **given).image))


@both
def test_previews_are_painted_without_a_decoder(sessions: dict[str, h2gen.Session], name: str) -> None:
    seen: list[Any] = []
    sessions[name].generate("a cat", seed=7, cfg=1.0, cache=None, on_preview=seen.append, **size_of(name))
    assert len(seen) == STEPS and seen[-1].image.size == (16, 16)
    assert linear_painter(sessions[name].pipe.vae, torch.device("cpu")) is not None


CACHES = {
    QWEN: ("fb", "tea", "mag", "taylor", "dbcache", "meancache", "dpcache"),
    Z: ("tea", "dbcache", "l2p", "spectrum"),
}


@pytest.mark.parametrize(("name", "cache"), [(name, cache) for name, caches in CACHES.items() for cache in caches])
def test_other_caches_work(name: str, cache: str) -> None:
    if PEERS[cache].package == "cache-dit":
        pytest.importorskip("cache_dit")
    pipe, guided = MAKERS[name](), {SCALE[name]: 3.0, "negative_prompt": "a dog", "output_type": "latent"}
    plain = call(pipe, **guided)
    peer = PEERS[cache].calibrated(pipe, [lambda: call(pipe, **guided)], steps=STEPS)
    values = peer.values(STEPS)
    value = values.high if isinstance(values, Span) else values[-1]
    with count_blocks(pipe.transformer) as count, peer.applied(pipe, value, steps=STEPS, passes=1 + (name == QWEN)):
        first, second = call(pipe, **guided), call(pipe, **guided)
    assert count.share < 0.75
    assert np.array_equal(first, second) and not np.array_equal(first, plain)
    assert np.array_equal(call(pipe, **guided), plain)


@both
def test_other_caches_that_do_not_work_are_told_before_anything_is_loaded(folders: dict[str, Path], name: str) -> None:
    family = family_of(MAKERS[name]().transformer)
    wrong = "sea" if name == QWEN else "fb"
    given: dict[str, Any] = {"model": str(folders[name]), "steps": STEPS}
    with pytest.raises(CacheError, match=rf"^{wrong} \(diffusers .*\) does not work on {family.title}; leave it out"):
        prepare_comparison("a cat", tau1=0.1, tau2=0.2, options=CompareOptions(against=f"tea,{wrong}"), **given)
    peers, notices = default_peers(resolve(str(folders[name])))
    assert ("fb" in {peer.name for peer in peers}) == (name == QWEN)
    words = "FBCache, TaylorSeer and MagCache left out: diffusers' version does not work on Z-Image."
    assert (words in notices) == (name == Z)


@both
@pytest.mark.parametrize("solver", ["unipc", "heun", "dpm++", "lcm"])
def test_other_solvers_work(sessions: dict[str, h2gen.Session], name: str, solver: str) -> None:
    given = {"seed": 7, "cfg": 1.0, "cache": None, **size_of(name)}
    plain, other = (sessions[name].generate("a cat", solver=each, **given).image for each in ("own", solver))
    assert not np.array_equal(pixels(other), pixels(plain))


@pytest.mark.parametrize("more", [{"cfg_truncation": 0.6}, {"cfg_normalization": 0.9}])
def test_z_images_guidance_may_end_early_or_be_normalized(more: dict[str, Any]) -> None:
    pipe = small.z_image_pipeline(shift=1.0)

    def made(**how: Any) -> np.ndarray[Any, Any]:
        # Lists of its own: the pipeline changes those of prompts.
        texts = {"prompt": PROMPTS[:2], "negative_prompt": ["a bird"] * 2}
        return call(pipe, guidance_scale=3.0, output_type="latent", **texts, **how)

    plain = made(**more)
    assert not np.array_equal(plain, made())
    guided = 4 if "cfg_truncation" in more else STEPS
    for settings in ({"tau1": 1e-12, "tau2": 1e-12}, {"plan": "F" * STEPS}, {"plan": "FFSFFS"}):
        with h2_cache(pipe, **settings) as trace:
            got = made(**more)
        assert np.array_equal(got, plain) != ("S" in str(settings.get("plan", "")))
        found = [(step.step, step.picture, step.context) for step in trace.steps]
        contexts = [("cond", "uncond") if step < guided else ("cond",) for step in range(STEPS)]
        assert sorted(found) == sorted(
            (step, picture, context) for step in range(STEPS) for picture in (0, 1) for context in contexts[step]
        )


@pytest.mark.parametrize(
    "make",
    [small.qwen_image_transformer, small.z_image_transformer, small.wan_transformer, small.hunyuan_video_transformer],
)
@torch.no_grad()
def test_passes_of_guidance_that_nobody_names_belong_to_one_run(make: Callable[..., Any]) -> None:
    """Models without position ids, in a loop without ``cache_context``, as some pipelines of diffusers have."""
    model = make()
    family = family_of(model)
    cond, uncond = (family.example_inputs(model, 16, words) for words in (5, 7))
    latents = "x" if "x" in cond else "hidden_states"
    with h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        for step in range(4):
            now = family.at(cond, torch.tensor([1 - step / 4]))
            model(**now)
            model(**uncond | {name: now[name] for name in now.keys() - uncond.keys()} | {latents: now[latents]})
    found = [(step.run, step.step, step.context, step.all_reused) for step in trace.steps]
    assert found == [(0, step, context, step > 0) for step in range(4) for context in ("cond", "uncond")]


@pytest.mark.parametrize(("shift", "turbo"), [(3.0, True), (6.0, False), (1.0, False)])
def test_a_folder_of_z_image_turbo_is_told_from_z_image_by_its_schedule(
    tmp_path: Path, shift: float, turbo: bool
) -> None:
    parts = {
        "model_index.json": {
            "_class_name": Z,
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "transformer": ["diffusers", "ZImageTransformer2DModel"],
        },
        "transformer/config.json": {"_class_name": "ZImageTransformer2DModel", "n_layers": 30},
        "scheduler/scheduler_config.json": {"shift": shift, "use_dynamic_shifting": False},
    }
    for file, content in parts.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    checkpoint = resolve(str(tmp_path))
    assert checkpoint.defaults == CATALOGUE["z-image-turbo" if turbo else "z-image"].defaults
    assert (checkpoint.defaults.steps, checkpoint.defaults.cfg) == ((8, 1.0) if turbo else (50, 4.0))
    facts = facts_of(checkpoint)
    assert facts is not None and facts.unused["guidance"].why.startswith("is distilled" if turbo else "is not")


def test_a_folder_of_qwen_image_edit_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((folders[QWEN] / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "QwenImageEditPipeline"}))
    with pytest.raises(ModelError) as raised:
        load_pipeline(resolve(str(tmp_path)), device="cpu")
    told = str(raised.value)
    assert "its model_index.json says 'QwenImageEditPipeline'; h2gen loads QwenImagePipeline of Qwen-Image." in told
    assert told.endswith("In Python, load it with diffusers and call h2gen.h2_cache(pipe).") and "\n" not in told


@both
def test_bench_measures_its_steps(name: str) -> None:
    transformer = MAKERS[name]().transformer
    measured = measure(transformer, image_tokens=16, text_tokens=5, steps=5, repeats=1)
    assert measured.blocks == (6 if name == QWEN else 8)
    assert all(value > 0 for value in (measured.plain, measured.full, measured.all_reused, measured.skipped))


@both
def test_the_command_makes_describes_and_replays_a_picture(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["a cat", "-m", str(folders[name]), "--steps", "6", "--size", "64x64", "--seed", "7", "--tau1", "0.3"]
    words += ["--max-sequence-length", str(LENGTHS[name]), "--tau2", "0.4", "-o", "one.png", "-q"]
    assert command(words) == 0
    known = read_metadata(tmp_path / "one.png")
    assert (known.settings.cfg, known.settings.guidance) == (4.0, 0.0)
    assert known.everything["cache"]["passes"] == 12
    assert command(["replay", "one.png", "-m", str(folders[name]), "-o", "two.png", "-q"]) == 0
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert np.array_equal(pixels(one), pixels(two))
    capsys.readouterr()
