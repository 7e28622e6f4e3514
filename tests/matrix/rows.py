"""The rows of the matrix: every pipeline of diffusers that runs a transformer of one of the families.

``tools/docs.py`` makes the table of what runs from them, so this module loads neither torch nor diffusers. A row that
is in ``ROWS`` goes through every cell of the matrix; ``UNTESTED`` names the pipelines that nothing tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRUE_CFG = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
GUIDED = {"negative_prompt": "a dog", "guidance_scale": 3.0}


@dataclass(frozen=True, eq=False)
class Row:
    """A pipeline with what makes it do a task.

    Args:
        model: as people call it.
        task: in words.
        pipeline: its class in diffusers.
        config: of the small checkpoint, beyond the defaults of ``tests/small.py``.
        guided: the arguments that turn true guidance on; empty if the pipeline has none.
        call: further arguments. ``references`` stands for that number of pictures.
        one_decision: whether the pictures of a batch share their decisions.
        trained: whether a test also runs it on the bundled model, which is trained.
        quick: whether its tests are among the fast ones.
    """

    model: str
    task: str
    pipeline: str
    config: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    one_decision: bool = False
    trained: bool = False
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.model}, {self.task}".replace(", ", " ").replace(" ", "-")


FLUX1 = "FLUX.1"
BASE = {"is_distilled": False}
ROWS = (
    Row(FLUX1, "text", "FluxPipeline", guided=TRUE_CFG, trained=True, quick=True),
    Row(FLUX1, "image-to-image", "FluxImg2ImgPipeline", guided=TRUE_CFG, trained=True, quick=True),
    Row(FLUX1, "inpainting", "FluxInpaintPipeline", guided=TRUE_CFG, trained=True),
    Row("FLUX.1 Fill", "filling", "FluxFillPipeline", quick=True),
    Row("FLUX.1 Kontext", "editing", "FluxKontextPipeline", guided=TRUE_CFG, quick=True),
    Row("FLUX.1 Kontext", "inpainting", "FluxKontextInpaintPipeline", guided=TRUE_CFG),
    Row("FLUX.1 Kontext", "inpainting with a reference", "FluxKontextInpaintPipeline", guided=TRUE_CFG,
        call={"references": 1}),
    Row("FLUX.1 Canny, Depth", "control", "FluxControlPipeline"),
    Row("FLUX.1 Canny, Depth", "control, image-to-image", "FluxControlImg2ImgPipeline"),
    Row("FLUX.1 Canny, Depth", "control, inpainting", "FluxControlInpaintPipeline"),
    Row(FLUX1, "ControlNet", "FluxControlNetPipeline", guided=TRUE_CFG, one_decision=True, quick=True),
    Row(FLUX1, "ControlNet, image-to-image", "FluxControlNetImg2ImgPipeline", one_decision=True),
    Row(FLUX1, "ControlNet, inpainting", "FluxControlNetInpaintPipeline", one_decision=True),
    Row("FLUX.2 dev", "text", "Flux2Pipeline"),
    Row("FLUX.2 dev", "references", "Flux2Pipeline", call={"references": 2}),
    Row("FLUX.2 klein", "text", "Flux2KleinPipeline", quick=True),
    Row("FLUX.2 klein", "references", "Flux2KleinPipeline", call={"references": 2}),
    Row("FLUX.2 klein", "references, keys and values kept", "Flux2KleinKVPipeline", call={"references": 1},
        one_decision=True),
    Row("FLUX.2 klein", "inpainting", "Flux2KleinInpaintPipeline"),
    Row("FLUX.2 klein base", "text", "Flux2KleinPipeline", BASE, guided=GUIDED),
    Row("FLUX.2 klein base", "references", "Flux2KleinPipeline", BASE, guided=GUIDED, call={"references": 1},
        quick=True),
    Row("FLUX.2 klein base", "inpainting", "Flux2KleinInpaintPipeline", BASE, guided=GUIDED),
    Row("Chroma", "text", "ChromaPipeline", guided=GUIDED, quick=True),
    Row("Chroma", "image-to-image", "ChromaImg2ImgPipeline", guided=GUIDED),
    Row("Chroma", "inpainting", "ChromaInpaintPipeline", guided=GUIDED),
)  # fmt: skip

UNTESTED = {
    "VisualClozeGenerationPipeline": "FLUX.1 Fill",
}
"""Pipelines of diffusers that run a family's transformer and that nothing here tests, each with its model."""
