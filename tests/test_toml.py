"""Untrusted TOML: limited, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from h2gen.toml import LARGEST, read_toml, read_untrusted_toml

BAD = [
    ("a = 0x" + "f" * 5000, "takes more than 64 bits"),
    ("a = " + "9" * 5000, "takes more than 64 bits"),
    ("[b]\na = [{c = 9223372036854775808}]", "takes more than 64 bits"),
    (".".join("a" * 30_000) + " = 1", "nested too deeply"),
    ("[" + " . ".join("a" * 15_000) + "]", "nested too deeply"),
    ("x = {b = 1, " + ".".join(["'a'"] * 9000) + " = 1}", "nested too deeply"),
    ("a = " + "[" * 80 + "]" * 80, "nested too deeply"),
    ("a = " + "[" * 5000, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=range(len(BAD)))
def test_what_would_be_a_burden_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_untrusted_toml(path)
    assert len(str(error.value).splitlines()) == 1


def test_numbers_of_64_bits_and_text_with_many_dots_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'a = {2**63 - 1}\nb = "{"x." * 200}"\nc = "{"." * 200}"\n')
    assert read_toml(path) == read_untrusted_toml(path)
    assert read_toml(path)["a"] == 2**63 - 1


def test_a_file_of_the_users_own_is_refused_in_one_line_where_python_cannot_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for text in ("a = " + "9" * 5000, "a = " + "[" * 5000, "a ="):
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            read_toml(path)
        assert len(str(error.value).splitlines()) == 1


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = 1\n" + "#" * LARGEST)
    assert read_toml(path, 2 * LARGEST) == {"a": 1}
    with pytest.raises(ValueError, match="larger than 64 KiB"):
        read_toml(path)
