"""Residuals in main memory change no bit, in fewer bits they change little and take less; all are freed."""

from __future__ import annotations

import gc
import pickle
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from h2gen.cache import CacheConfig, apply, h2_cache, main_memory
from h2gen.cache.forecast import ResidualHistory
from h2gen.cache.keep import Packed, PackedValues
from h2gen.cache.kept import KeptBytes
from h2gen.errors import CacheError, SettingError
from tests.cache.drive import TEXT, assert_close, flux, noise, run, same, untraced
from tests.small import flux_pipeline, run_kwargs

WAYS = ("cpu", "bf16", "fp8")
WIDTH, IMAGE = 32, 16
SETTINGS: dict[str, dict[str, Any]] = {
    "thresholds": {"tau1": 1e9, "tau2": 1e9, "max_consecutive": 2},
    "a plan": {"plan": "FDCFRFRD"},
    "a plan with a forecast": {"plan": "FFFDCFRD", "forecast": 1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", WAYS)
def test_a_tensor_comes_back_on_its_device_in_its_dtype(how: str, dtype: torch.dtype) -> None:
    tensor = noise(2, 5, 64, seed=0).to(dtype) * 100
    tensor[0, 0] = 0  # such as a token that nothing was added to
    tensor[1, 1, 3] = 1e4  # an outlier does not spoil the other tokens
    back = Packed(tensor, how).unpacked()
    assert (back.dtype, back.shape, back.device) == (tensor.dtype, tensor.shape, tensor.device)
    if how == "cpu" or (how == "bf16" and dtype is torch.bfloat16):
        assert torch.equal(back, tensor)
        return
    assert not torch.equal(back, tensor) and not back[0, 0].any()
    relative = 2**-8 if how == "bf16" else 2**-4 + 2**-8
    smallest = tensor.float().abs().amax(-1, keepdim=True) * 2**-17  # below it fp8 has fewer bits
    error = (back.float() - tensor.float()).abs()
    assert (error <= relative * tensor.float().abs() + smallest).all()


def test_values_are_kept_like_in_a_deque() -> None:
    tensors = [(noise(1, 2, 4, seed=seed),) for seed in range(4)]
    values = PackedValues(2, "cpu")
    assert not values and len(values) == 0
    for each in tensors[:3]:
        values.append(each)
    assert [torch.equal(got[0], each[0]) for got, each in zip(values, tensors[1:3], strict=True)] == [True, True]
    values[0] = tensors[3]
    assert torch.equal(values[0][0], tensors[3][0]) and torch.equal(values[-1][0], tensors[2][0])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_in_main_memory_no_bit_changes(settings: dict[str, Any], batch: int) -> None:
    model = flux()
    with h2_cache(model, **settings) as plain:
        wanted = run(model, batch=batch)
    with h2_cache(model, **settings, cache_memory="cpu") as trace:
        assert same(run(model, batch=batch), wanted)
    assert [step.blocks_run for step in trace.steps] == [step.blocks_run for step in plain.steps]
    assert trace.kept == plain.kept


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_fewer_bits_change_little(settings: dict[str, Any]) -> None:
    model = flux()
    with h2_cache(model, **settings) as whole:
        wanted = run(model)
    for how, tolerance, least, most in (("bf16", 0.01, 0.5, 0.5), ("fp8", 0.1, 0.25, 0.25 + 4 / WIDTH / 4)):
        with h2_cache(model, **settings, cache_memory=how) as trace:
            got = run(model)
        assert not same(got, wanted)
        assert_close(got, wanted, tolerance)
        # Beside the residuals stands one number per picture and stage, of how far they followed their line.
        assert least <= trace.kept.residuals / whole.kept.residuals <= most + 0.001
        assert [step.blocks_run for step in trace.steps] == [step.blocks_run for step in whole.steps]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("passes", [("cond",), ("cond", "uncond")])
def test_what_is_kept_of_a_picture_is_counted_exactly(batch: int, passes: tuple[str, ...]) -> None:
    model = flux()
    both = (TEXT + IMAGE) * WIDTH * 4 + IMAGE * WIDTH * 4  # text and image after the structure, then the last stream
    latents = IMAGE * model.config.in_channels * 4
    for settings, residuals, velocities in (
        ({"tau1": 1e9, "tau2": 1e9}, both, 0),
        ({"plan": "FRRRRRRR"}, both, 0),
        ({"plan": "FFRRRRRR", "forecast": 1}, 2 * both, 0),
        ({"plan": "FSSSSSSS"}, 0, latents),
    ):
        with h2_cache(model, **settings) as trace:
            run(model, batch=batch, passes=passes)
        kept = trace.kept
        assert (kept.residuals, kept.velocities) == (residuals * len(passes), velocities * len(passes)), settings
        assert (kept.decisions > 0) == (settings.get("plan") != "FRRRRRRR")
        assert {each.kept for each in trace.of_each_picture()} == {kept}
        assert pickle.loads(pickle.dumps(trace)).kept == kept
        trace.clear()
        assert trace.kept == KeptBytes()


def test_without_a_policy_nothing_is_kept() -> None:
    model = flux()
    trace = apply(model, CacheConfig(0, 0))
    run(model, 3)
    assert trace.kept == KeptBytes()
    assert str(KeptBytes(50_500_000, 500_000, 200_000)) == (
        "51.2 MB per picture (residuals 50, velocities 0.5, decisions 0.2)"
    )


@untraced
@pytest.mark.parametrize("how", ["device", *WAYS])
def test_it_is_freed_between_pictures(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, kept = flux_pipeline(), []
    keep = ResidualHistory.keep

    def remembered(history: ResidualHistory, *args: Any) -> None:
        keep(history, *args)
        newest = history._values[-1] if how == "device" else [each.tensors[0] for each in history._values._kept[-1]]
        kept.extend(map(weakref.ref, newest))

    monkeypatch.setattr(ResidualHistory, "keep", remembered)
    with h2_cache(pipe.transformer, tau1=1e-9, tau2=1e-9, cache_memory=how):
        pipe(**run_kwargs(pipe, steps=2))
        gc.collect()
        assert len(kept) == 6 and not any(each() is not None for each in kept)
        pipe(**run_kwargs(pipe, steps=2))
        gc.collect()
        assert len(kept) == 12 and not any(each() is not None for each in kept)


def test_a_way_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingError, match="cache_memory"):
        CacheConfig(cache_memory="disk")


def test_fp8_is_refused_on_a_device_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = flux_pipeline()
    monkeypatch.setattr(type(pipe), "_execution_device", property(lambda _: torch.device("mps")))
    with pytest.raises(CacheError, match="--cache-memory fp8 is not supported on mps; use bf16 or cpu"):
        apply(pipe, CacheConfig(cache_memory="fp8"))


class Stream:
    """A stream on the CPU. What is queued on it is done only once the other stream waits for it."""

    def __init__(self) -> None:
        self.queue: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.recorded: list[torch.Tensor] = []
        self.waited, self.done, self.pending = False, 0, 0

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert self.waited, "the stream that computes may not have made it yet"
        self.queue.append((target, source))
        target.fill_(torch.nan)
        self.pending = max(self.pending, len(self.queue) - self.done)

    def wait_stream(self, _computing: Any) -> None:
        self.waited = True

    def record_event(self) -> int:
        return len(self.queue)

    def wait_event(self, event: int) -> None:
        for target, source in self.queue[self.done : event]:
            target.copy_(source)
        self.done = max(self.done, event)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Let the CPU act as a device with streams and pinned memory."""
    stream = Stream()
    for name, does in {
        "copy_stream": lambda device: stream,
        "_computing": lambda device: stream,
        "_on": lambda used, device: nullcontext(),
        "_copy": stream.copy,
    }.items():
        monkeypatch.setattr(main_memory, name, does)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **more: empty(*args, **more))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, used: stream.recorded.append(tensor))
    return stream


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_copies_on_a_stream_of_their_own_change_no_bit(stream: Stream, settings: dict[str, Any], batch: int) -> None:
    model = flux()
    with h2_cache(model, **settings):
        wanted = run(model, batch=batch)
    assert not stream.queue
    with h2_cache(model, **settings, cache_memory="cpu"):
        assert same(run(model, batch=batch), wanted)
    recorded, there = {id(tensor) for tensor in stream.recorded}, {id(target) for target, _ in stream.queue}
    back = [target for target, source in stream.queue if id(source) in there]
    assert 0 < len(back) < len(stream.queue)
    assert all(id(source) in recorded for _, source in stream.queue if id(source) not in there)
    # With thresholds a miss drops what was fetched for a hit.
    assert all(id(target) in recorded for target in back) or settings.get("tau1")


def test_residuals_come_back_while_the_first_block_runs_and_only_if_they_may_be_needed(stream: Stream) -> None:
    model, before, within = flux(), list[int](), list[int]()
    first = model.transformer_blocks[0]
    first.register_forward_pre_hook(lambda *_: before.append(stream.record_event()))
    first.norm1.register_forward_pre_hook(lambda *_: within.append(stream.record_event()))
    with h2_cache(model, plan="FFRFR", cache_memory="cpu"):
        run(model, steps=5)
    # Full steps queue two tensors of the structure and one of the detail; the other steps bring them back.
    assert before == [0, 3, 6, 9, 12] and within == [0, 3, 6 + 2, 9, 12 + 2]
    assert len(stream.queue) == 15


@pytest.mark.gpu
def test_on_a_gpu_main_memory_is_pinned_and_changes_no_bit() -> None:
    made = []
    for how in ("device", "cpu"):
        pipe = flux_pipeline().to("cuda")
        with h2_cache(pipe, plan="FRDCRF", cache_memory=how):
            made.append(torch.from_numpy(pipe(**run_kwargs(pipe)).images))
    assert torch.equal(*made)
    assert Packed(torch.ones(1, 2, 3, device="cuda"), "cpu").tensors[0].is_pinned()
