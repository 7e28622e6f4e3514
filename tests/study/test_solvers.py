"""UniPC in the place of a pipeline's own solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler

from h2gen.errors import ModelError
from h2gen.study.solvers import unipc
from tests import small


def test_the_picture_is_another_and_the_pipeline_as_before(tiny: Any) -> None:
    settings = tiny.settings("a cat", seed=1, steps=6, cfg=1.0)
    own, before = tiny.pipe.scheduler, np.asarray(tiny.run(settings).image)
    with unipc(tiny.pipe):
        assert type(tiny.pipe.scheduler).__name__ == "UniPCMultistepScheduler"
        other = np.asarray(tiny.run(settings).image)
    assert tiny.pipe.scheduler is own
    assert not np.array_equal(other, before)
    assert np.array_equal(np.asarray(tiny.run(settings).image), before)


@pytest.mark.parametrize("dynamic", [True, False])
def test_sigmas_are_shifted_as_the_models_own(dynamic: bool) -> None:
    """FLUX.1-dev shifts by the size of the picture, others by a number."""
    pipe = small.flux_pipeline()
    pipe.scheduler = type(pipe.scheduler)(shift=3.0, use_dynamic_shifting=dynamic)
    sigmas = []
    for context in (unipc, None):
        steps = {"num_inference_steps": 8, "width": 64, "height": 64, "max_sequence_length": 16}
        pipe.set_progress_bar_config(disable=True)
        if context is None:
            pipe("a cat", **steps)
            sigmas.append(pipe.scheduler.sigmas)
        else:
            with context(pipe):
                pipe("a cat", **steps)
                sigmas.append(pipe.scheduler.sigmas)
    # UniPC's grid ends a thousandth from where Euler's does, on the same curve.
    assert np.allclose(sigmas[0], sigmas[1], atol=0.01)


def test_a_model_that_is_not_of_flows_is_refused(tiny: Any) -> None:
    pipe = small.flux_pipeline()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ModelError, match="DDIMScheduler"), unipc(pipe):
        pass
