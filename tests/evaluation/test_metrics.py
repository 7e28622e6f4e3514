"""Fidelity and quality of pictures, against other implementations and values computed by hand."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import skimage.metrics
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

import h2gen
from h2gen.errors import ModelError, SettingError
from h2gen.evaluation.metrics import NAMES, choose_metrics
from h2gen.evaluation.metrics.clip import DEFAULT
from tests import small
from tests.models.hub import serve

OLD_PREPROCESSOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
"""As OpenAI's own repositories have it."""


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """Nothing has been downloaded."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIP of random weights in the layout that transformers saves."""
    folder = tmp_path_factory.mktemp("clip") / "small-clip"
    tokenizer = CLIPTokenizer.from_pretrained(small.BUNDLED / "tokenizer")
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = part | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = part | {"image_size": 32, "patch_size": 8}
    with small.seeded(24):  # with these weights no cosine of the tests is negative, and so no score cut off at 0
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def clip_copy(clip_folder, tmp_path) -> Path:
    """One to be broken."""
    return Path(shutil.copytree(clip_folder, tmp_path / "copy"))


def pictures(width: int, height: int, noise: int = 12) -> tuple[Image.Image, Image.Image]:
    """Stripes, a ramp and a checkerboard in the three channels, and the same with noise."""
    y, x = np.mgrid[:height, :width]
    first = np.stack([x * 7 % 256, y * 255 // height, (x // 8 + y // 8) % 2 * 200 + 20], axis=-1)
    second = np.clip(first + np.random.default_rng(0).integers(-noise, noise + 1, first.shape), 0, 255)
    return Image.fromarray(first.astype(np.uint8)), Image.fromarray(second.astype(np.uint8))


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (value, value, value))


def measure(image: Image.Image, reference: Image.Image | None = None, prompt: str = "a cat", **options) -> dict:
    return choose_metrics(**options).measure(image, reference, prompt)


SIZES = [(11, 11), (11, 90), (42, 42), (43, 74), (128, 96), (96, 128), (75, 41)]


@pytest.mark.parametrize("size", SIZES)
def test_psnr_and_ssim_are_those_of_scikit_image(size):
    image, reference = pictures(*size)
    values = measure(image, reference)
    first, second = (np.asarray(picture) / 255 for picture in (image, reference))
    assert values["psnr"] == pytest.approx(
        skimage.metrics.peak_signal_noise_ratio(second, first, data_range=1), rel=1e-6
    )
    assert values["ssim"] == pytest.approx(
        skimage.metrics.structural_similarity(
            first, second, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
        ),
        abs=1e-9,
    )


def test_measuring_leaves_torchs_threads_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        measure(*pictures(40, 40))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_identical_pictures_are_reported_as_such():
    image, _ = pictures(40, 64)
    assert measure(image, image.copy()) == {"psnr": math.inf, "ssim": 1.0}


def test_the_smallest_difference_is_not_identical():
    image = flat(100)
    other = image.copy()
    other.putpixel((16, 16), (100, 101, 100))
    values = measure(image, other)
    assert values["psnr"] == pytest.approx(20 * math.log10(255) + 10 * math.log10(3 * 32 * 32), rel=1e-6)
    assert 0.999 < values["ssim"] < 1


@pytest.mark.parametrize(("dark", "light"), [(10, 250), (250, 10), (0, 255), (128, 127)])
def test_differences_do_not_wrap_around_as_bytes_would(dark, light):
    expected = 20 * math.log10(255 / abs(dark - light))
    assert measure(flat(dark), flat(light))["psnr"] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_fidelity_does_not_depend_on_the_order_of_the_two():
    image, reference = pictures(50, 30)
    assert measure(image, reference) == pytest.approx(measure(reference, image), rel=1e-12)


def test_more_noise_is_less_alike():
    near, far = (measure(*pictures(64, 64, noise)) for noise in (4, 40))
    assert near["psnr"] > far["psnr"] and near["ssim"] > far["ssim"]


def test_pictures_of_other_modes_are_judged_as_rgb():
    image, reference = pictures(40, 40)
    values = measure(image, reference)
    assert measure(image.convert("RGBA"), reference) == values
    assert measure(image.convert("L"), image.convert("L").convert("RGB")) == {"psnr": math.inf, "ssim": 1.0}


def test_pictures_of_two_sizes_cannot_be_compared():
    with pytest.raises(SettingError, match="32x32 cannot be compared with one of 16x48"):
        measure(flat(0), Image.new("RGB", (16, 48)))


def test_ssim_says_how_large_pictures_have_to_be():
    tiny = Image.new("RGB", (40, 10))
    with pytest.raises(SettingError, match="at least 11x11 pixels, but these are 40x10"):
        measure(tiny, tiny)
    assert measure(tiny, tiny, wanted="psnr") == {"psnr": math.inf}


def test_without_a_reference_there_is_no_fidelity():
    assert measure(flat(3)) == {}


def test_by_default_nothing_is_fetched_and_nothing_is_missed():
    metrics = choose_metrics()
    assert [info.name for info in metrics.infos] == ["psnr", "ssim"]
    assert metrics.notices == ()


def test_the_order_and_spelling_of_names_do_not_matter():
    once, again = choose_metrics("ssim,psnr"), choose_metrics(" PSNR, ssim,psnr,")
    assert once.infos == again.infos
    assert [info.name for info in once.infos] == ["psnr", "ssim"]
    image, reference = pictures(20, 20)
    assert list(once.measure(image, reference, "")) == ["psnr", "ssim"]


def test_metrics_say_how_they_are_read():
    psnr, ssim = choose_metrics("psnr,ssim").infos
    assert (psnr.title, psnr.unit, psnr.higher_is_better, psnr.fidelity) == ("PSNR", "dB", True, True)
    assert (ssim.title, ssim.unit, ssim.higher_is_better, ssim.fidelity) == ("SSIM", "", True, True)
    assert psnr.source.startswith("torchmetrics ")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("psnr,clip_score", "There is no metric 'clip_score'; did you mean 'clip-score'? Choose from psnr, ssim"),
        ("sim", "did you mean 'ssim'?"),
        ("beauty", "There is no metric 'beauty'. Choose from"),
        ("", "which names no metric"),
        (" , ", "which names no metric"),
    ],
)
def test_an_unknown_metric_is_refused(wanted, message):
    with pytest.raises(SettingError) as caught:
        choose_metrics(wanted)
    assert message in str(caught.value)


