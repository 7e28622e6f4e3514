"""Video files: every frame in its place and time, the same bytes again, metadata inside, and no frame ever lost."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen.errors import MetadataError, OutputError, RunError
from h2gen.output.metadata import describe, fitting, read_metadata, to_bytes
from h2gen.output.picture_file import encode_or_keep
from h2gen.output.save import target_of
from h2gen.output.video_file import as_html, encode_video
from h2gen.settings.values import Settings
from h2gen.settings.video_rows import VIDEO_FORMATS
from tests.output.test_metadata import MADE, SETTINGS

av = pytest.importorskip("av")

every_format = pytest.mark.parametrize("format", VIDEO_FORMATS)


def moving(count: int = 9, height: int = 48, width: int = 64) -> Any:
    """Frames of a square that moves to the right over a gradient."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 2] = np.linspace(0, 200, height, dtype=np.uint8)[:, None]
    for number, frame in enumerate(frames):
        frame[16:32, 5 * number : 5 * number + 16] = (250, 200, 0)
    return frames


def decoded(data: bytes, format: str) -> tuple[Any, list[float]]:
    """The frames, and when each ends, in seconds."""
    if format == "mp4":
        with av.open(io.BytesIO(data)) as container:
            found = [(frame.to_ndarray(format="rgb24"), frame.time + frame.duration * frame.time_base)
                     for frame in container.decode(video=0)]  # fmt: skip
        return np.stack([frame for frame, _ in found]), [float(end) for _, end in found]
    frames, ends = [], [0.0]
    with Image.open(io.BytesIO(data)) as image:
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            ends.append(ends[-1] + image.info["duration"] / 1000)
    return np.stack(frames), ends[1:]


@every_format
@pytest.mark.parametrize("fps", [8.0, 15.0, 23.976])
def test_every_frame_is_there_at_its_time(format: str, fps: float) -> None:
    frames = moving()
    data = encode_video(frames, fps, format)
    found, ends = decoded(data, format)
    assert found.shape == frames.shape
    unit = {"mp4": 1e-4, "gif": 0.01, "webp": 0.001}[format]
    assert np.abs(np.array(ends) - np.arange(1, 10) / fps).max() <= unit
    error = np.abs(found.astype(int) - frames).mean()
    assert error == 0 if format == "webp" else error < 3
    for _ in range(3):
        assert encode_video(frames, fps, format) == data


def test_a_gif_that_would_be_too_fast_for_its_viewers_is_slower() -> None:
    _, ends = decoded(encode_video(moving(), 60.0, "gif"), "gif")
    assert ends[-1] == pytest.approx(9 / 50)


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (31, 33)])
def test_an_mp4_of_odd_size_repeats_its_last_row_or_column(height: int, width: int) -> None:
    frames = moving(3, height, width)
    found, _ = decoded(encode_video(frames, 8.0, "mp4"), "mp4")
    assert found.shape[1:3] == (height + height % 2, width + width % 2)
    assert (
        np.abs(found[:, :height, :width].astype(int) - frames).mean() < 4
    )  # of a small picture, halved colours are many


def test_an_mp4_is_what_every_player_takes() -> None:
    with av.open(io.BytesIO(encode_video(moving(), 8.0, "mp4"))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames) == ("h264", "yuv420p", 9)
        assert stream.average_rate == 8
        assert next(container.decode(stream)).colorspace == 1  # BT.709, as players expect


def test_colours_are_those_of_the_frames() -> None:
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]:
        frames = np.full((2, 32, 32, 3), colour, np.uint8)
        data = encode_video(frames, 8.0, "mp4")
        with av.open(io.BytesIO(data)) as container:
            frame = next(container.decode(video=0)).reformat(format="rgb24", src_colorspace="ITU709")
        assert np.abs(frame.to_ndarray().astype(int) - colour).max() <= 4, colour


def written(folder: Path, format: str, metadata: dict[str, Any] | None) -> Path:
    text = None if metadata is None else to_bytes(fitting(metadata, format) or {}, format)
    path = folder / f"video.{format}"
    path.write_bytes(encode_video(moving(), 8.0, format, text))
    return path


