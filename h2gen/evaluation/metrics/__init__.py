"""The metrics: fidelity to a reference image, and quality without one.

Fidelity is PSNR, SSIM and LPIPS; quality without a reference is CLIP-IQA and the CLIP score. The last three need
trained weights. If those are missing, the metric is left out with a notice that says how to get them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from h2gen.errors import SettingError
from h2gen.wording import did_you_mean

if TYPE_CHECKING:
    from h2gen.evaluation.videos import Shown

    Fidelity = Callable[[Any, Any], float]  # of an image and its reference
    Quality = Callable[[Any, str], float]  # of an image and its prompt

NAMES = ("psnr", "ssim", "lpips", "clip-iqa", "clip-score")


@dataclass(frozen=True)
class MetricInfo:
    """What a metric's values mean.

    Args:
        name: as in ``NAMES``.
        title: for display.
        unit: "dB" or "".
        higher_is_better: true for all but LPIPS.
        fidelity: compares with the reference; otherwise judges an image by itself, or with its prompt.
        source: library and weights. Values from different sources are not comparable.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    fidelity: bool
    source: str


class Metrics:
    """The available metrics, in the order of ``NAMES``. Each model is loaded once, at the first image.

    ``notices`` has a line for each requested metric that is not available: which one, why, and how to get it.
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

    def measure(self, image: Shown, reference: Shown | None, prompt: str) -> dict[str, float]:
        """Each metric's value by name; without a reference those of fidelity are omitted.

        Identical images have a PSNR of ``math.inf``, an SSIM of 1 and an LPIPS of 0, exactly.

        Args:
            image: of any mode; it is judged as RGB.
            reference: of the same size.
            prompt: what the image should show; only the CLIP score reads it, usually its first 77 tokens.

        Raises:
            SettingError: the sizes differ, or the images are too small for SSIM.
            ModelError: the weights cannot be loaded.
        """
        values: dict[str, float] = {}
        if reference is not None:
            values |= {name: measure(image, reference) for name, measure in self._fidelity.items()}
        return values | {name: measure(image, prompt) for name, measure in self._quality.items()}


def choose_metrics(
    wanted: str | None = None, *, clip_model: str | None = None, device: str = "cpu", download: bool = True
) -> Metrics:
    """Find out which of the requested metrics are available.

    Args:
        wanted: names separated by commas, or "all". None takes PSNR, SSIM and those of the others whose weights are on
            this machine. Weights are downloaded only for a metric that is named.
        clip_model: a folder in transformers' layout, or a repository on huggingface.co, for CLIP-IQA and CLIP score.
        device: where the models run.
        download: whether weights may be downloaded at all.

    Raises:
        SettingError: a name is unknown, or the list is empty.
        ModelError: the folder given as ``clip_model`` does not exist, or is not a CLIP model.
    """
    named = wanted is not None
    names = NAMES if wanted is None else _names(wanted)
    # Imported only once the names are known to be right: this takes seconds.
    from h2gen.evaluation.metrics import clip, lpips, psnr_ssim

    library = f"torchmetrics {version('torchmetrics')}"
    infos: list[MetricInfo] = []
    notices: list[str] = []
    close: dict[str, Fidelity] = {}
    good: dict[str, Quality] = {}
    if "psnr" in names:
        infos.append(MetricInfo("psnr", "PSNR", "dB", True, True, library))
        close["psnr"] = psnr_ssim.psnr
    if "ssim" in names:
        infos.append(MetricInfo("ssim", "SSIM", "", True, True, library))
        close["ssim"] = psnr_ssim.ssim
    if "lpips" in names:
        missing = lpips.missing(download=named and download)
        if missing is None:
            infos.append(MetricInfo("lpips", "LPIPS", "", False, True, f"{library}, AlexNet"))
            close["lpips"] = lpips.Lpips(device).distance
        elif named:
            notices.append(f"lpips is left out: {missing}")
    of_clip = [name for name in ("clip-iqa", "clip-score") if name in names]
    if of_clip:
        try:
            called = clip_model or clip.DEFAULT
            model = clip.Clip(called, clip.find(called, download=named and download), device)
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
        raise SettingError(f"metrics is {wanted!r}, which names no metric; choose from {', '.join(NAMES)}, or all.")
    for word in words:
        if word not in NAMES and word != "all":
            meant = did_you_mean(word, (*NAMES, "all"))
            raise SettingError(f"There is no metric {word!r}{meant} Choose from {', '.join(NAMES)}, or all.")
    return NAMES if "all" in words else tuple(words)
