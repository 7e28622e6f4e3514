"""Every command runs in its own folder; the bundled model's files are read once for all that run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="package", autouse=True)
def bundled_read_once() -> Iterator[None]:
    """Each run has copies of the weights. How they are loaded is tested in tests/models."""
    from h2gen.models import load

    assemble, read = load._assemble, {}

    def copied(checkpoint: Any, dtype: Any, quantizer: Any) -> Any:
        if checkpoint.kind != "bundled" or checkpoint.parts or set(quantizer.names.values()) != {"none"}:
            return assemble(checkpoint, dtype, quantizer)
        key = checkpoint.location, dtype, quantizer.device
        if key not in read:
            read[key] = assemble(checkpoint, dtype, quantizer)
        pipe = copy(read[key])
        for name, part in read[key].components.items():
            setattr(pipe, name, part if "tokenizer" in name else deepcopy(part))
        return pipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_assemble", copied)
        yield
