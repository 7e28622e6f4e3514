"""Group offloading fetches the blocks that run, one ahead, and no others: counted on a stand-in for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from h2gen.cache import h2_cache
from h2gen.errors import DeviceError
from h2gen.models import offload_blocks
from h2gen.models.memory import offload_groups
from h2gen.models.modular import ModularPipe
from h2gen.models.offload_blocks import BlockOffload, Moves, Weights, stream_of
from tests import small

CPU = torch.device("cpu")
STEPS = 6
Events = list[tuple[str, nn.Module]]


class Stream:
    """A stream on the CPU, where everything is done at once."""

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self) -> Stream:
        return self


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """Let the CPU act as a GPU with streams, on which weights are NaN unless they were fetched.

    Yields what happens: what is fetched and dropped, and what runs.
    """
    events: Events = []
    fetch, drop, enter = Weights.fetch, Weights.drop, BlockOffload.enter

    def fetched(group: Weights) -> None:
        assert not group.here
        fetch(group)
        events.append(("fetch", group.onload_leader))

    def dropped(group: Weights) -> None:
        drop(group)
        events.append(("drop", group.onload_leader))
        for tensor in group.cpu_param_dict:
            if tensor.is_floating_point():
                tensor.data = torch.full_like(tensor.data, torch.nan)

    def entered(owner: BlockOffload, group: Weights) -> None:
        enter(owner, group)
        events.append(("run", group.onload_leader))
        assert sum(each.here for each in owner._blocks.values()) <= 3

    monkeypatch.setattr(Weights, "fetch", fetched)
    monkeypatch.setattr(Weights, "drop", dropped)
    monkeypatch.setattr(BlockOffload, "enter", entered)
    monkeypatch.setattr(offload_blocks, "stream_of", lambda device: Stream())
    monkeypatch.setattr(torch.cpu, "current_stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.cpu, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    yield events


def flux3_pipeline(**more: Any) -> ModularPipe:
    return ModularPipe(small.flux3_pipeline(**more))


def draw(pipe: Any, steps: int = STEPS, **more: Any) -> Any:
    arguments = small.run_kwargs(pipe, steps=steps) | more
    if "num_frames" in arguments:  # a video, of which one frame is enough
        return pipe(**arguments | {"num_frames": 1}).frames
    return pipe(**arguments).images


def counted(events: Events, pipe: Any, what: str) -> Counter[nn.Module]:
    return Counter(module for event, module in events if event == what and module is not pipe.transformer)


def passes(events: Events, pipe: Any) -> list[list[tuple[str, nn.Module]]]:
    """What happens in each pass; before the first one, nothing."""
    found: list[list[tuple[str, nn.Module]]] = []
    for event, module in events:
        if (event, module) == ("run", pipe.transformer):
            found.append([])
        elif found:
            found[-1].append((event, module))
    return found


CFG = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
MAKES: dict[str, tuple[Callable[..., Any], dict[str, Any], int]] = {
    "FLUX.1": (small.flux_pipeline, {}, 1),
    "FLUX.1, guidance": (small.flux_pipeline, CFG, 2),
    "FLUX.2": (small.flux2_klein_pipeline, {}, 1),
    "FLUX.3, guidance": (flux3_pipeline, {}, 2),
    "Chroma, guidance": (small.chroma_pipeline, {"guidance_scale": 3.0, "negative_prompt": "a dog"}, 2),
    "HunyuanVideo": (small.hunyuan_video_pipeline, {}, 1),
    "Wan, guidance": (small.wan_pipeline, {"guidance_scale": 3.0, "negative_prompt": "a dog"}, 2),
    "a batch": (small.flux_pipeline, {"num_images_per_prompt": 2}, 1),
}
CACHES: dict[str, dict[str, Any]] = {
    "hits": {"tau1": 1e9, "tau2": 1e9, "max_consecutive": 2},
    "misses": {"tau1": 1e-9, "tau2": 1e-9},
    "hits of the detail": {"tau1": 1e-9, "tau2": 1e9, "hierarchy": "checked"},
    "only the structure": {"tau1": 1e9, "max_consecutive": 1, "hierarchy": "checked", "tau2": 0.0},
    "a plan": {"plan": "FDRSCS"},
    "a tolerance": {"tolerance": 0.05},
}
models = pytest.mark.parametrize("model", MAKES)
_SOME = {"HunyuanVideo", "Wan, guidance"}, {"hits", "a plan", "a tolerance"}
"""Models that need only these caches here: their blocks run like those of the others."""
CASES = [(model, cache) for model in MAKES for cache in CACHES if model not in _SOME[0] or cache in _SOME[1]]


@pytest.mark.parametrize(("model", "cache"), CASES)
def test_with_a_cache_exactly_the_blocks_that_run_are_fetched(gpu: Events, model: str, cache: str) -> None:
    make, more, _ = MAKES[model]
    pipe = make()
    with h2_cache(pipe, **CACHES[cache]) as plain:
        wanted = draw(pipe, **more)
    offload = offload_groups(pipe, CPU)
    gpu.clear()
    with h2_cache(pipe, **CACHES[cache]) as trace:
        assert np.array_equal(draw(pipe, **more), wanted)
    assert [step.blocks_run for step in trace.steps] == [step.blocks_run for step in plain.steps]
    ran = counted(gpu, pipe, "run")
    assert counted(gpu, pipe, "fetch") == counted(gpu, pipe, "drop") == ran
    assert offload.moves.unneeded == 0
    if cache == "a plan":  # everything is known before it is due, apart from what a second pass computes once
        late = offload.moves.fetched - offload.moves.ahead
        assert late <= (2 if model.startswith("FLUX.3") else 0)
    assert 0 < offload.moves.ahead <= offload.moves.fetched == ran.total()


@models
def test_without_a_cache_each_block_is_fetched_while_the_one_before_it_runs(gpu: Events, model: str) -> None:
    make, more, each_step = MAKES[model]
    pipe = make()
    wanted = draw(pipe, **more)
    offload = offload_groups(pipe, CPU)
    gpu.clear()
    assert np.array_equal(draw(pipe, **more), wanted)
    ran, moves = counted(gpu, pipe, "run"), offload.moves
    assert {*ran.values()} == {STEPS * each_step}
    assert (moves.fetched, moves.unneeded) == (ran.total() + 1, 1)  # it does not know that the last step is the last
    # What follows a stage's last block is seen once; structure and detail follow each other in any case.
    assert moves.fetched - moves.ahead <= (3 if model.startswith("FLUX.3") else 1)


@pytest.mark.parametrize("settings", [{"plan": "FSSFSS"}, {"tolerance": 10.0, "plan": "FFSSSF"}], ids=["plan", "both"])
def test_a_step_that_is_skipped_entirely_moves_nothing(gpu: Events, settings: dict[str, Any]) -> None:
    pipe = small.flux_pipeline()
    offload_groups(pipe, CPU)
    each_pass: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: each_pass.append(len(gpu)))
    gpu.clear()
    with h2_cache(pipe, **settings) as trace:
        draw(pipe)
    skipped = [step.skipped for step in trace.steps]
    assert sum(skipped) in (3, 4)
    moved = [before < after for before, after in pairwise(each_pass)]
    assert moved == [not each for each in skipped[:-1]]
    assert [event for event in gpu if event[1] is pipe.transformer].count(("fetch", pipe.transformer)) == 1


def test_another_part_of_the_pipeline_gets_the_memory_of_the_transformer(gpu: Events) -> None:
    pipe = small.flux_pipeline()
    offload = offload_groups(pipe, CPU)
    here: list[bool] = []
    pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda *_: here.append(offload._outside.here))
    draw(pipe)
    assert here == [False]
    assert not any(each.here for each in offload._blocks.values())
    pipe.text_encoder.register_forward_pre_hook(lambda *_: here.append(offload._outside.here))
    assert np.isfinite(draw(pipe)).all()


def test_a_prefetched_block_stays_until_it_runs(gpu: Events) -> None:
    """While the first block runs its change is not known; the next stage's first block runs in any case."""
    pipe = small.flux_pipeline()
    offload_groups(pipe, CPU)
    gpu.clear()
    with h2_cache(pipe, tau1=1e-9, tau2=1e-9):
        draw(pipe, steps=2)
    model, second = pipe.transformer, passes(gpu, pipe)[1]
    double, single = model.transformer_blocks, model.single_transformer_blocks
    order = [module for event, module in second if event == "fetch"]
    assert order == [single[0], double[1], double[2], single[1], single[2], single[3]]
    assert ("drop", single[0]) in second and second.index(("drop", single[0])) > second.index(("run", single[0]))


