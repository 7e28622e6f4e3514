"""The rows of the matrix: every pipeline of diffusers that runs a transformer of one of the families.

``tools/docs.py`` makes the table of what runs from them, so this module loads neither torch nor diffusers. A row that
is in ``ROWS`` goes through every cell of the matrix; ``UNTESTED`` has the pipelines that nothing tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRUE_CFG = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
GUIDED = {"negative_prompt": "a dog", "guidance_scale": 3.0}
IN_ONE_PASS = {"negative_prompt": "a dog", "guidance_scale": 2.0}
BY_GUIDER = {"negative_prompt": "a dog", "guider_scale": 3.0}


@dataclass(frozen=True, eq=False)
class Row:
    """A pipeline with what makes it do a task.

    Args:
        model: as people call it.
        task: in words.
        key: of the task in ``Family.tasks``; empty if h2gen itself, unlike Python, has no such task.
        pipeline: its class in diffusers; of a modular pipeline the class of its blocks, unless h2gen loads it too.
        config: of the small checkpoint, beyond the defaults of ``tests/small.py``.
        guided: the arguments that turn true guidance on; empty if the pipeline has none. ``guider_scale`` is set on the
            guider of a modular pipeline.
        call: further arguments. ``references`` stands for that number of pictures.
        batch: whether it makes two pictures in one call.
        one_prompt: whether all pictures of a call have the same prompt.
        one_decision: whether the pictures of a batch share their decisions.
        forecasts: whether steps can be skipped, by a plan or a tolerance.
        by_hand: whether a call takes sigmas.
        trained: whether a test also runs it on a bundled model, which is trained.
        quick: whether its tests are among the fast ones.
    """

    model: str
    task: str
    key: str
    pipeline: str
    config: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: bool = True
    one_prompt: bool = False
    one_decision: bool = False
    forecasts: bool = True
    by_hand: bool = True
    trained: bool = False
    quick: bool = False

    @property
    def modular(self) -> bool:
        return self.pipeline.endswith(("Blocks", "ModularPipeline"))

    def __str__(self) -> str:
        modular = " modular" if self.modular and not self.key else ""
        return f"{self.model} {self.task}{modular}".replace(", ", " ").replace(" ", "-")


FLUX1 = "FLUX.1"
BASE = {"is_distilled": False}
FLUX3, FLUX3_DISTILLED = "Flux3ModularPipeline", "Flux3DistilledModularPipeline"
ROWS = (
    Row(FLUX1, "text", "text", "FluxPipeline", guided=TRUE_CFG, trained=True, quick=True),
    Row(FLUX1, "image-to-image", "image", "FluxImg2ImgPipeline", guided=TRUE_CFG, trained=True, quick=True),
    Row(FLUX1, "inpainting", "inpaint", "FluxInpaintPipeline", guided=TRUE_CFG, trained=True),
    Row("FLUX.1 Fill", "filling", "fill", "FluxFillPipeline", quick=True),
    Row("FLUX.1 Kontext", "editing", "edit", "FluxKontextPipeline", guided=TRUE_CFG, quick=True),
    Row("FLUX.1 Kontext", "inpainting", "inpaint", "FluxKontextInpaintPipeline", guided=TRUE_CFG),
    Row("FLUX.1 Kontext", "inpainting with a reference", "inpaint", "FluxKontextInpaintPipeline", guided=TRUE_CFG,
        call={"references": 1}),
    Row("FLUX.1 Canny, Depth", "control", "control", "FluxControlPipeline"),
    Row("FLUX.1 Canny, Depth", "control image-to-image", "control image", "FluxControlImg2ImgPipeline"),
    Row("FLUX.1 Canny, Depth", "control inpainting", "control inpaint", "FluxControlInpaintPipeline"),
    Row(FLUX1, "Control LoRA inpainting", "control inpaint", "FluxControlInpaintPipeline", call={"control_lora": 1}),
    Row(FLUX1, "ControlNet", "controlnet", "FluxControlNetPipeline", guided=TRUE_CFG, one_decision=True, quick=True),
    Row(FLUX1, "ControlNet image-to-image", "controlnet image", "FluxControlNetImg2ImgPipeline", one_decision=True),
    Row(FLUX1, "ControlNet inpainting", "controlnet inpaint", "FluxControlNetInpaintPipeline", one_decision=True),
    Row(FLUX1, "Redux", "text", "FluxPipeline", call={"redux": 1}),
    Row(FLUX1, "IP-Adapter", "", "FluxPipeline", guided=TRUE_CFG, call={"adapter_pictures": 1}, one_decision=True),
    Row(FLUX1, "text", "", "FluxAutoBlocks"),
    Row(FLUX1, "image-to-image", "", "FluxAutoBlocks", batch=False),
    Row("FLUX.1 Kontext", "editing", "", "FluxKontextAutoBlocks", batch=False),
    Row("FLUX.2 dev", "text", "text", "Flux2Pipeline"),
    Row("FLUX.2 dev", "references", "edit", "Flux2Pipeline", call={"references": 2}),
    Row("FLUX.2 dev", "text", "", "Flux2AutoBlocks"),
    Row("FLUX.2 dev", "references", "", "Flux2AutoBlocks", call={"references": 1}),
    Row("FLUX.2 klein", "text", "text", "Flux2KleinPipeline", quick=True),
    Row("FLUX.2 klein", "references", "edit", "Flux2KleinPipeline", call={"references": 2}),
    Row("FLUX.2 klein", "references with keys and values kept", "", "Flux2KleinKVPipeline", call={"references": 1},
        one_decision=True),
    Row("FLUX.2 klein", "inpainting", "inpaint", "Flux2KleinInpaintPipeline"),
    Row("FLUX.2 klein", "text", "", "Flux2KleinAutoBlocks"),
    Row("FLUX.2 klein", "references", "", "Flux2KleinAutoBlocks", call={"references": 1}),
    Row("FLUX.2 klein base", "text", "text", "Flux2KleinPipeline", BASE, guided=GUIDED),
    Row("FLUX.2 klein base", "references", "edit", "Flux2KleinPipeline", BASE, guided=GUIDED, call={"references": 1},
        quick=True),
    Row("FLUX.2 klein base", "inpainting", "inpaint", "Flux2KleinInpaintPipeline", BASE, guided=GUIDED),
    Row("FLUX.2 klein base", "text", "", "Flux2KleinBaseAutoBlocks", BASE),
    Row("FLUX.2 klein base", "references", "", "Flux2KleinBaseAutoBlocks", BASE, call={"references": 1}),
    Row("FLUX.3 klein base", "text", "text", FLUX3, guided=BY_GUIDER, one_prompt=True, quick=True),
    Row("FLUX.3 klein base", "references", "edit", FLUX3, guided=BY_GUIDER, call={"references": 2}, one_prompt=True),
    Row("FLUX.3 klein", "text", "text", FLUX3_DISTILLED, one_prompt=True, forecasts=False),
    Row("FLUX.3 klein", "references", "edit", FLUX3_DISTILLED, call={"references": 1}, one_prompt=True,
        forecasts=False),
    Row("Chroma", "text", "text", "ChromaPipeline", guided=GUIDED, quick=True),
    Row("Chroma", "image-to-image", "image", "ChromaImg2ImgPipeline", guided=GUIDED),
    Row("Chroma", "inpainting", "inpaint", "ChromaInpaintPipeline", guided=GUIDED),
    Row("HunyuanVideo", "text-to-video", "text", "HunyuanVideoPipeline", guided=TRUE_CFG, trained=True, quick=True),
    Row("Wan 2.1", "text-to-video", "text", "WanPipeline", guided=GUIDED, by_hand=False, quick=True),
    Row("Qwen-Image", "text", "text", "QwenImagePipeline", guided=TRUE_CFG, quick=True),
    Row("Qwen-Image", "image-to-image", "image", "QwenImageImg2ImgPipeline", guided=TRUE_CFG),
    Row("Qwen-Image", "inpainting", "inpaint", "QwenImageInpaintPipeline", guided=TRUE_CFG),
    Row("Z-Image", "text", "text", "ZImagePipeline", guided=IN_ONE_PASS, quick=True),
    Row("Z-Image", "image-to-image", "image", "ZImageImg2ImgPipeline", guided=IN_ONE_PASS),
    Row("Z-Image", "inpainting", "inpaint", "ZImageInpaintPipeline", guided=IN_ONE_PASS),
)  # fmt: skip

UNTESTED = (
    Row("FLUX.1 Fill", "VisualCloze", "", "VisualClozePipeline"),
    Row("FLUX.1 Fill", "VisualCloze", "", "VisualClozeGenerationPipeline"),
    Row("HunyuanVideo", "image-to-video", "", "HunyuanVideoImageToVideoPipeline"),
    Row("HunyuanVideo", "image-to-video", "", "HunyuanSkyreelsImageToVideoPipeline"),
    Row("Wan 2.1", "image-to-video", "", "WanImageToVideoPipeline"),
    Row("Wan 2.1", "image-to-video", "", "WanImage2VideoAutoBlocks"),
    Row("Wan 2.1", "video-to-video", "", "WanVideoToVideoPipeline"),
    Row("Wan 2.1", "video editing", "", "LucyEditPipeline"),
    Row("Qwen-Image", "text", "", "QwenImageAutoBlocks"),
    Row("Qwen-Image", "ControlNet", "", "QwenImageControlNetPipeline"),
    Row("Qwen-Image", "ControlNet inpainting", "", "QwenImageControlNetInpaintPipeline"),
    Row("Qwen-Image Edit", "editing", "", "QwenImageEditPipeline"),
    Row("Qwen-Image Edit", "editing", "", "QwenImageEditAutoBlocks"),
    Row("Qwen-Image Edit", "inpainting", "", "QwenImageEditInpaintPipeline"),
    Row("Qwen-Image Edit", "references", "", "QwenImageEditPlusPipeline"),
    Row("Qwen-Image Edit", "references", "", "QwenImageEditPlusAutoBlocks"),
    Row("Qwen-Image Layered", "layers", "", "QwenImageLayeredPipeline"),
    Row("Qwen-Image Layered", "layers", "", "QwenImageLayeredAutoBlocks"),
    Row("Z-Image", "text", "", "ZImageAutoBlocks"),
    Row("Z-Image", "ControlNet", "", "ZImageControlNetPipeline"),
    Row("Z-Image", "ControlNet inpainting", "", "ZImageControlNetInpaintPipeline"),
    Row("Z-Image", "references", "", "ZImageOmniPipeline"),
)
"""Pipelines of diffusers that run a family's transformer and that nothing here tests."""
