"""Which tokens are the picture's own, by the ids that diffusers' pipelines make."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline
from diffusers.pipelines.visualcloze.pipeline_visualcloze_generation import VisualClozeGenerationPipeline

from h2gen.families.token_grid import own_tokens

CPU = torch.device("cpu")


def test_tokens_of_reference_pictures_are_not_the_pictures_own() -> None:
    ids = FluxPipeline._prepare_latent_image_ids(1, 2, 3, CPU, torch.bfloat16)
    reference = ids.clone()
    reference[:, 0] = 1  # as Kontext's
    both = torch.cat([ids, reference])
    for given in (both, both[None].repeat(2, 1, 1)):
        assert own_tokens(given, 12, CPU).tolist() == 6 * [1.0] + 6 * [0.0]
    assert own_tokens(ids, 6, CPU).tolist() == 6 * [1.0]


def test_a_grid_of_pictures_that_is_made_as_a_whole_has_no_reference_pictures() -> None:
    rows = [torch.zeros(1, 3, 32, 64), torch.zeros(1, 3, 32, 32)]
    ids = VisualClozeGenerationPipeline._prepare_latent_image_ids(rows, 8, CPU, torch.float32)
    assert len(set(ids[:, 0].tolist())) == 2
    assert own_tokens(ids, len(ids), CPU).tolist() == len(ids) * [1.0]


def test_without_ids_that_say_it_all_tokens_are_the_pictures_own() -> None:
    assert own_tokens(None, 3, CPU).tolist() == [1.0] * 3
    assert own_tokens(torch.tensor([[0.0, 0, 0], [1, 0, 0]]), 3, CPU).tolist() == [1.0] * 3
