"""Pictures that others made are checked before they are decoded, and come out upright, in RGB, in the size needed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.models.defaults import ModelDefaults
from h2gen.settings import pictures
from h2gen.settings.inputs import InputFile
from h2gen.settings.pictures import PictureRule, fitted, open_picture, size_like

RULE = PictureRule()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(name: Any) -> InputFile:
    (file,) = RULE.resolve("--image", name)
    return file


def opened(name: str, *, mask: bool = False) -> np.ndarray:
    return np.asarray(open_picture(found(name), mask=mask).image)


def halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right; 8 x 4 pixels."""
    image = Image.new("RGB", (8, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGB"), ("a.bmp", "RGB"), ("a.tif", "CMYK"), ("a.gif", "P"), ("a.webp", "RGBA")]
)
def test_formats_and_modes_become_rgb(name: str, mode: str) -> None:
    halves(mode).save(name, **({"lossless": True} if name.endswith("webp") else {}))
    got = opened(name)
    assert got.shape == (4, 8, 3)
    assert abs(got[0, 0].astype(int) - [255, 0, 0]).max() < 4 and abs(got[0, -1].astype(int) - [0, 0, 255]).max() < 4


def test_a_photograph_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    halves().save("a.jpg", exif=exif, quality=95, subsampling=0)
    got = opened("a.jpg")
    assert got.shape == (8, 4, 3)
    assert got[0, 0, 0] > 200 and got[-1, 0, 2] > 200, "what was left is now above"


def test_sixteen_bits_keep_their_brightness() -> None:
    """Pillow's own conversion makes all of it white."""
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save("a.png")
    assert opened("a.png")[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.save("a.png")
    assert opened("a.png")[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_only_the_first_frame_of_an_animation_is_used_and_that_is_known() -> None:
    halves().save("a.gif", save_all=True, append_images=[Image.new("RGB", (8, 4), "green")])
    file = open_picture(found("a.gif"))
    assert file.animated and np.asarray(file.image)[0, 0].tolist() == [255, 0, 0]
    halves().save("b.png")
    assert not open_picture(found("b.png")).animated


def test_a_mask_is_white_where_the_picture_changes() -> None:
    grey = Image.new("L", (2, 1), 0)
    grey.putpixel((1, 0), 255)
    grey.save("grey.png")
    erased = Image.new("RGBA", (2, 1), (200, 30, 30, 255))
    erased.putpixel((1, 0), (0, 0, 0, 0))
    erased.save("erased.png")
    painted = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    painted.putpixel((1, 0), (255, 255, 255, 255))
    painted.save("painted.png")
    for name in ("grey.png", "erased.png", "painted.png"):
        assert opened(name, mask=True).tolist() == [[0, 255]], name
    Image.new("L", (2, 1), 0).save("black.png")
    with pytest.raises(SettingError, match=r"The mask 'black\.png' is black, so nothing would change; paint white"):
        opened("black.png", mask=True)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_huge_picture_is_refused_before_it_is_decoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (here / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(SettingError, match=r"'bomb\.png' has more than 134 megapixels"):
        opened("bomb.png")
    Image.new("RGB", (8, 4), "purple").save("a.bmp")
    file = found("a.bmp")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 31)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _self: pytest.fail("it was decoded"))
    with pytest.raises(SettingError, match=r"\(8x4\); give a smaller picture"):
        open_picture(file)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"),
        ("a.png", b"cos\nsystem\n(S'true'\ntR."),
        ("a.jpg", b""),
        ("a.pdf", b"%PDF-1.4\n"),
    ],
)
def test_other_formats_are_refused_whatever_their_name(here: Path, name: str, data: bytes) -> None:
    (here / name).write_bytes(data)
    with pytest.raises(SettingError, match=r"not a picture that h2gen can read \(PNG, JPEG, .* or TIFF\); convert it"):
        opened(name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_a_file_that_is_cut_short_is_one_line(here: Path, name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(name)
    data = (here / name).read_bytes()
    for part in (0.3, 0.6, 0.9):
        (here / name).write_bytes(data[: int(part * len(data))])
        with pytest.raises(SettingError) as caught:
            opened(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_that_changed_meanwhile_is_not_used(here: Path) -> None:
    Image.new("RGB", (8, 4), "yellow").save("a.png")
    file = found("a.png")
    Image.new("RGB", (8, 4)).save("a.png")
    with pytest.raises(SettingError, match=r"'a\.png' has changed since this command began"):
        open_picture(file)


def test_a_python_caller_may_give_an_image_which_is_taken_as_it_is_then() -> None:
    image = halves()
    file = found(image)
    ImageDraw.Draw(image).rectangle((0, 0, 8, 4), fill="green")
    assert np.asarray(open_picture(file).image)[0, 0].tolist() == [255, 0, 0]
    assert file == found(halves()) and file != found(image)
    (pair,) = PictureRule(number=Rule(float, 0, 1)).resolve("image", (halves(), 0.4))
    assert pair == replace(file, scale=0.4)
    assert file.to_json() == {"name": "a PIL image", "sha256": file.sha256}


def test_sizes_follow_the_picture_within_the_models_area() -> None:
    model = ModelDefaults(width=1024, height=1024)
    assert size_like((1024, 1024), model) == (1024, 1024)
    assert size_like((640, 470), model) == (640, 464)
    assert size_like((4032, 3024), model) == (1184, 880)
    assert size_like((5, 5), model) == (16, 16)


def test_fitting_keeps_the_aspect_and_cuts_the_rest_off() -> None:
    image = fitted(halves().resize((80, 40), Image.Resampling.NEAREST), (20, 20))
    assert image.size == (20, 20)
    assert np.asarray(image)[10, 2].tolist() == [255, 0, 0] and np.asarray(image)[10, 17].tolist() == [0, 0, 255]
    same = halves()
    assert fitted(same, (8, 4)) is same


def test_picture_objects_with_other_colours_or_cut_short_are_told_apart() -> None:
    one, other = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    one.putpalette([255, 0, 0])
    other.putpalette([0, 0, 255])
    assert open_picture(found(one)).image.getpixel((0, 0)) == (255, 0, 0)
    assert open_picture(found(other)).image.getpixel((0, 0)) == (0, 0, 255)
    Image.effect_noise((64, 64), 50).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:900])
    with Image.open("cut.png") as cut, pytest.raises(SettingError, match="a PIL image is damaged or cut short"):
        found(cut)


def wide_gamut() -> bytes:
    """An ICC profile with red and green exchanged, which no viewer could show as sRGB by mistake."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for start in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12):
        names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ", b"desc": b"xxxx"}
        data[start : start + 4] = names.get(bytes(data[start : start + 4]), data[start : start + 4])
    return bytes(data)


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGB"), ("a.jpg", "RGB"), ("a.png", "RGBA"), ("a.png", "P")])
def test_colours_are_those_of_the_pictures_profile(name: str, mode: str) -> None:
    halves(mode).save(name, icc_profile=wide_gamut(), **({"subsampling": 0} if name.endswith("jpg") else {}))
    got = opened(name).astype(int)
    assert abs(got[0, 0] - [0, 255, 0]).max() < 8 and abs(got[0, -1] - [0, 0, 255]).max() < 8


def test_a_transparent_picture_with_a_profile_is_on_white() -> None:
    image = halves("RGBA")
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.save("a.png", icc_profile=wide_gamut())
    got = opened("a.png").astype(int)
    assert [*got[0, 0]] == [255, 255, 255] and abs(got[0, 1] - [0, 255, 0]).max() < 8


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_profile_that_cannot_be_used_is_ignored(mode: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = np.asarray(halves(mode).convert("RGB"))
    damaged = wide_gamut()[:200]
    for number, profile in enumerate((damaged, b"nonsense", srgb, *(() if mode == "RGB" else (wide_gamut(),)))):
        halves(mode).save(f"{number}.tif", icc_profile=profile)
        assert np.array_equal(opened(f"{number}.tif"), plain)


def test_pictures_of_other_profiles_are_other_pictures_in_python() -> None:
    image = halves()
    image.info["icc_profile"] = wide_gamut()
    assert found(image).sha256 != found(halves()).sha256
    assert abs(np.asarray(open_picture(found(image)).image)[0, 0].astype(int) - [0, 255, 0]).max() < 8
