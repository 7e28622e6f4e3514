"""No more than necessary stays in main memory, and running out of memory is recognised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from h2gen.cache import h2_cache
from h2gen.errors import DeviceError
from h2gen.models import apply_offload, is_out_of_memory, load_pipeline, memory, resolve
from h2gen.models.memory import component_bytes, offload_groups, pick_offload
from tests import small

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "free, mode", [(1000, "none"), (375, "none"), (374, "model"), (250, "model"), (249, "group"), (0, "group")]
)
def test_no_more_is_offloaded_than_has_to_be(free, mode):
    assert pick_offload(free, {"transformer": 200, "text_encoder": 90, "vae": 10}) == mode


def test_a_pipelines_parts_are_weighed_in_bytes():
    pipe = small.flux_pipeline()
    sizes = component_bytes(pipe)
    assert set(sizes) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    count = sum(parameter.numel() for parameter in pipe.vae.parameters())
    assert sizes["vae"] == 4 * count


def test_auto_offloads_nothing_on_the_cpu():
    assert apply_offload(small.flux_pipeline(), "auto", CPU) == "none"


@pytest.mark.parametrize("mode", ["model", "group", "sequential"])
def test_offloading_from_the_cpu_is_refused(mode):
    with pytest.raises(DeviceError, match="the device is the CPU"):
        load_pipeline(resolve("tiny"), device="cpu", offload=mode)


def test_a_word_that_is_no_offloading_is_refused():
    with pytest.raises(DeviceError, match="did you mean 'model'"):
        apply_offload(small.flux_pipeline(), "modle", CPU)


class Recorder:
    """A fake pipeline on a GPU, which records calls."""

    def __init__(self) -> None:
        self.components = {"transformer": torch.nn.Linear(10, 10, bias=False), "vae": torch.nn.Linear(5, 5, bias=False)}
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.calls.append(name)


@pytest.mark.parametrize(
    "mode, free, used, call",
    [
        ("none", 0, "none", "to"),
        ("model", 0, "model", "enable_model_cpu_offload"),
        ("sequential", 0, "sequential", "enable_sequential_cpu_offload"),
        ("auto", 10_000, "none", "to"),
        ("auto", 520, "model", "enable_model_cpu_offload"),
    ],
)
def test_a_gpu_is_given_what_fits(monkeypatch, mode, free, used, call):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    pipe = Recorder()
    assert (apply_offload(pipe, mode, CUDA), pipe.calls) == (used, [call])


@pytest.mark.parametrize("make", [small.flux_pipeline, small.flux2_klein_pipeline])
def test_a_pipeline_in_groups_makes_the_same_picture_with_a_cache_that_skips_some(make):
    """The CPU acts as the GPU: the hooks are real, and nothing may be computed before it was loaded."""
    fetched = []
    for groups in (False, True):
        pipe = make()
        pipe.set_progress_bar_config(disable=True)
        if groups:
            offload_groups(pipe, CPU)
        with h2_cache(pipe, tau1=1e9, tau2=1e9, max_consecutive=2) as trace:
            fetched.append(pipe(**small.run_kwargs(pipe, steps=4)).images)
        assert trace.summary.all_reused > 0
    assert np.array_equal(*fetched)


def test_group_offloading_is_what_auto_ends_with(monkeypatch):
    used = []
    monkeypatch.setattr(memory, "free_memory", lambda device: 100)
    monkeypatch.setattr(memory, "offload_groups", lambda pipe, device: used.append(device))
    assert apply_offload(Recorder(), "auto", CUDA) == "group"
    assert used == [CUDA]


@pytest.mark.parametrize(
    "error, is_memory",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, is_memory):
    assert is_out_of_memory(error) is is_memory


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["none", "model", "group", "sequential", "auto"])
def test_every_way_of_offloading_paints_the_same_picture(mode):
    pipe = small.flux_pipeline()
    expected = pipe(**small.run_kwargs(pipe)).images
    apply_offload(pipe, mode, CUDA)
    assert abs(pipe(**small.run_kwargs(pipe)).images - expected).max() < 1e-2
