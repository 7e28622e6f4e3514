"""Plans that others have published: what ships, for which models, and what is said of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.errors import ProfileError, SettingError
from h2gen.models.catalogue import CATALOGUE, Checkpoint, resolve
from h2gen.settings import speedup
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey, file_name, user_folder, write_profile
from h2gen.settings.profiles.published import (
    WORDS,
    PublishedPlans,
    models_with_plans,
    plans_for,
    published_for,
    published_model,
    read_plans,
    shipped_plans,
)
from h2gen.settings.resolve import Request
from h2gen.settings.speedup import Goal, request_for_goal
from h2gen.settings.values import OFF

TUNE = "h2gen tune --model dev"
DEV: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "num_layers": 19,
    "num_single_layers": 38,
    "guidance_embeds": True,
}
MINE = "cd" * 32


def key(steps: int = 50, size: int = 1024, model: str = "dev", mode: str = "plain") -> ProfileKey:
    return ProfileKey(model, "", steps, size, size, mode)


def is_relative(checkpoint: Checkpoint) -> bool:
    return published_model(checkpoint) == "FLUX.1-dev"


def plans(**more: Any) -> PublishedPlans:
    found = published_for(resolve("dev"), key(**more), TUNE)
    assert found is not None
    return found


def folder(where: Path, **changes: Any) -> Checkpoint:
    """A checkpoint of which only the transformer's configuration exists."""
    (where / "transformer").mkdir(parents=True)
    (where / "transformer" / "config.json").write_text(json.dumps(DEV | changes))
    return resolve(str(where))


def asked(goal: Goal, model: str = "dev", **more: Any) -> Request:
    return request_for_goal("a cat", [("option", {"model": model, "seed": 1, **more})], goal)


def own(situation: ProfileKey) -> Profile:
    """The user's own profile, with one choice: half of the steps."""
    choice = Choice("half", situation.steps // 2, "own", OFF, Figures(0.5, 1.0, 4.0, 0.9, 0.8, 30.0, 25.0))
    profile = Profile(user_folder() / file_name(situation), situation, (choice,), {"pictures": 12})
    write_profile(profile)
    return profile


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> str:
    """The content hash of FLUX.1-dev, which is not on this machine."""
    monkeypatch.setattr(speedup, "content_hash", lambda _checkpoint: MINE)
    return MINE


def test_the_nearest_profile_is_not_looked_for_in_weights_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedup, "content_hash", lambda _checkpoint: pytest.fail("would download the model"))
    assert asked(Goal(3, nearest=True)).settings.published_plan is not None


MADE_FOR = {"FLUX.1-dev", "Qwen-Image", "HunyuanVideo", "Wan2.1-T2V-1.3B"}


def test_each_plan_that_ships_is_one_of_the_candidates_with_its_origin() -> None:
    candidates = read_plans(Path(__file__).parents[2] / "tools" / "published_plans.toml")
    shipped = list(shipped_plans())
    known = {(plan.made_for, plan.steps, plan.computed) for plan in candidates}
    assert sorted((plan.made_for, plan.steps, plan.computed) for plan in shipped) == sorted(known)
    for plan in shipped:
        assert plan in candidates and plan.licence in ("MIT", "Apache-2.0") and "/" in plan.source
        assert set(plan.models) <= MADE_FOR and set(plan.plan) == {"F", "S"} and plan.cache.plan == plan.plan
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}|", plan.paper)


def test_the_models_are_those_that_plans_were_found_for_and_their_relatives() -> None:
    assert {"dev", "krea", "qwen-image"} <= {*models_with_plans()}
    for name in models_with_plans():
        assert plans_for(published_model(resolve(name)))
    assert [name for name in CATALOGUE if is_relative(resolve(name))] == ["dev", "krea"]
    assert is_relative(resolve("black-forest-labs/FLUX.1-dev"))
    assert published_model(resolve("qwen-image")) == published_model(resolve("Qwen/Qwen-Image")) == "Qwen-Image"


@pytest.mark.parametrize(
    ("cls", "config", "model", "frames", "computed"),
    [
        ("QwenImageTransformer2DModel", {"num_layers": 60}, "Qwen-Image", 0, [21, 13, 9]),
        (
            "HunyuanVideoTransformer3DModel",
            {"num_layers": 20, "num_single_layers": 40},
            "HunyuanVideo",
            65,
            [21, 13, 9],
        ),
        ("WanTransformer3DModel", {"num_layers": 30}, "Wan2.1-T2V-1.3B", 65, [21, 13]),
    ],
)
def test_other_models_have_plans_that_say_what_they_were_found_for(
    tmp_path: Path, cls: str, config: dict[str, Any], model: str, frames: int, computed: list[int]
) -> None:
    for number, changed in enumerate((config, config | {"num_layers": 3})):
        where = tmp_path / str(number)
        (where / "transformer").mkdir(parents=True)
        (where / "transformer" / "config.json").write_text(json.dumps({"_class_name": cls, **changed}))
        assert published_model(resolve(str(where))) == ("" if number else model)
    assert [plan.computed for plan in plans_for(model) if plan.steps == 50] == computed
    assert {plan.frames for plan in plans_for(model) if plan.steps == 50} == {frames}
    assert all(f"for {model} at 50 steps" in plan.words for plan in plans_for(model) if plan.steps == 50)


