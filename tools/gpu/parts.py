"""The parts: each is called in a process of its own with whether the run is a small one, and where figures go."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from h2gen.evaluation.block_count import count_blocks
from h2gen.evaluation.peers.base import contexts, left_as_found
from h2gen.evaluation.peers.dbcache import quiet
from h2gen.models.memory import offload_groups
from tools.gpu.model import FAST, ULTRA, Caller, Scale, compile_blocks, make_pipeline, quantize, scale_of, wait
from tools.gpu.process import Report
from tools.gpu.profiling import Profile, first_wait, look_at
from tools.gpu.timing import (
    ALIKE,
    OUTCOMES,
    SECONDS,
    Cache,
    checking,
    compare,
    counted_graphs,
    measure_outcomes,
    measure_plans,
    planned,
    seconds_of,
    steps_of,
)

ROOT = Path(__file__).resolve().parents[2]
PLANS = {
    "fast, skipped": FAST,
    "ultra, skipped": ULTRA,
    "fast, both forecast": FAST.replace("S", "R"),
    "every other detail forecast": "FFFF" + "DF" * 12,
}
CACHE_MEMORY = "FFFDFDFD"


def eager(small: bool, report: Report) -> None:
    """All outcomes and plans, and a batch of 4."""
    call = _ready(scale_of(small), report)
    full = measure_outcomes(call, report)
    with report.attempt("plans"):
        measure_plans(call, report, PLANS)
    with report.attempt("batch of 4"):
        _measure_batch(call, report)
    _report_memory(report, call.scale)
    for how in ("device", "cpu", "fp8"):  # the detail is forecast from two values at every other step
        with report.attempt(f"--cache-memory {how}"):
            steps = steps_of(call, planned(call.pipe, CACHE_MEMORY, cache_memory=how), len(CACHE_MEMORY))
            for letter in "FD":
                each = [seconds for at, seconds in zip(CACHE_MEMORY, steps, strict=True) if at == letter][1:]
                seconds, name = statistics.median(each), OUTCOMES[letter].format("forecast")
                report(f"--cache-memory {how}: {name}", seconds, "s", share=seconds / full)


def _measure_batch(call: Caller, report: Report) -> None:
    together = Caller(call.pipe, call.scale, pictures=4)
    plan = "FFFSSFSS"
    seconds_of(together, steps=2)
    full = statistics.median(steps_of(together, steps=3)[1:]) / 4
    report("batch of 4: full step, per picture", full, "s")
    checked = statistics.median(steps_of(together, checking(call.pipe), 3)[1:]) / 4
    report("batch of 4: full step with both checks, per picture", checked, "s", share=checked / full)
    uncached = seconds_of(together, steps=len(plan))
    cached = seconds_of(together, planned(call.pipe, plan), len(plan))
    compare(report, f"batch of 4, plan {plan}", [uncached], [cached], plan.count("F") / len(plan))


def compiled(small: bool, report: Report) -> None:
    """With compiled blocks."""
    call = _ready(scale_of(small), report)
    _measure_compiled(call, report)


def fp8(small: bool, report: Report) -> None:
    """With compiled blocks of quantized weights: everything on."""
    call = _ready(scale_of(small), report)
    started = time.perf_counter()
    how = quantize(call.pipe.transformer, call.scale)
    wait(call.scale)
    report("quantized with --quantize", how)
    report("quantizing", time.perf_counter() - started, "s")
    _measure_compiled(call, report, goal=SECONDS)


def _measure_compiled(call: Caller, report: Report, goal: float | None = None) -> None:
    torch._dynamo.reset()
    compile_blocks(call.pipe.transformer, call.scale)
    with counted_graphs() as graphs:
        started = time.perf_counter()
        seconds_of(call, steps=2)
        report("compiling, and two steps", time.perf_counter() - started, "s")
        report("graphs", graphs())
    with counted_graphs() as graphs:
        with report.attempt("plans"):
            measure_plans(call, report, PLANS, goal)
        measure_outcomes(call, report)
        report("graphs compiled again for the cache", graphs(), most=0)
    _report_memory(report, call.scale)


def known(small: bool, report: Report) -> None:
    """What steps do whose outcome a plan decides; then, what is slow."""
    call = _ready(scale_of(small), report)
    first, last, steps = 4, 7, 10
    plain = look_at(call, nullcontext, first, last, steps)
    _report_profile(report, "no cache", plain, None)
    profiles = {"no cache": plain}
    for letter, name in {"F": "full", "D": "detail forecast", "R": "both forecast", "S": "skipped"}.items():
        with report.attempt(name):
            cache = planned(call.pipe, "FF" + letter * (steps - 2))
            profiles[name] = look_at(call, cache, first, last, steps)
            _report_profile(report, name, profiles[name], plain)
            place = first_wait(call, cache, first, last, steps)
            report(f"{name}: a wait, by torch's debug mode", place or "none")
    with report.attempt("with both checks"):
        _report_profile(report, "with both checks", look_at(call, checking(call.pipe), first, last, steps), None)
    for name in [name for name in ("no cache", "skipped") if name in profiles]:
        for kernel, share, runs in profiles[name].slowest(10 if name == "no cache" else 4):
            report(f"slowest, {name}: {kernel[:90]}", f"{share:.1%}, {runs:g} per step")
        span = profiles[name].span or 1.0
        gaps = profiles[name].gaps()
        report(f"no kernel runs, {name}", sum(gap[0] for gap in gaps) / span, "%")
        for microseconds, before, after in gaps[:3]:
            report(f"longest gap, {name}", f"{microseconds:.0f} µs from {before[:50]} to {after[:50]}")


def _report_profile(report: Report, name: str, found: Profile, plain: Profile | None) -> None:
    report(f"{name}: launches per step", found.launches / found.steps)
    waits = sum(found.waits.values())
    report(f"{name}: waits per step", waits / found.steps)
    if plain is not None:
        # What diffusers' own loop waits for is not ours. A CPU reads the timestep as it comes, a GPU queues a copy.
        beyond = (waits - sum(plain.waits.values())) / found.steps
        most = 0 if torch.cuda.is_available() else 1
        report(f"{name}: waits per step beyond those without a cache", beyond, most=most)


def others(small: bool, report: Report) -> None:
    """Other caches with the same steps computed, in turn with ours."""
    call = _ready(scale_of(small), report)
    pipe = call.pipe
    ways: dict[str, Callable[[str], Cache]] = {
        "h2gen, skipped": lambda plan: planned(pipe, plan),
        "h2gen, both reused": lambda plan: planned(pipe, plan.replace("S", "R"), forecast=0),
        "FirstBlockCache, its check and the plan's decision": lambda plan: lambda: _first_block_cache(pipe, plan),
        "cache-dit, static mask": lambda plan: lambda: _cache_dit(pipe, plan),
    }
    for title, plan in {"fast": FAST[: call.scale.steps], "ultra": ULTRA[: call.scale.steps]}.items():
        with count_blocks(pipe.transformer):  # as below
            uncached = seconds_of(call)
        for name, way in ways.items():
            with report.attempt(f"{title}: {name}"):
                with count_blocks(pipe.transformer) as count:
                    seconds = seconds_of(call, way(plan))
                compare(report, f"{title}: {name}", [uncached], [seconds], count.share, aim=None)


@contextmanager
def _first_block_cache(pipe: Any, plan: str) -> Iterator[None]:
    """diffusers' cache: it checks each step as always, and then does as the plan says."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks.first_block_cache import FBCHeadBlockHook

    original = FBCHeadBlockHook._should_compute_remaining_blocks
    letters: list[str] = []

    def decide(self: Any, residual: torch.Tensor) -> bool:
        original(self, residual)
        letters[:] = letters or list(plan)
        return letters.pop(0) == "F"

    transformer = pipe.transformer
    with left_as_found(transformer), contexts(pipe):
        transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        FBCHeadBlockHook._should_compute_remaining_blocks = decide
        try:
            yield
        finally:
            FBCHeadBlockHook._should_compute_remaining_blocks = original
            transformer.disable_cache()


