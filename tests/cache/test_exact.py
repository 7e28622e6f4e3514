"""Exact reuse: blocks of FLUX.3 whose result is the same at every step run once, and no bit of the picture changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from h2gen.cache import StepRecord, Trace, h2_cache
from h2gen.cache.exact import Constants
from h2gen.evaluation.block_count import count_blocks
from tests.cache.drive import noise, same, sigmas
from tests.small import flux3_transformer

STEPS = 6
SIDE, TEXT = 4, 5
IMAGE = SIDE * SIDE
OWN, JOINT = 2, 6
NEVER = {"tau1": 1e-12, "tau2": 1e-12}
ALWAYS = {"tau1": 1e9, "tau2": 1e9}
TOLERANCE = 0.1


def ids(rows: int, columns: int, last: int = 0) -> torch.Tensor:
    """Position ids as FLUX.3's pipelines make them."""
    found = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns), torch.tensor([last]))
    return found.float() * torch.tensor([1, 0.5, 0.5, 1])


def text_of(model: Any, seed: int = 100, tokens: int = TEXT, batch: int = 1) -> dict[str, torch.Tensor]:
    return {
        "encoder_hidden_states": noise(batch, tokens, model.config.joint_attention_dim, seed=seed),
        "txt_ids": torch.cartesian_prod(*[torch.arange(1)] * 3, torch.arange(tokens)).float(),
    }


def references_of(model: Any, *sides: int, batch: int = 1, seed: int = 50) -> dict[str, torch.Tensor]:
    """Reference pictures of these sides, in tokens."""
    tokens = [
        noise(1, side * side, model.config.cond_in_channels, seed=seed + index) for index, side in enumerate(sides)
    ]
    return {
        "image_cond_hidden_states": torch.cat(tokens, 1).expand(batch, -1, -1).clone(),
        "image_cond_ids": torch.cat([ids(side, side, -1 - index) for index, side in enumerate(sides)]),
    }


def latents_at(model: Any, sigma: float, batch: int = 1, seed: int = 0, side: int = SIDE) -> dict[str, torch.Tensor]:
    first, last = (noise(batch, side * side, model.config.in_channels, seed=seed + index) for index in range(2))
    return {"hidden_states": sigma * first + (1 - sigma) * last, "timestep": torch.full([batch], sigma)}


@torch.no_grad()
def run(
    model: Any,
    *texts: dict[str, torch.Tensor],
    references: dict[str, torch.Tensor] | None = None,
    batch: int = 1,
    between: Callable[[int], object] = lambda step: None,
    side: int = SIDE,
) -> list[torch.Tensor]:
    """One trajectory as a pipeline runs it; each step has one pass per text."""
    image_ids, outputs = ids(side, side), []
    texts = texts or (text_of(model, batch=batch),)
    for step, sigma in enumerate(sigmas(STEPS)):
        given = latents_at(model, sigma, batch, side=side) | {"img_ids": image_ids} | (references or {})
        if model.config.flow_map:
            given["target_timestep"] = torch.full([batch], sigma - 1 / STEPS)
        for text in texts:
            outputs.append(model(**given, **text, return_dict=False)[0])
        between(step)
    return outputs


@contextmanager
def counted(model: Any) -> Iterator[dict[str, int]]:
    """How often the blocks of each kind really run."""
    found: dict[str, int] = {}
    stacks = {
        "text": model.txt_mode_blocks,
        "image": model.mode_blocks["image"],
        "references": model.mode_blocks["image_cond"],
        "joint": model.single_transformer_blocks,
    }
    handles = []
    for kind, blocks in stacks.items():
        found[kind] = 0
        for block in blocks:

            def ran(*_: Any, kind: str = kind) -> None:
                found[kind] += 1

            handles.append(block.attn.norm_q.register_forward_pre_hook(ran))
    yield found
    for handle in handles:
        handle.remove()


def made_by(steps: Iterable[StepRecord]) -> list[tuple[float, float, float]]:
    return [(step.blocks_run, step.blocks_total, step.exact) for step in steps]


