"""What does not go with ``--devices`` is said before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from h2gen.errors import DeviceError, SettingError, UsageError
from h2gen.settings.resolve import resolve_request
from tests.small import flux3_transformer


def request(**given: Any) -> Any:
    return resolve_request("a cat", {"devices": 2, **given}, {})


def test_it_is_how_the_model_is_loaded() -> None:
    assert request().load.devices == 2
    assert resolve_request("a cat", {}, {}).load.devices == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda:1"}, "--device cuda:1 names one device, and --devices 2 needs several; give only one."),
        ({"device": "mps"}, "--devices 2 needs CUDA devices, or the CPU; leave out --device mps."),
        ({"offload": "model"}, "--devices 2 keeps the whole model on each device; leave out --offload model."),
        ({"compile": True}, "--compile does not work with --devices 2; leave one of them out."),
        ({"quantize": "int8"}, "--quantize does not work with --devices 2; leave one of them out."),
        ({"devices": 0}, "--devices is 0; give a whole number from 1 to 64."),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        request(**given)
    assert str(caught.value) == message


def test_devices_must_be_able_to_share_the_heads() -> None:
    with pytest.raises(DeviceError) as caught:
        request(devices=3)
    assert str(caught.value) == "3 devices cannot share the 2 attention heads of this model; use --devices 2."


def test_a_model_that_is_not_downloaded_yet_is_checked_once_it_is_loaded() -> None:
    assert request(model="dev", devices=5).load.devices == 5


def test_a_family_that_diffusers_cannot_split_is_refused(tmp_path: Path) -> None:
    flux3_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux3ModularPipeline"}', encoding="utf-8")
    with pytest.raises(UsageError, match="does not work with"):
        request(model=str(tmp_path))
