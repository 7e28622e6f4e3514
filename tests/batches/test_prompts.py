"""Prompt files: what they may hold, and every mistake named with file, line and key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from h2gen.batches.jobs import Jobs
from h2gen.batches.prompts import Entry, Reading, read_prompts
from h2gen.errors import PromptFileError


def written(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(tmp_path: Path, name: str, content: str | bytes, **more: Any) -> list[Entry]:
    reading = read_prompts([written(tmp_path, name, content)], **more)
    reading.check()
    return reading.entries


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    entries = read(tmp_path, "a.txt", "a cat\n\n# not this\n  a  red\tapple \n")
    assert [(entry.prompt, entry.source) for entry in entries] == [("a cat", "a.txt:1"), ("a red apple", "a.txt:4")]


@pytest.mark.parametrize("name", ["a.txt", "a.yaml", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_encodings_and_line_ends_make_no_difference(
    tmp_path: Path, name: str, coding: str, newline: str, last: str
) -> None:
    lines = {
        "a.txt": ["a cät", "a dog"],
        "a.yaml": ["- a cät", "- a dog"],
        "a.jsonl": ['{"prompt": "a cät"}', '"a dog"'],
        "a.json": ['["a cät",', '{"prompt": "a dog"}]'],
        "a.csv": ["prompt", "a cät", "a dog"],
    }[name]
    mark = "\ufeff" if coding == "utf-16-be" else ""
    content = (mark + newline.join(lines) + last.replace("\n", newline)).encode(coding)
    assert [entry.prompt for entry in read(tmp_path, name, content)] == ["a cät", "a dog"]


LINES = {
    # sd-scripts
    "a cat --n blurry, low quality --w 96 --h 144 --d 42 --s 8 --l 2.5": (
        "a cat",
        {"negative": "blurry, low quality", "width": 96, "height": 144, "seed": "42", "steps": 8, "cfg": 2.5},
    ),
    "a cat --N - --G 3.5 --d -1": ("a cat", {"guidance": 3.5}),
    # AUTOMATIC1111
    '--prompt "a cat, \\"big\\" --and fluffy" --negative_prompt "blurry" --steps 8 --cfg_scale 3': (
        'a cat, "big" --and fluffy',
        {"negative": "blurry", "steps": 8, "cfg": 3.0},
    ),
    "--steps=8 --prompt a cat --seed 5 --width 96 --height 64": (
        "a cat",
        {"steps": 8, "seed": "5", "width": 96, "height": 64},
    ),
    # our own options
    "a cat --size 16:9 --seed 1,5-8 --no-cache --max-sequence-length 32": (
        "a cat",
        {"size": "16:9", "seed": "1,5-8", "no_cache": True, "max_sequence_length": 32},
    ),
    # not options
    "a cat -- a dog --- and ---more - 3--4 x--y": ("a cat -- a dog --- and ---more - 3--4 x--y", {}),
    "an 'old' cat": ("an 'old' cat", {}),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_text_takes_the_options_of_other_programs_and_ours(tmp_path: Path, line: str) -> None:
    (entry,) = read(tmp_path, "a.txt", line)
    assert (entry.prompt, dict(entry.given)) == LINES[line]


def test_a_table_has_settings_in_columns_and_notes_in_the_others(tmp_path: Path) -> None:
    text = 'prompt,steps,mood,seed,no_cache\n"a cat, big",8,calm,"1,2",yes\n\na dog,,,-1,\n'
    for name, content in (
        ("a.csv", text),
        ("b.csv", text.replace(",", ";").replace("cat;", "cat,").replace("1;2", "1,2")),
        ("a.tsv", text.replace(",", "\t").replace("cat\t", "cat,").replace("1\t2", "1,2")),
    ):
        cat, dog = read(tmp_path, name, content)
        assert (cat.prompt, cat.source, cat.notes) == ("a cat, big", f"{name}:2", '{"mood": "calm"}')
        assert dict(cat.given) == {"steps": 8, "seed": "1,2", "no_cache": True}
        assert (dog.prompt, dog.source, dict(dog.given), dog.notes) == ("a dog", f"{name}:4", {}, None)


def test_a_list_in_json_has_an_entry_per_item(tmp_path: Path) -> None:
    text = '\n[\n "a cat",\n {"prompt": ["a dog"],\n  "steps": 3, "url": "x"}\n]\n'
    cat, dog = read(tmp_path, "a.json", text)
    assert (cat.prompt, cat.source, dog.prompt, dog.source) == ("a cat", "a.json:3", "a dog", "a.json:4")
    assert dict(dog.given) == {"steps": 3} and dog.notes == '{"url": "x"}'
    (only,) = read(tmp_path, "b.json", '{"prompt": "a cat"}')
    assert (only.prompt, only.source) == ("a cat", "b.json:1")


def test_what_data_sets_have_stays_a_note(tmp_path: Path) -> None:
    item = {"prompt": "a cat", "url": "x", "number": 3, "weight": 2, "image_width": 640, "caption": "cat", "title": "c"}
    (entry,) = read(tmp_path, "a.jsonl", json.dumps(item))
    assert not entry.given and json.loads(entry.notes or "") == {key: item[key] for key in item if key != "prompt"}


def test_json_on_stdin_may_be_a_list() -> None:
    for data in (b'[{"prompt": "a cat"}]', b'["a cat"]', '[\n"a cat"]'.encode("utf-16"), b'{"prompt": "a cat"}'):
        assert [entry.prompt for entry in read_prompts(["-"], stdin=lambda data=data: data).entries] == ["a cat"]
    assert read_prompts(["-"], stdin=lambda: b"[red] cat").entries[0].prompt == "[red] cat"


def test_yaml_has_defaults_and_prompts_that_override_settings(tmp_path: Path) -> None:
    entries = read(
        tmp_path,
        "a.yaml",
        """\