def made(trace: Trace) -> list[tuple[float, float, float]]:
    return made_by(trace.steps)


@pytest.mark.parametrize("settings", [NEVER, NEVER | {"forecast": 1, "pfs": "stable"}, {"plan": "F" * STEPS}])
@pytest.mark.parametrize("sides", [(), (4,), (3, 5, 2)], ids=["no reference", "one", "three"])
def test_no_bit_changes_and_the_blocks_of_text_and_references_run_once(
    sides: tuple[int, ...], settings: dict[str, Any]
) -> None:
    model = flux3_transformer()
    references = references_of(model, *sides) if sides else None
    plain = run(model, references=references)
    with h2_cache(model, **settings) as trace, counted(model) as ran:
        assert same(run(model, references=references), plain)
    others = sum(side * side for side in sides)
    assert ran == {
        "text": OWN, "references": OWN if sides else 0, "image": OWN * STEPS, "joint": JOINT * STEPS
    }  # fmt: skip
    exact = round(OWN * (TEXT + others) / (IMAGE + TEXT + others), 4)
    assert made(trace) == [(8, 8, 0)] + [(round(8 - exact, 4), 8, exact)] * (STEPS - 1)
    assert all(step.full for step in trace.steps)
    assert trace.summary.share < 1 and f"{trace.summary.blocks_exact / trace.summary.blocks_total:.1%}" in str(
        trace.summary
    )


def test_a_cache_that_is_off_reuses_nothing_exactly_either() -> None:
    model = flux3_transformer()
    plain = run(model)
    with h2_cache(model, tau1=0, tau2=0) as trace, counted(model) as ran:
        assert same(run(model), plain)
    assert ran["text"] == OWN * STEPS
    assert made(trace) == [(8, 8, 0)] * STEPS
    assert "exact" not in str(trace.summary) and "blocks_exact" not in trace.summary.to_json()


def test_the_passes_of_guidance_keep_their_own() -> None:
    model = flux3_transformer()
    texts, references = (text_of(model, 100), text_of(model, 200, tokens=7)), references_of(model, 3)
    plain = run(model, *texts, references=references)
    with h2_cache(model, **NEVER) as trace, counted(model) as ran:
        assert same(run(model, *texts, references=references), plain)
    assert (ran["text"], ran["references"]) == (2 * OWN, 2 * OWN)
    assert {step.context for step in trace.steps} == {"cond", "uncond"}
    assert [bool(step.exact) for step in trace.steps] == [False] * 2 + [True] * 2 * (STEPS - 1)


def test_the_next_call_begins_anew_whatever_is_like_the_last_one() -> None:
    model = flux3_transformer()
    text = text_of(model)
    with h2_cache(model, **NEVER) as trace:
        for seed, side in ((50, SIDE), (60, SIDE), (60, 3)):
            references = references_of(model, 4, seed=seed)
            plain = plainly(model, text, references, side)
            assert same(run(model, text, references=references, side=side), plain)
    assert [bool(step.exact) for step in trace.steps] == ([False] + [True] * (STEPS - 1)) * 3


def plainly(model: Any, text: dict[str, torch.Tensor], references: dict[str, torch.Tensor], side: int) -> Any:
    """What the same weights make without a cache."""
    other = flux3_transformer()
    other.load_state_dict(model.state_dict())
    return run(other, text, references=references, side=side)


@pytest.mark.parametrize("written", ["encoder_hidden_states", "txt_ids", "image_cond_hidden_states", "image_cond_ids"])
def test_inputs_that_were_written_to_are_computed_again(written: str) -> None:
    model = flux3_transformer()

    def made_with(cached: bool) -> tuple[list[torch.Tensor], Any]:
        text, references = text_of(model), references_of(model, 3)

        def write(step: int) -> None:
            if step == 2:
                (text | references)[written].add_(0.25)

        if not cached:
            return run(model, text, references=references, between=write), None
        with h2_cache(model, **NEVER) as trace:
            return run(model, text, references=references, between=write), trace

    plain, (got, trace) = made_with(False)[0], made_with(True)
    assert not torch.equal(plain[3], run(model, text_of(model), references=references_of(model, 3))[3])
    assert same(got, plain)
    exact = [step.exact for step in trace.steps]
    assert exact[0] == 0 and exact[3] < exact[2] == exact[1] == exact[4]