def test_those_of_a_model_with_true_guidance_are_used_with_it() -> None:
    found = published_for(resolve("qwen-image"), key(size=1328, model="qwen-image", mode="true"), TUNE)
    assert found is not None and [plan.computed for plan in found.plans] == [21, 13, 9]
    said = found.for_speedup(3).expectation(found.key, TUNE)
    assert "for Qwen-Image at 50 steps, 1328x1328, true guidance 4." in said and "Here it is used" not in said
    assert published_for(resolve("qwen-image"), key(model="qwen-image", mode="plain"), TUNE) is None
    settings = asked(Goal(speedup=3), "qwen-image").settings
    assert settings.cache.plan == found.for_speedup(3).plan and settings.cfg == 4.0


def test_a_folder_is_a_relative_by_its_blocks_and_its_guidance(tmp_path: Path) -> None:
    assert is_relative(folder(tmp_path / "dev"))
    for number, changes in enumerate(
        (
            {"guidance_embeds": False},
            {"num_layers": 8},
            {"_class_name": "ChromaTransformer2DModel"},
            {"num_layers": None},
        )
    ):
        assert not is_relative(folder(tmp_path / str(number), **changes))
    (tmp_path / "dev" / "transformer" / "config.json").write_text("[]")
    assert not is_relative(resolve(str(tmp_path / "dev")))


def test_a_single_file_is_what_its_base_is(tmp_path: Path) -> None:
    file = tmp_path / "tuned.safetensors"
    file.touch()
    assert is_relative(resolve(str(file), "dev")) and not is_relative(resolve(str(file), "schnell"))
    said = asked(Goal(speedup=3), str(file), base="dev").notices[-1]
    assert "Here it is used for 'tuned.safetensors' at 50 steps, 1024x1024." in said and WORDS in said


@pytest.mark.parametrize(
    ("steps", "speed", "computed"), [(50, 3, 13), (50, 2.3, 21), (50, 2.4, 13), (50, 5.5, 9), (28, 3, 8), (28, 1.5, 18)]
)
def test_a_speed_takes_the_plan_with_the_most_computed_steps(steps: int, speed: float, computed: int) -> None:
    chosen = plans(steps=steps).for_speedup(speed)
    assert (chosen.computed, chosen.steps) == (computed, steps)
    assert chosen.estimated_speedup == pytest.approx(steps / computed) and chosen.estimated_speedup >= speed


def test_a_speed_that_no_plan_reaches_is_refused_with_one_that_can_be_asked_for() -> None:
    with pytest.raises(ProfileError, match=rf"{WORDS}: the maximum is an estimated 5\.5x \(9 of 50 steps") as caught:
        plans().for_speedup(6)
    assert "\n" not in str(caught.value)
    assert plans().for_speedup(5.5).computed == 9
    with pytest.raises(SettingError, match="give a number above 1"):
        plans().for_speedup(1)


@pytest.mark.parametrize(("steps", "made"), [(100, 50), (40, 50), (30, 28), (20, 28), (9, 28)])
def test_plans_are_stretched_to_other_steps_and_it_is_said(steps: int, made: int) -> None:
    found = plans(steps=steps)
    assert {plan.steps for plan in found.plans} == {steps} and {plan.made_steps for plan in found.plans} == {made}
    assert all(plan.plan.startswith("F") and plan.plan.endswith("F") for plan in found.plans)
    said = found.plans[-1].expectation(found.key, TUNE)
    assert f"at {made} steps" in said and f"used for 'dev' at {steps} steps, 1024x1024, stretched" in said


