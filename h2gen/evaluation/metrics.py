"""How close a picture is to its reference, and how good it is without one.

Fidelity is measured with PSNR, SSIM and LPIPS; quality without a reference with CLIP-IQA and the CLIP score. The last
three need trained weights: where those cannot be had, a notice says how to get them, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from h2gen.errors import SettingError
from h2gen.wording import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

    Fidelity = Callable[[Image.Image, Image.Image], float]  # of a picture and its reference
    Quality = Callable[[Image.Image, str], float]  # of a picture and its prompt

NAMES = ("psnr", "ssim", "lpips", "clip-iqa", "clip-score")


@dataclass(frozen=True)
class MetricInfo:
    """What a metric's values mean.

    Args:
        name: as in ``NAMES``.
        title: for people.
        unit: "dB" or "".
        higher_is_better: so for all but LPIPS.
        fidelity: compares with the reference; otherwise judges a picture alone, or with its prompt.
        source: library and weights. Values from different sources must not be compared.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    fidelity: bool
    source: str


class Metrics:
    """The metrics that can be had, in the order of ``NAMES``. A model is loaded once, at the first picture.

    ``notices`` has a line for each metric that was asked for and cannot be had: which, why, and how to get it.
    """

    def __init__(
        self,
        infos: Sequence[MetricInfo],
        notices: Sequence[str],
        fidelity: Mapping[str, Fidelity],
        quality: Mapping[str, Quality],
    ) -> None:
        self.infos = tuple(infos)
        self.notices = tuple(notices)
        self._fidelity = dict(fidelity)
        self._quality = dict(quality)

    def measure(self, image: Image.Image, reference: Image.Image | None, prompt: str) -> dict[str, float]:
        """Each metric's value by its name; without a reference there are none of fidelity.

        Identical pictures have a PSNR of ``math.inf``, an SSIM of 1 and an LPIPS of 0, exactly.

        Args:
            image: of any mode; it is judged as RGB.
            reference: of the same size.
            prompt: what the picture should show; only the CLIP score reads it, most often its first 77 tokens.

        Raises:
            SettingError: the sizes differ, or the pictures are too small for SSIM.
            ModelError: weights that were there cannot be loaded after all.
        """
        values: dict[str, float] = {}
        if reference is not None:
            values |= {name: measure(image, reference) for name, measure in self._fidelity.items()}
        return values | {name: measure(image, prompt) for name, measure in self._quality.items()}


def choose_metrics(wanted: str | None = None, *, clip_model: str | None = None, device: str = "cpu") -> Metrics:
    """Find out which of the wanted metrics can be had.

    Args:
        wanted: names with commas between them, or "all", which names them all. None stands for PSNR, SSIM and those
            others that need nothing but what is on this machine. Weights are fetched only for a metric that is named.
        clip_model: a folder in transformers' layout, or a repository on huggingface.co, for CLIP-IQA and CLIP score.
        device: where the models run.

    Raises:
        SettingError: a name is unknown, or there is none.
        ModelError: the folder that is given as ``clip_model`` is not there, or is not a CLIP.
    """
    named = wanted is not None
    names = NAMES if wanted is None else _names(wanted)
    # Imported here, and only once the names are known to be right: they take seconds.
    from h2gen.evaluation import clip, fidelity, lpips

    library = f"torchmetrics {version('torchmetrics')}"
    infos: list[MetricInfo] = []
    notices: list[str] = []
    close: dict[str, Fidelity] = {}
    good: dict[str, Quality] = {}
    if "psnr" in names:
        infos.append(MetricInfo("psnr", "PSNR", "dB", True, True, library))
        close["psnr"] = fidelity.psnr
    if "ssim" in names:
        infos.append(MetricInfo("ssim", "SSIM", "", True, True, library))
        close["ssim"] = fidelity.ssim
    if "lpips" in names:
        lacking = lpips.lacking(download=named)
        if lacking is None:
            infos.append(MetricInfo("lpips", "LPIPS", "", False, True, f"{library}, AlexNet"))
            close["lpips"] = lpips.Lpips(device).distance
        elif named:
            notices.append(f"lpips is left out: {lacking}")
    of_clip = [name for name in ("clip-iqa", "clip-score") if name in names]
    if of_clip:
        try:
            called = clip_model or clip.DEFAULT
            model = clip.Clip(called, clip.find(called, download=named), device)
        except clip.Missing as error:
            if named or clip_model:
                notices += [f"{name} is left out: {error}" for name in of_clip]
        else:
            titles = {"clip-iqa": "CLIP-IQA", "clip-score": "CLIP score"}
            infos += [MetricInfo(name, titles[name], "", True, False, model.source) for name in of_clip]
            measures: dict[str, Quality] = {"clip-iqa": model.quality, "clip-score": model.score}
            good = {name: measures[name] for name in of_clip}
    return Metrics(infos, notices, close, good)


def _names(wanted: str) -> tuple[str, ...]:
    words = [word.strip().lower() for word in wanted.split(",") if word.strip()]
    if not words:
        raise SettingError(f"No metric is named in {wanted!r}; give some of {', '.join(NAMES)}, or all.")
    for word in words:
        if word not in NAMES and word != "all":
            meant = did_you_mean(word, (*NAMES, "all"))
            raise SettingError(f"There is no metric {word!r}{meant} Give some of {', '.join(NAMES)}, or all.")
    return NAMES if "all" in words else tuple(words)
