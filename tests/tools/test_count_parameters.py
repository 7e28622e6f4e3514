"""The numbers of parameters in the catalogue are those of the models that diffusers and transformers build."""

from __future__ import annotations

import pytest

from h2gen.models.entries import CATALOGUE_FILE
from h2gen.toml import read_toml
from tests import small
from tools.count_parameters import count

PARTS = read_toml(CATALOGUE_FILE)["parts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_the_catalogue_has_the_counted_numbers(name: str) -> None:
    with small.no_warning_of_diffusers_own_import():
        counted = count(PARTS[name])
    assert {key: PARTS[name][key] for key in ("all", "block", "layer")} == {
        "all": counted.all,
        "block": counted.block,
        "layer": counted.layer,
    }