def without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as Python marks what cannot be imported


def broken_torchvision(monkeypatch, tmp_path):
    (tmp_path / "site" / "torchvision").mkdir(parents=True)
    (tmp_path / "site" / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")


def test_without_torchvision_the_rest_goes_on_without_lpips(monkeypatch):
    without_torchvision(monkeypatch)
    metrics = choose_metrics("psnr,lpips")
    assert [info.name for info in metrics.infos] == ["psnr"]
    assert metrics.notices == ("lpips is left out: it needs torchvision; run: pip install torchvision.",)
    assert metrics.measure(flat(1), flat(1), "") == {"psnr": math.inf}


def test_a_torchvision_of_another_torch_is_named_as_the_reason(monkeypatch, tmp_path):
    broken_torchvision(monkeypatch, tmp_path)
    (notice,) = choose_metrics("lpips").notices
    assert "torchvision cannot be imported (operator torchvision::nms does not exist)" in notice
    assert torch.__version__ in notice
    assert choose_metrics().notices == ()


@pytest.fixture
def alexnet(tmp_path, monkeypatch) -> Path:
    """Weights of AlexNet where torchvision looks for them; random ones, because the real ones are large."""
    try:
        from torchvision.models import AlexNet_Weights, alexnet
    except Exception as error:  # noqa: BLE001 - see h2gen.evaluation.metrics.lpips
        pytest.skip(f"no torchvision that goes with this torch: {error}")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with small.seeded(0):
        torch.save(alexnet(weights=None).state_dict(), file := folder / AlexNet_Weights.DEFAULT.url.rpartition("/")[2])
    return file


def test_lpips_is_measured_at_any_size_once_its_weights_are_there(alexnet):
    metrics = choose_metrics()
    assert [info.name for info in metrics.infos] == ["psnr", "ssim", "lpips"]
    assert not metrics.infos[2].higher_is_better and metrics.infos[2].fidelity
    for size in ((128, 128), (96, 160), (16, 48), (63, 64)):
        image, reference = pictures(*size)
        value = metrics.measure(image, reference, "")["lpips"]
        assert 0 < value < metrics.measure(image, pictures(*size, 90)[1], "")["lpips"]
        assert metrics.measure(image, reference, "")["lpips"] == value
        assert metrics.measure(image, image, "")["lpips"] == 0


def test_damaged_weights_of_lpips_are_one_line(alexnet):
    alexnet.write_bytes(b"junk")
    with pytest.raises(ModelError, match="LPIPS cannot be loaded"):
        measure(*pictures(64, 64), wanted="lpips")


def test_lpips_without_its_weights_is_a_notice_and_no_download(alexnet):
    alexnet.unlink()
    assert choose_metrics().notices == ()
    (notice,) = choose_metrics("lpips").notices
    assert "HF_HUB_OFFLINE" in notice and alexnet.name in notice


def test_clip_weights_that_cannot_be_had_are_a_notice_each():
    metrics = choose_metrics("all")
    assert [info.name for info in metrics.infos][:2] == ["psnr", "ssim"]
    for name in ("clip-iqa", "clip-score"):
        (notice,) = [notice for notice in metrics.notices if notice.startswith(f"{name} is left out: ")]
        assert DEFAULT in notice and "go online" in notice and notice.isprintable()


def by_transformers(folder: Path, image: Image.Image, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled and plain cosines, from the model's own forward pass over all texts at once."""
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=image, return_tensors="pt")
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folder)(**tokens, **pixels)
    return output.logits_per_image[0], (output.image_embeds @ output.text_embeds.T)[0]


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (40, 200)])
def test_clip_metrics_are_what_the_model_itself_says(clip_folder, size):
    image, _ = pictures(*size)
    values = measure(image, prompt="a red car", wanted="clip-iqa,clip-score", clip_model=str(clip_folder))
    logits, cosines = by_transformers(clip_folder, image, ["Good photo.", "Bad photo.", "a red car"])
    assert values["clip-iqa"] == pytest.approx(float(logits[:2].softmax(0)[0]), abs=1e-5)
    assert values["clip-score"] == pytest.approx(max(0.0, 100 * float(cosines[2])), abs=1e-4)