def test_what_is_said_names_source_and_licence_and_promises_no_fidelity(weights: str) -> None:
    request = asked(Goal(speedup=3))
    chosen = plans().for_speedup(3)
    said = request.notices[-1]
    assert request.settings.cache == chosen.cache and request.settings.reference_steps == 50
    assert f"It is {WORDS}: {chosen.source} ({chosen.licence}), for FLUX.1-dev at 50 steps, 1024x1024." in said
    assert "13 of 50 steps computed, an estimated 3.8x" in said and said.endswith(
        f"To measure a profile of your own: {TUNE}"
    )
    assert "SSIM" not in said and "Here it is used" not in said
    assert request.settings.published_plan == chosen.words and WORDS in chosen.words
    assert request.resolved["plan"].source == "published plan"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": "768x1024"}, "Here it is used for 'dev' at 50 steps, 768x1024. To"),
        ({"model": "hunyuan-video"}, "Here it is used for 'hunyuan-video' at 50 steps, 1280x720, 129 frames"),
        ({"model": "krea"}, "Here it is used for 'krea' at 28 steps, 1024x1024. To"),
        ({"steps": 40}, "Here it is used for 'dev' at 40 steps, 1024x1024, stretched to these steps. To"),
    ],
)
def test_a_use_that_differs_from_what_was_published_is_said(given: dict[str, Any], words: str) -> None:
    assert words in asked(Goal(speedup=2), **given).notices[-1]


def test_a_fidelity_is_refused_with_the_command_that_measures() -> None:
    with pytest.raises(ProfileError, match=rf"^--fidelity needs measured figures.*{WORDS}.*{TUNE} \(it takes"):
        asked(Goal(fidelity=0.95))


@pytest.mark.parametrize(("model", "more"), [("chroma", {}), ("flux2-dev", {}), ("dev", {"cfg": 3.0})])
def test_other_models_and_true_guidance_have_none(model: str, more: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match="There is no profile for"):
        asked(Goal(speedup=3), model, **more)


def test_the_users_own_profile_replaces_it(weights: str) -> None:
    own(replace(key(), content_hash=weights))
    request = asked(Goal(speedup=3))
    assert (request.settings.steps, request.settings.published_plan) == (25, None)
    assert "mean SSIM of 0.900" in request.notices[-1] and WORDS not in " ".join(request.notices)
    assert asked(Goal(fidelity=0.9)).settings.steps == 25


def test_the_nearest_is_ones_own_of_the_same_weights_and_never_another_models(weights: str) -> None:
    own(replace(key(), model="other", content_hash="ee" * 32))
    for nearest in (False, True):  # a profile of another model is farther off than a published plan
        request = asked(Goal(speedup=3, nearest=nearest))
        assert request.settings.published_plan is not None and "using the nearest" not in " ".join(request.notices)
    own(replace(key(size=768), content_hash=weights))
    request = asked(Goal(speedup=3))
    assert request.settings.published_plan is not None
    assert request.notices[-1] == "There is a profile of 'dev' for other conditions; to use the nearest one: --nearest."
    request = asked(Goal(speedup=3, nearest=True))
    assert request.settings.published_plan is None and "using the nearest, made for 768x768" in request.notices[-2]
    chroma = asked(Goal(speedup=3, nearest=True), "chroma")
    assert chroma.settings.published_plan is None and "using the nearest" in " ".join(chroma.notices)


def test_a_profile_that_cannot_be_read_is_told_before_the_plan(weights: str) -> None:
    profile = own(replace(key(), content_hash=weights))
    profile.path.write_text("version = 1\n")
    broken, said = asked(Goal(speedup=3)).notices
    assert "cannot be used" in broken and WORDS in said


def test_of_the_candidates_with_as_many_computed_steps_the_closest_ships(tmp_path: Path) -> None:
    from tools.choose_published import CANDIDATES, Row, best, to_toml

    candidates = [plan for plan in read_plans(CANDIDATES) if "FLUX.1-dev" in plan.models]
    rows = [Row(each.steps, each.computed, each, [30.0], [0.9 + 0.001 * n]) for n, each in enumerate(candidates)]
    rows += [Row(50, count, None, [60.0], [0.999]) for count in (21, 13, 9)]
    chosen = best(rows)
    assert [(plan.steps, plan.computed) for plan in chosen] == [
        (plan.steps, plan.computed) for plan in plans_for("FLUX.1-dev")
    ]
    for plan in chosen:
        rivals = [each for each in candidates if (each.steps, each.computed) == (plan.steps, plan.computed)]
        assert plan == rivals[-1]
    (tmp_path / "chosen.toml").write_text(to_toml(chosen, "10 prompts, true guidance 3"))
    assert read_plans(tmp_path / "chosen.toml") == chosen


def test_quantized_weights_are_told_of_a_published_plan_and_of_a_profile(weights: str) -> None:
    told = "The published plan does not account for --quantize; its figures are only a rough guide here."
    assert told in asked(Goal(3), quantize="int8").notices and told not in asked(Goal(3), quantize="off").notices
    own(ProfileKey("dev", weights, 50, 1024, 1024, "plain"))
    told = (
        "The profile was measured without --quantize; its figures are only a rough guide with --quantize int8-dynamic."
    )
    assert told in asked(Goal(3), quantize="w8a8").notices
    assert not any("quantize" in notice for notice in asked(Goal(3)).notices)
