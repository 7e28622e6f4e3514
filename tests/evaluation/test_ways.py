"""``bench --ways``: steps that take turns, and figures that say how sure they are."""

from __future__ import annotations

import copy
import json
import random
import re
import statistics
from collections.abc import Iterator

import pytest
import torch
from torch.nn import Parameter
from torch.nn.modules.module import register_module_forward_pre_hook

from h2gen.cli.app import run
from h2gen.errors import SettingError
from h2gen.evaluation.bench import Subject
from h2gen.evaluation.ways import compare_ways, median_interval, parse_ways
from tests.small import flux_transformer

pytest.importorskip("torchao")


@pytest.fixture
def subject() -> Subject:
    return Subject(flux_transformer(), 16, 8)


@pytest.fixture
def ran(subject: Subject) -> Iterator[list[torch.nn.Module]]:
    """The models that run, in order."""
    models: list[torch.nn.Module] = []

    def note(module: torch.nn.Module, _given: object) -> None:
        if isinstance(module, type(subject.transformer)):
            models.append(module)

    with register_module_forward_pre_hook(note):
        yield models


def test_ways_are_parts_joined_by_plus() -> None:
    assert parse_ways("off, Compile+int8,off,checks") == [("off",), ("compile", "int8"), ("checks",)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("off,int9", "ways has 'int9', which is unknown; did you mean 'int8'?"),
        ("", "ways has '', which is unknown"),
        ("int8+int8-dynamic", "ways has 'int8+int8-dynamic', whose parts exclude each other; choose"),
        ("off+plan", "exclude each other"),
    ],
)
def test_an_unknown_way_is_an_error(text: str, message: str) -> None:
    with pytest.raises(SettingError) as raised:
        parse_ways(text)
    assert message in str(raised.value)


def test_a_step_with_everything_off_and_full_steps_with_the_cache_are_those_of_plain_diffusers(
    subject: Subject,
) -> None:
    before = copy.deepcopy(subject.transformer.state_dict())
    report = compare_ways(subject, parse_ways("off,plan,checks,int8,int8-dynamic,fp8"), 6)
    ways = {each.way: each for each in report.ways}
    assert list(ways) == ["plain", "off", "plan", "checks", "int8", "int8-dynamic", "fp8"]
    assert all(ways[name].difference == 0 for name in ("plain", "off", "plan", "checks"))
    assert 0 < ways["int8"].difference < ways["int8-dynamic"].difference < ways["fp8"].difference < 0.1
    assert all(each.low <= each.ratio <= each.high and each.seconds > 0 for each in report.ways)
    assert ways["plain"].ratio == ways["plain"].low == ways["plain"].high == 1
    assert not subject.transformer._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in subject.transformer.state_dict().items())
    assert json.loads(json.dumps(report.to_json()))["ways"][1]["way"] == "off"


def test_the_ways_take_turns_in_an_order_that_is_drawn_anew_in_each_round(
    subject: Subject, ran: list[torch.nn.Module]
) -> None:
    compare_ways(subject, parse_ways("off,plan"), 4)
    rounds = [[id(module) for module in ran[i : i + 3]] for i in range(0, len(ran), 3)]
    assert len(rounds) >= 4 and all(set(each) == set(rounds[0]) and len(set(each)) == 3 for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


def test_models_are_made_anew_but_for_those_that_take_long_to_make(
    subject: Subject, ran: list[torch.nn.Module]
) -> None:
    report = compare_ways(subject, parse_ways("off,int8"), 11)
    quantized = [module for module in ran if type(module.transformer_blocks[0].attn.to_q.weight) is not Parameter]
    assert len({*map(id, quantized)}) == 1
    assert len({*map(id, ran)}) == 1 + 2 * 2  # those of plain diffusers and "off" for 10 rounds and for 1
    assert len(ran) == 3 * (2 + 10 + 2 + 1)
    assert {way.way: way.difference == 0 for way in report.ways} == {"plain": True, "off": True, "int8": False}
    assert subject.transformer not in ran


@pytest.mark.parametrize(("rounds", "intervals"), [(5, 0), (6, 1)])
def test_an_interval_is_shown_if_there_are_rounds_enough_for_one(
    rounds: int,
    intervals: int,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("h2gen.evaluation.bench.find_subject", lambda *_args, **_given: subject)
    assert run(["bench", "--device", "cpu", "--ways", "off", "--repeat", str(rounds)]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"% to \S+%", shown)) == intervals and "95 % interval" in shown
    assert "Shares are medians too: each step is compared with the plain one of its round." in shown
    assert run(["bench", "--device", "cpu", "--ways", "off", "--repeat", str(rounds), "--json"]) == 0
    _, off = json.loads(capsys.readouterr().out)["ways"]
    assert [off["low"] is not None, off["high"] is not None] == [intervals > 0] * 2


def test_four_bits_are_ways_too() -> None:
    pytest.importorskip("bitsandbytes")
    subject = Subject(flux_transformer(), 16, 8)
    ways = {each.way: each for each in compare_ways(subject, parse_ways("nf4,fp4"), 1).ways}
    assert all(0 < ways[name].difference < 0.5 for name in ("nf4", "fp4"))


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    assert median_interval(range(1, 21)) == (6, 15)  # 95.9 %, as tables have it
    assert median_interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    assert median_interval([3, 1, 2, 5, 4]) == (None, None)
    draw, inside = random.Random(0), 0
    for _ in range(1000):
        low, high = median_interval([draw.expovariate(1) for _ in range(25)])
        inside += low <= 0.6931 <= high
    assert 945 <= inside <= 985  # 95.7 % of them


def test_half_a_percent_shows_in_200_rounds_of_steps_that_vary_by_one() -> None:
    draw = random.Random(1)
    ratios = [1.005 * draw.gauss(1, 0.01) / draw.gauss(1, 0.01) for _ in range(200)]
    low, high = median_interval(ratios)
    assert 1 < low <= statistics.median(ratios) <= high < 1.01


@pytest.mark.slow
def test_a_compiled_way_says_what_its_first_step_costs(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("h2gen.models.compiling.BACKEND", "eager")  # the path is the same, the compiler quick
    monkeypatch.setattr("h2gen.evaluation.bench.find_subject", lambda *_args, **_given: subject)
    assert run(["bench", "--ways", "compile,int8+compile", "--repeat", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "6 steps of each, in turn" in "".join(lines[:2])
    rows = {line.split("  ")[0]: line for line in lines}
    assert rows["compile"].split()[-3] in ("no", "0") or float(rows["compile"].split()[-3]) < 1e-5
    assert float(rows["compile+int8"].split()[-3]) > 1e-5
    assert "plain diffusers" in rows