@contextmanager
def _cache_dit(pipe: Any, plan: str) -> Iterator[None]:
    """cache-dit's DBCache with a static mask: its first block runs at every step, and nothing is checked."""
    cache_dit: Any = import_module("cache_dit")
    with quiet(), left_as_found(pipe.transformer):
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=1,
            num_inference_steps=len(plan),
            steps_computation_mask=[int(letter == "F") for letter in plan],
            steps_computation_policy="static",
        )
        cache_dit.enable_cache(pipe, cache_config=config)
        try:
            yield
        finally:
            cache_dit.disable_cache(pipe)


def offload(small: bool, report: Report) -> None:
    """Group offloading: h2gen's, which knows the plan, with and without fetching ahead; and diffusers' own."""
    scale = scale_of(small)
    if scale.cuda:  # a third of the blocks, which are what moves: main memory is pinned for all of them, three times
        scale = replace(scale, config={**scale.config, "num_layers": 6, "num_single_layers": 12})
        report("blocks, of 57", 6 + 12)
    ways: dict[str, Callable[[Any, torch.device], Any]] = {
        "h2gen": offload_groups,
        "h2gen, nothing fetched ahead": partial(offload_groups, ahead=False),
        "diffusers": _offload_by_diffusers,
    }
    base = None
    for name, place in ways.items():
        with report.attempt(name):
            base = _measure_offload(name, place, scale, report, base)
        gc.collect()