defaults: {steps: 12, size: 16:9, preset: fast}
prompts:
  - a cat
  - prompt: 42
    seed: [1, 2]
    tau1: 0.1
    name: answer
  - {prompt: yes, size: 1:1, seed: "3-5", no_cache: true}
""",
    )
    assert [entry.prompt for entry in entries] == ["a cat", "42", "yes"]
    assert [entry.source for entry in entries] == ["a.yaml:3", "a.yaml:4", "a.yaml:8"]
    assert entries[0].defaults == {"steps": 12, "size": "16:9", "preset": "fast"}
    assert entries[1].given == {"seed": [1, 2], "tau1": 0.1, "name": "answer"}
    assert entries[2].given == {"size": "1:1", "seed": "3-5", "no_cache": True}


def test_json_lines_keep_what_they_do_not_know_as_notes(tmp_path: Path) -> None:
    line = {"prompt": "a cat", "steps": 12, "negative": None, "file_path": "/data/1.jpg", "box": [1, 2]}
    (entry,) = read(tmp_path, "a.jsonl", json.dumps(line))
    assert entry.given == {"steps": 12}
    assert json.loads(entry.notes or "") == {"file_path": "/data/1.jpg", "box": [1, 2]}


def test_the_prompts_key_can_be_another_and_of_a_list_the_first_counts(tmp_path: Path) -> None:
    lines = [{"file_path": "1.jpg", "image_caption": ['The sign reads "BEACH".', "other"], "prompt": "not this"}]
    (entry,) = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)), prompt_key="image_caption")
    assert entry.prompt == 'The sign reads "BEACH".'
    assert "prompt" in json.loads(entry.notes or "")


@pytest.mark.parametrize(("data", "prompts"), [(b"a cat\n", ["a cat"]), (b'\n {"prompt": "a dog"}\n', ["a dog"])])
def test_stdin_is_text_or_json_lines(data: bytes, prompts: list[str]) -> None:
    reading = read_prompts(["-"], stdin=lambda: data)
    assert [entry.prompt for entry in reading.entries] == prompts
    assert reading.entries[0].source.startswith("stdin:")


BAD: list[tuple[str, str | bytes, str]] = [
    ("empty.txt", "", "empty.txt: there is no prompt in it"),
    ("comments.txt", "# a\n\n", "comments.txt: there is no prompt in it"),
    ("latin.txt", b"a cat\na caf\xe9\n", "latin.txt:2: it is not UTF-8"),
    ("utf16.txt", "a cat\n".encode("utf-16") + b"a", "utf16.txt: it is not UTF-16 text; save the file as UTF-8."),
    ("long.txt", "a cat\n" + "x" * 100_001, "long.txt:2: The prompt has more than 100000"),
    ("longer.txt", "x" * (2**20 + 1), "longer.txt:1: the line is longer than 1 MiB"),
    ("a.doc", "a cat", "a.doc: prompt files end in .txt, .yaml, .jsonl, .json, .csv or .tsv"),
    (
        "a.txt",
        "a cat --num_inference_steps 8",
        "a.txt:1: there is no option --num_inference_steps; did you",
    ),
    ("a.txt", "a cat --ar 16:9", "a.txt:1: there is no option --ar; did you mean --size?"),
    ("a.txt", "a cat --fluffy", "a.txt:1: there is no option --fluffy; leave it out. To use these words as a prompt"),
    ("a.txt", "a cat --ss euler", "a.txt:1: there is no option --ss; leave it out."),
    (
        "a.txt",
        "a cat --checkpoint x",
        "a.txt:1: --checkpoint applies to the whole run; give --model on",
    ),
    ("a.txt", "a cat --s many", "a.txt:1: --s is 'many'; give a whole number"),
    ("a.txt", "a cat --s 8 --steps 9", "a.txt:1: --steps sets steps again; keep one."),
    ("a.txt", "a cat --prompt a dog", "a.txt:1: --prompt sets prompt again; keep one."),
    ("a.txt", "a cat --w 96", "a.txt:1: width and height go together"),
    ("a.jsonl", '{"prompt": "a bee", "step": 17}', "a.jsonl:1: there is no setting 'step'; did you mean 'steps'?"),
    ("a.jsonl", '{"prompt": "a bee", "Seed": 7}', "a.jsonl:1: there is no setting 'Seed'; did you mean 'seed'?"),
    ("a.jsonl", '{"caption": "a bee"}', "a.jsonl:1: prompt is missing; did you mean 'caption'? Give the prompt's key"),
    (
        "a.json",
        '["a cat", {"prompt": "a bee",\n "cfg_scale": 7}]',
        "a.json:1: there is no setting 'cfg_scale'",
    ),
    ("a.json", '[\n"a cat",\n{"prompt": 3}]', "a.json:3: prompt is 3; give it as text"),
    ("a.json", '["a cat"\n"a dog"]', "a.json:2: it is not valid JSON: Expecting ',' or ']'"),
    ("a.json", '["a cat",\n', "a.json:2: it is not valid JSON"),
    ("a.json", '["a cat"]\nx', "a.json:1: it is not valid JSON: Extra data"),
    ("a.json", "[" * 10_000, "a.json:1: it is nested too deeply"),
    ("a.json", b'["\xe9"]', "a.json:1: it is not UTF-8"),
    ("a.json", "[]", "a.json: there is no prompt in it"),
    ("a.csv", "a cat\na dog", "a.csv:1: there is no column 'prompt'; the first line names the columns."),
    (
        "a.csv",
        "caption\na dog",
        "a.csv:1: there is no column 'prompt'; give --prompt-key caption if that is",
    ),
    (
        "a.csv",
        "prompt,num_inference_steps\na dog,3",
        "a.csv:1: there is no setting 'num_inference_steps'",
    ),
    ("a.csv", "prompt,steps\na dog,3\na cat,many", "a.csv:3: steps is 'many'; give a whole number"),
    (
        "a.csv",
        "prompt,steps\na dog, big,3",
        "a.csv:2: it has more cells than the header; quote text that contains ','.",
    ),
    ("a.csv", 'prompt\n"a dog"x\n', "a.csv:2: it is not valid CSV"),
    ("a.csv", "prompt,prompt\na,b", "a.csv:1: there are 2 columns called 'prompt'; keep one."),
    ("a.csv", "prompt,model\na,dev", "a.csv:2: model applies to the whole run; give --model"),
    ("a.csv", b"prompt\n\xe9", "a.csv:2: it is not UTF-8"),
    ("noend", "a cat", "noend: prompt files end in"),
    ("a.jsonl", '{"prompt": "a cat"', "a.jsonl:1: it is not valid JSON"),
    ("a.jsonl", '"a cat"\n[1]', "a.jsonl:2: it is a list; write an object"),
    ("a.jsonl", "3", "a.jsonl:1: it is 3; write an object"),
    ("a.jsonl", "null", "a.jsonl:1: it is empty; write an object"),
    ("a.jsonl", "{}", "a.jsonl:1: prompt is missing"),
    ("a.jsonl", '{"promt": "a cat"}', "did you mean 'promt'"),
    ("a.jsonl", '{"prompt": 3}', "a.jsonl:1: prompt is 3; give it as text"),
    ("a.jsonl", '{"prompt": null}', "prompt is empty; give it as text"),
    ("a.jsonl", '{"prompt": []}', "prompt is an empty list"),
    ("a.jsonl", '{"prompt": [["a"]]}', "prompt is a list"),
    ("a.jsonl", '{"prompt": {"en": "a"}}', "prompt is an object"),
    ("a.jsonl", '{"prompt": "a\\ud800b"}', "a.jsonl:1: The prompt is not UTF-8"),
    ("a.jsonl", '{"prompt": "a", "steps": "12"}', "a.jsonl:1: steps is '12'; give a whole number"),
    ("a.jsonl", '{"prompt": "a", "steps": true}', "steps is True; give a whole number"),
    ("a.jsonl", '{"prompt": "a", "steps": 1.5}', "steps is 1.5; give a whole number"),
    ("a.jsonl", '{"prompt": "a", "steps": 0}', "a.jsonl:1: steps is 0; give a whole number from 1"),
    ("a.jsonl", '{"prompt": "a", "steps": NaN}', "a.jsonl:1: it is not valid JSON: NaN"),
    ("a.jsonl", '{"prompt": "a", "tau1": -1}', "a.jsonl:1: tau1 is -1"),
    ("a.jsonl", '{"prompt": "a", "tau1": 1e999}', "a.jsonl:1: tau1 is inf"),
    ("a.jsonl", '{"prompt": "a", "cfg": 1e9}', "a.jsonl:1: cfg is 1000000000; give a number from 0 to 1000"),
    ("a.jsonl", '{"prompt": "a", "size": "big"}', "a.jsonl:1: size is 'big'"),
    ("a.jsonl", '{"prompt": "a", "width": 64}', "a.jsonl:1: width and height go together"),
    ("a.jsonl", '{"prompt": "a", "width": 64, "height": 64, "size": "1:1"}', "width and height go together"),
    (
        "a.jsonl",
        '{"prompt": "a", "width": 64, "height": 999999}',
        "height is 999999; give a whole number from 1 to 8192",
    ),
    ("a.jsonl", '{"prompt": "a", "seed": -2}', "a.jsonl:1: seed is -2"),
    ("a.jsonl", '{"prompt": "a", "seed": "1;2"}', "a.jsonl:1: seed is '1;2'"),
    ("a.jsonl", '{"prompt": "a", "seed": [1, null]}', "a.jsonl:1: seed is '[1, None]'"),
    ("a.jsonl", '{"prompt": "a", "seed": 99999999999999999999}', "a.jsonl:1: seed is 99999999999999999999"),
    ("a.jsonl", '{"prompt": "a", "seed": [1, 2], "count": 2}', "give one seed, or no count"),
    ("a.jsonl", '{"prompt": "a", "preset": "slow"}', "a.jsonl:1: There is no preset 'slow'"),
    ("a.jsonl", '{"prompt": "a", "preset": "/etc/passwd"}', "can name a preset, but not its file"),
    ("a.jsonl", '{"prompt": "a", "preset": "mine.toml"}', "can name a preset, but not its file"),
    ("a.jsonl", '{"prompt": "a", "name": "../../x"}', "a.jsonl:1: name is '../../x', but it must be a file name"),
    ("a.jsonl", '{"prompt": "a", "name": "C:\\\\x"}', "it must be a file name, not a path"),
    ("a.jsonl", '{"prompt": "a", "name": "{sed}"}', "did you mean 'seed'"),
    ("a.jsonl", '{"prompt": "a", "no_cache": true, "tau1": 0.1}', "contradict each other"),
    ("a.jsonl", '{"prompt": "a", "negative": "b", "cfg": 1}', "a.jsonl:1: A negative prompt has no effect"),
    ("a.jsonl", '{"prompt": "a", "model": "dev"}', "model applies to the whole run; give --model"),
    ("a.jsonl", '{"prompt": "a", "out": "/etc"}', "out applies to the whole run; give --out"),
    ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
    ("a.jsonl", "[" * 100_000, "a.jsonl:1: it is"),
    (
        "a.jsonl",
        '{"prompt": "a", "x": ' + "[" * 900 + "]" * 900 + "}",
        "a.jsonl:1: it is nested more than 32 levels deep",
    ),
    ("a.jsonl", '{"prompt": "a", "seed": ' + "[" * 900 + "]" * 900 + "}", "a.jsonl:1: it is nested more than 32"),
    ("a.jsonl", f'{{"prompt": "a", "tau1": {10**400}}}', "a.jsonl:1: tau1 is 1000"),
    ("a.jsonl", f'{{"prompt": "a", "guidance": {10**4000}}}', "a.jsonl:1: guidance is a number with very many digits"),
    ("a.jsonl", f'{{"prompt": "a", "seed": {[1] * 10**5 + ["x"]}}}'.replace("'", '"'), "a.jsonl:1: seed is '[1, 1"),
    ("a.jsonl", '{"prompt": "a", "negative": "\\ud800", "cfg": 3}', "a.jsonl:1: The negative prompt is not UTF-8"),
    ("a.jsonl", b'{"prompt": "\xff"}', "a.jsonl:1: it is not UTF-8"),
    ("a.yaml", "", "a.yaml: there is no prompt in it"),
    ("a.yaml", "a cat", "a.yaml:1: write a list of prompts"),
    ("a.yaml", "prompts: a cat", "a.yaml:1: prompts must be a list"),
    ("a.yaml", "prompts: []", "a.yaml: there is no prompt in it"),
    ("a.yaml", "defaults: {steps: 3}", "a.yaml:1: prompts is missing"),
    ("a.yaml", "prmpts: [a]", "did you mean 'prompts'"),
    ("a.yaml", "size: 64x64\nprompts: [a]", "a.yaml:1: size is a setting; put it under 'defaults:', for all prompts."),
    ("a.yaml", "model: dev\nprompts: [a]", "a.yaml:1: model applies to the whole run; give --model on the command"),
    ("a.yaml", "prompts: [a]\ndefaults: [b]", "a.yaml:2: defaults must be a mapping"),
    ("a.yaml", "prompts: [a]\ndefaults: {stps: 3}", "there is no setting 'stps'; did you mean 'steps'"),
    ("a.yaml", "prompts: [a]\ndefaults: {steps: x}", "defaults: steps is 'x'; give a whole number"),
    ("a.yaml", "prompts: [a]\ndefaults: {steps: 0}", "steps is 0; give a whole number from 1"),
    ("a.yaml", "- a\n- [b]\n", "a.yaml:2: a prompt is text or a mapping"),
    ("a.yaml", "- a\n- {steps: 3}\n", "a.yaml:2: prompt is missing"),
    ("a.yaml", "- a\n-\n", "a.yaml:2: prompt is empty"),
    ("a.yaml", "- {prompt: a, steps: 3, steps: 4}", "a.yaml:1: steps is given twice"),
    ("a.yaml", "- {prompt: a, stps: 3}", "did you mean 'steps'"),
    ("a.yaml", "- {prompt: a, seed: {a: 1}}", "a.yaml:1: seed has a value that cannot be used"),
    ("a.yaml", "- {prompt: a, steps: !!python/object/apply:os.system [id]}", "steps is a list; give a whole number"),
    ("a.yaml", "- {prompt: a, steps: !!python/name:os.system ''}", "steps has a value that cannot be used"),
    ("a.yaml", "- {prompt: a, steps: !!int x}", "steps has a value that cannot be used"),
    ("a.yaml", "- {prompt: a, steps: !!bool x}", "steps has a value that cannot be used"),
    ("a.yaml", "- {prompt: a, steps: !!float ''}", "steps has a value that cannot be used"),
    ("a.yaml", "- {prompt: a, steps: !!timestamp x}", "steps has a value that cannot be used"),
    ("a.yaml", "- {prompt: a, steps: 2026-01-02}", "steps has a value that cannot be used"),
    ("a.yaml", f"- {{prompt: a, steps: 0x{'f' * 5000}}}", "steps has a value that cannot be used"),
    ("a.yaml", f"- {{prompt: a, seed: [1, 0x{'f' * 5000}]}}", "seed has a value that cannot be used"),
    ("a.yaml", f"- {{prompt: a, steps: {'1:' * 300_000}1}}", "steps has a value that cannot be used"),
    ("a.yaml", f"- {{prompt: a, tau1: {'9' * 99}}}\n- b\n- {{prompt: a, tau1: -1}}", "a.yaml:3: tau1 is -1"),
    ("a.yaml", "- a\n- &b\n  prompt: c\n- *b", "a.yaml:2: an alias repeats what is written here"),
    ("a.yaml", "- {prompt: a, seed: &s [1]}\n- {prompt: b, seed: *s}", "a.yaml:1: an alias repeats"),
    ("a.yaml", "- &a [*a]", "a.yaml:1: an alias repeats"),
    ("a.yaml", f"- &a {'x' * 100_000}\n" + "- *a\n" * 3000, "a.yaml:1: an alias repeats"),
    ("a.yaml", "- a\n  b: c", "a.yaml:2: it is not valid YAML"),
    ("a.yaml", "- 'a", "a.yaml:1: it is not valid YAML"),
    ("a.yaml", "- *a", "a.yaml:1: it is not valid YAML"),
    ("a.yaml", "- a\n---\n- b", "it is not valid YAML"),
    ("a.yaml", "- a\n\t- b: c", "a.yaml:2"),
    ("a.yaml", "- \x00", "it is not valid YAML"),
    ("a.yaml", b"- a\n- \xff\n", "a.yaml:2: it is not UTF-8"),
    ("a.yaml", "[" * 5000, "a.yaml:"),
    ("a.yml", "- {prompt: a, <<: {steps: 3}}", "there is no setting '<<'"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=range(len(BAD)))
def test_a_mistake_is_one_clear_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts([written(tmp_path, name, content)]), {}, {})
    message = str(error.value)
    assert words in message
    assert len(message.splitlines()) == 1 and len(message) < 600
    assert str(tmp_path) not in message


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    reading = read_prompts([str(tmp_path / "gone.txt"), str(tmp_path / "folder.txt"), "a cat", "x\0y"])
    assert [line.split(":")[0] for line in reading.mistakes] == ["gone.txt", "folder.txt", "a cat", "x\ufffdy"]
    assert "leave out the word 'batch'" in reading.mistakes[2]


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    one = written(tmp_path, "one.jsonl", '{"prompt": "a", "steps": 0}\n{"prompt": "b"}\n{"prompt": 3}\n')
    two = written(tmp_path, "two.yaml", "- a\n- {prompt: b, tau9: 1}\n")
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts([one, two]), {}, {})
    lines = str(error.value).splitlines()
    assert sorted(line[:12] for line in lines) == ["one.jsonl:1:", "one.jsonl:3:", "two.yaml:2: "]


def test_of_very_many_mistakes_the_first_are_told_and_the_others_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "3\n" * 500)
    with pytest.raises(PromptFileError, match=r"and 480 more") as error:
        Jobs(read_prompts([path]), {}, {})
    assert len(str(error.value).splitlines()) == 21


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "3\n" * 10**5),
        ("a.jsonl", '{"prompt": "a", "steps": 0}\n' * 10**4),
        ("a.yaml", "- prompt: a\n" + "".join(f"  k{number}: 1\n" for number in range(10**4))),
    ],
)
def test_after_a_thousand_mistakes_a_file_is_not_read_on(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(PromptFileError, match="and at least 980 more"):
        Jobs(read_prompts([written(tmp_path, name, content)]), {}, {})


def test_notes_are_what_every_metadata_can_hold(tmp_path: Path) -> None:
    line = '{"prompt": "a", "none": null, "half": "x\\ud800", "big": 1e999, "hash": 18446744073709551615, "\\udfff": 1}'
    (entry,) = read(tmp_path, "a.jsonl", line)
    assert json.loads(entry.notes or "") == {
        "half": "x\ufffd", "big": "inf", "hash": "18446744073709551615", "\ufffd": 1
    }  # fmt: skip
    nested = '{"prompt": "a", "x": ' + "[" * 31 + "]" * 31 + "}"
    assert (read(tmp_path, "a.jsonl", nested)[0].notes or "").count("[") == 31


def test_escape_codes_and_markup_of_a_file_do_not_reach_the_message(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps({"prompt": "a", "preset": "\x1b[31m[red]", "x\x1b": 1}))
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts([path]), {}, {})
    assert "\x1b" not in str(error.value)


@pytest.mark.slow
@pytest.mark.posix
def test_a_hundred_thousand_prompts_fit_into_little_memory(tmp_path: Path) -> None:
    lines = (json.dumps({"prompt": f"a cat number {n}", "steps": 10 + n % 7, "path": f"{n}.jpg"}) for n in range(10**5))
    path = written(tmp_path, "many.jsonl", "\n".join(lines))
    program = (
        "import resource, sys\n"
        "from h2gen.batches.jobs import Jobs\n"
        "from h2gen.batches.prompts import read_prompts\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "jobs = Jobs(read_prompts([sys.argv[1]]), {}, {})\n"
        "for job in jobs: pass\n"
        "print(len(jobs), job.index, job.settings.steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    count, index, steps, kibibytes = map(int, done.stdout.split())
    assert (count, index, steps) == (10**5, 10**5, 10 + (10**5 - 1) % 7)
    assert kibibytes < 200 * 1024


def test_nothing_read_is_no_mistake() -> None:
    Reading().check()
