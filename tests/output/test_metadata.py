"""A picture's metadata: complete after a round trip, and harmless if it is untrusted."""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from h2gen.cache import CacheConfig
from h2gen.cache.summary import Summary
from h2gen.errors import MetadataError
from h2gen.models.load_options import LoadOptions
from h2gen.output.metadata import LARGEST, Origin, describe, device_name, fitting, read_metadata, to_bytes, to_toml
from h2gen.output.metadata_rows import metadata_rows
from h2gen.output.replay import differences
from h2gen.output.save import encode
from h2gen.settings.table import FORMATS
from h2gen.settings.values import Settings

SETTINGS = Settings("a cat", 7, 128, 64, 28, 1.0, 3.0, "a dog", 16, CacheConfig(0.1, 0.2, 1, 2, 3))
MADE = Origin("tiny", "ab" * 32, "cpu", "float32", "none")
IMAGE = Image.new("RGB", (16, 8), (200, 30, 90))


def described(prompt: str = "a cat", **more: Any) -> dict[str, Any]:
    chosen = Settings(prompt, 7, 128, 64, 28, 1.0, 3.0, "a dog", 16, SETTINGS.cache)
    return describe(chosen, MADE, seconds=1.5, summary=Summary(28, 10, 8, 10, 200, 336, 1.4), preset="fast", **more)


def written(folder: Path, metadata: Any, format: str = "png") -> Path:
    path = folder / f"picture.{format}"
    path.write_bytes(encode(IMAGE, format, metadata))
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_says_everything_about_how_it_was_made(tmp_path: Path, format: str) -> None:
    whole = described(notes={"source": "a.txt:3", "box": [1, 2]})
    found = read_metadata(written(tmp_path, whole, format))
    assert found.everything == whole
    assert found.settings == SETTINGS
    assert (found.model, found.content_hash, found.dtype, found.device) == ("tiny", "ab" * 32, "float32", "cpu")
    assert found.preset == "fast"
    assert set(found.versions) == {"h2gen", "torch", "diffusers", "transformers", "python"}


def test_what_a_profile_stood_in_for_is_recorded_and_older_pictures_lack_it(tmp_path: Path) -> None:
    chosen = replace(SETTINGS, reference_steps=50)
    whole = describe(chosen, MADE, seconds=1.5, summary=Summary(28, 10, 18, blocks_run=60, blocks_total=600))
    found = read_metadata(written(tmp_path, whole))
    assert whole["reference_steps"] == 50 and "reference_steps" not in whole["settings"]
    assert found.settings == chosen and found.settings.reference == 50 / 28
    assert ("cache", "28 passes: 10 full, 18 detail reused; 10% of the blocks of 50 steps") in metadata_rows(whole)
    assert "reference_steps" not in described()
    for wrong in ("50", 0, True, 1.5):
        with pytest.raises(MetadataError, match="reference_steps"):
            read_metadata(written(tmp_path, {**whole, "reference_steps": wrong}))


def test_quantization_is_recorded_checked_and_compared(tmp_path: Path) -> None:
    made = replace(MADE, changing={"quantize": "nf4"})
    whole = describe(SETTINGS, made, seconds=1.5, summary=None)
    assert whole["quantize"] == "nf4" and "quantize_text" not in whole
    found = read_metadata(written(tmp_path, whole))
    assert found.changing == {"quantize": "nf4"}
    assert ("quantize", "nf4") in metadata_rows(whole)
    assert "The picture was made with --quantize nf4, and this with none." in list(differences(found, MADE, SETTINGS))
    assert not any("--quantize" in line for line in differences(found, made, SETTINGS))
    assert read_metadata(written(tmp_path, described())).changing == {}
    for wrong in ("nf5", 8, ["nf4"]):
        with pytest.raises(MetadataError, match="quantize"):
            read_metadata(written(tmp_path, {**whole, "quantize": wrong}))


