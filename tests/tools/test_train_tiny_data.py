"""The data set of the bundled model: packages, sprites, scenes and their captions."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.sprites import few_sprites
from tools.train_tiny import packages, sprites
from tools.train_tiny.captions import Phrase, describe, plural
from tools.train_tiny.colours import BACKGROUNDS, TINTS
from tools.train_tiny.concepts import COMMON, concepts
from tools.train_tiny.packages import PACKAGES, Package
from tools.train_tiny.render import Renderer
from tools.train_tiny.scenes import Scene, Stage, Thing, Variety

pytestmark = [pytest.mark.posix, pytest.mark.no_cover]

CPU = torch.device("cpu")
WHITE = (1.0, 1.0, 1.0)
ICON = '<rect width="16" height="16" fill="#ff0000"/>'


def npm_that_packs(folder: Path, monkeypatch: pytest.MonkeyPatch, **contents: dict[str, bytes]) -> None:
    """A program called npm that packs what a registry would hand out: files by package and path."""
    shelf = folder / "shelf"
    for package in PACKAGES:
        home = shelf / package.name.strip("@").replace("/", "-") / "package"
        about = {"name": package.name, "version": package.version, "license": package.licence}
        files = {"package.json": json.dumps(about).encode(), **contents.get(package.name, {})}
        for name, data in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
    script = folder / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nname=$(echo "$3" | sed "s/^@//; s,/,-,")\nbare=${{name%@*}}\n'
        f'[ -d "{shelf}/$bare" ] || {{ echo "404 no $3" >&2; exit 1; }}\n'
        f'tar czf "$bare-${{name##*@}}.tgz" -C "{shelf}/$bare" package\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


def a_registry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = folder / "cat.webp"
    Image.new("RGBA", (32, 32), (10, 20, 30, 255)).save(picture, lossless=True)
    emoji = {chr(0x1F400 + i): {"name": concept.unicode.upper()} for i, concept in enumerate(concepts())}
    icons = {"width": 16, "icons": {"cat": {"body": ICON}}, "aliases": {"tom": {"parent": "cat"}}}
    npm_that_packs(
        folder,
        monkeypatch,
        **{
            "@lobehub/fluent-emoji-3d": {"assets/1f400.webp": picture.read_bytes()},
            "@iconify-json/fluent-emoji-flat": {
                "icons.json": json.dumps(icons).encode(),
                "chars.json": json.dumps({"1f400": "tom"}).encode(),
            },
            "@iconify-json/noto": {"icons.json": json.dumps(icons).encode(), "chars.json": b"{}"},
            "unicode-emoji-json": {"data-by-emoji.json": json.dumps(emoji).encode()},
        },
    )


def test_the_same_packages_make_the_same_data_set_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_registry(tmp_path, monkeypatch)
    hashes = []
    for name in ("one", "two"):
        built = sprites.build(tmp_path / name, tmp_path / "packages")
        files = sorted(path for path in (tmp_path / name).iterdir())
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1]
    assert [(sprite.concept, sprite.style) for sprite in built.index] == [(0, "3d"), (0, "flat")]
    assert built.pictures[0, 90, 90].tolist() == [10, 20, 30, 255]
    assert built.pictures[1, 90, 90].tolist() == [255, 0, 0, 255]
    assert [sprite.colourful for sprite in built.index] == [False, True]
    loaded = sprites.load(tmp_path / "one")
    assert np.array_equal(loaded.pictures, built.pictures) and loaded.index == built.index
    assert all(package.licence in (tmp_path / "one" / "NOTICE.md").read_text() for package in PACKAGES)


def test_a_package_under_another_licence_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_registry(tmp_path, monkeypatch)
    changed = (Package("unicode-emoji-json", "0.9.0", "GPL-3.0", "-", "-"),)
    monkeypatch.setattr(packages, "PACKAGES", changed)
    with pytest.raises(RuntimeError, match=r"unicode-emoji-json is 0\.9\.0 under MIT"):
        packages.fetch(tmp_path / "packages")


def test_without_npm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm, which fetches the packages, is not installed"):
        packages.fetch(tmp_path / "packages")


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_registry(tmp_path, monkeypatch)
    monkeypatch.setattr(packages, "PACKAGES", (Package("nothing", "1.0.0", "MIT", "-", "-"),))
    with pytest.raises(RuntimeError, match=r"npm could not fetch nothing@1\.0\.0: 404"):
        packages.fetch(tmp_path / "packages")


def test_an_archive_that_leads_outside_its_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGES", (Package("evil", "1.0.0", "MIT", "-", "-"),))
    (tmp_path / "packages").mkdir()
    (tmp_path / "stone").write_bytes(b"x")
    with tarfile.open(tmp_path / "packages" / "evil-1.0.0.tgz", "w:gz") as tar:
        tar.add(tmp_path / "stone", "../../outside")
    with pytest.raises(tarfile.FilterError):
        packages.fetch(tmp_path / "packages")
    assert not (tmp_path.parent / "outside").exists()


def test_every_concept_has_a_name_of_its_own() -> None:
    known = concepts()
    assert len(known) > 400 and COMMON == 100
    assert len({concept.name for concept in known}) == len({concept.unicode for concept in known}) == len(known)
    assert {"cat", "car", "apple"} < {concept.name for concept in known[:COMMON]}


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        (Phrase("cat"), "a cat"),
        (Phrase("apple", ("small", "blue")), "a small blue apple"),
        (Phrase("apple"), "an apple"),
        (Phrase("grapes"), "grapes"),
        (Phrase("cat", count=2), "two cats"),
        (Phrase("cup of coffee", count=3), "three cups of coffee"),
        (Phrase("mouse", ("red",), 4), "four red mice"),
        (Phrase("scissors", count=2), "two scissors"),
    ],
)
def test_things_in_words(phrase: Phrase, words: str) -> None:
    assert str(phrase) == words


def test_a_plural_keeps_what_stands_behind() -> None:
    assert plural("face with a hat") == "faces with a hat"


def test_a_caption_says_who_stands_where() -> None:
    pair = [Phrase("cat"), Phrase("dog")]
    for seed in range(40):
        said = describe(pair, "flat", "orange", False, np.random.default_rng(seed))
        assert (said.index("cat") < said.index("dog")) == ("to the right of" not in said)
        assert "on an orange background" in said and "flat" in said
        above = describe(pair, "3d", None, True, np.random.default_rng(seed))
        assert (above.index("cat") < above.index("dog")) == (" above " in above or " over " in above)


def test_the_same_seed_makes_the_same_scenes_and_every_kind_comes() -> None:
    stage = Stage(few_sprites())
    one, two = ([stage.scene(rng) for _ in range(300)] for rng in (np.random.default_rng(3), np.random.default_rng(3)))
    assert one == two
    said = " ".join(scene.caption for scene in one)
    for word in ("small", "four", "beside", "above", "background", "a flat icon", "cartoon", *TINTS):
        assert word in said
    assert sum(not scene.caption for scene in one) > 10
    assert {len(scene.things) for scene in one} == {1, 2, 3, 4}


def test_what_has_a_colour_by_name_gets_no_other() -> None:
    found = few_sprites()
    apple = next(i for i, concept in enumerate(concepts()) if "red apple" in concept.names)
    stage = Stage(replace(found, index=[replace(sprite, concept=apple) for sprite in found.index]))
    rng = np.random.default_rng(0)
    captions = [stage.scene(rng).caption for _ in range(500)]
    named = [caption for caption in captions if "red apple" in caption]
    assert named and any(f"{tint} apple" in caption for caption in captions for tint in TINTS)
    assert not any(f"{tint} red apple" in caption for caption in named for tint in TINTS)


def test_less_variety_is_the_commonest_things_each_at_its_very_place() -> None:
    stage = Stage(few_sprites(), Variety(common=1.0, styles=(1.0, 0.0, 0.0), exact=True))
    rng = np.random.default_rng(0)
    scenes = [scene for scene in (stage.scene(rng) for _ in range(300)) if len(scene.things) == 1]
    assert {(thing.x, thing.y, thing.size) for scene in scenes for thing in scene.things} == {
        (0, 0, size) for size in (0.45, 0.88, 0.97)
    }
    exact = {tuple(part / 255 for part in shade) for shade in BACKGROUNDS.values()}
    assert {scene.background for scene in scenes} <= exact
    assert not any("cartoon" in scene.caption or "flat" in scene.caption for scene in scenes)


@pytest.mark.parametrize("aspect", [2 / 3, 1.0, 1.5])
def test_things_stay_within_the_picture(aspect: float) -> None:
    stage, rng = Stage(few_sprites()), np.random.default_rng(0)
    half = max(aspect, 1) / 2, max(1 / aspect, 1) / 2
    for scene in (stage.scene(rng, aspect) for _ in range(300)):
        for thing in scene.things:
            assert abs(thing.x) + thing.size / 2 < half[0] + 0.03
            assert abs(thing.y) + thing.size / 2 < half[1] + 0.03


def test_a_scene_is_drawn_where_it_says_and_in_its_colours() -> None:
    found = few_sprites()
    render = Renderer(found, CPU)
    blue = tuple(part / 255 for part in BACKGROUNDS["blue"])
    left, right = Thing(0, -0.25, 0, 0.4), Thing(3, 0.25, 0, 0.4)
    (picture,) = render([Scene((left, right), blue, "")], 64, 64)
    seen = ((picture + 1) * 127.5).permute(1, 2, 0)
    assert torch.allclose(seen[0, 0], torch.tensor(BACKGROUNDS["blue"]).float(), atol=1)
    for thing, column in ((left, 16), (right, 48)):
        colour = torch.from_numpy(found.pictures[thing.sprite, 96, 96, :3]).float()
        assert torch.allclose(seen[32, column], colour, atol=2)


def test_pictures_of_any_shape_keep_things_square() -> None:
    render = Renderer(few_sprites(), CPU)
    for height, width in ((96, 64), (64, 96), (48, 48)):
        (picture,) = render([Scene((Thing(0, 0, 0, 0.5),), WHITE, "")], height, width)
        there = (picture < 0.5).any(0)
        assert there.any(1).sum() == there.any(0).sum() == min(height, width) // 2


def test_another_colour_leaves_light_shade_and_grays() -> None:
    found = few_sprites()
    render = Renderer(found, CPU)
    plain, tinted = (render([Scene((Thing(0, 0, 0, 1.0, tint),), WHITE, "")], 64, 64)[0] for tint in (None, "blue"))
    middle = ((tinted[:, 32, 32] + 1) * 127.5).tolist()
    assert middle[2] > middle[0] + 60 and not torch.allclose(plain, tinted)
    grey = few_sprites(colour=(120, 120, 120))
    plain, tinted = (
        Renderer(grey, CPU)([Scene((Thing(0, 0, 0, 1.0, tint),), WHITE, "")], 64, 64)[0] for tint in (None, "blue")
    )
    assert torch.allclose(plain, tinted, atol=0.02)
