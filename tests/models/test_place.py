"""A model is placed so that it fits into the device's memory; the CPU stands in for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from h2gen.cache import h2_cache
from h2gen.models import place as placing
from h2gen.models import resolve, text_first
from h2gen.models.choices import WAYS
from h2gen.models.facts import facts_of
from h2gen.models.footprint import MEGAPIXEL, Work, footprint
from h2gen.models.load_options import LoadOptions
from h2gen.models.memory import free_memory
from h2gen.models.memory_needed import memory_needed
from h2gen.models.place import check_host_memory, parts_of_pipe, place
from tests import small

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
AUTO = LoadOptions(offload="auto")
WORK = Work(64 * 64, 1, 32, value=4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A stand-in for a GPU: how much of its memory is free, and which ways fail. Returns the ways tried."""

    def make(free: int, *full: str) -> list[str]:
        tried: list[str] = []

        def apply_offload(_pipe: Any, mode: str, _device: torch.device) -> str:
            tried.append(mode)
            if mode in full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return mode

        monkeypatch.setattr(placing, "free_memory", lambda _device: free)
        monkeypatch.setattr(placing, "apply_offload", apply_offload)
        return tried

    return make


@pytest.mark.parametrize("make", [small.flux_pipeline, small.flux2_klein_pipeline, small.chroma_pipeline])
def test_parts_are_measured_as_they_were_computed_from_their_files(make: Callable[[], Any], tmp_path: Path) -> None:
    pipe = make()
    pipe.save_pretrained(tmp_path)
    checkpoint = resolve(str(tmp_path))
    facts = facts_of(checkpoint)
    assert facts is not None
    needed = memory_needed(checkpoint, facts, 4)
    assert needed is not None
    for way, size in footprint(parts_of_pipe(pipe), WORK).items():
        assert footprint(needed.parts, WORK)[way] == pytest.approx(size, rel=1e-3)
    assert {part.width for part in parts_of_pipe(pipe)} == {part.width for part in needed.parts}


@pytest.mark.parametrize("way", WAYS)
def test_auto_takes_the_fastest_way_that_fits_and_says_so(way: str, gpu: Callable[..., list[str]]) -> None:
    pipe, said = small.flux_pipeline(), []
    needs = footprint(parts_of_pipe(pipe), WORK)
    tried = gpu(needs[way])
    fastest = next(other for other in WAYS if needs[other] == needs[way])  # small blocks need no more than layers
    assert place(pipe, AUTO, CUDA, WORK, said.append) == fastest
    assert tried == [fastest] and len(said) == 1 and said[0].startswith("Memory: ")


def test_a_limit_stands_for_the_free_memory(gpu: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, said, fractions = small.flux_pipeline(), [], []
    needs = footprint(parts_of_pipe(pipe), WORK)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: type("Card", (), {"total_memory": 10**10}))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    # As torch does, which refuses a device without an index.
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: fractions.append((share, int(device)))
    )
    tried = gpu(10**12)
    limit = f"{needs['model'] / 1e6 + 0.01:.6f}MB"
    for device in (CUDA, torch.device("cuda")):  # the latter is what "auto" and "cuda" mean
        place(pipe, LoadOptions(offload="auto", memory=limit), device, WORK, said.append)
    assert tried == ["model", "model"] and all("that --memory allows" in line for line in said)
    share = pytest.approx(needs["model"] / 1e10, rel=1e-3)
    assert fractions == [(share, 0), (share, 3)]
    for _ in range(2):  # a model that is loaded later has no limit
        place(pipe, AUTO, CUDA, WORK)
        place(pipe, AUTO, torch.device("cuda"), WORK)
    assert fractions[2:] == [(1.0, 0), (1.0, 3)]


def test_without_a_choice_nothing_is_decided_or_said(gpu: Callable[..., list[str]]) -> None:
    pipe, said = small.flux_pipeline(), []
    tried = gpu(0)
    assert place(pipe, LoadOptions(offload="auto", memory="none"), CUDA, WORK, said.append) == "none"
    assert place(pipe, LoadOptions(offload="model"), CUDA, WORK, said.append) == "model"
    assert place(pipe, AUTO, CPU, WORK, said.append) == "none"
    assert (tried, said) == (["none", "model", "none"], [])