def test_a_kept_result_that_was_written_to_is_computed_again() -> None:
    model = flux3_transformer()
    plain, kept = run(model), []
    handle = model.single_transformer_blocks[0].register_forward_pre_hook(
        lambda _m, _a, given: kept.append(given["encoder_hidden_states"]), with_kwargs=True
    )

    def write(step: int) -> None:
        if step == 2:
            kept[-1].zero_()

    with h2_cache(model, **NEVER) as trace:
        assert same(run(model, between=write), plain)
    handle.remove()
    assert kept[1] is kept[2] and kept[3] is not kept[2]
    assert [bool(step.exact) for step in trace.steps] == [False, True, True, False, True, True]


def test_blocks_that_others_change_during_a_run_are_computed_again() -> None:
    model = flux3_transformer()
    block = model.txt_mode_blocks[1]
    forward = block.forward

    def change(step: int) -> None:
        if step == 2:
            block.forward = lambda *args: forward(*args) * 1.5
        if step == STEPS - 1:
            del block.forward

    plain = run(model, between=change)
    assert not same(plain, run(model))
    with h2_cache(model, **NEVER) as trace:
        assert same(run(model, between=change), plain)
    assert [bool(step.exact) for step in trace.steps] == [False, True, True, False, True, True]


def test_what_is_made_in_inference_mode_is_computed_each_time() -> None:
    model = flux3_transformer()
    plain = run(model)
    with torch.inference_mode(), h2_cache(model, **NEVER) as trace:
        assert same([each.clone() for each in run(model)], plain)
    assert not any(step.exact for step in trace.steps)


def test_constants_are_alike_only_if_the_objects_and_what_was_written_to_them_are() -> None:
    one = torch.zeros(2)
    before = Constants([one, 0.5, None])
    assert Constants([one, 0.5, None]).same_as(before)
    assert not Constants([torch.zeros(2), 0.5, None]).same_as(before)
    assert not Constants([one, 0.6, None]).same_as(before)
    assert not Constants([one, 0.5]).same_as(before)
    assert not Constants([0.5, one, None]).same_as(before)
    one.add_(1)
    assert not Constants([one, 0.5, None]).same_as(before)
    after = Constants([one])
    del one
    assert not after.same_as(after)


@pytest.mark.parametrize("settings", [ALWAYS, ALWAYS | {"forecast": 1}, {"plan": "FFRDCS"}])
@pytest.mark.parametrize("sides", [(), (3, 2)], ids=["no reference", "two"])
def test_stages_that_are_reused_skip_joint_blocks_and_a_skipped_step_all_of_them(
    sides: tuple[int, ...], settings: dict[str, Any]
) -> None:
    model = flux3_transformer()
    with h2_cache(model, **settings) as trace, counted(model) as ran, count_blocks(model) as count:
        run(model, references=references_of(model, *sides) if sides else None)
    assert count.run == pytest.approx(trace.summary.blocks_run, abs=1e-3)
    assert count.total == pytest.approx(trace.summary.blocks_total, abs=1e-3) == pytest.approx(8 * STEPS)
    letters = settings.get("plan", "FRRRRR")
    wanted = {"F": 6, "R": 2, "D": 2 + 1, "C": 1 + 4, "S": 0}
    assert ran["joint"] == sum(wanted[letter] for letter in letters)
    assert ran["image"] == OWN * (len(letters) - letters.count("S"))
    assert ran["text"] == OWN
    others = sum(side * side for side in sides)
    image = OWN * IMAGE / (IMAGE + TEXT + others)
    for letter, step in list(zip(letters, trace.steps, strict=True))[1:]:
        assert step.blocks_run == pytest.approx(wanted[letter] + (image if letter != "S" else 0), abs=1e-3)
        assert bool(step.exact) is (letter != "S")


