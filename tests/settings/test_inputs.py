"""Files that a picture is made from: how they are given, found, hashed, recorded and matched again."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.batches.jobs import Jobs, job_id
from h2gen.batches.prompts import Reading, read_prompts
from h2gen.checks import Rule
from h2gen.errors import MetadataError, ModelError, SettingError
from h2gen.output.metadata import Origin, describe, read_metadata, to_toml
from h2gen.output.replay import layers_of
from h2gen.settings.inputs import FileRule, InputFile
from h2gen.settings.layers import merge
from h2gen.settings.presets import read_preset
from h2gen.settings.resolve import resolve_request
from h2gen.settings.values import Settings
from tests import loras

RULE = FileRule(what="LoRA", number=Rule(float, -10, 10), scale=1.0)
KINDS = FileRule(what="control picture", kinds=("canny", "depth"))
ALONE = FileRule(what="mask", several=False)


def sha256(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    names = ("a.safetensors", "b.safetensors", "with:2", "sub/c.safetensors", "two words, a comma.safetensors")
    for number, name in enumerate(names):
        loras.save_smallest(tmp_path / name, number)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.safetensors", [("a.safetensors", 1.0)]), ("a.safetensors:0.8", [("a.safetensors", 0.8)]),
        ("a.safetensors:-1e-1", [("a.safetensors", -0.1)]), ("with:2", [("with:2", 1.0)]),
        ("with:2:0.5", [("with:2", 0.5)]), (Path("sub/c.safetensors"), [("sub/c.safetensors", 1.0)]),
        (["a.safetensors:2", Path("b.safetensors")], [("a.safetensors", 2.0), ("b.safetensors", 1.0)]),
        ("two words, a comma.safetensors:3", [("two words, a comma.safetensors", 3.0)]), ("none", []), ([], []),
    ],
)  # fmt: skip
def test_a_file_has_a_number_behind_its_last_colon(files: Path, given: Any, expected: list[tuple[str, float]]) -> None:
    found = RULE.resolve("lora", given)
    assert [(str(item.path), item.scale) for item in found] == [(str(files / name), scale) for name, scale in expected]
    assert [item.name for item in found] == [Path(name).name for name, _ in expected]
    assert [item.sha256 for item in found] == [sha256(name) for name, _ in expected]


def test_a_windows_drive_is_not_a_kind_and_its_path_is_not_a_number() -> None:
    parsed = RULE.check("lora", [r"C:\mine\a.safetensors", r"C:\mine\a.safetensors:0.5", "owner/name:0.5"])
    assert [(item.path, item.scale) for item in parsed] == [
        (r"C:\mine\a.safetensors", None), (r"C:\mine\a.safetensors", 0.5), ("owner/name", 0.5),
    ]  # fmt: skip


def test_a_word_before_the_file_is_its_kind() -> None:
    (found,) = KINDS.resolve("control", "canny:a.safetensors")
    assert (found.kind, found.name, found.scale) == ("canny", "a.safetensors", None)
    assert found.typed() == f"canny:{found.path}" and str(found) == "canny:a.safetensors"
    assert KINDS.check("control", [found.to_json()]) == (found,)
    assert KINDS.check("control", r"C:\a")[0].kind == ""


@pytest.mark.parametrize(
    ("rule", "given", "words"),
    [
        (RULE, "missing", "lora: there is no file 'missing'; check the path"), (RULE, "sub", "'sub' is a folder"),
        (RULE, "a.safetensors:x", "'x' is not a number"), (RULE, "a.safetensors:11", "the number is 11; give a number"),
        (RULE, "a.safetensors:nan", "the number is nan"), (RULE, "", "lora is ''"), (RULE, 3, "lora is 3"),
        (RULE, [None], "lora is empty"), (RULE, "a\ud800", "not UTF-8"), (RULE, "x" * 600, "more than 500 characters"),
        (RULE, ["a.safetensors"] * 33, "has 33 files; give at most 32"), (ALONE, ["a", "b"], "has 2 files; give one"),
        (RULE, {"name": "a", "sha256": "../a"}, "lora is an object"), (RULE, "nul\0", "there is no file"),
        (RULE, {"name": "a.safetensors", "sha256": "0" * 64}, "only the name of a LoRA"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(rule: FileRule, given: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        rule.resolve("lora", given)
    assert "\n" not in str(caught.value)


def test_a_file_that_changes_has_another_hash(files: Path) -> None:
    (before,) = RULE.resolve("lora", "a.safetensors")
    (files / "a.safetensors").write_text("something else")
    (after,) = RULE.resolve("lora", "a.safetensors")
    assert after.sha256 == sha256("a.safetensors") and before != after


def made(**given: Any) -> Settings:
    return resolve_request("a cat", {"seed": 1, **given}, {}).settings


def test_pictures_go_together_and_are_the_same_job_by_contents_and_not_by_name(files: Path) -> None:
    shutil.copyfile("a.safetensors", "copy.safetensors")
    one, copy = made(lora="a.safetensors:0.5"), made(lora="copy.safetensors:0.5")
    other, scaled, plain = made(lora="b.safetensors:0.5"), made(lora="a.safetensors"), made()
    ids = [job_id(each, "hash", "float32") for each in (one, copy, other, scaled, plain)]
    assert ids[0] == ids[1] and len({*ids}) == 4
    assert one.goes_with(copy) and not any(one.goes_with(each) for each in (other, scaled, plain))
    assert "lora" not in plain.to_json()
    assert one.to_json()["lora"] == [{"name": "a.safetensors", "sha256": sha256("a.safetensors"), "scale": 0.5}]


def test_settings_take_only_files_that_were_found() -> None:
    with pytest.raises(SettingError, match="has not been opened"):
        Settings("a cat", 1, 64, 64, 2, lora="a.safetensors")  # type: ignore[arg-type]


def test_the_configuration_and_a_preset_find_files_beside_themselves(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("h2gen.settings.user_defaults.config_file", lambda: files / "sub" / "config.toml")
    (files / "sub" / "config.toml").write_text('lora = "c.safetensors:0.3"')
    (files / "sub" / "mine.toml").write_text('tau1 = 0.1\ntau2 = 0.1\nlora = ["c.safetensors", "a.safetensors:2"]')
    assert made().lora[0].path == files / "sub" / "c.safetensors" and made().lora[0].scale == 0.3
    found = made(preset="sub/mine.toml").lora
    assert [(item.name, item.scale) for item in found] == [("c.safetensors", 1.0), ("a.safetensors", 2.0)]
    assert made(lora="none").lora == () and made(lora="b.safetensors").lora[0].name == "b.safetensors"
    assert read_preset(files / "sub" / "mine.toml").config.tau1 == 0.1


def test_the_environment_separates_files_by_commas() -> None:
    found = resolve_request("a cat", {"seed": 1}, {"H2GEN_LORA": "a.safetensors:0.5, b.safetensors"}).settings.lora
    assert [str(item) for item in found] == ["a.safetensors:0.5", "b.safetensors:1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a cat --lora a.safetensors:2 --lora b.safetensors\na cat"),
        ("p.jsonl", '{"prompt": "a cat", "lora": ["a.safetensors:2", "b.safetensors"]}\n{"prompt": "a cat"}'),
        ("p.yaml", "- prompt: a cat\n  lora: [a.safetensors:2, b.safetensors]\n- a cat\n"),
        ("p.csv", 'prompt,lora\na cat,"a.safetensors:2, b.safetensors"\na cat,\n'),
    ],
)
def test_each_prompt_of_a_file_can_have_its_own(files: Path, name: str, text: str) -> None:
    (files / name).write_text(text)
    first, second = Jobs(read_prompts([name]), {"lora": ["sub/c.safetensors:2"]}, {})
    assert [str(item) for item in first.settings.lora] == ["a.safetensors:2", "b.safetensors:1"]
    assert [str(item) for item in second.settings.lora] == ["c.safetensors:2"]


def test_files_of_one_name_in_two_folders_are_two_files(files: Path) -> None:
    loras.save_smallest(files / "sub" / "a.safetensors", 9.0)
    for folder in (files, files / "sub"):
        (folder / "p.jsonl").write_text('{"prompt": "a cat", "lora": "a.safetensors"}')
    first, second = Jobs(read_prompts(["p.jsonl", "sub/p.jsonl"]), {}, {})
    assert first.settings.lora[0].path == files / "a.safetensors"
    assert second.settings.lora[0].path == files / "sub" / "a.safetensors"
    assert first.settings.lora != second.settings.lora


def test_a_file_can_be_given_again_with_the_same_number(files: Path) -> None:
    (item,) = RULE.resolve("lora", "a.safetensors:0.123456789")
    assert RULE.resolve("lora", item.typed()) == (item,)
    assert RULE.beside(files, "lora", "a" * 300)[0].name == "a" * 300


def test_a_missing_file_in_a_prompt_file_is_reported_with_its_line(files: Path) -> None:
    reading = Reading()
    reading.add_item("p.jsonl:1", {"prompt": "a cat", "lora": "missing.safetensors", "steps": 0}, "prompt")
    reading.add_item("p.jsonl:2", {"prompt": "a cat", "lora": 3}, "prompt")
    with pytest.raises(Exception, match=r"p\.jsonl:1") as caught:
        Jobs(reading, {}, {})
    assert len(lines := str(caught.value).split("\n")) == 3
    assert "p.jsonl:1: lora: there is no file 'missing.safetensors'" in "\n".join(lines)
    assert "p.jsonl:2: lora is 3" in lines[2]


@pytest.fixture
def recorded(files: Path) -> Path:
    settings = made(lora=["a.safetensors:0.5", "sub/c.safetensors"])
    facts = describe(settings, Origin("tiny", None, "cpu", "float32", "none"), seconds=1, summary=None)
    (files / "picture.toml").write_text(to_toml(facts))
    assert str(files) not in (files / "picture.toml").read_text()
    return files / "picture.toml"


def replayed(picture: Path, **given: Any) -> tuple[InputFile, ...]:
    layers = layers_of(read_metadata(picture), given, [("configuration", {"lora": RULE.check("lora", "with:2")})])
    return RULE.resolve("lora", merge(layers)["lora"].value)


def test_replay_matches_the_files_that_are_given_again_by_their_hash(recorded: Path, files: Path) -> None:
    (files / "a.safetensors").rename(files / "moved.safetensors")
    found = replayed(recorded, lora=["sub/c.safetensors", "moved.safetensors"])
    assert [(str(item), item.path) for item in found] == [
        ("a.safetensors:0.5", files / "moved.safetensors"), ("c.safetensors:1", files / "sub" / "c.safetensors"),
    ]  # fmt: skip
    assert [item.scale for item in replayed(recorded, lora=["moved.safetensors:0.7", "sub/c.safetensors"])] == [0.7, 1]


@pytest.mark.parametrize(
    ("given", "missing"),
    [(None, "'a.safetensors' and 'c.safetensors'"), ("a.safetensors", "LoRA 'c.safetensors'")],
)
def test_replay_names_the_files_that_are_missing_and_opens_none(recorded: Path, given: Any, missing: str) -> None:
    with pytest.raises(MetadataError, match=f"{missing} .SHA-256 .*give the file again with --lora") as caught:
        replayed(recorded, lora=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ModelError("it is cut short")])
def test_replay_asks_for_a_file_that_it_knows_but_cannot_read(recorded: Path, error: Exception) -> None:
    def refuse(_path: object) -> str:
        raise error

    rule = replace(RULE, known=lambda name: Path(name), hashed=refuse)
    with pytest.raises(MetadataError, match=r"'c\.safetensors' .*; give the file again with --lora"):
        rule.again("--lora", read_metadata(recorded).settings.lora, None, "picture")


def test_replay_with_another_file_or_without_any_replaces_the_pictures(recorded: Path) -> None:
    assert [str(item) for item in replayed(recorded, lora="b.safetensors:2")] == ["b.safetensors:2"]
    assert replayed(recorded, lora="none") == ()


def test_what_metadata_name_has_no_path_and_is_equal_to_the_file_itself(recorded: Path) -> None:
    found = read_metadata(recorded).settings.lora
    assert [item.path for item in found] == [None, None]
    assert found == made(lora=["a.safetensors:0.5", "sub/c.safetensors"]).lora
    assert replace(found[0], scale=1.0) != found[0]
