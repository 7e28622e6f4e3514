"""File names from templates and from untrusted text."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h2gen.errors import SettingError
from h2gen.output import names

VALUES: dict[str, Any] = {
    "index": 12,
    "slug": "a-cat",
    "seed": 7,
    "steps": 28,
    "width": 128,
    "height": 64,
    "guidance": 3.5,
    "cfg": 1.0,
    "tau1": 0.08,
    "tau2": 0.2,
    "preset": "fast",
    "model": "tiny",
    "id": "0a1b2c3d",
}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (names.DEFAULT, "0012-a-cat-7"),
        ("{slug}", "a-cat"),
        ("{tau1:.2f}_{tau2:g}", "0.08_0.2"),
        ("{width}x{height} {preset} {model} {id}", "128x64 fast tiny 0a1b2c3d"),
        ("cat {{1}}", "cat {1}"),
        ("  spaced  out. ", "spaced out"),
        ("CON", "_CON"),
        ("com1.txt", "_com1.txt"),
        ("-rf", "rf"),
        ("..hidden", "hidden"),
        ("a:b*c?", "a-b-c-"),
        ("cafe\u0301", "café"),
        ("a\u202eb\x1b[31m", "a-b-[31m"),
        ("...", "picture"),
    ],
)
def test_a_template_becomes_a_name_that_every_file_system_takes(template: str, name: str) -> None:
    assert names.fill(names.check_template(template), VALUES) == name


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "give text"),
        ("   ", "give text"),
        (3, "give text"),
        ("a/b", "leave out the folder"),
        ("../{slug}", "leave out the folder"),
        ("a\\b", "leave out the folder"),
        ("..", "leave out the folder"),
        ("{sed}", "did you mean 'seed'"),
        ("{}", "no field ''"),
        ("{0}", "no field '0'"),
        ("{slug.__class__}", "no field"),
        ("{slug[0]}", "no field"),
        ("{slug!r}", "only takes a width"),
        ("{index:{seed}}", "takes a width"),
        ("{index:999999999}", "takes a width"),
        ("{slug:d}", "does not fit its value"),
        ("{index", "not a valid template"),
        ("index}", "not a valid template"),
    ],
)
def test_a_template_that_cannot_be_is_named(template: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words.replace("[", r"\[")):
        names.check_template(template)


@settings(max_examples=300)
@given(text=st.text(st.characters(codec=None), max_size=300))
def test_any_text_becomes_a_file_inside_the_folder(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    name = names.safe_name(text)
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"{name}-100000.webp"
    path.write_bytes(b"")
    assert path.resolve().parent == folder.resolve()
    assert [entry for entry in folder.iterdir() if entry.name == path.name]
    path.unlink()
    assert len(name.encode()) <= names.LONGEST
    assert name == unicodedata.normalize("NFC", name).strip(" .")
    assert not any(unicodedata.category(char).startswith("C") for char in name)


def test_a_template_says_whether_it_tells_seeds_apart() -> None:
    assert names.distinguishes(names.DEFAULT) and names.distinguishes("{id}")
    assert not names.distinguishes("{slug}")


def test_a_name_that_is_too_long_is_cut_between_characters(tmp_path: Path) -> None:
    name = names.safe_name("ä" * 400)
    assert name == "ä" * 100