@pytest.mark.parametrize(("free", "said"), [(10**9, False), (10**6, True)])
def test_what_the_cache_keeps_in_main_memory_has_to_fit_there(
    free: int, said: bool, gpu: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(10**12)
    monkeypatch.setattr(placing, "free_host_memory", lambda: free)
    pipe, lines = small.flux_pipeline(), []
    work = replace(WORK, host_tokens=10**5, pictures=2)
    place(pipe, LoadOptions(offload="none"), CUDA, work, lines.append)
    needed = f"{2 * 10**5 * pipe.transformer.inner_dim * WORK.value / 1e6:.0f}"
    line = (
        f"Memory: the cache needs {needed} MB of main memory with --cache-memory cpu, but only 1 MB is free; it will "
        "probably run out. Use --cache-memory fp8, or leave out --cache-memory."
    )
    assert lines == [line] * said


def test_memory_that_torch_keeps_of_an_earlier_model_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"mem_get_info": (5, 80), "memory_reserved": 40, "memory_allocated": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert free_memory(CUDA) == 35


def test_if_memory_runs_out_all_the_same_the_next_way_is_taken(gpu: Callable[..., list[str]]) -> None:
    pipe, said = small.flux_pipeline(), []
    tried = gpu(10**12, "none", "text")
    assert place(pipe, AUTO, CUDA, WORK, said.append) == "model" and tried == ["none", "text", "model"]
    assert said[1:] == [
        "Out of memory on cuda:0 while loading; trying again with --offload text.",
        "Out of memory on cuda:0 while loading; trying again with --offload model.",
    ]
    tried = gpu(10**12, "none")
    assert place(pipe, AUTO, CUDA, WORK, without={"text", "model"}) == "group" and tried == ["none", "group"]
    assert place(pipe, AUTO, CUDA, WORK, without={"none"}) == "text"
    gpu(10**12, "none")
    with pytest.raises(torch.OutOfMemoryError):
        place(pipe, LoadOptions(offload="none"), CUDA, WORK, said.append)


@pytest.mark.parametrize(("free", "said"), [(10**12, 0), (10**6, 1)])
def test_a_cpu_is_only_mentioned_if_main_memory_does_not_suffice(
    free: int, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.flux_pipeline().save_pretrained(tmp_path)
    monkeypatch.setattr(placing, "free_host_memory", lambda: free)
    lines: list[str] = []
    check_host_memory(resolve(str(tmp_path)), AUTO, torch.float32, MEGAPIXEL, lines.append)
    assert len(lines) == said and all("main memory, more than the 1 MB that is free" in line for line in lines)
    lines.clear()
    check_host_memory(resolve("tiny"), AUTO, torch.float32, MEGAPIXEL, lines.append)
    check_host_memory(resolve(str(tmp_path)), LoadOptions(memory="none"), torch.float32, MEGAPIXEL, lines.append)
    assert lines == []


@pytest.mark.parametrize("make", [small.flux_pipeline, small.flux2_klein_pipeline, small.flux3_pipeline])
def test_text_encoders_and_the_transformer_take_turns(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain, moved = make(), make(), []
    real = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        name = next((name for name, part in pipe.components.items() if part is self), None)
        if name is not None:
            moved.append(name)
        return real(self, *args, **kwargs)

    text_first.offload_text(pipe, CPU)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    encoders = [name for name in pipe.components if name.startswith("text_encoder")]
    order, before = [*encoders, "transformer"], None
    for prompt in ("a cat", "a dog"):
        moved.clear()
        assert np.array_equal(
            *(each(**small.run_kwargs(each, steps=2, prompt=prompt)).images for each in (pipe, plain))
        )
        pairs = zip([before, *order], order, strict=False)
        assert moved == [name for pair in pairs for name in pair if name is not None]
        before = "transformer"
    if "prompt_embeds" in getattr(pipe, "_callback_tensor_inputs", ()) and make is small.flux_pipeline:
        embeddings, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=16)
        arguments = {**small.run_kwargs(pipe, steps=2), "prompt": None}
        moved.clear()
        with h2_cache(pipe, tau1=1e9, tau2=1e9):
            for _ in range(2):
                pipe(**arguments, prompt_embeds=embeddings, pooled_prompt_embeds=pooled)
        assert moved == [encoders[-1], "transformer"]  # nothing left it for the second picture


def test_loading_a_lora_leaves_text_encoders_offloaded_as_they_were(tmp_path: Path) -> None:
    pipe = small.flux_pipeline()
    text_first.offload_text(pipe, CPU)
    hooks = {name: getattr(part, "_hf_hook", None) for name, part in pipe.components.items()}
    from diffusers.loaders.lora_base import _func_optionally_disable_offloading

    assert not any(_func_optionally_disable_offloading(pipe))
    assert {name: getattr(part, "_hf_hook", None) for name, part in pipe.components.items()} == hooks
    assert pipe._execution_device == CPU