def test_the_clip_score_is_that_of_torchmetrics(clip_folder):
    from torchmetrics.functional.multimodal import clip_score

    class Plain(CLIPModel):
        """Features as they were returned before transformers 5, which is what torchmetrics expects."""

        def get_image_features(self, pixel_values):
            return super().get_image_features(pixel_values).pooler_output

        def get_text_features(self, input_ids, attention_mask):
            return super().get_text_features(input_ids, attention_mask).pooler_output

    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    )
    image, _ = pictures(64, 48)
    value = measure(image, prompt="a cat", wanted="clip-score", clip_model=str(clip_folder))["clip-score"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = clip_score(
            torch.from_numpy(np.array(image)).permute(2, 0, 1),
            "a cat",
            lambda: (Plain.from_pretrained(clip_folder).eval(), processor),
        )
    assert value > 0
    assert value == pytest.approx(float(theirs), abs=1e-4)


def test_clip_metrics_tell_pictures_and_prompts_apart(clip_folder):
    metrics = choose_metrics("clip-iqa,clip-score", clip_model=str(clip_folder))
    assert [(info.name, info.fidelity, info.higher_is_better) for info in metrics.infos] == [
        ("clip-iqa", False, True),
        ("clip-score", False, True),
    ]
    image, _ = pictures(64, 64)
    cat, car, other = (
        metrics.measure(picture, None, prompt)
        for picture, prompt in ((image, "a cat"), (image, "a red car"), (small.picture(), "a cat"))
    )
    for values in (cat, car, other):
        assert 0 < values["clip-iqa"] < 1 and 0 <= values["clip-score"] <= 100
    assert cat["clip-score"] != car["clip-score"] and cat["clip-iqa"] == car["clip-iqa"]
    assert cat["clip-iqa"] != other["clip-iqa"]


def test_clip_metrics_are_the_same_every_time(clip_folder):
    image, _ = pictures(64, 64)
    options = {"wanted": "clip-score,clip-iqa", "clip_model": str(clip_folder)}
    metrics = choose_metrics(**options)
    values = metrics.measure(image, None, "a cat")
    metrics.measure(small.picture(), None, "a dog")
    assert metrics.measure(image, None, "a cat") == values == choose_metrics(**options).measure(image, None, "a cat")


def test_a_picture_changed_in_place_is_judged_anew(clip_folder):
    metrics = choose_metrics("clip-iqa", clip_model=str(clip_folder))
    image, _ = pictures(32, 32)
    before = metrics.measure(image, None, "")
    image.paste((255, 0, 0), (0, 0, 32, 16))
    assert metrics.measure(image, None, "") != before


def test_a_prompt_longer_than_clip_reads_is_cut(clip_folder):
    metrics = choose_metrics("clip-score", clip_model=str(clip_folder))
    image, _ = pictures(32, 32)
    scores = [metrics.measure(image, None, "a cat " * words)["clip-score"] for words in (5, 500, 1000)]
    assert scores[1] == scores[2] != scores[0]
    assert 0 <= metrics.measure(image, None, "")["clip-score"] <= 100


def test_a_folder_of_ones_own_is_on_this_machine(clip_folder):
    metrics = choose_metrics(clip_model=str(clip_folder))
    assert [info.name for info in metrics.infos] == ["psnr", "ssim", "clip-iqa", "clip-score"]
    assert metrics.notices == ()


def test_the_source_names_the_weights_and_not_where_they_lie(clip_folder, clip_copy, tmp_path):
    def source(folder: Path) -> str:
        return choose_metrics("clip-iqa", clip_model=str(folder)).infos[0].source

    first = source(clip_folder)
    assert "small-clip" in first and str(clip_folder.parent) not in first
    assert source(clip_copy).replace("copy", "small-clip") == first
    model = CLIPModel.from_pretrained(clip_copy)
    with torch.no_grad():
        model.logit_scale.add_(1)
    model.save_pretrained(clip_copy)
    assert source(clip_copy).replace("copy", "small-clip") != first


def test_the_layout_of_openais_repositories_is_read(clip_folder, clip_copy):
    (clip_copy / "processor_config.json").unlink()
    (clip_copy / "preprocessor_config.json").write_text(json.dumps(OLD_PREPROCESSOR))
    image, _ = pictures(70, 40)
    old, new = (measure(image, wanted="clip-iqa", clip_model=str(folder)) for folder in (clip_copy, clip_folder))
    assert old == new


def rename(folder: Path, name: str, to: str) -> None:
    (folder / name).rename(folder / to)


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


BREAKS = {
    "of another kind": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
        "is not a CLIP model: its config.json says 'bert'",
    ),
    "empty": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "pickled": (lambda folder: rename(folder, "model.safetensors", "pytorch_model.bin"), "pickles"),
    "cut short": (cut_short, "is cut short"),
    "without words": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json or vocab.json"),
    "without sizes": (lambda folder: (folder / "processor_config.json").unlink(), "has no preprocessor_config.json"),
}


