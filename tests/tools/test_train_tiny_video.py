"""The training of the small video model, on a few steps and coloured shapes: it learns, resumes, and diffusers loads
it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from h2gen.models.catalogue import Checkpoint
from h2gen.models.content_hash import check_bundled
from h2gen.models.defaults import FILE, read_defaults
from tests.tools.test_train_tiny import CPU
from tools.train_tiny import (
    classifier,
    runs,
    video_autoencoder,
    video_clips,
    video_evaluate,
    video_model,
    video_ship,
    video_train,
)
from tools.train_tiny.model import pack, position_ids
from tools.train_tiny.sprites import SIDE, Sprite, Sprites
from tools.train_tiny.video_clips import FRAMES, MOTIONS, THINGS, Projector

pytestmark = pytest.mark.no_cover

FEW, MORE = 0.1, 0.2
"""Minutes, of a clock that a step takes one or two seconds of."""


def shapes() -> Sprites:
    """Every thing as a red L with a blue foot, which looks the same only after a whole turn."""
    picture = np.zeros((SIDE, SIDE, 4), np.uint8)
    picture[SIDE // 8 : -SIDE // 8, SIDE // 4 : SIDE // 2] = (210, 30, 30, 255)
    picture[-3 * SIDE // 8 : -SIDE // 8, SIDE // 4 : -SIDE // 8] = (30, 30, 210, 255)
    index = [Sprite(video_clips.concept_of(thing), "3d", colourful=True) for thing in range(len(THINGS))]
    return Sprites(np.stack([picture] * len(THINGS)), index)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Few clips at a time, and a clock that goes on by a second when it is read."""
    now = iter(range(10**6))
    patch.setattr(runs.time, "process_time", lambda: float(next(now)))
    patch.setattr(runs, "_WARM", 3)
    patch.setattr(video_autoencoder, "_BATCH", 2)
    patch.setattr(video_train, "_BATCH", 2)
    patch.setattr(video_train, "_POOL", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parts, trained for a few steps."""
    folder = tmp_path_factory.mktemp("video")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        video_autoencoder.train(shapes(), folder / "autoencoder", FEW, CPU)
        video_train.train(shapes(), folder / "autoencoder", folder / "model", FEW, CPU)
    return folder


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_drawn_clip_moves_as_its_caption_says(motion: str) -> None:
    frames = Projector(shapes(), CPU)([video_clips.clip(0, motion, "blue" if motion == "up" else None)])
    assert frames.shape == (1, 3, FRAMES, video_clips.SIDE, video_clips.SIDE)
    assert video_evaluate.motion_of(frames[0]) == motion


def test_a_clip_of_nothing_shows_nothing() -> None:
    assert video_evaluate.motion_of(torch.ones(3, FRAMES, video_clips.SIDE, video_clips.SIDE)) == "nothing"


def test_captions_name_the_thing_the_motion_and_the_background() -> None:
    assert video_clips.caption(1, "left", "blue", 1) == "a dog moving to the left on a blue background"
    assert video_clips.caption(0, "still") == "a cat"
    rng = np.random.default_rng(0)
    clips = [video_clips.random_clip(rng) for _ in range(200)]
    known = set(video_clips.all_captions())
    assert {clip.caption for clip in clips} <= known | {""}
    assert 5 < sum(not clip.caption for clip in clips) < 40


def test_every_motion_is_asked_for_of_many_things() -> None:
    asked = video_evaluate.questions(4)
    assert {question.motion for question in asked} == set(MOTIONS)
    assert len({(question.thing, question.motion) for question in asked}) == len(asked) == 4 * len(THINGS)


def test_the_pipeline_cuts_off_all_that_stands_before_the_prompt() -> None:
    words = video_model.Words(video_model.build_tokenizer(), video_model.base().tokenizer)
    ids, mask, _ = words.ids(["a cat moves up", ""])
    seen = words.llama(
        [DEFAULT_PROMPT_TEMPLATE["template"].format(said) for said in ("a cat moves up", "")],
        padding="longest",
        return_tensors="pt",
    )
    cut = DEFAULT_PROMPT_TEMPLATE["crop_start"]
    assert torch.equal(seen.input_ids[:, cut:], ids) and torch.equal(seen.attention_mask[:, cut:], mask)
    assert words.llama.unk_token_id not in ids
    assert torch.equal(words.ids(["A cat, moves up!"])[0], ids[:1])


def test_before_training_it_computes_what_the_picture_model_does() -> None:
    pipe = video_model.base()
    words = video_model.Words(video_model.build_tokenizer(), pipe.tokenizer)
    model = video_model.new_model(words, pipe)
    torch.manual_seed(0)
    noisy, said, sigma = torch.randn(1, 12, 1, 8, 6), torch.randn(1, 5, 128), torch.tensor([0.7])
    pooled = torch.randn(1, 128)
    with torch.no_grad():
        video = model.transformer(noisy, sigma * 1000, said, torch.ones(1, 5), pooled, return_dict=False)[0]
        pipe.transformer.context_embedder = torch.nn.Identity()
        picture = pipe.transformer(
            pack(noisy[:, :, 0]),
            said,
            pooled,
            sigma,
            position_ids(8, 6, CPU),
            torch.zeros(5, 3),
            return_dict=False,
        )[0]
    torch.testing.assert_close(pack(video[:, :, 0]), picture, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_both_parts_learn_and_go_on_from_their_snapshots(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    before = torch.load(made / "model" / "snapshot.pt", weights_only=True)["progress"]["steps"]
    video_train.train(shapes(), made / "autoencoder", made / "model", MORE, CPU)
    video_autoencoder.train(shapes(), made / "autoencoder", MORE, CPU)
    for part in ("model", "autoencoder"):
        progress = torch.load(made / part / "snapshot.pt", weights_only=True)["progress"]
        assert progress["steps"] > before and progress["seconds"] >= 60 * MORE
    pipe = HunyuanVideoPipeline.from_pretrained(made / "model" / "pipeline", local_files_only=True)
    fresh = video_model.new_model(video_model.Words(pipe.tokenizer, pipe.tokenizer_2), video_model.base())
    for name in ("x_embedder.proj.weight", "single_transformer_blocks.3.proj_out.weight"):
        assert not torch.equal(pipe.transformer.get_parameter(name), fresh.transformer.get_parameter(name))
    assert not torch.equal(pipe.text_encoder.embed_tokens.weight, fresh.llama.embed_tokens.weight)


@pytest.mark.slow
def test_it_is_judged_and_shipped_only_if_it_is_good(made: Path, tmp_path: Path) -> None:
    pipe = video_evaluate.load(made / "model" / "pipeline", CPU)
    judge = classifier.Classifier(len(classifier.concepts())).eval()
    calling = video_evaluate.Calling(steps=1)
    asked = video_evaluate.questions(1)[:3]
    report = video_evaluate.evaluate(pipe, judge, shapes(), asked, calling, made / "evaluation")
    assert report["made"]["of"] == report["real"]["of"] == 3 and report["drawn"]["motion"] == 1
    assert (made / "evaluation" / "sheet.png").exists()
    with pytest.raises(RuntimeError, match="not good enough"):
        video_ship.ship(made, "a test", into=tmp_path / "tiny-video")
    assert not (tmp_path / "tiny-video").exists()
    good = {**report, "made": {**report["made"], "top1": 0.9, "motion": 0.9}}
    (made / "evaluation" / "report.json").write_text(json.dumps(good), encoding="utf-8")
    video_ship.ship(made, "a test", "The rate was changed by hand.", tmp_path / "tiny-video")
    shipped = HunyuanVideoPipeline.from_pretrained(tmp_path / "tiny-video", local_files_only=True)
    torch.testing.assert_close(shipped.transformer.state_dict(), pipe.transformer.float().state_dict(), rtol=0, atol=0)
    defaults = read_defaults(tmp_path / "tiny-video" / FILE)
    assert (defaults.frames, defaults.width, defaults.steps) == (FRAMES, video_clips.SIDE, 1)
    check_bundled(Checkpoint("tiny-video", "bundled", tmp_path / "tiny-video", None, defaults))
    card = (tmp_path / "tiny-video" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "a test" in card and "\nThe rate was changed by hand.\n" in card