@torch.no_grad()
def solved(model: Any, rows: slice = slice(2), steps: int = 10) -> torch.Tensor:
    """Pictures of a batch of two, or one of them alone, denoised by a solver; the second has a text of its own."""
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(steps)
    solver.set_begin_index(0)
    text, references = text_of(model, batch=2), references_of(model, 3, batch=2)
    text["encoder_hidden_states"][1] *= 4
    inputs = text | references | {"img_ids": ids(SIDE, SIDE)}
    for name in ("encoder_hidden_states", "image_cond_hidden_states"):
        inputs[name] = inputs[name][rows].clone()
    picture = noise(2, IMAGE, model.config.in_channels, seed=0)[rows]
    for timestep in solver.timesteps:
        time = (timestep / 1000).expand(len(picture))
        velocity = model(hidden_states=picture.clone(), timestep=time, **inputs, return_dict=False)[0]
        picture = solver.step(velocity, timestep, picture, return_dict=False)[0]
    return picture


def test_a_tolerance_skips_whole_steps() -> None:
    model = flux3_transformer()
    plain = solved(model)
    with h2_cache(model, tolerance=1e-9) as trace:
        assert torch.equal(solved(model), plain)
    assert not any(step.skipped for step in trace.steps)
    with h2_cache(model, tolerance=TOLERANCE) as trace:
        got = solved(model)
    skipped = [step for step in trace.steps if step.skipped]
    assert skipped and all((step.blocks_run, step.exact) == (0, 0) for step in skipped)
    assert not torch.equal(got, plain) and torch.allclose(got, plain, atol=0.2 * float(plain.abs().max()))


@pytest.mark.parametrize("policy", ["tolerance", "thresholds"])
def test_pictures_of_a_batch_get_what_they_would_get_alone(policy: str) -> None:
    model = flux3_transformer()
    settings = {"tolerance": TOLERANCE}
    if policy == "thresholds":  # between the two pictures' changes at the second step
        with h2_cache(model, **NEVER) as trace:
            solved(model)
        changes = [step.structure.change or 0.0 for step in trace.steps if step.step == 1]
        settings = {"tau1": sum(changes) / 2, "tau2": sum(changes) / 2}
    with h2_cache(model, **settings) as trace:
        together = solved(model)
    letters = []
    for row in range(2):
        with h2_cache(model, **settings) as own:
            alone = solved(model, slice(row, row + 1))
        mine = [step for step in trace.steps if step.picture == row]
        assert [step.structure.outcome for step in mine] == [step.structure.outcome for step in own.steps]
        assert made_by(mine) == made_by(own.steps)
        assert torch.allclose(together[row], alone[0], atol=1e-4 * float(alone.abs().max()))
        letters.append([step.structure.outcome for step in mine])
    assert letters[0] != letters[1]


def test_the_distilled_model_forecasts_nothing_and_reuses_nothing_exactly() -> None:
    model = flux3_transformer(flow_map=True)
    texts: list[torch.Tensor] = []
    handle = model.txt_mode_blocks[-1].register_forward_hook(lambda _m, _a, output: texts.append(output))
    plain = run(model, references=references_of(model, 3))
    handle.remove()
    assert not any(torch.equal(one, texts[0]) for one in texts[1:]), "the target time modulates the text too"
    for settings in ({"tolerance": 0.5}, {"plan": "FSFSFF"}, NEVER | {"forecast": 1}):
        with (
            pytest.warns(RuntimeWarning, match=r"without effect.*distilled.*fewer --steps"),
            h2_cache(model, **settings) as trace,
        ):
            assert same(run(model, references=references_of(model, 3)), plain)
        assert made(trace) == [(8, 8, 0)] * STEPS
    with h2_cache(model, **ALWAYS) as trace, counted(model) as ran:
        run(model, references=references_of(model, 3))
    assert (ran["joint"], ran["text"], ran["references"]) == (6 + 2 * (STEPS - 1), OWN * STEPS, OWN * STEPS)
    assert not any(step.exact for step in trace.steps)
