"""Entries become jobs: precedence, seeds and names, and ids that never change."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.batches.jobs import Job, Jobs, Shard, file_name, job_id, parse_shard
from h2gen.batches.prompts import Entry, Reading, read_prompts
from h2gen.cache import CacheConfig
from h2gen.cache.config import POLICIES
from h2gen.errors import PromptFileError, SettingError, UsageError
from h2gen.models.load_options import LoadOptions
from h2gen.settings.inputs import InputFile
from h2gen.settings.presets import load_preset
from h2gen.settings.seeds import derived_seed
from h2gen.settings.values import NOT_SETTINGS, Settings
from tests import loras
from tests.small import flux_pipeline, picture, redux_prior


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Python's peak memory, in bytes."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def jobs(
    *entries: Mapping[str, Any] | str,
    given: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[Job]:
    found = [
        Entry(entry, f"f:{line}", {}, defaults or {})
        if isinstance(entry, str)
        else Entry(
            entry.get("prompt", "a cat"), f"f:{line}", {k: v for k, v in entry.items() if k != "prompt"}, defaults or {}
        )
        for line, entry in enumerate(entries, 1)
    ]
    return list(Jobs(Reading(found), given or {}, environ or {}))


@pytest.mark.parametrize(
    ("entry", "given", "defaults", "environ", "steps"),
    [
        ({}, {}, {}, {}, 28),
        ({}, {}, {}, {"H2GEN_STEPS": "9"}, 9),
        ({}, {}, {"steps": 8}, {"H2GEN_STEPS": "9"}, 8),
        ({}, {"steps": 7}, {"steps": 8}, {"H2GEN_STEPS": "9"}, 7),
        ({"steps": 6}, {"steps": 7}, {"steps": 8}, {"H2GEN_STEPS": "9"}, 6),
    ],
)
def test_an_entry_is_stronger_than_options_and_they_than_the_files_defaults(
    entry: Any, given: Any, defaults: Any, environ: Any, steps: int
) -> None:
    (job,) = jobs(entry, given=given, defaults=defaults, environ=environ)
    assert job.settings.steps == steps


@pytest.mark.parametrize(
    ("entry", "given", "decides", "preset"),
    [
        ({}, {"preset": "paper"}, 0.15, "paper"),
        ({}, {"preset": "paper", "tau1": 0.3}, 0.3, "paper"),
        ({"preset": "fast"}, {"preset": "paper", "tau1": 0.3}, "fast", "fast"),
        ({"preset": "fast", "tau1": 0.5}, {"tau1": 0.3}, 0.5, "fast"),
        ({"preset": "paper"}, {"tolerance": 0.3}, 0.15, "paper"),
        ({"tau1": 0.5}, {"no_cache": True}, 0.5, None),
        ({"no_cache": True}, {"tau1": 0.3}, 0.0, None),
        ({"preset": "fast"}, {"no_cache": True}, "fast", "fast"),
        ({"no_cache": False}, {"no_cache": True}, "balanced", "balanced"),
    ],
)
def test_a_preset_lies_right_below_whoever_named_it(
    entry: Any, given: Any, decides: float | str, preset: str | None
) -> None:
    """The policy is a threshold, or the tolerance of a preset."""
    (job,) = jobs(entry, given=given)
    tolerance = load_preset(decides).config.tolerance if isinstance(decides, str) else 0.0
    assert job.settings.cache.tau1 == (0.0 if tolerance else decides)
    assert job.settings.cache.tolerance == tolerance
    assert job.preset == preset


def test_there_is_a_limit_to_what_a_run_can_be() -> None:
    with pytest.raises(SettingError, match="more than 1000000 pictures"):
        jobs(*(f"prompt {n}" for n in range(11)), given={"count": 100_000})


def test_seeds_of_the_command_line_are_one_object_for_all_prompts() -> None:
    reading = Reading([Entry(f"prompt {number}", f"f:{number}", {}, {}) for number in range(100)])
    with traced_memory() as peak:
        with pytest.raises(SettingError, match="more than 1000000 pictures"):
            Jobs(reading, {"seed": "0-99999"}, {})
        assert peak() < 20 * 2**20


def test_seeds_of_entries_are_not_expanded_beyond_the_limit() -> None:
    reading = Reading([Entry("a", f"f:{number}", {"seed": "0-99999"}, {}) for number in range(100)])
    with traced_memory() as peak:
        with pytest.raises(SettingError, match="more than 1000000 pictures"):
            Jobs(reading, {}, {})
        assert peak() < 100 * 2**20


def test_a_run_reads_each_preset_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from h2gen.batches import jobs as module
    from h2gen.settings import presets

    read: list[str] = []

    def load(name: str) -> presets.Preset:
        read.append(name)
        return presets.load_preset(name)

    monkeypatch.setattr(module, "load_preset", load)
    made = jobs(*({"steps": 1 + n, "preset": ("fast", "quality")[n % 2]} for n in range(50)), given={"seed": 1})
    assert [job.preset for job in made[:3]] == ["fast", "quality", "fast"]
    assert sorted(read) == ["fast", "quality"]


def test_a_preset_of_a_file_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("tau1 = 0.3\ntau2 = 0.4\n")
    (job,) = jobs({}, given={"preset": str(tmp_path / "mine.toml")})
    assert (job.preset, job.settings.cache.tau1) == ("mine", 0.3)


def test_seeds_of_a_prompt_follow_each_other_and_index_counts_over_all() -> None:
    made = jobs({"prompt": "a", "seed": "1-3"}, {"prompt": "b", "seed": [9]}, "c", given={"count": 1})
    assert [(job.index, job.settings.prompt, job.settings.seed) for job in made] == [
        (1, "a", 1), (2, "a", 2), (3, "a", 3), (4, "b", 9), (5, "c", derived_seed("c", 0)),
    ]  # fmt: skip


def test_without_a_seed_each_occurrence_of_a_prompt_has_its_own_and_it_is_the_same_each_time() -> None:
    made = jobs("a", "b", "a", given={"count": 2})
    seeds = [job.settings.seed for job in made]
    assert len(set(seeds)) == 6
    assert seeds == [job.settings.seed for job in jobs("a", "b", "a", given={"count": 2})]
    assert seeds[4:] == [derived_seed("a", 2), derived_seed("a", 3)]


def test_seeds_of_the_command_line_hold_for_every_prompt_without_its_own() -> None:
    assert [job.settings.seed for job in jobs("a", {"seed": 5}, given={"seed": "1,2"})] == [1, 2, 5]
    assert [job.settings.seed for job in jobs("a", {"seed": 5}, given={"seed": "1", "count": 2})] == [1, 2, 5]


ALL_FIELDS = "{width}x{height}_{steps}_{cfg}_{guidance:.1f}_{tau1}_{tau2}_{tolerance}_{preset}_{model}_{id}"


@pytest.mark.parametrize(
    ("entry", "given", "name"),
    [
        ({}, {}, "0001-a-cat-7"),
        ({}, {"name": "{slug}"}, "a-cat"),
        ({"name": "tom"}, {}, "tom"),
        ({"name": "tom"}, {"name": "{slug}"}, "tom"),
        ({"name": "tom", "seed": [7, 8]}, {}, "tom-7"),
        ({"name": "{seed} tom", "seed": [7, 8]}, {}, "7 tom"),
        (
            {"name": "{width}x{height}_{steps}_{cfg}_{guidance:.1f}_{tau1}_{tau2}_{tolerance}_{preset}_{model}_{id}"},
            {},
            None,
        ),
    ],
)
def test_a_picture_is_named_by_its_entry_or_the_run(entry: Any, given: Any, name: str | None) -> None:
    job = jobs(entry, given={"seed": "7", **given})[0]
    made = file_name(job, "0a1b2c3d4e5f", "tiny")
    assert made == (name or "128x128_28_3.0_1.0_0.0_0.0_0.006_balanced_tiny_0a1b2c3d")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": "x"}, "seed is 'x'"),
        ({"seed": "1,2", "count": 2}, "one seed, or no count"),
        ({"count": 0}, "count is 0"),
        ({"name": "{sed}"}, "did you mean 'seed'"),
        ({"steps": 0}, "steps is 0"),
        ({"preset": "slow"}, "no preset 'slow'"),
        ({"model": "nonesuch"}, "no model called 'nonesuch'"),
        ({"no_cache": True, "tau1": 0.1}, "contradict"),
    ],
)
def test_an_option_that_cannot_be_used_is_told_without_a_file(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        jobs("a cat", given=given)
    assert not isinstance(error.value, PromptFileError)


SETTINGS = Settings("a cat", 7, 128, 128, 28, 3.5, 1.0, "", 16, CacheConfig(0.1, 0.2, 1, 2, 3))


def test_an_id_never_changes() -> None:
    """A batch begun with one release must continue with the next: these are from one without policies."""
    assert job_id(SETTINGS, "ab" * 32, "float32") == "56d066c448d5ad18fdba6c8ca353f567"
    plain = Settings("a cat", 7, 64, 64, 28)
    assert job_id(plain, "0" * 64, "float32") == "55f8fb8fafb1533b3c5882b56edfed1c"
    guided = replace(plain, guidance=3.5, cfg=3, negative="a dog", cache=CacheConfig(0.15, 0.15, 3, 1, 3))
    assert job_id(guided, "0" * 64, "float32") == "dcca73097e999a5176eea58cf2416188"


def test_quantization_is_in_an_id_only_if_it_is_used() -> None:
    plain = job_id(SETTINGS, "a", "float32")
    assert job_id(SETTINGS, "a", "float32", LoadOptions(offload="model").changing) == plain
    ids = {
        job_id(SETTINGS, "a", "float32", LoadOptions(**options).changing)
        for options in ({"quantize": "nf4"}, {"quantize": "int8"}, {"quantize_text": "int8"}, {})
    }
    assert len(ids) == 4 and plain in ids


def test_a_whole_number_and_its_float_are_the_same_picture() -> None:
    one, other = jobs({"cfg": 3, "guidance": 1, "tau1": 0, "seed": 1})[0], jobs({"cfg": 3.0, "seed": 1, "tau1": 0.0})[0]
    assert job_id(one.settings, "a", "float32") == job_id(other.settings, "a", "float32")


def test_everything_that_determines_the_picture_is_in_its_id() -> None:
    others = {
        "prompt": "a dog", "seed": 8, "width": 64, "height": 64, "steps": 27, "guidance": 1.0, "cfg": 2.0,
        "negative": "x", "max_sequence_length": 8, "cache": CacheConfig(0.1, 0.2, 1, 2, 4),
        "solver": "heun", "lora": (InputFile("a.safetensors", "0" * 64, 1.0),),
        "image": (InputFile("a.png", "1" * 64, 0.5),), "mask": (InputFile("b.png", "2" * 64),),
        "control": (InputFile("c.png", "3" * 64, None, "canny"),), "controlnet": (InputFile("n", "4" * 64, 0.7),),
        "redux": (InputFile("r.png", "5" * 64, 1.0),), "redux_model": (InputFile("redux", "6" * 64),),
        "attention": "native", "shift": "3.0",
    }  # fmt: skip
    of_videos = {"frames", "fps"}  # which go together; see tests/settings/test_video.py
    assert set(others) == {field.name for field in fields(Settings)} - {*NOT_SETTINGS} - of_videos
    assert job_id(SETTINGS, "a", "float32") == job_id(replace(SETTINGS, reference_steps=99), "a", "float32")
    assert job_id(SETTINGS, "a", "float32") == job_id(replace(SETTINGS, published_plan="by them"), "a", "float32")
    ids = {job_id(SETTINGS, "a", "float32"), job_id(SETTINGS, "b", "float32"), job_id(SETTINGS, "a", "bfloat16")}
    for name, value in others.items():
        extra = {"cfg": 3.0} if name == "negative" else {}
        ids.add(job_id(replace(SETTINGS, **{name: value}, **extra), "a", "float32"))
    assert len(ids) == 3 + len(others)


def test_every_policy_is_in_the_id_and_one_that_is_left_off_is_not() -> None:
    policies = {
        "forecast": 1, "plan": "F" * 28, "tolerance": 0.002, "budget": True, "hierarchy": "checked",
        "max_detail_age": 3, "pfs": "stable", "cache_memory": "bf16",
    }  # fmt: skip
    assert tuple(policies) == POLICIES
    caches = [replace(SETTINGS.cache, **{name: value}) for name, value in policies.items()]
    ids = {job_id(replace(SETTINGS, cache=cache), "ab" * 32, "float32") for cache in [SETTINGS.cache, *caches]}
    assert len(ids) == 1 + len(policies)


def test_shards_share_all_jobs_between_them() -> None:
    shards = [parse_shard(f"{part}/3") for part in (1, 2, 3)]
    taken = [[index for index in range(1, 11) if shard.takes(index)] for shard in shards]
    assert sorted(index for part in taken for index in part) == list(range(1, 11))
    assert taken[0] == [1, 4, 7, 10]
    assert str(Shard(3, 16)) == "3of16"


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/2", "1/2/3", "a/b", "1.5/2", "1/9999999"])
def test_what_is_no_shard_is_named(text: str) -> None:
    with pytest.raises(SettingError, match="such as 3/16"):
        parse_shard(text)


def test_a_bad_configuration_is_told_before_the_file(own_home: Path) -> None:
    folder = own_home / ".config" / "h2gen"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("stps = 3")
    with pytest.raises(SettingError, match="unknown key 'stps'"):
        jobs("a cat")


def test_every_bad_setting_is_told_with_its_own_line(tmp_path: Path) -> None:
    """In the order of the file, with those of the defaults once, at their place."""
    file = tmp_path / "p.yaml"
    file.write_text(
        "prompts:\n"
        "  - prompt: a\n"
        "    steps: -1\n"
        "    guidance: .nan\n"
        "    preset: nope\n"
        "    name: '{foo}'\n"
        "    tau1: x\n"
        "    count: 0\n"
        "    width: 99999\n"
        "    height: 64\n"
        "  - b\n"
        "  - prompt: c\n"
        "    cfg: 1\n"
        "    negative: d\n"
        "defaults:\n"
        "  tau2: -3\n"
        "  stps: 3\n"
    )
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts([str(file)]), {}, {})
    lines = [line.split(": ")[0] for line in str(error.value).splitlines()]
    assert lines == [f"p.yaml:{line}" for line in (3, 4, 5, 6, 7, 8, 9, 12, 16, 17)], str(error.value)
    words = ("steps", "guidance", "preset", "name", "tau1", "count", "width", "negative", "tau2", "stps")
    for line, word in zip(str(error.value).splitlines(), words, strict=True):
        assert word in line


def test_an_empty_prompt_needs_a_picture_that_is_read_in_its_place(tmp_path: Path) -> None:
    flux_pipeline(layers=1, single_layers=1).save_pretrained(tmp_path / "flux")
    redux_prior().save_pretrained(tmp_path / "redux")
    for name in ("photo one.png", "b.png"):
        picture(len(name)).save(tmp_path / name)
    (tmp_path / "p.jsonl").write_text('{"prompt": " "}\n{"prompt": "a cat"}\n{"redux": "b.png", "prompt": ""}\n')
    (tmp_path / "p.txt").write_text("--steps 8\n--redux b.png\n")
    (tmp_path / "p.yaml").write_text("- redux: b.png\n- prompt: ''\n")
    (tmp_path / "p.csv").write_text("prompt,redux,seed\n,b.png,3\n,,4\n")
    names = [str(tmp_path / f"p.{ending}") for ending in ("jsonl", "txt", "yaml", "csv")]
    given = {"model": str(tmp_path / "flux"), "redux_model": str(tmp_path / "redux")}
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts(names), given, {})
    assert [line.split(" is empty")[0] for line in str(error.value).splitlines()] == [
        f"{place}: The prompt" for place in ("p.csv:3", "p.jsonl:1", "p.txt:1", "p.yaml:2")
    ]
    every = [*Jobs(read_prompts(names), {**given, "redux": str(tmp_path / "photo one.png")}, {})]
    assert [(job.settings.prompt, file_name(job, "0" * 32, "m")[5:].rsplit("-", 1)[0]) for job in every[:4]] == [
        ("", "photo-one"), ("a cat", "a-cat"), ("", "b"), ("", "photo-one"),
    ]  # fmt: skip
    assert {job.settings.redux[0].name for job in every} == {"b.png", "photo one.png"}
    assert not every[1].settings.goes_with(every[2].settings)


def test_an_error_of_two_settings_that_go_together_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "control": "no.png", "controlnet": "no.safetensors"}\n')
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts([str(tmp_path / "p.jsonl")]), {}, {})
    assert str(error.value) == "p.jsonl:1: control: there is no file 'no.png'; check the path."


def test_a_lora_that_an_entry_gives_twice_gets_a_remark(tmp_path: Path) -> None:
    loras.save_smallest(tmp_path / "a.safetensors")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "lora": ["a.safetensors", "a.safetensors:0.5"]}\n')
    made = Jobs(read_prompts([str(tmp_path / "p.jsonl")]), {"model": "dev"}, {})
    assert made.remarks == ["p.jsonl:1: --lora 'a.safetensors' is given twice; the scales add up to 1.5."]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.jsonl").write_text('{"prompt": "a", "steps": 0}\n')
    with pytest.raises(PromptFileError) as error:
        Jobs(read_prompts([str(tmp_path / folder / "p.jsonl") for folder in "ba"]), {}, {})
    assert [line.split("steps")[0] for line in str(error.value).splitlines()] == [
        f"{tmp_path}/{folder}/p.jsonl:1: " for folder in "ab"
    ]
