"""The cache on models of code outside of diffusers, written after the layouts of FLUX.1's own code and Hunyuan3D's."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import h2gen
from h2gen.errors import CacheError
from h2gen.families.other import OtherModel

WIDTH, CHANNELS, STEPS = 16, 8, 8
TIMES = [1 - step / STEPS for step in range(STEPS + 1)]


class DoubleBlock(nn.Module):
    """Two streams that attend to each other: called by keywords, returns image and text."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.image_in, self.text_in = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.calls = 0

    def forward(
        self, img: torch.Tensor, txt: torch.Tensor, vec: torch.Tensor, pe: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        both = torch.cat((self.text_in(txt), self.image_in(img)), 1) + self.modulation(vec)[:, None]
        both = F.scaled_dot_product_attention(both, both if pe is None else both + pe, both)
        text, image = both.split((txt.shape[1], img.shape[1]), 1)
        return img + 0.3 * image, txt + 0.3 * text


class SingleBlock(nn.Module):
    """One stream, the text first."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, x: torch.Tensor, vec: torch.Tensor, pe: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        mixed = self.linear(x) + self.modulation(vec)[:, None]
        return x + 0.3 * F.scaled_dot_product_attention(mixed, mixed, mixed)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.img_in, self.txt_in = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.time_in, self.final_layer = nn.Linear(1, WIDTH), nn.Linear(WIDTH, CHANNELS)
            self.double_blocks = nn.ModuleList(DoubleBlock() for _ in range(3))
            self.single_blocks = nn.ModuleList(SingleBlock() for _ in range(4))

    @property
    def calls(self) -> int:
        return sum(block.calls for block in (*self.double_blocks, *self.single_blocks))


class Flux(Base):
    """The order of arguments and the calls of FLUX.1's own code."""

    def forward(
        self,
        img: torch.Tensor,
        img_ids: torch.Tensor,
        txt: torch.Tensor,
        txt_ids: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        img, txt, vec = self.img_in(img), self.txt_in(txt), self.time_in(timesteps[:, None])
        pe = torch.cat((txt_ids, img_ids), 1).sum(-1, keepdim=True) / 10
        for block in self.double_blocks:
            img, txt = self.double(block, img, txt, vec, pe)
        img = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            img = self.single(block, img, vec, pe)
        return self.final_layer(img[:, txt.shape[1] :])

    def double(self, block: nn.Module, img: Any, txt: Any, vec: Any, pe: Any) -> Any:
        return block(img=img, txt=txt, vec=vec, pe=pe)

    def single(self, block: nn.Module, img: Any, vec: Any, pe: Any) -> Any:
        return block(img, vec=vec, pe=pe)


class TextLast(Flux):
    """The single stream of HunyuanVideo's own code: the text comes after the image."""

    def forward(
        self,
        img: torch.Tensor,
        img_ids: torch.Tensor,
        txt: torch.Tensor,
        txt_ids: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        img, txt, vec = self.img_in(img), self.txt_in(txt), self.time_in(timesteps[:, None])
        text, image = (ids.sum(-1, keepdim=True) / 10 for ids in (txt_ids, img_ids))
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, torch.cat((text, image), 1))
        tokens = img.shape[1]
        img = torch.cat((img, txt), 1)
        for block in self.single_blocks:
            img = block(img, vec, torch.cat((image, text), 1))
        return self.final_layer(img[:, :tokens])


class Shapes(Base):
    """The order of arguments and the calls of Hunyuan3D's code: positions are not encoded, the condition is a dict."""

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, contexts: dict[str, torch.Tensor], **kwargs: Any
    ) -> torch.Tensor:
        latent, cond, vec = self.img_in(x), self.txt_in(contexts["main"]), self.time_in(t[:, None])
        for block in self.double_blocks:
            latent, cond = block(img=latent, txt=cond, vec=vec, pe=None)
        latent = torch.cat((cond, latent), 1)
        for block in self.single_blocks:
            latent = block(latent, vec=vec, pe=None)
        return self.final_layer(latent[:, cond.shape[1] :])


class Wrapped(Flux):
    """Blocks and a model that return what they make in lists, tuples and a dict."""

    class Double(DoubleBlock):
        def forward(self, img: torch.Tensor, txt: torch.Tensor, vec: torch.Tensor, pe: Any = None) -> Any:
            return [*super().forward(img, txt, vec, pe)]

    class Single(SingleBlock):
        def forward(self, x: torch.Tensor, vec: torch.Tensor, pe: Any = None) -> Any:
            return (super().forward(x, vec, pe),)

    def __init__(self) -> None:
        super().__init__()
        for blocks, kind in ((self.double_blocks, self.Double), (self.single_blocks, self.Single)):
            for block in blocks:
                block.__class__ = kind

    def forward(
        self,
        img: torch.Tensor,
        img_ids: torch.Tensor,
        txt: torch.Tensor,
        txt_ids: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> Any:
        return {"velocity": super().forward(img, img_ids, txt, txt_ids, timesteps)}

    def double(self, block: nn.Module, img: Any, txt: Any, vec: Any, pe: Any) -> Any:
        return block(img, txt, vec, pe=pe)

    def single(self, block: nn.Module, img: Any, vec: Any, pe: Any) -> Any:
        (img,) = block(img, vec, pe=pe)
        return img


class Named(Flux):
    """A model that returns a dict."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, img: torch.Tensor, **given: Any) -> Any:
        return dict.fromkeys(self.names, super().forward(img, **given))


class Odd(Flux):
    """Blocks that return a dict."""

    class Block(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"x": x + 1}

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, img: torch.Tensor, txt: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> torch.Tensor:
        for block in self.odd:
            img = block(img)["x"]
        return img


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draw_flux(model: Any, times: Sequence[float] = TIMES, batch: int = 1) -> torch.Tensor:
    """The loop of FLUX.1's own code: Euler's method."""
    rows = torch.arange(16)
    img_ids = torch.stack((0 * rows, rows // 4, rows % 4), 1)[None].float().expand(batch, -1, -1)
    img, txt, txt_ids = noise(batch, 16, CHANNELS), noise(batch, 5, WIDTH, seed=1), torch.zeros(batch, 5, 3)
    for time, following in pairwise(times):
        now = torch.full((batch,), time)
        img = img + (following - time) * model(img=img, img_ids=img_ids, txt=txt, txt_ids=txt_ids, timesteps=now)
    return img


@torch.no_grad()
def draw_shape(model: Any, times: Sequence[float] = tuple(1 - time for time in TIMES), batch: int = 1) -> torch.Tensor:
    """The loop of Hunyuan3D: time counts up."""
    x, contexts = noise(batch, 16, CHANNELS), {"main": noise(batch, 5, WIDTH, seed=1)}
    for time, following in pairwise(times):
        x = x - (following - time) * model(x, torch.full((batch,), time), contexts, guidance=None)
    return x


def stages_of(model: Any, **more: Any) -> h2gen.Stages:
    return h2gen.Stages(structure=model.double_blocks, detail=model.single_blocks, **more)


LAYOUTS: dict[str, tuple[Callable[[], Any], Callable[..., torch.Tensor], dict[str, Any], Sequence[float]]] = {
    "FLUX.1": (Flux, draw_flux, {}, TIMES),
    "Hunyuan3D": (Shapes, draw_shape, {"times": (0, 1)}, [1 - time for time in TIMES]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@layouts
def test_thresholds_of_0_change_nothing_and_removal_restores(layout: str) -> None:
    make, draw, more, _ = LAYOUTS[layout]
    model = make()
    plain, before = draw(model), sorted(model.__dict__)
    with h2gen.h2_cache(model, tau1=0, tau2=0, stages=stages_of(model, **more)) as trace:
        assert torch.equal(draw(model), plain)
    assert [step.blocks_run for step in trace.steps] == [7] * STEPS
    assert sorted(model.__dict__) == before and not model._forward_hooks
    assert all("forward" not in block.__dict__ for block in model.modules())
    assert torch.equal(draw(model), plain)


@layouts
def test_blocks_of_a_hit_do_not_run(layout: str) -> None:
    make, draw, more, _ = LAYOUTS[layout]
    model = make()
    plain = draw(model)
    model = make()
    with h2gen.h2_cache(model, tau1=0.02, tau2=0.1, stages=stages_of(model, **more)) as trace:
        got = draw(model)
    assert model.calls == sum(step.blocks_run for step in trace.steps) < 7 * STEPS
    assert not trace.steps[0].all_reused and any(not step.full for step in trace.steps)
    assert 0 < (got - plain).norm() / plain.norm() < 0.1


@layouts
def test_misses_of_both_stages_are_bit_identical(layout: str) -> None:
    make, draw, more, _ = LAYOUTS[layout]
    model = make()
    plain = draw(model)
    with h2gen.h2_cache(model, tau1=1e-12, tau2=1e-12, stages=stages_of(model, **more)) as trace:
        assert torch.equal(draw(model), plain)
    assert all(step.structure.change is not None and step.detail.change is not None for step in trace.steps[1:])


@layouts
@pytest.mark.parametrize("plan", ["FFSFSFSF", "FDRFCRFS"])
def test_plans_reuse_and_skip(layout: str, plan: str) -> None:
    make, draw, more, times = LAYOUTS[layout]
    model = make()
    plain = draw(model)
    model, cost = make(), {"F": 7, "D": 4, "C": 5, "R": 2, "S": 0}
    with h2gen.h2_cache(model, plan=plan, stages=stages_of(model, **more), schedule=times) as trace:
        got = draw(model)
    assert [step.blocks_run for step in trace.steps] == [cost[letter] for letter in plan]
    assert model.calls == sum(cost[letter] for letter in plan)
    assert 0 < (got - plain).norm() / plain.norm() < 0.1


@layouts
def test_a_tolerance_skips_steps_of_a_schedule_that_is_given(layout: str) -> None:
    make, draw, more, times = LAYOUTS[layout]
    model = make()
    plain = draw(model)
    with h2gen.h2_cache(model, tolerance=0.01, stages=stages_of(model, **more), schedule=times) as trace:
        for _ in range(2):
            got = draw(model)
    assert [step.step for step in trace.steps] == 2 * [*range(STEPS)]
    skipped = [step.skipped for step in trace.steps]
    assert any(skipped) and not skipped[STEPS - 1] and skipped[:STEPS] == skipped[STEPS:]
    assert (got - plain).norm() / plain.norm() < 0.05


def test_the_text_may_come_last_in_a_stream() -> None:
    changes = []
    for make, more in ((Flux, {}), (TextLast, {"text_last": True})):
        model = make()
        with h2gen.h2_cache(model, tau1=1e-12, tau2=1e-12, pfs="stable", stages=stages_of(model, **more)) as trace:
            draw_flux(model)
        changes.append([step.detail.change for step in trace.steps[1:]])
    first, last = changes
    assert last == pytest.approx(first, rel=1e-4)


def test_without_a_schedule_a_tolerance_says_that_it_has_no_effect() -> None:
    model = Flux()
    with (
        pytest.warns(RuntimeWarning, match=r"tolerance has no effect here.*or give schedule="),
        h2gen.h2_cache(model, tolerance=0.01, stages=stages_of(model)) as trace,
    ):
        draw_flux(model)
    assert all(step.full for step in trace.steps)


@pytest.mark.parametrize("plan", ["FFSFSFSF", "FDRFCRFS"])
def test_streams_and_velocities_may_be_in_lists_tuples_and_dicts(plan: str) -> None:
    made = []
    for model in (Flux(), Wrapped()):
        with h2gen.h2_cache(model, plan=plan, stages=stages_of(model), schedule=TIMES) as trace:
            made.append(draw_flux(lambda model=model, **given: alone(model(**given))))
        assert model.calls == sum(step.blocks_run for step in trace.steps) < 7 * STEPS
    assert torch.equal(*made)


def alone(output: Any) -> torch.Tensor:
    velocity: torch.Tensor = output["velocity"] if isinstance(output, dict) else output
    return velocity


def test_it_works_within_autocast() -> None:
    model = Flux()
    with torch.autocast("cpu", torch.bfloat16):
        plain = draw_flux(model)
        with h2gen.h2_cache(model, tau1=1e-12, tau2=1e-12, stages=stages_of(model)):
            assert torch.equal(draw_flux(model), plain)
        with h2gen.h2_cache(model, plan="FDRFCRFS", stages=stages_of(model), schedule=TIMES) as trace:
            got = draw_flux(model)
    assert sum(step.blocks_run for step in trace.steps) < 7 * STEPS
    assert 0 < (got - plain).norm() / plain.norm() < 0.1


def test_pictures_of_a_batch_are_decided_together_unless_told_what_belongs_to_each() -> None:
    model, plain = Flux(), draw_flux(Flux(), batch=2)
    with h2gen.h2_cache(model, tau1=0.02, tau2=0.1, stages=stages_of(model)) as trace:
        draw_flux(model, batch=2)
    pairs = list(zip(trace.steps[::2], trace.steps[1::2], strict=True))
    assert all(one.blocks_run == two.blocks_run for one, two in pairs)
    each = stages_of(model, per_picture=("img", "txt", "x", "vec", "pe"))
    with h2gen.h2_cache(model, tau1=1e-12, tau2=1e-12, stages=each) as trace:
        assert torch.equal(draw_flux(model, batch=2), plain)
    pairs = list(zip(trace.steps[::2], trace.steps[1::2], strict=True))
    assert any(one.structure.change != two.structure.change for one, two in pairs)


def test_a_model_of_one_kind_of_blocks_is_cut_in_two() -> None:
    class One(Base):
        def forward(self, x: torch.Tensor, context: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            tokens, vec = torch.cat((self.txt_in(context), self.img_in(x)), 1), self.time_in(t[:, None])
            for block in self.single_blocks:
                tokens = block(tokens, vec)
            return self.final_layer(tokens[:, context.shape[1] :])

    def draw(model: Any) -> torch.Tensor:
        x, context = noise(1, 16, CHANNELS), noise(1, 5, WIDTH, seed=1)
        with torch.no_grad():
            for time, following in pairwise(TIMES):
                x = x + (following - time) * model(x, context, torch.tensor([time]))
        return x

    model = One()
    plain, blocks = draw(model), model.single_blocks
    stages = h2gen.Stages(structure=blocks[:1], detail=blocks[1:])
    with h2gen.h2_cache(model, tau1=0, tau2=0.2, stages=stages) as trace:
        got = draw(model)
    assert {step.blocks_run for step in trace.steps} == {4, 2}
    assert 0 < (got - plain).norm() / plain.norm() < 0.1


def used(stages: Any, target: Any = None, draw: Callable[[Any], Any] = draw_flux, **settings: Any) -> None:
    model = Flux() if target is None else target
    how = {"schedule": settings.pop("schedule", None)}
    with h2gen.h2_cache(model, **how, **(settings or {"tau1": 0.1, "tau2": 0.1}), stages=stages(model)):
        draw(model)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stages": lambda m: h2gen.Stages([], m.single_blocks)}, "blocks in both stages; this Flux has 0 for the"),
        ({"stages": lambda m: h2gen.Stages(["a"], m.single_blocks)}, "holds a str, which is not a torch module"),
        ({"stages": lambda m: h2gen.Stages(m.double_blocks[0], m.single_blocks)}, "is a DoubleBlock; give a list"),
        ({"stages": lambda m: h2gen.Stages(m.double_blocks, m.double_blocks)}, "holds a block twice"),
        ({"stages": lambda m: stages_of(m, times=(1, 1))}, "the same time"),
        ({"stages": lambda m: stages_of(m, times=(1,))}, "must be two numbers"),
        ({"stages": lambda m: (m.double_blocks, m.single_blocks)}, r"is a tuple; give h2gen.Stages\(structure"),
        ({"stages": lambda m: stages_of(Flux())}, "a DoubleBlock that is not part of this Flux; give the blocks of"),
        ({"stages": lambda m: stages_of(m, image="tokens")}, "'tokens', which no block of Flux takes; they take img, "),
        ({"stages": lambda m: stages_of(m, per_picture=["vek"])}, r"per_picture=...\) names 'vek', which no block"),
        ({"stages": lambda m: stages_of(m, grid=(4, 5))}, "has 20 tokens, but a structure block of Flux got 16"),
        ({"stages": lambda m: stages_of(m, text="context")}, "takes text and image of the shapes"),
        ({"stages": stages_of, "target": Named("img", "mask"), "plan": "FSFSFSFS"}, "a dict of img, mask, and h2gen"),
        ({"stages": lambda m: h2gen.Stages(m.odd[:1], m.odd[1:]), "target": Odd()}, "block of Odd returns a dict; "),
        ({"stages": lambda m: stages_of(Flux()), "target": "a model"}, "needs a torch model with stages, not a str"),
        ({"stages": lambda m: stages_of(m, image_first=False)}, "blocks that return the same shapes"),
        (
            {"stages": lambda m: stages_of(m, time="sigmas")},
            r"holds the time; .*, without 'sigmas'\. Name the argument: Stages\(time",
        ),
        ({"stages": lambda m: stages_of(m, condition="text")}, r"holds the condition; it was called with .*img_ids"),
        ({"stages": stages_of, "plan": "F" * 7, "schedule": TIMES}, "plan is for 7 steps, and this run has 8"),
        ({"stages": stages_of, "schedule": [0.5, 0.2, 0.0]}, "schedule begins at 0.5, but the model was called at 1 "),
        ({"stages": stages_of, "schedule": [0.0, 0.5, 1.0]}, "must be closer to the picture"),
        ({"stages": stages_of, "schedule": [1.0]}, "has 1 times; give all of them"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(CacheError, match=words) as raised:
        used(**given)
    assert "\n" not in str(raised.value)


def test_latents_that_are_not_tokens_need_a_grid() -> None:
    inputs = {"x": noise(1, CHANNELS, 4, 4), "contexts": {"main": noise(1, 5, WIDTH)}, "t": torch.ones(1)}
    model = Shapes()
    with pytest.raises(CacheError, match=r"have the shape \(1, 8, 4, 4\).*Stages\(grid=...\)"):
        OtherModel(stages_of(model), "Shapes").pass_inputs(inputs)
    found = OtherModel(stages_of(model, grid=(4, 4)), "Shapes").pass_inputs(inputs)
    assert (found.image_tokens, found.grid) == (16, (4, 4))


def test_times_of_any_scale_and_direction_run_from_1_to_0() -> None:
    model = Shapes()
    for times, time, wanted in (((1, 0), 0.3, 0.3), ((1000, 0), 300, 0.3), ((0, 1), 0.7, 0.3)):
        given = OtherModel(stages_of(model, times=times), "Shapes")
        assert given.sigma(time) == pytest.approx(wanted)


def test_the_name_is_there_without_torch() -> None:
    code = "import h2gen, sys; h2gen.Stages; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_part_called_transformer_is_not_taken_for_the_model() -> None:
    model = Flux()
    model.transformer = nn.Linear(2, 2)
    before = sorted(model.__dict__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used(stages_of, model)
    assert sorted(model.__dict__) == before and not model._forward_pre_hooks