def test_the_origin_of_a_published_plan_is_recorded_and_checked(tmp_path: Path) -> None:
    chosen = replace(SETTINGS, published_plan="by them; published, not measured with h2gen")
    whole = describe(chosen, MADE, seconds=1.5, summary=None)
    assert whole["published_plan"] == chosen.published_plan and "published_plan" not in whole["settings"]
    assert read_metadata(written(tmp_path, whole)).settings == chosen
    assert ("published plan", chosen.published_plan) in metadata_rows(whole)
    assert "published_plan" not in described()
    for wrong in (50, True, "x" * 501, ["x"]):
        with pytest.raises(MetadataError, match="published_plan"):
            read_metadata(written(tmp_path, {**whole, "published_plan": wrong}))


@pytest.mark.parametrize(("count", "told"), [(1, False), (4, True)])
def test_a_picture_says_that_it_was_made_together_with_others(tmp_path: Path, count: int, told: bool) -> None:
    whole = described(together=count)
    found = read_metadata(written(tmp_path, whole))
    assert found.together == told and whole.get("together", 1) == count
    assert any("in a batch with others" in line for line in differences(found, MADE, found.settings)) == told


def test_a_picture_says_whether_its_model_was_compiled(tmp_path: Path) -> None:
    compiled = replace(MADE, recorded=LoadOptions(compile=True).recorded)
    for made, now, told in ((compiled, MADE, "with --compile, and this without it"),
                            (MADE, compiled, "without --compile, and this with it")):  # fmt: skip
        whole = describe(SETTINGS, made, seconds=1.5, summary=None)
        found = read_metadata(written(tmp_path, whole))
        assert list(differences(found, made, found.settings)) == []
        said = f"The picture was made {told}, which rounds differently."
        assert list(differences(found, now, found.settings)) == [said]


def test_a_picture_says_on_how_many_devices_it_was_made(tmp_path: Path) -> None:
    together = replace(MADE, recorded=LoadOptions(devices=2).recorded)
    whole = describe(SETTINGS, together, seconds=1.5, summary=None)
    found = read_metadata(written(tmp_path, whole))
    assert found.devices == whole["devices"] == 2 and ("devices", "2") in metadata_rows(whole)
    told = "The picture was made on 2 devices, and this on 1 device, which rounds differently."
    assert list(differences(found, MADE, found.settings)) == [told]
    assert list(differences(found, together, found.settings)) == []
    alone = described()
    assert "devices" not in alone and read_metadata(written(tmp_path, alone)).devices == 1
    for wrong in (0, 65, True, "2", [2]):
        with pytest.raises(MetadataError, match="devices"):
            read_metadata(written(tmp_path, {**whole, "devices": wrong}))


def test_a_file_beside_the_picture_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.toml"
    path.write_text(to_toml(described()))
    assert read_metadata(path).everything == described() | {"made": read_metadata(path).everything["made"]}


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40)
@given(prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200).filter(str.strip))
def test_any_prompt_comes_back(tmp_path_factory: pytest.TempPathFactory, format: str, prompt: str) -> None:
    path = written(tmp_path_factory.getbasetemp(), described(prompt), format)
    assert read_metadata(path).settings.prompt == prompt


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_change_no_pixel(format: str) -> None:
    with (
        Image.open(io.BytesIO(encode(IMAGE, format))) as one,
        Image.open(io.BytesIO(encode(IMAGE, format, described()))) as other,
    ):
        assert one.tobytes() == other.tobytes()
        assert format == "jpg" or one.convert("RGB").tobytes() == IMAGE.tobytes()


def test_a_long_prompt_fits_into_a_png_and_notes_go_first_where_it_does_not(tmp_path: Path) -> None:
    long = described("x" * 100_000)
    assert fitting(long, "png") == long
    assert fitting(long, "jpg") is None
    assert read_metadata(written(tmp_path, long)).settings.prompt == "x" * 100_000
    noted = described(notes={"text": "y" * 70_000})
    fit = fitting(noted, "jpg")
    assert fit == {key: value for key, value in noted.items() if key != "notes"}
    assert read_metadata(written(tmp_path, fit, "jpg")).settings == SETTINGS


