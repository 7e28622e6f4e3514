"""No more than necessary stays in main memory, and running out of memory is recognised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from h2gen.cache import h2_cache
from h2gen.errors import DeviceError
from h2gen.models import apply_offload, is_out_of_memory, load_pipeline, resolve
from h2gen.models.memory import component_bytes, offload_groups
from tests import small

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def test_a_pipelines_parts_are_weighed_in_bytes():
    pipe = small.flux_pipeline()
    sizes = component_bytes(pipe)
    assert set(sizes) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    count = sum(parameter.numel() for parameter in pipe.vae.parameters())
    assert sizes["vae"] == 4 * count


@pytest.mark.parametrize("mode", ["text", "model", "group", "sequential"])
def test_offloading_from_the_cpu_is_refused(mode):
    with pytest.raises(DeviceError, match="the device is the CPU"):
        load_pipeline(resolve("tiny"), device="cpu", offload=mode)


def test_a_word_that_is_no_offloading_is_refused():
    with pytest.raises(DeviceError, match="did you mean 'model'"):
        apply_offload(small.flux_pipeline(), "modle", CPU)


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
@pytest.mark.parametrize("mode", ["none", "text", "model", "group", "sequential"])
def test_every_way_of_offloading_paints_the_same_picture(mode):
    pipe = small.flux_pipeline()
    expected = pipe(**small.run_kwargs(pipe)).images
    apply_offload(pipe, mode, CUDA)
    assert abs(pipe(**small.run_kwargs(pipe)).images - expected).max() < 1e-2