def of_video(prompt: str = "a cat walks") -> dict[str, Any]:
    chosen = Settings(prompt, 7, 64, 48, 28, 1.0, 3.0, "a dog", 16, SETTINGS.cache, frames=9, fps=8.0)
    when = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
    return describe(chosen, MADE, seconds=1.5, summary=None, made=when, notes={"source": "a.txt:3"})


@every_format
@pytest.mark.parametrize("prompt", ["a cat walks", '猫 = ; # \\ \n {"content_hash"} é \U0001f408', "x" * 100_000])
def test_a_video_says_how_it_was_made(tmp_path: Path, format: str, prompt: str) -> None:
    whole = of_video(prompt)
    found = read_metadata(written(tmp_path, format, whole))
    assert found.everything == whole
    assert (found.settings.frames, found.settings.fps) == (9, 8.0)


@every_format
def test_a_video_without_metadata_says_so(tmp_path: Path, format: str) -> None:
    with pytest.raises(MetadataError, match="has no h2gen metadata"):
        read_metadata(written(tmp_path, format, None))


def test_metadata_survive_a_copy_by_another_program(tmp_path: Path) -> None:
    path, copy = written(tmp_path, "mp4", of_video()), tmp_path / "copy.mp4"
    with av.open(str(path)) as source, av.open(str(copy), "w") as out:
        out.metadata.update(source.metadata)
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    assert read_metadata(copy).everything == of_video()


@every_format
def test_a_damaged_video_is_one_line(tmp_path: Path, format: str) -> None:
    path = written(tmp_path, format, of_video())
    whole = path.read_bytes()
    for data in (whole[:20], whole[:20] + b"\0" * 200, whole[: len(whole) // 2][:64]):
        path.write_bytes(data)
        with pytest.raises(MetadataError, match=r"damaged|no h2gen metadata"):
            read_metadata(path)


def test_without_av_an_mp4_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "mp4", of_video())
    monkeypatch.setitem(sys.modules, "av", None)
    for out in (str(tmp_path / "cat.mp4"), str(tmp_path)):
        with pytest.raises(OutputError, match=re.escape("pip install 'h2gen[video]'")):
            target_of(out, None, video=True)
    assert target_of(str(tmp_path), "gif", video=True).format == "gif"
    with pytest.raises(MetadataError, match=re.escape("pip install 'h2gen[video]'")):
        read_metadata(path)
    assert "data:image/webp" in as_html(moving(2), 8.0)


@pytest.mark.parametrize(
    ("out", "format", "words"),
    [
        ("cat.png", None, "Cannot write videos as .png files"),
        ("cat.mov", None, "Cannot write videos as .mov files"),
        (".", "png", "format is 'png', and this is a video; choose mp4, gif or webp"),
        ("cat.mp4", "gif", "contradict each other"),
    ],
)
def test_what_a_video_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, format: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=words):
        target_of(out, format, video=True)


def fails(*_args: Any) -> bytes:
    raise ValueError("no luck")


def test_frames_that_cannot_be_encoded_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("h2gen.output.video_file._mp4", fails)
    with pytest.raises(RunError, match=r"could not be encoded as \.mp4: no luck\. Its frames are safe in ") as caught:
        encode_or_keep(moving(), 8.0, "mp4", None, "a-cat-7")
    kept = tmp_path / "h2gen-a-cat-7.webp"
    assert repr(str(kept)) in str(caught.value)
    assert np.array_equal(decoded(kept.read_bytes(), "webp")[0], moving())
    monkeypatch.setattr("h2gen.output.video_file._webp", fails)
    with pytest.raises(RunError, match=r"h2gen-a-cat-7\.npy"):
        encode_or_keep(moving(), 8.0, "mp4", None, "a-cat-7")
    assert np.array_equal(np.load(tmp_path / "h2gen-a-cat-7.npy"), moving())


def test_a_notebook_plays_it() -> None:
    html = as_html(moving(2), 8.0)
    assert html.startswith("<video ") and "data:video/mp4;base64," in html