def test_the_longest_prompts_can_be_read_from_wherever_they_are_written(tmp_path: Path) -> None:
    prompt = "\N{CAT FACE}" * 100_000
    chosen = Settings(prompt, 7, 128, 64, 28, 1.0, 3.0, prompt, 16)
    whole = describe(chosen, MADE, seconds=1.5, summary=None, notes={"text": "y" * 300_000})
    fit = fitting(whole, "png")
    assert fit is not None and "notes" not in fit
    assert read_metadata(written(tmp_path, fit)).settings == chosen
    path = tmp_path / "picture.toml"
    path.write_text(to_toml(whole), encoding="utf-8")
    assert read_metadata(path).settings == chosen


@pytest.mark.parametrize("more", [-1, 0])
def test_a_png_is_filled_up_to_what_can_be_read(tmp_path: Path, more: int) -> None:
    room = 2**20 - len(to_bytes(described(notes={"text": ""}), "png"))
    whole = described(notes={"text": "y" * (room + more)})
    assert fitting(whole, "png") == whole
    assert read_metadata(written(tmp_path, whole)).everything == whole
    assert fitting(described(notes={"text": "y" * (room + 1)}), "png") != whole


def test_notes_that_toml_makes_far_longer_are_left_out_beside_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.toml"
    path.write_text(to_toml(described(notes={"k" * 1000: {str(number): {} for number in range(10_000)}})))
    assert path.stat().st_size < LARGEST
    assert "notes" not in read_metadata(path).everything


def test_nothing_in_the_notes_can_lose_what_lies_beside_the_picture(tmp_path: Path) -> None:
    deep: Any = None
    for _ in range(200):
        deep = [deep]
    notes = {"null": None, "in": [None], "half": "\ud800", "\udfff": 1, "big": 10**400, "inf": 1e999, "deep": deep}
    path = tmp_path / "picture.toml"
    path.write_text(to_toml(described(notes=notes)), encoding="utf-8")
    assert read_metadata(path).settings == SETTINGS


def test_a_device_is_known_by_its_kind_and_model_and_not_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:0": "NVIDIA H100", "cuda:1": "NVIDIA H100"}.get)
    assert device_name("cuda:1") == device_name("cuda:0") == "cuda NVIDIA H100"
    assert device_name("mps:0") == "mps"
    assert device_name("cpu") == "cpu"


def png_text(text: str | bytes, key: bytes = b"h2gen", kind: bytes = b"tEXt") -> bytes:
    """A PNG with an arbitrary chunk, even an invalid one."""
    body = text if isinstance(text, bytes) else text.encode()
    if kind == b"zTXt":
        body = key + b"\0\0" + zlib.compress(body)
    elif kind == b"tEXt":
        body = key + b"\0" + body
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    plain = encode(IMAGE, "png")
    return plain[:33] + chunk + plain[33:]  # after the signature and IHDR


def changed(**changes: Any) -> bytes:
    """A picture whose metadata were edited: a dotted key, and None removes it."""
    whole = described()
    for key, value in changes.items():
        table, _, name = key.rpartition("__")
        target = whole[table] if table else whole
        if value is None:
            del target[name]
        else:
            target[name] = value
    return png_text(json.dumps(whole))


def exif(comment: Any, format: str = "JPEG") -> bytes:
    data = Image.Exif()
    data.get_ifd(0x8769)[0x9286] = comment
    buffer = io.BytesIO()
    IMAGE.save(buffer, format, exif=data.tobytes())
    return buffer.getvalue()