def _measure_offload(
    name: str, place: Callable[[Any, torch.device], Any], scale: Scale, report: Report, base: float | None
) -> float | None:
    """Report one way, in shares of ``base``: the seconds of h2gen's full step, or None if that failed.

    Returns:
        ``base``; its own full step if this way is h2gen.
    """

    def report_step(title: str, seconds: float) -> None:
        report(title, seconds, "s", share=None if base is None else seconds / base)

    pipe = make_pipeline(scale)
    pipe.transformer.to("cpu")
    started = time.perf_counter()
    placed = place(pipe, scale.device)
    report(f"{name}: preparing", time.perf_counter() - started, "s")
    call = Caller(pipe, scale)
    _reset_memory(scale)
    full = steps_of(call, steps=3)[-1]  # diffusers looks at the first one for the order of the blocks
    if name == "h2gen":
        base = full
    report_step(f"{name}: full step, no cache", full)
    if placed is not None:  # diffusers never fetches the block after one that is skipped
        with report.attempt(f"{name}, in a plan"):  # of its own: the other ways' shares are of this one's step
            fetched, plan = placed.moves.fetched, "FFSDRF"
            steps = steps_of(call, planned(pipe, plan), len(plan))
            for letter, seconds in list(zip(plan, steps, strict=True))[2:]:
                report_step(f"{name}, in a plan: {OUTCOMES[letter].format('forecast')}", seconds)
            report(f"{name}: blocks fetched by the plan {plan}", placed.moves.fetched - fetched)
    _report_memory(report, scale, name)
    return base


def _offload_by_diffusers(pipe: Any, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        pipe.transformer,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
        record_stream=device.type == "cuda",
    )


def tests(small: bool, report: Report) -> None:
    """The tests that need a GPU, which are skipped without one."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        allowed = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning")
        command = [sys.executable, "-m", "pytest", "-v", "-rs", "-m", "gpu", "-p", "no:cacheprovider", *allowed]
        status = subprocess.run([*command, f"--junitxml={found}", *map(str, files)], cwd=ROOT).returncode
        if not found.exists():
            raise RuntimeError(f"pytest ended with status {status}, see the log; it needs: pip install -e '.[test]'")
        suite = next(ElementTree.parse(found).iter("testsuite"))
    report("files", len(files))
    for name in ("tests", "skipped"):
        report(name, int(suite.get(name, 0)))
    if suite.get("tests") == suite.get("skipped"):
        report("failed", "nothing ran: all tests were skipped", most=0)
        if not small:
            raise RuntimeError("all tests were skipped; log.txt has their reasons")
    else:
        report("failed", int(suite.get("failures", 0)) + int(suite.get("errors", 0)), most=0)
    for case in suite.iter("testcase"):
        for fault in (*case.iter("failure"), *case.iter("error")):
            lines = (fault.get("message") or "").splitlines() or [""]
            report(f"{case.get('classname')}::{case.get('name')}", lines[0][:200])


def _ready(scale: Scale, report: Report) -> Caller:
    """A pipeline on the device that has run once."""
    started = time.perf_counter()
    call = Caller(make_pipeline(scale), scale)
    wait(scale)
    parameters = sum(parameter.numel() for parameter in call.pipe.transformer.parameters())
    report("parameters", f"{parameters / 1e9:.2f} billion" if scale.cuda else str(parameters))
    report("making the model", time.perf_counter() - started, "s")
    _reset_memory(scale)
    latents = call(len(ALIKE[:2]))
    if not torch.isfinite(latents).all():
        raise RuntimeError("the random model's latents are not finite; its times would mean nothing")
    return call


def _reset_memory(scale: Scale) -> None:
    if scale.cuda:
        torch.cuda.reset_peak_memory_stats()


def _report_memory(report: Report, scale: Scale, name: str = "") -> None:
    if scale.cuda:
        title = "peak memory on the GPU"
        report(f"{name}: {title}" if name else title, torch.cuda.max_memory_allocated() / 2**30, "GiB")
