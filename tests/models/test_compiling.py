"""Compiled blocks: how many graphs they need, with the cache, batches, LoRAs and offloading; and what cannot be.

Graphs are counted with torch's backend ``eager``, which is fast and exact; a few slow tests compile for real.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import h2gen
from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import DeviceError, RunError, SettingError
from h2gen.models import compiling
from h2gen.models.adapters import Adapters
from h2gen.models.compiling import check_compile, compile_blocks, compiled_run, run_eagerly
from h2gen.models.load_options import LoadOptions, check_together
from h2gen.models.memory import offload_groups
from h2gen.output.metadata import read_metadata
from h2gen.settings.inputs import FileRule, InputFile
from tests import loras, small
from tests.cache.drive import flux, flux2, run, same, thresholds

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    with compiled_run():
        yield
    torch._dynamo.reset()


def graphs() -> int:
    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def decisions(trace: Any) -> list[tuple[Any, ...]]:
    return [(step.structure.outcome, step.detail.outcome, step.blocks_run) for step in trace.steps]


POLICIES: dict[str, Callable[[Any], CacheConfig]] = {
    "thresholds": lambda model: CacheConfig(**thresholds(model, 0.5, 0.7)),
    "plan": lambda _: CacheConfig(plan="FFRDSFCS"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_are_those_of_eager_blocks_and_need_no_further_graph(policy: str) -> None:
    model = flux()
    config = POLICIES[policy](model)
    with h2_cache(model, config) as eager:
        wanted = run(model)
    compile_blocks(model)
    run(model, 1)
    compiled = graphs()
    with h2_cache(model, config) as trace:
        assert same(run(model), wanted)
    assert decisions(trace) == decisions(eager)
    assert min(step.blocks_run for step in trace.steps) < 5
    assert graphs() == compiled > 0


EVERY = ("flux", "flux2", "flux3", "chroma", "qwen_image", "z_image", "hunyuan_video", "wan")


@pytest.mark.parametrize("make", [getattr(small, f"{family}_transformer") for family in EVERY])
def test_the_blocks_of_every_family_are_compiled_and_a_copys_are_its_own(make: Callable[[], Any]) -> None:
    model = make()
    plain = copy.deepcopy(model)
    compile_blocks(model)
    other = copy.deepcopy(model)
    wrapped = [each for each in model.modules() if "forward" in vars(each)]
    assert len(wrapped) >= 6
    for block, copied in zip(wrapped, [each for each in other.modules() if "forward" in vars(each)], strict=True):
        assert vars(copied)["forward"]._block() is copied is not block
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_pictures_of_a_batch_that_skip_need_no_graph_per_number_of_pictures() -> None:
    model = flux2()
    compile_blocks(model)
    rows: list[int] = []
    model.transformer_blocks[1].register_forward_pre_hook(
        lambda _module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    run(model, 1, batch=4)
    several = graphs()
    with h2_cache(model, CacheConfig(**thresholds(model, 0.5, 0.7))):
        for seed in range(6):
            before = graphs()
            run(model, batch=4, seed=seed)
            if 1 not in rows:
                assert graphs() == several
    assert {2, 3} <= {*rows}
    assert graphs() <= 2 * several, "one picture alone takes a graph of its own, once"
    assert before == graphs()


@torch.no_grad()
def test_one_picture_of_a_batch_takes_the_same_graph_whichever_it_is() -> None:
    model = flux2()
    block, given = model.transformer_blocks[0], {}
    block.register_forward_pre_hook(lambda _module, _args, kwargs: given.update(kwargs), with_kwargs=True)
    run(model, 1, batch=4)
    compile_blocks(model)
    kwargs, counted, outputs = dict(given), [], []
    together = block(**kwargs)[1]
    for row in (2, 0, 3, 1):
        alone = {
            name: value[row : row + 1] if isinstance(value, torch.Tensor) and len(value) == 4 else value
            for name, value in kwargs.items()
        }
        outputs.append(block(**alone)[1])
        counted.append(graphs())
    assert counted == [2, 2, 2, 2]
    assert torch.allclose(torch.cat(outputs), together[[2, 0, 3, 1]], atol=1e-5)


def test_another_size_takes_one_more_graph_per_kind_of_block_and_a_third_none() -> None:
    model = flux2()
    compile_blocks(model)
    run(model, 1)
    first = graphs()
    run(model, 1, side=6)
    second = graphs()
    assert second <= 2 * first
    run(model, 1, side=8)
    run(model, 1, side=4)
    assert graphs() == second


def lora(path: Path, transformer: Any, seed: int, scale: float) -> InputFile:
    delta = loras.delta(transformer, loras.ATTENTION, seed)
    loras.save(path, loras.in_layout("diffusers", delta))
    (found,) = FileRule(scale=1.0).resolve("lora", path)
    return InputFile(found.name, found.sha256, scale, path=found.path)


@pytest.mark.parametrize("first", ["lora", "compile"])
def test_a_second_lora_of_the_same_rank_needs_no_graph_whatever_its_scale(first: str, tmp_path: Path) -> None:
    pipe, plain = small.quiet(small.flux_pipeline()), small.quiet(small.flux_pipeline())
    files = [lora(tmp_path / f"{seed}.safetensors", pipe.transformer, seed, 0.3 * seed) for seed in (1, 2)]
    adapters, eager = Adapters(), Adapters()
    call = {**small.run_kwargs(pipe, steps=2), "output_type": "np"}

    def pictures(files: list[InputFile]) -> tuple[Any, Any]:
        adapters.use(pipe, files, swap=True)
        eager.use(plain, files)
        call["generator"] = torch.Generator().manual_seed(1)
        made = pipe(**call).images
        call["generator"] = torch.Generator().manual_seed(1)
        return made, plain(**call).images

    if first == "compile":
        compile_blocks(pipe.transformer)
        pictures([])
    else:
        adapters.use(pipe, files[:1], swap=True)
        compile_blocks(pipe.transformer)
    one = pictures(files[:1])
    compiled = graphs()
    two = pictures(files[1:])
    again = pictures(files[:1])
    assert graphs() == compiled
    for made, wanted in (one, two, again):
        assert np.abs(made - wanted).max() < 1e-5
    assert np.abs(one[0] - two[0]).max() > 1e-4
    off = pictures([])
    assert np.array_equal(*off)


def test_offloading_in_groups_needs_no_graph_per_block() -> None:
    pipe, plain = small.quiet(small.flux_pipeline()), small.quiet(small.flux_pipeline())
    compile_blocks(plain.transformer)
    call = {**small.run_kwargs(pipe, steps=2), "output_type": "np"}
    plain(**{**call, "generator": torch.Generator().manual_seed(1)})
    alone = graphs()
    compile_blocks(pipe.transformer)
    offload_groups(pipe, CPU)
    config = CacheConfig(plan="FR")
    made = []
    for each in (pipe, plain):
        with h2_cache(each, config) as trace:
            made.append(each(**{**call, "generator": torch.Generator().manual_seed(1)}).images)
        assert [step.full for step in trace.steps] == [True, False]
    assert np.array_equal(*made)
    assert graphs() == alone


def test_without_a_compiler_it_is_refused_before_anything_is_loaded() -> None:
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        with pytest.raises(DeviceError, match=r"--compile needs a C\+\+ compiler; install it .*or leave out"):
            check_compile(CPU)
        with pytest.raises(DeviceError, match=r"--compile needs a C\+\+ compiler"):
            h2gen.load("tiny", device="cpu", compile=True)


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="--compile needs the package triton"):
        check_compile(torch.device("cuda"))


def test_a_compiler_that_fails_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(compiling, "BACKEND", fails)
    model, told = flux(), r"^Compiling the blocks failed \([^\n]*no space left[^\n]*\); leave out --compile\.$"
    compile_blocks(model)
    with pytest.raises(RunError, match=told), compiled_run():
        run(model, 1)


def test_compiling_can_be_undone() -> None:
    model = flux()
    compile_blocks(model)
    run_eagerly(model)
    run(model, 1)
    assert graphs() == 0
    assert not any("forward" in vars(each) for each in model.modules())


def test_with_sequential_offloading_it_is_refused() -> None:
    with pytest.raises(SettingError, match="--compile has no effect with --offload sequential"):
        check_together(LoadOptions(offload="sequential", compile=True))


def test_a_session_compiles_and_records_it_and_skips_by_tolerance_as_an_eager_one(tiny: Any, tmp_path: Path) -> None:
    session = h2gen.load("tiny", device="cpu", compile=True)
    settings = {"seed": 1, "steps": 6, "cfg": 1.0, "tolerance": 0.5}
    first = session.run(session.settings("a cat", **settings))
    compiled = graphs()
    wanted = tiny.run(tiny.settings("a cat", **settings))
    assert np.array_equal(first.image, wanted.image)
    assert decisions(first.trace) == decisions(wanted.trace)
    assert min(step.blocks_run for step in first.trace.steps) == 0
    session.run(session.settings("a red apple", **settings))
    assert graphs() == compiled > 0
    assert read_metadata(first.save(tmp_path / "a.png")).everything["compile"] is True


@pytest.mark.slow
def test_compiled_by_inductor_decisions_are_those_of_eager_blocks(tiny: Any) -> None:
    session = h2gen.load("tiny", device="cpu", compile=True)
    settings = {"seed": 1, "steps": 8, "cfg": 1.0, "tau1": 0.4, "tau2": 0.35}
    made, wanted = (each.generate("a cat", **settings) for each in (session, tiny))
    assert decisions(made.trace) == decisions(wanted.trace)
    assert {step.full for step in made.trace.steps} == {True, False}
    difference = np.abs(np.asarray(made.image, np.int16) - np.asarray(wanted.image, np.int16))
    assert difference.max() <= 2
    compiled = graphs()
    session.generate("a red apple", **settings)
    session.generate("a cat", **{**settings, "plan": "FFRDSFCS", "tau1": None, "tau2": None})
    assert graphs() == compiled


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["none", "group"])
def test_on_a_gpu_decisions_are_those_of_eager_blocks(offload: str) -> None:
    sessions = [h2gen.load("tiny", device="cuda", offload=offload, compile=compile) for compile in (True, False)]
    settings = {"seed": 1, "steps": 8, "cfg": 1.0, "plan": "FFRDSFCS"}
    made, wanted = (session.generate("a cat", **settings) for session in sessions)
    assert decisions(made.trace) == decisions(wanted.trace)
    difference = np.abs(np.asarray(made.image, np.int16) - np.asarray(wanted.image, np.int16))
    assert difference.mean() < 2
    compiled = graphs()
    sessions[0].generate("a red apple", **settings)
    assert graphs() == compiled