@pytest.mark.parametrize(("damage", "message"), BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("wanted", [None, "clip-score"])
def test_a_folder_that_is_not_a_whole_clip_model_is_refused(clip_copy, damage, message, wanted):
    damage(clip_copy)
    with pytest.raises(ModelError) as caught:
        choose_metrics(wanted, clip_model=str(clip_copy))
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_weights_that_lack_one_are_not_made_up(clip_copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(clip_copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, clip_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks visual_projection\.weight"):
        measure(flat(0), wanted="clip-iqa", clip_model=str(clip_copy))


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "clip", "a/b/c", "nul\0"])
def test_a_clip_model_that_is_neither_folder_nor_repository_is_refused(model):
    with pytest.raises(ModelError, match="There is no folder of a CLIP model"):
        choose_metrics(clip_model=model)


def test_a_repository_given_by_name_is_not_fetched_for_nothing():
    metrics = choose_metrics(clip_model="someone/clip")
    assert [info.name for info in metrics.infos] == ["psnr", "ssim"]
    assert len(metrics.notices) == 2 and all(
        "'someone/clip' is not on this machine" in line for line in metrics.notices
    )


STORY = """
import json, sys
from PIL import Image
from h2gen.evaluation.metrics import choose_metrics

def tell(*words, **options):
    metrics = choose_metrics(*words, **options)
    return {
        "names": [info.name for info in metrics.infos],
        "sources": [info.source for info in metrics.infos],
        "notices": metrics.notices,
        "values": metrics.measure(Image.new("RGB", (32, 32), (200, 30, 90)), None, "a cat"),
    }

print(json.dumps({
    "before": tell(),
    "gated": tell("psnr,clip-iqa", clip_model="someone/gated"),
    "other": tell("psnr,clip-iqa", clip_model="someone/other"),
    "named": tell("clip-score,psnr"),
    "after": tell(),
}))
"""


@pytest.mark.slow
def test_weights_are_fetched_once_and_only_where_their_metric_is_named(clip_folder, clip_copy, tmp_path):
    (clip_copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (clip_copy / "open_clip_model.safetensors").write_bytes(b"the same once more")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(h2gen.__file__).parents[1]),
    }
    with serve({DEFAULT: clip_copy, "someone/gated": 403, "someone/other": other}) as (address, asked):
        done = subprocess.run(
            [sys.executable, "-c", STORY], capture_output=True, text=True, timeout=600,
            env=kept | settings | {"HF_ENDPOINT": address},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["before"]["names"] == ["psnr", "ssim"] and told["before"]["notices"] == []
    assert told["gated"]["names"] == told["other"]["names"] == ["psnr"]
    assert "accept its licence" in told["gated"]["notices"][0]
    assert "is not a CLIP model" in told["other"]["notices"][0]
    assert told["named"]["names"] == ["psnr", "clip-score"] and told["named"]["notices"] == []
    assert told["after"]["names"] == ["psnr", "ssim", "clip-iqa", "clip-score"]
    assert told["after"]["values"]["clip-score"] == told["named"]["values"]["clip-score"]
    assert DEFAULT in told["after"]["sources"][2]

    fetched = [path.rpartition("/")[2] for path in asked if f"{DEFAULT}/resolve" in path]
    assert "model.safetensors" in fetched and "tokenizer.json" in fetched
    assert not {"pytorch_model.bin", "open_clip_model.safetensors"} & set(fetched)
    gated = next(number for number, path in enumerate(asked) if "someone/gated" in path)
    assert not any(DEFAULT in path for path in asked[:gated])
    here = choose_metrics("clip-score", clip_model=str(clip_folder)).infos[0].source
    assert here.rpartition(" ")[2] == told["after"]["sources"][2].rpartition(" ")[2]


def test_a_wrong_name_is_found_before_torch_is_imported():
    code = (
        "import sys\nfrom h2gen.evaluation.metrics import choose_metrics\n"
        "try:\n    choose_metrics('beauty')\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print('torch' in sys.modules, 'torchmetrics' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["SettingError", "False", "False"], done.stderr


def test_all_names_are_known():
    assert NAMES == ("psnr", "ssim", "lpips", "clip-iqa", "clip-score")
