"""H2-Cache as ``docs/method.md`` says it, and the policies beyond it, in a straight line: no hooks, nothing shared with
``h2gen``.

The transformers' own forwards are written out here with the blocks as explicit loops, so that a test can hold the real
implementation against something that can be read from top to bottom.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ChromaTransformer2DModel, Flux2Transformer2DModel, FluxTransformer2DModel

Pair = tuple[torch.Tensor, torch.Tensor]
Block = Callable[[torch.Tensor, torch.Tensor], Pair]
Kept = dict[str, list[tuple[float, torch.Tensor]]]
"""What was computed so far, by name, each with its sigma; the newest comes last."""


@dataclass(frozen=True)
class Decision:
    """What one pass decided: a change is None if it was not measured."""

    structure_change: float | None
    structure: str
    detail_change: float | None
    detail: str

    @property
    def full(self) -> bool:
        return self.structure in ("computed", "guarded") and self.detail in ("computed", "guarded")


@dataclass(frozen=True)
class Rules:
    """Thresholds, and the guards and policies beyond the paper."""

    tau1: float
    tau2: float
    warmup_steps: int = 0
    final_steps: int = 0
    max_consecutive: int = 0
    forecast: int = 0
    plan: str = ""
    budget: bool = False
    hierarchy: str = "forced"
    max_detail_age: int = 0
    tolerance: float = 0.0
    grid: tuple[int, ...] | None = None
    """Rows and columns of the picture, after the frames of a video's latents, for stable pooling."""

    def guards(self, step: int, steps: int | None, in_a_row: int) -> bool:
        if step < self.warmup_steps:
            return True
        if self.final_steps and step >= steps - self.final_steps:
            return True
        return self.max_consecutive > 0 and in_a_row >= self.max_consecutive


