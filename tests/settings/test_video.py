"""Frames, rates and formats of videos: from every source, for the models that take them, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from h2gen.batches.jobs import job_id
from h2gen.errors import ProfileError, SettingError
from h2gen.families.hunyuan_video import HUNYUAN_VIDEO
from h2gen.models.catalogue import Checkpoint, ModelDefaults, resolve
from h2gen.settings.layers import Resolved
from h2gen.settings.resolve import Request, resolve_request
from h2gen.settings.speedup import Goal, GoalResolver
from h2gen.settings.values import Settings
from h2gen.settings.video import check_frames, latent_frames, with_frames
from h2gen.settings.workload import default_work, work_of
from tests import small


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a video model's configuration, which is all that settings need."""
    folder = tmp_path_factory.mktemp("video")
    (folder / "transformer").mkdir()
    config = {**small.hunyuan_video_transformer().config, "_class_name": "HunyuanVideoTransformer3DModel"}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanVideoPipeline"}))
    return str(folder)


def request(model: str, environ: dict[str, str] | None = None, **given: Any) -> Request:
    return resolve_request("a cat", {"model": model, "seed": 7, **given}, environ or {})


def test_a_video_model_has_frames_by_default_and_a_picture_model_none(video: str) -> None:
    found = request(video)
    assert (found.settings.frames, found.settings.fps) == (HUNYUAN_VIDEO.frames, HUNYUAN_VIDEO.fps)
    assert found.resolved["frames"].source == "model default"
    picture = request("tiny")
    assert (picture.settings.frames, picture.settings.fps) == (None, None)
    assert not {"frames", "fps"} & (picture.resolved.keys() | picture.settings.to_json().keys())


def test_defaults_in_the_folder_win_over_those_of_the_family(video: str) -> None:
    file = Path(video) / "defaults.toml"
    try:
        file.write_text("frames = 17\nfps = 8\n")
        assert (request(video).settings.frames, request(video).settings.fps) == (17, 8.0)
        file.write_text("steps = 4\n")  # says nothing about frames
        assert (request(video).settings.frames, request(video).settings.fps) == (129, 24.0)
    finally:
        file.unlink()


def test_they_come_from_options_the_environment_and_the_configuration(video: str) -> None:
    assert request(video, frames=5, fps=10).settings.frames == 5
    environ = {"H2GEN_FRAMES": "13", "H2GEN_FPS": "12.5"}
    found = request(video, environ)
    assert (found.settings.frames, found.settings.fps) == (13, 12.5)
    assert found.resolved["frames"].source == "environment"
    assert request("tiny", environ).settings.frames is None  # meant for videos


def test_a_format_of_the_user_suits_the_model_or_is_left_out(video: str) -> None:
    assert request(video, {"H2GEN_FORMAT": "png"}).format is None
    assert request(video, {"H2GEN_FORMAT": "webp"}).format == "webp"
    assert request("tiny", {"H2GEN_FORMAT": "mp4"}).format is None
    assert request("tiny", {"H2GEN_FORMAT": "jpg"}).format == "jpg"
    assert request(video, format="png").format == "png"  # saving it reports that


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"frames": 8}, r"frames is 8, but .* takes 1 plus a multiple of 4; give 5 or 9\."),
        ({"frames": 1024}, r"give 1021 or 1025\."),
        ({"frames": 0}, "frames is 0; give a whole number from 1 to 1025"),
        ({"frames": 1029}, "frames is 1029; give a whole number from 1 to 1025"),
        ({"frames": "5"}, "frames is '5'; give a whole number"),
        ({"fps": 0.5}, "fps is 0.5; give a number from 1 to 120"),
        ({"fps": float("nan")}, "fps is nan; give a number from 1 to 120"),
    ],
)
def test_what_a_video_model_does_not_take_is_one_line(video: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        request(video, **given)


@pytest.mark.parametrize("given", [{"frames": 9}, {"fps": 8.0}, {"frames": 9, "fps": 8.0}])
def test_a_picture_model_takes_neither(given: dict[str, Any]) -> None:
    name, value = next(iter(given.items()))
    with pytest.raises(SettingError, match=rf"{name} is {value:g}, but 'tiny' makes pictures; .*leave it out\."):
        request("tiny", **given)


def test_a_model_that_is_not_known_yet_may_make_videos(monkeypatch: pytest.MonkeyPatch, video: str) -> None:
    unknown = Checkpoint("owner/name", "hub", "owner/name", None, ModelDefaults())
    resolved = {"frames": Resolved(9, "option")}
    with_frames(unknown, resolved)
    assert resolved["fps"].value > 0
    with pytest.raises(SettingError, match="fps has no effect without frames"):
        with_frames(unknown, {"fps": Resolved(9.0, "option")})
    picture = Settings("a cat", 7, 64, 64, 4)
    check_frames(picture, unknown)
    with pytest.raises(SettingError, match="makes videos, which its download has shown only now; run the command"):
        check_frames(picture, resolve(video))
    with pytest.raises(SettingError, match="'tiny' makes pictures"):
        check_frames(Settings("a cat", 7, 64, 64, 4, frames=9, fps=8.0), resolve("tiny"))


def test_frames_and_their_rate_belong_together() -> None:
    for given in ({"frames": 9}, {"fps": 8.0}):
        with pytest.raises(SettingError, match="frames and fps belong together"):
            Settings("a cat", 7, 64, 64, 4, **given)  # type: ignore[arg-type]


def test_pictures_keep_their_ids_and_every_number_of_frames_has_its_own() -> None:
    settings = Settings("a cat", 7, 64, 64, 4)
    assert job_id(settings, "ab", "float32") == "aa29e949b911967dbec29c43fafc5eba"
    others = [Settings("a cat", 7, 64, 64, 4, frames=frames, fps=fps) for frames in (5, 9) for fps in (8.0, 16.0)]
    assert len({job_id(each, "ab", "float32") for each in (settings, *others)}) == 5


def test_memory_counts_frames(video: str) -> None:
    checkpoint = resolve(video)
    one, nine = (work_of(request(video, frames=count).settings, checkpoint) for count in (1, 9))
    text = 256
    assert (nine.tokens - text, nine.pixels) == (3 * (one.tokens - text), 9 * one.pixels)
    assert default_work(checkpoint).pixels == 129 * one.pixels
    assert [latent_frames(count, checkpoint) for count in (0, 1, 5, 129)] == [1, 1, 2, 33]


def test_a_profile_of_videos_is_offered_and_none_of_pictures_is_taken(video: str) -> None:
    def asked(model: str, **goal: Any) -> Request:
        return GoalResolver(Goal(**goal), resolve(model)).request("a cat walks", [("option", {})])

    for goal in ({"speedup": 2}, {"speedup": 2, "nearest": True}):  # there are profiles of the bundled model
        with pytest.raises(
            ProfileError, match=r"no profile for .* frames\. Make one: h2gen tune .*as 1144 uncached videos"
        ):
            asked(video, **goal)
    with pytest.raises(ProfileError, match=r"needs measured figures, .*; give --speedup, or measure: h2gen tune "):
        asked("hunyuan-video", fidelity=0.9)
    said = asked("hunyuan-video", speedup=2).notices[-1]
    assert "published, not measured" in said and said.endswith("h2gen tune --model hunyuan-video")