def huge_dimensions() -> bytes:
    data = bytearray(encode(IMAGE, "png"))
    data[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def in_toml(line: str) -> bytes:
    """The sidecar of a picture, with one setting edited."""
    name = line.split()[0]
    lines = to_toml(described()).splitlines()
    return "\n".join(line if each.startswith(f"{name} =") else each for each in lines).encode()


GOOD = to_bytes(described(), "jpg").decode()
BAD: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("a.png", b"", "is not a PNG, JPEG or WebP"),
    ("a.png", b"\x89PNG\r\n\x1a\n", "is not a PNG, JPEG or WebP"),
    ("a.png", b"hello", "is not a PNG, JPEG or WebP"),
    ("a.png", b"GIF89a" + b"\0" * 50, "is not a PNG, JPEG or WebP"),
    ("a.png", b"\xff\xd8\xff", "is not a PNG, JPEG or WebP"),
    ("a.jpg", b"RIFF\x00\x00\x00\x00WEBP", "is not a PNG, JPEG or WebP"),
    ("a.png", huge_dimensions, "is not a PNG, JPEG or WebP"),
    ("a.png", lambda: encode(IMAGE, "png")[:20], "is not a PNG, JPEG or WebP"),
    ("a.png", lambda: encode(IMAGE, "png"), "has no h2gen metadata"),
    ("a.jpg", lambda: encode(IMAGE, "jpg"), "has no h2gen metadata"),
    ("a.webp", lambda: encode(IMAGE, "webp"), "has no h2gen metadata"),
    ("a.png", lambda: png_text("Steps: 20", b"parameters"), "has no h2gen metadata"),
    ("a.png", lambda: png_text("x" * 50_000_000, kind=b"zTXt"), "is not a PNG, JPEG or WebP"),
    ("a.png", lambda: png_text("", kind=b"zTXt"), "damaged: not valid JSON"),
    ("a.png", lambda: png_text("steps: 3"), "damaged: not valid JSON"),
    ("a.png", lambda: png_text("[]"), "damaged: not a JSON object"),
    ("a.png", lambda: png_text("3"), "damaged: not a JSON object"),
    ("a.png", lambda: png_text("{}"), "its version is not one of h2gen's"),
    ("a.png", lambda: png_text("[" * 200_000), "damaged: not valid JSON"),
    ("a.png", lambda: png_text('{"a":' * 200_000), "damaged: not valid JSON"),
    ("a.png", lambda: png_text(GOOD[:-1]), "damaged: not valid JSON"),
    ("a.png", lambda: png_text(GOOD.replace("28", "NaN", 1)), "damaged: not valid JSON"),
    ("a.png", lambda: png_text(GOOD.replace('"tau1": 0.1', '"tau1": 1e999')), "tau1 is inf; give a number"),
    ("a.png", lambda: png_text("9" * 5000), "damaged"),
    ("a.png", lambda: changed(version=2), "newer than this h2gen can read; update h2gen"),
    ("a.png", lambda: changed(version="1"), "its version is not one of h2gen's"),
    ("a.png", lambda: changed(version=None), "its version is not one of h2gen's"),
    ("a.png", lambda: changed(settings=None), "settings is missing"),
    ("a.png", lambda: changed(settings=[1]), "settings is missing"),
    ("a.png", lambda: changed(model=None), "model is missing"),
    ("a.png", lambda: changed(model="tiny"), "model is missing"),
    ("a.png", lambda: changed(model__name=None), "model.name is missing"),
    ("a.png", lambda: changed(model__name=3), "name is 3; give it as text"),
    ("a.png", lambda: changed(model__name="x" * 501), "name has more than 500 characters"),
    ("a.png", lambda: changed(model__content_hash=[1]), "content_hash is a list; give it as text"),
    ("a.png", lambda: changed(dtype=3), "dtype is 3; give it as text"),
    ("a.png", lambda: changed(versions=[]), "versions must be a table"),
    ("a.png", lambda: changed(versions={"torch": 2}), "versions must be a table"),
    ("a.png", lambda: changed(settings__width=None), "width is missing"),
    ("a.png", lambda: changed(settings__seed=None), "seed is missing"),
    ("a.png", lambda: changed(settings__max_consecutive=None), "max_consecutive is missing"),
    ("a.png", lambda: changed(settings__prompt=3), "The prompt is 3; give it as text"),
    ("a.png", lambda: changed(settings__prompt=" "), "The prompt is empty"),
    ("a.png", lambda: changed(settings__negative=["a"]), "The negative prompt is a list; give it as text"),
    ("a.png", lambda: changed(settings__steps=0), "steps is 0"),
    ("a.png", lambda: changed(settings__steps="28"), "steps is '28'"),
    ("a.png", lambda: changed(settings__steps=10**30), "steps is 1000"),
    ("a.png", lambda: changed(settings__steps=True), "steps is True"),
    ("a.png", lambda: changed(settings__width=-128), "width is -128"),
    ("a.png", lambda: changed(settings__height=10**6), "height is 1000000"),
    ("a.png", lambda: changed(settings__seed=2**63), "seed is 9223372036854775808"),
    ("a.png", lambda: changed(settings__cfg="3"), "cfg is '3'"),
    ("a.png", lambda: changed(settings__tau1="\x1b[31m"), "tau1 is"),
    ("a.png", lambda: changed(settings__tau2=-0.1), "tau2 is -0.1"),
    ("a.png", lambda: changed(settings__warmup_steps=1.5), "warmup_steps is 1.5"),
    ("a.png", lambda: changed(settings__plan="FX"), "plan has 'X'"),
    ("a.png", lambda: changed(settings__plan="FF"), "plan is for 2 steps"),
    ("a.png", lambda: changed(settings__plan=["F"]), "plan is a list; give it as text"),
    ("a.png", lambda: changed(settings__plan="F" * 60_000), "plan has 60000 letters"),
    ("a.png", lambda: changed(settings__hierarchy="\x1b" * 9999), "hierarchy '"),
    ("a.png", lambda: changed(settings__solver=["own"]), "solver is a list; choose own, unipc, heun, dpm++ or lcm"),
    ("a.png", lambda: changed(settings__solver="x" * 9999), "solver 'xxx"),
    ("a.png", lambda: changed(settings__pfs={"a": 1}), "pfs is an object; choose paper or stable"),
    ("a.png", lambda: changed(settings__budget=1), "budget is 1"),
    ("a.png", lambda: changed(settings__forecast=7), "forecast is 7"),
    ("a.png", lambda: changed(settings__pfs=3), "pfs is 3"),
    ("a.png", lambda: changed(settings__tau1=10**400), "tau1 is 1000"),
    ("a.png", lambda: changed(settings__tau1="x" * 1000), "tau1 is 'xxx"),
    ("a.png", lambda: changed(settings__guidance=10**400), "guidance is 1000"),
    ("a.png", lambda: changed(settings__steps=[[1]]), "steps is a list; give a whole number"),
    ("a.png", lambda: changed(settings__prompt="a\ud800b"), "The prompt is not UTF-8 text"),
    ("a.png", lambda: changed(settings__negative="\udfff"), "The negative prompt is not UTF-8 text"),
    ("a.png", lambda: changed(settings__prompt="x" * 100_001), "The prompt has more than 100000"),
    ("a.png", lambda: changed(version=10**400), "its version is not one of h2gen's"),
    ("a.jpg", lambda: exif(b"ASCII\0\0\0steps"), "has no h2gen metadata"),
    ("a.jpg", lambda: exif(b"ASCII\0\0\0" + GOOD.encode()[:-5]), "damaged: not valid JSON"),
    ("a.webp", lambda: exif(b"\xff" * 100, "WEBP"), "has no h2gen metadata"),
    ("a.toml", b"", "its version is not one of h2gen's"),
    ("a.toml", b"steps", "cannot be used"),
    ("a.toml", b"\xff", "cannot be used"),
    ("a.toml", b"x = 1\n" * 400_000, "too large"),
    ("a.toml", b"version = 1", "model is missing"),
    ("a.toml", lambda: in_toml("steps = 0x" + "f" * 5000), "takes more than 64 bits"),
    ("a.toml", lambda: in_toml("steps = " + "9" * 5000), "takes more than 64 bits"),
    ("a.toml", lambda: in_toml("tau1 = nan"), "tau1 is nan; give a number"),
    ("a.toml", lambda: in_toml("steps = 2026-01-02"), "steps is 2026-01-02; give a whole number"),
    ("a.toml", lambda: in_toml("prompt = 2026-01-02"), "The prompt is 2026-01-02; give it as text"),
    ("a.toml", b"a." * 10**6 + b"a = 1", "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=range(len(BAD)))
def test_a_strangers_picture_ends_in_one_clear_line(
    tmp_path: Path, name: str, content: bytes | Callable[[], bytes], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(MetadataError) as error:
        read_metadata(path)
    message = str(error.value)
    assert words in message
    assert len(message.splitlines()) == 1 and "\x1b" not in message and len(message) < 500


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="There is no file"):
        read_metadata(tmp_path / "gone.png")
    with pytest.raises(MetadataError, match="is not a file"):
        read_metadata(tmp_path)
    with pytest.raises(MetadataError, match="There is no file"):
        read_metadata(Path("x\0y"))


def test_what_a_later_release_adds_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(changed(later={"a": 1}, settings__later=3))
    assert read_metadata(path).settings == SETTINGS


POLICIES = {
    "forecast": 1,
    "plan": "F" + "FS" * 13 + "F",
    "tolerance": 0.002,
    "budget": True,
    "hierarchy": "checked",
    "max_detail_age": 4,
    "pfs": "stable",
    "cache_memory": "fp8",
}


@pytest.mark.parametrize("format", [*FORMATS, "toml"])
def test_a_picture_says_which_policies_made_it(tmp_path: Path, format: str) -> None:
    made = Settings("a cat", 7, 128, 64, 28, 1.0, 3.0, "", 16, CacheConfig(0.1, 0.2, **POLICIES))
    whole = describe(made, MADE, seconds=1.5, summary=Summary(28, 2, structure_reused=3, skipped=13))
    path = tmp_path / "picture.toml"
    path.write_text(to_toml(whole))
    found = read_metadata(path if format == "toml" else written(tmp_path, whole, format))
    assert found.settings == made
    assert found.everything["cache"]["skipped"] == 13


def test_a_picture_from_before_there_were_policies_was_made_without_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(changed(**{f"settings__{name}": None for name in POLICIES}))
    assert read_metadata(path).settings == SETTINGS


def test_text_of_another_program_in_a_png_is_left_alone(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("h2gen", GOOD)
    info.add_text("Software", "another")
    IMAGE.save(tmp_path / "a.png", pnginfo=info)
    assert read_metadata(tmp_path / "a.png").settings == SETTINGS


def test_whatever_a_stranger_wrote_besides_can_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(changed(seconds=10**400, cache={"share": 10**400}, later=[1e300, None], settings__later=10**400))
    json.dumps(read_metadata(path).everything, allow_nan=False)
    beside = tmp_path / "a.toml"
    beside.write_text(to_toml(described(notes={"a": "b"})) + "later = 2026-01-02T03:04:05Z\nodd = [nan, 03:04:05]\n")
    found = json.loads(json.dumps(read_metadata(beside).everything, allow_nan=False))
    assert found["notes"] == {"a": "b", "later": "2026-01-02 03:04:05+00:00", "odd": ["nan", "03:04:05"]}


def test_what_older_pictures_call_otherwise_is_still_shown() -> None:
    now = describe(SETTINGS, MADE, seconds=1.5, summary=Summary(28, 10, 8, 10, 200, 336, 1.4), nan_with_cache=True)
    old = {key: value for key, value in now.items() if key != "nan_with_cache"} | {"uncached": True}
    old["cache"] = {{"passes": "steps"}.get(key, key): value for key, value in now["cache"].items()}
    old["settings"] = {key: value for key, value in now["settings"].items() if key != "solver"}
    assert list(metadata_rows(old)) == list(metadata_rows(now))
    assert ("cache", "28 passes: 10 full, 8 detail reused, 10 all reused; 60% of blocks") in metadata_rows(now)
    assert ("solver", "own") in metadata_rows(old)
    unipc = {**now, "settings": {**now["settings"], "solver": "unipc"}}
    assert [value for name, value in metadata_rows(unipc) if name == "solver"] == ["unipc"]


def test_damaged_totals_are_left_out() -> None:
    now = describe(SETTINGS, MADE, seconds=1.5, summary=Summary(28, 10, 18, 0, 200, 336, 1.4))
    for damage in ({"passes": "many"}, {"full": [], "detail_reused": None}, {"passes": 10**400, "full": True}):
        rows = dict(metadata_rows({**now, "cache": {**now["cache"], **damage}}))
        assert rows.get("cache", "").startswith(("", "28 passes: 18 detail reused"))
    for share in (10**400, -1, "half", math.nan):
        odd = {**now, "seconds": 10**400, "cache": {**now["cache"], "share": share}}
        assert dict(metadata_rows(odd))["cache"] == "28 passes: 10 full, 18 detail reused"