def test_a_device_without_streams_fetches_each_block_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small.flux_pipeline()
    wanted = draw(pipe)
    offload = offload_groups(pipe, CPU)
    assert stream_of(CPU) is offload.stream is None
    assert np.array_equal(draw(pipe), wanted)
    assert offload.moves == Moves(fetched=7 * STEPS)


def test_weights_that_cannot_be_pinned_are_fetched_when_they_are_needed(
    gpu: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore")

    pipe = small.flux_pipeline()
    wanted = draw(pipe)
    monkeypatch.setattr(torch.Tensor, "pin_memory", full)
    with pytest.warns(RuntimeWarning, match=r"cannot be pinned in main memory \(CUDA error: out of memory\);"):
        offload = offload_groups(pipe, CPU)
    assert offload.stream is None
    assert np.array_equal(draw(pipe), wanted)


def test_main_memory_never_holds_all_weights_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small.flux_pipeline(layers=3, single_layers=4)
    weights = [*pipe.transformer.parameters()]
    copies: dict[int, torch.Tensor] = {}
    twice: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copies[copy.data_ptr()] = copy
        twice.append(len(copies) - sum(each.data_ptr() in copies for each in weights))
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    BlockOffload(pipe.transformer, CPU, Stream())
    assert len(copies) >= len(weights) and max(twice) < len(weights) / 3  # those of one block


def test_eight_bit_weights_of_bitsandbytes_are_refused() -> None:
    modules = pytest.importorskip("bitsandbytes.nn")
    pipe = small.flux_pipeline()
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    layer.weight = modules.Int8Params(layer.weight.data, requires_grad=False)
    with pytest.raises(DeviceError, match="use --offload model"):
        offload_groups(pipe, CPU)


def test_four_bit_weights_of_bitsandbytes_move_with_their_scales(gpu: Events) -> None:
    modules = pytest.importorskip("bitsandbytes.nn")
    pipe = small.flux_pipeline()
    for block in pipe.transformer.transformer_blocks:
        for name in ("to_q", "to_k"):
            old = getattr(block.attn, name)
            new = modules.Linear4bit(old.in_features, old.out_features, quant_type="nf4", compute_dtype=torch.float32)
            new.load_state_dict({"weight": old.weight.data, "bias": old.bias.data})
            setattr(block.attn, name, new.to("cpu"))
    wanted = draw(pipe, steps=3)
    offload = offload_groups(pipe, CPU)
    scales = [block.attn.to_q.weight.quant_state.code for block in pipe.transformer.transformer_blocks]
    assert all(scale.isnan().all() for scale in scales)
    assert np.array_equal(draw(pipe, steps=3), wanted)
    assert offload.moves.fetched == 3 * 7 + 1
    assert all(scale.isnan().all() for scale in scales)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["none", *CACHES])
def test_on_a_gpu_the_picture_is_the_same_and_streams_are_used(cache: str) -> None:
    device, settings = torch.device("cuda", 0), CACHES.get(cache)
    made = []
    for groups in (False, True):
        pipe = small.flux_pipeline()
        offload = offload_groups(pipe, device) if groups else pipe.to(device) and None
        with nullcontext() if settings is None else h2_cache(pipe, **settings):
            made.append(draw(pipe))
    assert np.array_equal(*made)
    assert isinstance(offload, BlockOffload) and isinstance(offload.stream, torch.cuda.Stream)
    assert offload.moves.ahead > 0
    assert next(pipe.transformer.transformer_blocks[0].parameters()).data.is_pinned()
