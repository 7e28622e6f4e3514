"""Changes are measured on the picture's own tokens."""

from __future__ import annotations

import pytest
import torch

from h2gen.cache import h2_cache
from h2gen.cache.picture_tokens import PictureTokens
from h2gen.cache.probe import residual_of
from tests.cache.drive import STEPS, flux, flux2, latents, noise, position_ids, prompt, sigmas


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor([[number, 0, place] for place, number in enumerate(numbers)])


@pytest.mark.parametrize(
    ("given", "tokens", "own"),
    [
        (ids(0, 0, 0), 3, 3),
        (ids(0, 0, 10, 20, 20), 5, 2),
        (ids(0, 0, 1)[None].repeat(2, 1, 1), 3, 2),
        (ids(1, 1, 2), 3, 3),  # a grid of pictures that is made as a whole
        (ids(0, 0, 1), 2, 2),  # ids of other tokens
        (None, 4, 4),
    ],
)
def test_the_ids_say_which_tokens_are_the_pictures_own(given: torch.Tensor | None, tokens: int, own: int) -> None:
    assert PictureTokens(given, tokens).count == own


@pytest.mark.parametrize("streams", [1, 2])
def test_reference_pictures_are_no_part_of_the_residual(streams: int) -> None:
    text, image = noise(1, 5, 8, seed=0), noise(1, 7, 8, seed=1)
    after = (text, image) if streams == 2 else (torch.cat([text, image], dim=1),)
    before = tuple(torch.zeros_like(each) for each in after)
    assert torch.equal(residual_of("detail", before, after, 3), torch.cat([text, image[:, :4]], dim=1))
    if streams == 2:
        assert torch.equal(residual_of("structure", before, after, 3), image[:, :4])


@pytest.mark.parametrize("make", [flux, flux2], ids=["FLUX.1", "FLUX.2"])
@pytest.mark.parametrize("pfs", ["paper", "stable"])
@torch.no_grad()
def test_a_change_is_the_pictures_and_not_its_references(make, pfs: str) -> None:
    """As many references as one likes: they never change, and must not make the change look smaller."""
    model, changes = make(), []
    # References of zeros that no token of the picture attends to would leave its change as it is; here they are
    # attended to, so that changes differ a little, but they are not divided by the number of pictures.
    for count in (1, 8):
        given = position_ids(model) | prompt(model)
        own = given["img_ids"]
        references = own.clone()
        references[..., 0] = 10
        given["img_ids"] = torch.cat([own, *[references] * count], dim=-2)
        with h2_cache(model, tau1=1e-12, tau2=1e-12, pfs=pfs) as trace:
            for sigma in sigmas():
                now = latents(model, sigma)
                still = latents(model, 0.0, seed=5)["hidden_states"]
                now["hidden_states"] = torch.cat([now["hidden_states"], *[still] * count], dim=1)
                model(**given, **now)
        changes.append([step.structure.change for step in trace.steps[1:]])
    assert len(changes[0]) == STEPS - 1
    for few, many in zip(*changes, strict=True):
        assert many > few / 2, changes
