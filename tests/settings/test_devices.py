"""What does not go with ``--devices`` is said before anything is loaded."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from h2gen.errors import DeviceError, SettingError, UsageError
from h2gen.models.catalogue import resolve
from h2gen.models.load_options import LoadOptions
from h2gen.settings.devices import check_picture
from h2gen.settings.resolve import resolve_request
from h2gen.settings.values import Settings
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "144x144"}, "size is 144x144, whose tokens, one per 16x16 pixels, {}; give 144x160, for example."),
        ({"size": "16x16"}, "size is 16x16, whose tokens, one per 16x16 pixels, {}; give 16x32, for example."),
        ({"max_sequence_length": 63}, "max_sequence_length is 63, which {}; give 62."),
        ({"max_sequence_length": 1}, "max_sequence_length is 1, which {}; give 2."),
    ],
)
def test_on_the_cpu_tokens_must_be_shared_out_evenly(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        request(device="cpu", **given)
    assert str(caught.value) == message.format("cannot be shared out evenly among 2 processes on the CPU")
    assert request(device="cuda", **given).load.devices == 2


def test_a_size_that_is_proposed_works() -> None:
    checkpoint = resolve("tiny")
    load, sides = LoadOptions(device="cpu", devices=6), range(16, 240, 16)
    proposed = set()
    for width, height in product(sides, sides):
        try:
            check_picture(load, Settings("a cat", 1, width, height, 2, max_sequence_length=60), checkpoint)
        except SettingError as error:
            proposed.add(str(error).split()[-3].rstrip(","))
    assert len(proposed) > 10
    for width, height in (map(int, each.split("x")) for each in proposed):
        check_picture(load, Settings("a cat", 1, width, height, 2, max_sequence_length=60), checkpoint)


def test_devices_must_be_able_to_share_the_heads() -> None:
    with pytest.raises(DeviceError) as caught:
        request(devices=3)
    assert str(caught.value) == "3 devices cannot share the 2 attention heads of this model; use --devices 2."


def test_a_model_that_is_not_downloaded_yet_is_checked_once_it_is_loaded() -> None:
    assert request(model="dev", device="cuda", devices=5).load.devices == 5


def test_a_family_that_diffusers_cannot_split_is_refused(tmp_path: Path) -> None:
    flux3_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux3ModularPipeline"}', encoding="utf-8")
    with pytest.raises(UsageError, match="does not work with"):
        request(model=str(tmp_path))
