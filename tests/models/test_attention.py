"""Attention backends by diffusers' names: known, there, used inside the context only, and recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import h2gen
from h2gen.batches.jobs import job_id
from h2gen.cli.app import run
from h2gen.errors import DeviceError, ModelError, RunError, SettingError
from h2gen.generation.kernels import kernels
from h2gen.models.attention import attending, check_attention
from h2gen.models.attention_names import ANYWHERE, ATTENTIONS, PACKAGES
from h2gen.models.load_options import LoadOptions
from h2gen.output.metadata import read_metadata
from tests import small

QUICK: dict[str, Any] = {"seed": 1, "steps": 4, "cfg": 1.0, "plan": "FRDS"}


def test_the_names_are_diffusers_own_apart_from_devices_that_h2gen_does_not_use() -> None:
    assert {each.value for each in AttentionBackendName} - {"_native_npu", "_native_xla"} == {*PACKAGES}
    assert {*ANYWHERE} < {*PACKAGES}


@pytest.mark.parametrize(
    ("name", "says"),
    [("flsh_hub", "; did you mean 'flash_hub'?"), ("nonsense", "; choose default, native, flex, flash, sage or xfo")],
)
def test_an_unknown_name_is_reported_with_the_closest_or_the_usual_ones(tiny: Any, name: str, says: str) -> None:
    with pytest.raises(SettingError, match=f"attention '{name}' is not supported{re.escape(says)}"):
        tiny.settings("a cat", attention=name)


@pytest.mark.parametrize("name", [name for name, package in PACKAGES.items() if package is not None])
def test_without_its_package_a_backend_is_refused_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("h2gen.models.attention_names.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("h2gen.generation.session.open_session", None)
    assert run(["a cat", "--attention", name]) == 2  # with nowhere to load it from
    said = capsys.readouterr().err
    assert f"--attention {name} needs the package" in said
    assert "pip install" in said


def test_a_backend_of_gpus_is_refused_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--device", "cpu", "--attention", "_native_cudnn"]) == 2
    assert "--attention _native_cudnn needs a CUDA or ROCm GPU, and the device is cpu" in capsys.readouterr().err


def test_half_precision_is_asked_for_where_a_backend_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2gen.models.attention_names.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("h2gen.models.attention.choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(DeviceError, match="--attention sage does not compute in fp32; give --dtype bf16"):
        check_attention("sage", "cuda", "fp32")


def test_it_is_used_inside_the_context_and_all_is_as_before_after_it() -> None:
    pipe = small.quiet(small.flux_pipeline())
    used: list[Any] = []
    processor = pipe.transformer.transformer_blocks[0].attn.processor
    before = processor._attention_backend, _AttentionBackendRegistry._active_backend
    pipe.transformer.register_forward_hook(lambda *_: used.append(processor._attention_backend))
    call = {**small.run_kwargs(pipe, steps=2), "output_type": "np"}
    with attending(pipe.transformer, "_native_math"):
        assert _AttentionBackendRegistry._active_backend == before[1], "other models keep theirs"
        made = pipe(**{**call, "generator": torch.Generator().manual_seed(1)}).images
    assert {each.value for each in used} == {"_native_math"}
    assert (processor._attention_backend, _AttentionBackendRegistry._active_backend) == before
    plain = small.quiet(small.flux_pipeline())
    plain.transformer.set_attention_backend("_native_math")
    wanted = plain(**{**call, "generator": torch.Generator().manual_seed(1)}).images
    plain.transformer.reset_attention_backend()
    _AttentionBackendRegistry.set_active_backend(before[1])
    assert np.array_equal(made, wanted), "as plain diffusers makes it"


def test_a_backend_that_fails_is_reported_in_one_line_and_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small.quiet(small.flux_pipeline())

    def fails(**_: Any) -> Any:
        raise ValueError("attn_mask is not supported")

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH, fails)
    with (
        pytest.raises(RunError, match=r"^--attention _native_math failed \(attn_mask is not supported\); leave it out"),
        attending(pipe.transformer, "_native_math"),
    ):
        pipe(**small.run_kwargs(pipe, steps=1))
    assert pipe.transformer.transformer_blocks[0].attn.processor._attention_backend is None


def test_it_is_recorded_only_if_it_is_given(tiny: Any, tmp_path: Path) -> None:
    plain = tiny.generate("a cat", **QUICK, out=tmp_path / "plain.png")
    made = tiny.generate("a cat", **QUICK, attention="_native_math", out=tmp_path / "math.png")
    assert "attention" not in read_metadata(plain.path).everything["settings"]
    found = read_metadata(made.path)
    assert found.everything["settings"]["attention"] == found.settings.attention == "_native_math"
    assert job_id(made.settings, "", "float32") != job_id(plain.settings, "", "float32")
    assert [step.blocks_run for step in made.trace.steps] == [step.blocks_run for step in plain.trace.steps]


def test_no_name_is_given_twice() -> None:
    assert len({*ATTENTIONS}) == len(ATTENTIONS)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["_native_cudnn", "_native_flash", "_native_efficient"])
def test_on_a_gpu_torchs_own_backends_make_nearly_the_same_picture(name: str) -> None:
    session = h2gen.load("tiny", device="cuda", dtype="bf16")
    made, wanted = (session.generate("a cat", **QUICK, attention=each) for each in (name, "default"))
    difference = np.abs(np.asarray(made.image, np.int16) - np.asarray(wanted.image, np.int16))
    assert difference.mean() < 4


def test_with_offloading_the_device_counts_and_not_where_the_weights_are_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    monkeypatch.setattr("h2gen.models.attention.choose_device", torch.device)
    transformer = small.quiet(small.flux_pipeline()).transformer
    settings = replace(tiny.settings("a cat"), attention="_native_cudnn")
    with kernels(transformer, settings, LoadOptions("cuda", offload="model")):
        assert transformer.transformer_blocks[0].attn.processor._attention_backend == "_native_cudnn"
    with (
        pytest.raises(DeviceError, match="the device is cpu"),
        kernels(transformer, settings, LoadOptions("cpu", offload="none")),
    ):
        pass


def test_a_solver_that_is_refused_leaves_no_backend_behind(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refused(*_: Any) -> Iterator[None]:
        raise ModelError("no flow matching")
        yield

    monkeypatch.setattr("h2gen.generation.session.solving", refused)
    processor = next(each.processor for each in tiny.pipe.transformer.modules() if hasattr(each, "processor"))
    before = processor._attention_backend
    with pytest.raises(ModelError) as caught:
        tiny.generate("a cat", **QUICK, attention="_native_math", progress=False)
    assert processor._attention_backend == before, caught  # which keeps what garbage collection would undo
