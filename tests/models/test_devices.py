"""The device and the dtype are chosen from what this machine has."""

from __future__ import annotations

import pytest
import torch

from h2gen.errors import DeviceError
from h2gen.models import choose_device, choose_dtype, devices

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def present(monkeypatch):
    """Pretend that other devices exist."""
    return lambda **counts: monkeypatch.setattr(devices, "devices", lambda: counts)


@pytest.mark.parametrize(
    "there, chosen",
    [
        ({"cuda": 2, "cpu": 1}, "cuda"),
        ({"mps": 1, "cpu": 1}, "mps"),
        ({"xpu": 1, "cpu": 1}, "xpu"),
        ({"cpu": 1}, "cpu"),
    ],
)
def test_auto_takes_the_best_device_there_is(present, there, chosen):
    present(**there)
    assert choose_device("auto") == torch.device(chosen)


def test_a_device_can_be_one_of_several(present):
    present(cuda=2, cpu=1)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="cuda:0 to cuda:1, cpu"):
        choose_device("cuda:2")


def test_a_device_that_is_not_there_is_refused_with_those_that_are(present, monkeypatch):
    present(cpu=1)
    with pytest.raises(DeviceError, match=r"no device 'mps' here: PyTorch .* finds cpu; choose"):
        choose_device("mps")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(DeviceError, match=r"no device 'cuda' here: PyTorch .* finds cpu; choose"):
        choose_device("cuda")


def test_a_gpu_that_this_pytorch_was_built_without_is_refused_with_what_to_install(present, monkeypatch):
    present(cpu=1)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError, match=r"^No CUDA GPU: this PyTorch \(.*\) is CPU-only; install a CUDA"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "CUDA", "cuda:9999", "meta", "cpu\n", "\x1b"])
def test_a_word_that_is_no_device_is_refused(name):
    with pytest.raises(DeviceError) as caught:
        choose_device(name)
    assert str(caught.value).isprintable()


def test_this_machine_has_at_least_a_cpu():
    assert devices.devices()["cpu"] == 1
    assert choose_device("cpu") == CPU


def test_auto_computes_in_float32_on_the_cpu():
    assert choose_dtype("auto", CPU) is torch.float32


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "fp16", "float16", "fp32", "float32"])
def test_the_cpu_computes_in_every_dtype(name):
    dtype = choose_dtype(name, CPU)
    layer = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)).to(dtype)
    assert layer(torch.ones(1, 1, 2, 2, dtype=dtype)).dtype is dtype


@pytest.mark.parametrize("major, dtype", [(7, torch.float16), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_auto_computes_in_bf16_on_a_gpu_that_has_it(monkeypatch, major, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert choose_dtype("auto", CUDA) is dtype


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(DeviceError, match="does not support bf16; use fp16 or fp32"):
        choose_dtype("bf16", CUDA)


def test_auto_computes_in_fp16_on_apple_gpus():
    assert choose_dtype("auto", torch.device("mps")) is torch.float16


def test_a_word_that_is_no_dtype_is_refused():
    with pytest.raises(DeviceError, match=r"'bf61'; did you mean 'bf16'\?"):
        choose_dtype("bf61", CPU)
