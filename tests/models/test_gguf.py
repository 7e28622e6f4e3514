"""Every type of GGUF that diffusers computes with is read as the gguf package reads it; others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter, dequantize_gguf_tensor

from h2gen.errors import ModelError
from h2gen.models import load_pipeline, resolve
from tests import checkpoints, small

WIDTH = 256
"""Of the token streams: weights of k-quants come in blocks of 256."""
KINDS = [*(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES), "F16", "F32"]
OTHERS = [
    kind.name
    for kind, (size, _) in gguf.GGML_QUANT_SIZES.items()
    if kind.name not in KINDS and size <= WIDTH and not kind.name.startswith("I1") and kind.name != "F64"
]


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    small.flux_pipeline(transformer=wide()).save_pretrained(folder)
    return folder


def wide() -> Any:
    return small.flux_transformer(layers=1, single_layers=1, attention_head_dim=64, num_attention_heads=WIDTH // 64,
                                  axes_dims_rope=(16, 24, 24))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_type_that_diffusers_has_are_what_the_gguf_package_reads(wide_folder, tmp_path, kind):
    file = checkpoints.save_gguf(wide(), tmp_path / "flux.gguf", kind, size=WIDTH)
    model = load_pipeline(resolve(str(file), str(wide_folder)), device="cpu", dtype="fp32").transformer
    weights = dict(model.named_parameters())
    seen = 0
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type.name != kind:
            continue
        weight = weights[tensor.name]
        read = dequantize_gguf_tensor(weight) if isinstance(weight, GGUFParameter) else weight
        meant = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(read.detach().float().numpy(), meant, rtol=1e-3, atol=1e-3 * np.abs(meant).max())
        seen += 1
    assert seen > 10
    inputs = {"hidden_states": torch.ones(1, 4, 16), "encoder_hidden_states": torch.ones(1, 2, small.HIDDEN)}
    more = {"pooled_projections": torch.ones(1, small.HIDDEN), "guidance": torch.ones(1), "timestep": torch.ones(1)}
    with torch.no_grad():
        output = model(**inputs, **more, img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(2, 3)).sample
    assert output.shape == (1, 4, 16) and output.isfinite().all()


@pytest.mark.parametrize("kind", OTHERS)
def test_a_type_that_diffusers_does_not_have_is_refused_by_name(wide_folder, tmp_path, kind):
    file = checkpoints.save_gguf(wide(), tmp_path / "flux.gguf", kind, size=WIDTH)
    with pytest.raises(ModelError) as caught:
        load_pipeline(resolve(str(file), str(wide_folder)), device="cpu")
    message = str(caught.value)
    assert f"as {kind}, which diffusers cannot compute with; use a file of one of these types: " in message
    assert "Q8_0" in message and message.isprintable() and len(message) < 600