def pooled(residual: torch.Tensor, divisor: int) -> torch.Tensor:
    tokens, channels = residual.shape[1:]
    k = min(max(1, tokens // divisor), tokens, channels)
    return F.avg_pool2d(residual.float()[:, None], kernel_size=k, stride=k)


def divided(values: torch.Tensor, dim: int, parts: int) -> torch.Tensor:
    """Means over equal parts of a dimension; an item may belong to two of them."""
    return values.repeat_interleave(parts, dim).unflatten(dim, (parts, -1)).mean(dim + 1)


def stably_pooled(residual: torch.Tensor, *grid: int) -> torch.Tensor:
    """Means over 256 nearly square cells of the picture, 32 of the text before it, and 64 groups of channels. A video
    has as many cells, in at most four periods."""
    *frames, rows, columns = grid
    count = math.prod(frames)
    residual = divided(residual.double(), 2, min(64, residual.shape[2]))
    text, picture = residual.split([residual.shape[1] - count * rows * columns, count * rows * columns], dim=1)
    periods = min(count, 4)
    high = round(math.sqrt(256 // periods * rows / columns))
    picture = divided(picture.unflatten(1, (count, rows, columns)), 1, periods)
    picture = divided(divided(picture, 2, high), 3, round(256 // periods / high)).flatten(1, 3)
    return torch.cat([divided(text, 1, 32), picture] if text.shape[1] else [picture], dim=1)


def change_between(old: torch.Tensor, new: torch.Tensor, divisor: int, rules: Rules | None = None) -> float:
    if rules is not None and rules.grid is not None:
        old, new = stably_pooled(old, *rules.grid), stably_pooled(new, *rules.grid)
    else:
        old, new = pooled(old, divisor), pooled(new, divisor)
    return float((old - new).abs().mean() / old.abs().mean())


def decide(
    kept: Kept, stage: str, new: torch.Tensor, sigma: float, divisor: int, tau: float, rules: Rules
) -> tuple[float | None, bool]:
    """The change and whether it is a hit. A threshold of 0 checks nothing; nothing kept is a miss.

    Every indicator that is looked at is remembered as ``probe``.
    """
    if tau == 0:
        return None, False
    since = since_computed(kept, stage)
    total = None
    if since and since[-1][1].shape == new.shape:
        if not rules.budget:
            since = since[:1]
        latest = change_between(since[-1][1], new, divisor, rules)
        total = latest + float(
            sum(change_between(a, b, divisor, rules) for (_, a), (_, b) in itertools.pairwise(since))
        )
    remember(kept, f"probe {stage}", sigma, new)
    return total, total is not None and math.isfinite(total) and total < tau


def since_computed(kept: Kept, stage: str) -> list[tuple[float, torch.Tensor]]:
    """A stage's indicators from the one of the step that computed it last."""
    if f"{stage} image" not in kept:
        return []
    return [(at, probe) for at, probe in kept.get(f"probe {stage}", []) if at <= kept[f"{stage} image"][-1][0]]


def remember(kept: Kept, name: str, sigma: float, value: torch.Tensor) -> None:
    kept.setdefault(name, []).append((sigma, value))


def recall(kept: Kept, stage: str, stream: str, sigma: float, order: int) -> torch.Tensor:
    """What was computed last, or the line through the last two, extended by at most half their distance; less far if
    the picture's own tokens followed less than half of the line before."""
    computed = kept[f"{stage} {stream}"]
    newer, new = computed[-1]
    if order == 0 or len(computed) == 1:
        return new
    older, old = computed[-2]
    part, own = 1.0, kept["own"][-1][1]
    if len(computed) > 2:
        (s0, x0), (s1, x1), (s2, x2) = ((at, x[:, -len(own) :][:, own]) for at, x in kept[f"{stage} image"][-3:])
        said, did = (x1 - x0) / (s1 - s0) * (s2 - s1), x2 - x1
        part = min(max(2 * float((did * said).sum() / (said * said).sum()), 0), 1)
    farthest = newer + (newer - older) / 2
    return new + part * (new - old) / (newer - older) * (max(sigma, farthest) - newer)


def sample_of(
    samples: list[torch.Tensor] | None, blocks: int, block: int, repeat: bool = False
) -> torch.Tensor | float:
    """The ControlNet sample that is added after this block."""
    if samples is None:
        return 0.0
    if repeat:
        return samples[block % len(samples)]
    return samples[block // math.ceil(blocks / len(samples))]


def two_stages(
    e: torch.Tensor,
    h: torch.Tensor,
    double: list[Block],
    single: list[Block],
    kept: Kept,
    rules: Rules,
    guarded: bool,
    sigma: float,
    letter: str | None,
    double_samples: list[torch.Tensor | float],
    single_samples: list[torch.Tensor | float],
) -> tuple[torch.Tensor, torch.Tensor, Decision]:
    """Steps 1 to 6 of the paper on text tokens ``e (B, N_txt, D)`` and image tokens ``h (B, N_img, D)``.

    What is kept excludes the ControlNet samples: they are inputs of this step, so on a hit each is added once.
    """
    # 1. Probe the structure stage.
    own = kept["own"][-1][1]  # not the tokens of reference pictures
    e1, h1 = double[0](e, h)
    r1 = (h1 - h)[:, own]

    # 2. Decide.
    if letter:
        change1, hit1 = None, letter in "CR"
    elif guarded:
        change1, hit1 = None, False
        remember(kept, "probe structure", sigma, r1)
    else:
        change1, hit1 = decide(kept, "structure", r1, sigma, 2048, rules.tau1, rules)

    # 3. Reuse or run double blocks 1 and on.
    if hit1:
        e2 = e1 + recall(kept, "structure", "text", sigma, rules.forecast)
        h2 = h1 + recall(kept, "structure", "image", sigma, rules.forecast)
        for sample in double_samples:
            h2 = h2 + sample
    else:
        e2, h2 = e1, h1 + double_samples[0]
        for block, sample in zip(double[1:], double_samples[1:], strict=True):
            e2, h2 = block(e2, h2)
            h2 = h2 + sample
        without_samples = h2 - h1
        for sample in double_samples:
            without_samples = without_samples - sample
        remember(kept, "structure text", sigma, e2 - e1)
        remember(kept, "structure image", sigma, without_samples)

    # 4. Probe the detail stage.
    e3, h3 = single[0](e2, h2)
    r2 = torch.cat([e3 - e2, (h3 - h2)[:, own]], dim=1)

    # 5. Decide: after a structure hit the detail stage is a forced hit, unless it is checked or too old.
    since_detail = [at for at, _ in kept["pass"] if "detail image" in kept and at < kept["detail image"][-1][0]]
    too_old = 0 < rules.max_detail_age < len(since_detail)
    if letter:
        change2, hit2 = None, letter in "DR"
    elif guarded or too_old:
        change2, hit2 = None, False
        remember(kept, "probe detail", sigma, r2)
    elif hit1 and rules.hierarchy == "forced":
        change2, hit2 = None, True
    else:
        change2, hit2 = decide(kept, "detail", r2, sigma, 384, rules.tau2, rules)

    # 6. Reuse or run single blocks 1 and on.
    text = e.shape[1]
    if hit2:
        x4 = torch.cat([e3, h3], dim=1) + recall(kept, "detail", "image", sigma, rules.forecast)
        e4, h4 = x4[:, :text], x4[:, text:]
        for sample in single_samples:
            h4 = h4 + sample
    else:
        e4, h4 = e3, h3 + single_samples[0]
        for block, sample in zip(single[1:], single_samples[1:], strict=True):
            e4, h4 = block(e4, h4)
            h4 = h4 + sample
        without_samples = h4
        for sample in single_samples:
            without_samples = without_samples - sample
        remember(kept, "detail image", sigma, torch.cat([e4, without_samples], dim=1) - torch.cat([e3, h3], dim=1))

    if letter:
        names = {"F": ("computed",) * 2, "D": ("computed", "reused"), "C": ("reused", "computed")}.get(
            letter, ("reused", "forced")
        )
    elif guarded:
        names = "guarded", "guarded"
    else:
        detail = "guarded" if too_old else "reused" if hit2 else "computed"
        if hit1 and rules.hierarchy == "forced" and hit2:
            detail = "forced"
        names = "reused" if hit1 else "computed", detail
    return e4, h4, Decision(change1, names[0], change2, names[1])


def flux_forward(
    model: FluxTransformer2DModel,
    kept: Kept,
    rules: Rules,
    guarded: bool,
    letter: str | None,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    guidance: torch.Tensor | None = None,
    controlnet_block_samples: list[torch.Tensor] | None = None,
    controlnet_single_block_samples: list[torch.Tensor] | None = None,
    controlnet_blocks_repeat: bool = False,
) -> tuple[torch.Tensor, Decision]:
    """One pass of FLUX.1's transformer."""
    h = model.x_embedder(hidden_states)
    e = model.context_embedder(encoder_hidden_states)
    times = [timestep.to(h.dtype) * 1000]
    if guidance is not None:
        times.append(guidance.to(h.dtype) * 1000)
    temb = model.time_text_embed(*times, pooled_projections)
    rope = model.pos_embed(torch.cat([txt_ids, img_ids], dim=0))

    def run(block: torch.nn.Module) -> Block:
        return lambda e, h: block(hidden_states=h, encoder_hidden_states=e, temb=temb, image_rotary_emb=rope)

    doubles, singles = len(model.transformer_blocks), len(model.single_transformer_blocks)
    _, h, decision = two_stages(
        e,
        h,
        [run(block) for block in model.transformer_blocks],
        [run(block) for block in model.single_transformer_blocks],
        kept,
        rules,
        guarded,
        float(timestep.flatten()[0]),
        letter,
        [sample_of(controlnet_block_samples, doubles, i, controlnet_blocks_repeat) for i in range(doubles)],
        [sample_of(controlnet_single_block_samples, singles, i) for i in range(singles)],
    )
    return model.proj_out(model.norm_out(h, temb)), decision


def flux2_forward(
    model: Flux2Transformer2DModel,
    kept: Kept,
    rules: Rules,
    guarded: bool,
    letter: str | None,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    guidance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Decision]:
    """One pass of FLUX.2's transformer: its single blocks take and return one concatenated stream."""
    text = encoder_hidden_states.shape[1]
    if guidance is not None:
        guidance = guidance.to(hidden_states.dtype) * 1000
    temb = model.time_guidance_embed(timestep.to(hidden_states.dtype) * 1000, guidance)
    mod_img = model.double_stream_modulation_img(temb)
    mod_txt = model.double_stream_modulation_txt(temb)
    mod_single = model.single_stream_modulation(temb)
    h = model.x_embedder(hidden_states)
    e = model.context_embedder(encoder_hidden_states)
    txt_rope = model.pos_embed(txt_ids[0] if txt_ids.ndim == 3 else txt_ids)
    img_rope = model.pos_embed(img_ids[0] if img_ids.ndim == 3 else img_ids)
    rope = (torch.cat([txt_rope[0], img_rope[0]], dim=0), torch.cat([txt_rope[1], img_rope[1]], dim=0))

    def run_double(block: torch.nn.Module) -> Block:
        return lambda e, h: block(
            hidden_states=h, encoder_hidden_states=e, temb_mod_img=mod_img, temb_mod_txt=mod_txt, image_rotary_emb=rope
        )

    def run_single(block: torch.nn.Module) -> Block:
        def both(e: torch.Tensor, h: torch.Tensor) -> Pair:
            x = torch.cat([e, h], dim=1)
            x = block(hidden_states=x, encoder_hidden_states=None, temb_mod=mod_single, image_rotary_emb=rope)
            return x[:, :text], x[:, text:]

        return both

    _, h, decision = two_stages(
        e,
        h,
        [run_double(block) for block in model.transformer_blocks],
        [run_single(block) for block in model.single_transformer_blocks],
        kept,
        rules,
        guarded,
        float(timestep.flatten()[0]),
        letter,
        [0.0] * len(model.transformer_blocks),
        [0.0] * len(model.single_transformer_blocks),
    )
    return model.proj_out(model.norm_out(h, temb)), decision


def chroma_forward(
    model: ChromaTransformer2DModel,
    kept: Kept,
    rules: Rules,
    guarded: bool,
    letter: str | None,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    controlnet_block_samples: list[torch.Tensor] | None = None,
    controlnet_single_block_samples: list[torch.Tensor] | None = None,
    controlnet_blocks_repeat: bool = False,
) -> tuple[torch.Tensor, Decision]:
    """One pass of Chroma's transformer: one network makes the modulation of all blocks at once, in the order of single
    blocks (3 vectors each), image streams (6), text streams (6) and output (2)."""
    text = encoder_hidden_states.shape[1]
    h = model.x_embedder(hidden_states)
    e = model.context_embedder(encoder_hidden_states)
    modulation = model.distilled_guidance_layer(model.time_text_embed(timestep.to(h.dtype) * 1000))
    rope = model.pos_embed(torch.cat([txt_ids, img_ids], dim=0))
    doubles, singles = len(model.transformer_blocks), len(model.single_transformer_blocks)
    parts = modulation.split([3] * singles + [6] * doubles + [6] * doubles + [2], dim=1)
    shared = {"image_rotary_emb": rope, "attention_mask": attention_mask}

    def run_double(index: int) -> Block:
        temb = torch.cat([parts[singles + index], parts[singles + doubles + index]], dim=1)
        block = model.transformer_blocks[index]
        return lambda e, h: block(hidden_states=h, encoder_hidden_states=e, temb=temb, **shared)

    def run_single(index: int) -> Block:
        def both(e: torch.Tensor, h: torch.Tensor) -> Pair:
            x = torch.cat([e, h], dim=1)
            x = model.single_transformer_blocks[index](hidden_states=x, temb=parts[index], **shared)
            return x[:, :text], x[:, text:]

        return both

    _, h, decision = two_stages(
        e,
        h,
        [run_double(index) for index in range(doubles)],
        [run_single(index) for index in range(singles)],
        kept,
        rules,
        guarded,
        float(timestep.flatten()[0]),
        letter,
        [sample_of(controlnet_block_samples, doubles, i, controlnet_blocks_repeat) for i in range(doubles)],
        [sample_of(controlnet_single_block_samples, singles, i) for i in range(singles)],
    )
    return model.proj_out(model.norm_out(h, parts[-1])), decision


FORWARD = {
    FluxTransformer2DModel: flux_forward,
    Flux2Transformer2DModel: flux2_forward,
    ChromaTransformer2DModel: chroma_forward,
}


class Reference:
    """Replaces a transformer's forward for one run of a pipeline, and records every decision.

    Args:
        passes: the contexts in the order in which each step runs them.
        steps: how many steps there will be, for ``final_steps``.
        sigmas: of all steps and of the end, where they are known.
        euler: whether the solver is Euler's: a step adds interval times velocity, so that errors can be made good.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        rules: Rules,
        passes: tuple[str, ...] = ("cond",),
        steps: int | None = None,
        sigmas: list[float] | None = None,
        euler: bool = True,
    ) -> None:
        self.model, self.rules, self.passes, self.steps, self.euler = model, rules, passes, steps, euler
        self.forward_once = FORWARD[type(model)]
        self.kept: dict[str, Kept] = {name: {} for name in passes}
        self.in_a_row = dict.fromkeys(passes, 0)
        self.sigmas = sigmas
        self.skipped: dict[str, list[tuple[float, float, torch.Tensor]]] = {name: [] for name in passes}
        self.rates: list[tuple[int, float]] = []
        self.skip = False
        self.decisions: list[Decision] = []

    def is_due(self, step: int) -> bool:
        """Whether no more can be skipped, by what all passes measured at the last computed step."""
        if not self.rates or step == self.steps - 1:
            return True
        last = max(self.rates)[0]
        rate = max(rate for at, rate in self.rates if at == last)
        skips = range(last + 1, step + 1)
        if self.euler:
            moves = [self.sigmas[each] - self.sigmas[each + 1] for each in skips]
        else:  # half of the way from the step before to the step after; some error remains that nothing corrects
            moves = [(self.sigmas[each - 1] - self.sigmas[each + 1]) / 2 for each in skips]
            rate *= 2
        displaced = sum(
            move * rate * (self.sigmas[last] - self.sigmas[each]) for each, move in zip(skips, moves, strict=True)
        )
        return displaced > self.rules.tolerance

    def __call__(
        self,
        *,
        return_dict: bool = True,
        joint_attention_kwargs: dict | None = None,
        attention_kwargs: dict | None = None,
        **inputs: object,
    ) -> tuple[torch.Tensor]:
        assert not joint_attention_kwargs and not attention_kwargs, "the reference knows no attention_kwargs"
        step, turn = divmod(len(self.decisions), len(self.passes))
        name, latents = self.passes[turn], inputs["hidden_states"]
        video = latents.ndim == 5
        kept, sigma = self.kept[name], float(inputs["timestep"].flatten()[0]) / (1000 if video else 1)
        if video and self.sigmas:  # its timestep may be a whole number
            sigma = self.sigmas[step]
        guarded = self.rules.guards(step, self.steps, self.in_a_row[name])
        plans = self.rules.plan.split("/")
        letter = plans[min(turn, len(plans) - 1)][step] if self.rules.plan else None
        remember(kept, "pass", sigma, torch.empty(0))
        if video:
            remember(kept, "own", sigma, torch.ones(latents[0, 0].numel() // 4, dtype=torch.bool))
        else:
            pictures = inputs["img_ids"].reshape(-1, *inputs["img_ids"].shape[-2:])[0, :, 0]
            remember(kept, "own", sigma, pictures == pictures[0])
        if turn == 0:
            free = not any(self.rules.guards(step, self.steps, self.in_a_row[each]) for each in self.passes)
            lines = all(len(self.kept[each].get("velocity", [])) > 1 for each in self.passes)
            self.skip = bool(self.rules.tolerance) and free and lines and not self.is_due(step)
        if not letter and self.skip:
            letter = "S"
        elif not letter and self.skipped[name] and (self.rules.tau1 or self.rules.tau2):
            guarded = True
        if letter == "S":
            output = forecast(kept["velocity"], sigma, kept["own"][-1][1])
            if self.sigmas and self.euler:
                self.skipped[name].append((sigma, self.sigmas[step + 1] - self.sigmas[step], output))
            decision = Decision(None, "skipped", None, "skipped")
        else:
            output, decision = self.forward_once(self.model, kept, self.rules, guarded, letter, **inputs)
            if decision.full or (self.rules.forecast and decision.structure == "computed"):
                output = self.made_good(name, step, sigma, output)
        self.in_a_row[name] = 0 if decision.full else self.in_a_row[name] + 1
        self.decisions.append(decision)
        return (output,)

    def made_good(self, name: str, step: int, sigma: float, velocity: torch.Tensor) -> torch.Tensor:
        """The computed velocity, and the total error of the skipped steps before it."""
        before, own = self.kept[name].get("velocity", []), self.kept[name]["own"][-1][1]
        output, self.skipped[name], skipped = velocity, [], self.skipped[name]
        if before:
            off = velocity - forecast(before, sigma, own)
            own = tokens(velocity, own)
            error = float(off[:, own].abs().mean() / velocity[:, own].abs().mean())
            self.rates.append((step, error / (before[-1][0] - sigma)))
        for at, interval, used in skipped:
            better = line([before[-1], (sigma, velocity)], at)
            output = output + interval * (better - used) / (self.sigmas[step + 1] - self.sigmas[step]) / (1 + error)
        remember(self.kept[name], "velocity", sigma, velocity)
        return output


def tokens(velocity: torch.Tensor, own: torch.Tensor) -> torch.Tensor | slice:
    """An index of the picture's own tokens in a velocity; all of a video's, which is not a sequence of tokens."""
    return own if velocity.ndim == 3 else slice(None)


def line(points: list[tuple[float, torch.Tensor]], sigma: float) -> torch.Tensor:
    """The straight line through the last two points, or the only one."""
    (older, old), (newer, new) = points[-2:] if len(points) > 1 else [points[-1]] * 2
    return new if older == newer else new + (new - old) * (sigma - newer) / (newer - older)


def forecast(points: list[tuple[float, torch.Tensor]], sigma: float, own: torch.Tensor) -> torch.Tensor:
    """Along the line through the last two points, by the fraction of the line before that the last point followed.

    ``own`` says which tokens show that: all but those of reference pictures.
    """
    if len(points) < 3:
        return points[-1][1]
    (_, before), (newer, new) = points[-2:]
    way = line(points[:-1], newer) - before
    own = tokens(way, own)
    part = float(((new - before) * way)[:, own].sum() / (way * way)[:, own].sum())
    return new + min(max(part, 0.0), 1.0) * (line(points, sigma) - new)


@contextmanager
def reference(
    model: torch.nn.Module,
    rules: Rules,
    passes: tuple[str, ...] = ("cond",),
    steps: int | None = None,
    sigmas: list[float] | None = None,
    euler: bool = True,
) -> Iterator[list[Decision]]:
    """Puts the reference in the place of ``model.forward`` for one run of a pipeline; yields the decisions."""
    stand_in = Reference(model, rules, passes, steps, sigmas, euler)
    model.forward = stand_in
    try:
        yield stand_in.decisions
    finally:
        del model.forward


def sigmas_of(pipe: Any) -> list[float]:
    """Those of the steps of a pipeline's last call, and of the end."""
    return [float(sigma) for sigma in pipe.scheduler.sigmas[-pipe._num_timesteps - 1 :]]
