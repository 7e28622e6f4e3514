"""Profiles: what each speed costs, found for a model, steps and size, and untrusted files are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.cache import CacheConfig
from h2gen.errors import ProfileError, SettingError
from h2gen.models import resolve
from h2gen.models.catalogue import BUNDLED
from h2gen.models.content_hash import HASH
from h2gen.models.load_options import LoadOptions
from h2gen.settings.profiles import (
    Choice,
    Figures,
    Profile,
    ProfileKey,
    file_name,
    find_profile,
    list_profiles,
    read_profile,
    stretched,
    to_toml,
    user_folder,
    write_profile,
)
from h2gen.settings.speedup import command_for, expectation
from h2gen.settings.values import Settings

HERE = ProfileKey("mine", "ab" * 32, 20, 128, 128, "plain")


def choice(speedup: float, ssim: float, label: str = "", **more: Any) -> Choice:
    figures = Figures(round(1 / speedup, 4), 1.0, speedup, ssim, round(ssim - 0.1, 4), 30.0, 25.0)
    plan = CacheConfig(0, 0, forecast=1, plan="FFFSSFSSSFSSSSFSSSSF")
    settings: Any = {"steps": 20, "solver": "own", "cache": plan, **more}
    return Choice(label or f"{speedup:g} times", figures=figures, **settings)


CURVE = (choice(6, 0.8), choice(4, 0.93), choice(3, 0.9), choice(2, 0.99), choice(1.2, 0.999))


def profile(situation: ProfileKey = HERE, choices: tuple[Choice, ...] = CURVE) -> Profile:
    return Profile(user_folder() / file_name(situation), situation, choices, {"pictures": 12, "device": "cpu"})


def found(wanted: ProfileKey = HERE, content_hash: str = "ab" * 32, nearest: bool = False) -> tuple[Profile, list[str]]:
    return find_profile(wanted, lambda: content_hash, "h2gen tune --model mine", nearest)


def test_what_was_written_is_read_again_and_found() -> None:
    write_profile(profile())
    made, notices = found(replace(HERE, content_hash=""))
    assert made == profile() and notices == []
    assert [each.key for each in list_profiles() if each.key.model == "mine"] == [HERE]


def test_a_speed_gets_the_closest_of_all_that_are_fast_enough() -> None:
    assert profile().for_speedup(3).label == "4 times"
    assert profile().for_speedup(4.01).label == "6 times"
    assert profile().for_speedup(1.9).label == "2 times"


def test_a_fidelity_gets_the_fastest_of_all_that_are_close_enough() -> None:
    picked = profile().for_fidelity(0.93)
    assert picked is not None and picked.label == "4 times"
    picked = profile().for_fidelity(0.95)
    assert picked is not None and picked.label == "2 times"
    assert profile().for_fidelity(0.9999) is None


@pytest.mark.parametrize("speedup", [1, 0.5, -1, float("nan"), 1001])
def test_a_speed_that_is_none_is_refused(speedup: float) -> None:
    with pytest.raises(SettingError, match="give a number above 1"):
        profile().for_speedup(speedup)


def test_a_speed_below_the_floor_is_told_with_the_fastest_there_is() -> None:
    with pytest.raises(ProfileError, match=r"faster than the profile .* 6\.00x \(6 times\)"):
        profile().for_speedup(7)


@pytest.mark.parametrize("fidelity", [0, -0.1, 1.01, float("nan")])
def test_a_fidelity_that_is_none_is_refused(fidelity: float) -> None:
    with pytest.raises(SettingError, match=r"such as 0\.95"):
        profile().for_fidelity(fidelity)


def test_without_a_profile_it_says_how_to_make_one_and_how_long_it_takes() -> None:
    with pytest.raises(ProfileError) as caught:
        found(ProfileKey("dev", "", 50, 1024, 1024, "plain"))
    words = str(caught.value)
    assert "no profile for 'dev' at 50 steps, 1024x1024." in words
    assert "h2gen tune --model mine" in words and "about as long as 1144 uncached pictures" in words
    assert "\n" not in words


def test_the_nearest_is_proposed_only_where_there_is_one_of_the_model() -> None:
    write_profile(profile())
    with pytest.raises(ProfileError) as other_model:
        found(ProfileKey("dev", "", 50, 1024, 1024, "plain"))
    assert "--nearest" not in str(other_model.value)
    with pytest.raises(ProfileError, match="Or use the nearest one: --nearest"):
        found(replace(HERE, steps=50))


def test_other_weights_of_the_same_name_are_not_the_same_model() -> None:
    write_profile(profile())
    with pytest.raises(ProfileError, match="is for other weights"):
        found(content_hash="cd" * 32)
    made, notices = found(content_hash="cd" * 32, nearest=True)
    assert made.key == HERE and "other weights" in notices[0]


def test_the_same_weights_under_another_name_are_the_same_model() -> None:
    write_profile(profile())
    made, notices = found(replace(HERE, model="a-copy"))
    assert made == profile() and notices == []


def test_the_checkpoint_is_not_read_where_no_profile_could_fit() -> None:
    def never() -> str:
        raise AssertionError("read")

    with pytest.raises(ProfileError):
        find_profile(ProfileKey("dev", "", 33, 1024, 1024, "plain"), never, "h2gen tune")


def test_a_profile_of_videos_is_for_one_number_of_frames_and_never_for_pictures() -> None:
    video = replace(HERE, frames=61)
    assert str(video) == "'mine' at 20 steps, 128x128, 61 frames"
    assert write_profile(profile(video)).name == "mine-20-128x128x61-abababab.toml"
    write_profile(profile(replace(HERE, model="other", content_hash="cd" * 32)))
    assert found(video)[0] == profile(video)
    with pytest.raises(ProfileError, match=r"33 frames\. Make one: .*as 1144 uncached videos.* Or use the nearest one"):
        found(replace(HERE, frames=33))
    near, notices = found(replace(HERE, frames=33), nearest=True)
    assert near.measured_for == video and "made for 61 frames." in notices[0]
    with pytest.raises(ProfileError, match="There is no profile") as caught:  # that of other pictures does not suit
        found(replace(HERE, model="third", frames=0, steps=9))
    assert "nearest" not in str(caught.value)
    near, _ = found(replace(HERE, steps=10), nearest=True)
    assert near.measured_for is not None and near.measured_for.model == "other"


def test_the_nearest_is_of_the_same_model_first_and_its_plans_are_drawn_out() -> None:
    write_profile(profile())
    write_profile(profile(ProfileKey("other", "cd" * 32, 30, 128, 128, "plain")))
    made, notices = found(replace(HERE, steps=30), nearest=True)
    assert made.key == replace(HERE, steps=30)
    assert "made for 20 steps" in notices[0]
    assert {len(each.cache.plan) for each in made.choices} == {30}
    fewer = profile(choices=(choice(4, 0.9, steps=5, cache=CacheConfig(0, 0)),)).fitted(40)
    assert (fewer.choices[0].steps, fewer.choices[0].figures.share) == (10, 0.25)
    assert fewer.choices[0].label == "10 steps"
    plan = made.choices[0].cache.plan
    assert made.choices[0].label == f"{plan.count('F')} of 30 steps, {plan.count('S')} skipped"


INT8, NF4 = {"quantize": "int8"}, {"quantize": "nf4", "quantize_text": "int8"}
COMPILED: dict[str, str] = {"compile": "yes"}
MEASURED, ROUGH = "The profile was measured", "its figures are only a rough guide"
WITH_INT8, WITH_NF4 = "with --quantize int8", "with --quantize nf4 --quantize-text int8"


@pytest.mark.parametrize(
    ("measured", "here", "notice"),
    [
        ({}, {}, ""),
        (INT8, INT8, ""),
        ({}, INT8, f"The profile was measured without --quantize; its figures are only a rough guide {WITH_INT8}."),
        (INT8, {}, f"The profile was measured {WITH_INT8}; its figures are only a rough guide without --quantize."),
        (COMPILED, {}, f"{MEASURED} with --compile; {ROUGH} without --compile."),
        ({}, {"offload": "group"}, f"{MEASURED} without --offload; {ROUGH} with --offload group."),
        ({}, {**INT8, **COMPILED}, f"{MEASURED} without --quantize or --compile; {ROUGH} {WITH_INT8} --compile."),
        (INT8, NF4, f"The profile was measured {WITH_INT8}; its figures are only a rough guide {WITH_NF4}."),
    ],
)
@pytest.mark.parametrize("steps", [20, 30])
def test_a_profile_of_a_model_loaded_otherwise_is_used_with_a_notice(
    measured: dict[str, str], here: dict[str, str], notice: str, steps: int
) -> None:
    made = replace(profile(), measured={"pictures": 12, **measured})
    write_profile(made)
    key = replace(HERE, steps=steps)
    _, notices = find_profile(key, lambda: "ab" * 32, "h2gen tune", nearest=steps != 20, loading=here)
    assert [line for line in notices if "nearest" not in line] == ([notice] if notice else [])


def test_profiles_of_other_ways_of_loading_have_files_of_their_own_and_the_one_that_fits_is_found() -> None:
    ways = ({}, INT8, COMPILED, {**INT8, **COMPILED}, NF4)
    for measured in ways:
        path = user_folder() / file_name(HERE, measured)
        write_profile(replace(profile(), path=path, measured={"pictures": 12, **measured}))
    assert path.name == "mine-20-128x128-quantize-nf4-quantize-text-int8-abababab.toml"
    for here in ways:
        made, notices = find_profile(HERE, lambda: "ab" * 32, "h2gen tune", loading=here)
        assert made.loading == here and not notices


def test_a_profile_of_the_users_own_hides_a_shipped_one_only_if_it_was_loaded_alike() -> None:
    shipped = next(each for each in list_profiles() if each.key.guidance_mode == "true")
    own = user_folder() / file_name(shipped.key, COMPILED)
    write_profile(replace(shipped, path=own, measured={**shipped.measured, **COMPILED}))

    def path(loading: dict[str, str]) -> Path:
        return find_profile(shipped.key, lambda: shipped.key.content_hash, "h2gen tune", loading=loading)[0].path

    assert own.name == "tiny-28-128x128-guided-compile-011aadf2.toml"
    assert path({}) == shipped.path and path(COMPILED) == own
    write_profile(replace(shipped, path=(plain := user_folder() / file_name(shipped.key))))
    assert path({}) == plain and path(COMPILED) == own


def test_the_command_that_measures_a_profile_loads_the_model_alike() -> None:
    load = LoadOptions(quantize="int8", offload="group", compile=True, devices=2, dtype="bf16", memory="8GB")
    assert command_for(resolve("tiny"), Settings("-", 1, 128, 128, 28, cfg=3.0), loading=load.loading) == (
        "h2gen tune --model tiny --quantize int8 --offload group --compile"
    )
    assert not LoadOptions(offload="auto").loading


@pytest.mark.parametrize(
    ("here", "used"),
    [({}, {}), (INT8, INT8), (COMPILED, COMPILED), ({**NF4, **COMPILED}, COMPILED), ({**INT8, **COMPILED}, INT8)],
)
def test_of_the_profiles_at_the_nearest_steps_the_one_loaded_most_alike_is_used(
    here: dict[str, str], used: dict[str, str]
) -> None:
    for measured in (COMPILED, {}, INT8):
        write_profile(replace(profile(), path=user_folder() / file_name(HERE, measured), measured=measured))
    near, _ = find_profile(replace(HERE, steps=30), lambda: "ab" * 32, "h2gen tune", nearest=True, loading=here)
    assert near.loading == used


def test_figures_of_the_nearest_are_said_to_be_those_of_another_number_of_steps() -> None:
    write_profile(profile())
    here, _ = found()
    near, _ = found(replace(HERE, steps=30), nearest=True)
    assert "measured with" not in expectation(here.choices[0], here)
    assert expectation(near.choices[0], near).endswith(
        " These figures were measured with 'mine' at 20 steps, 128x128; here they are a rough guide."
    )


def test_a_score_below_1_is_not_rounded_to_1() -> None:
    words = expectation(choice(2, 0.99968), profile())
    assert "a mean SSIM of 0.9997 to" in words and "(0.900 for the worst of 12)" in words


@pytest.mark.parametrize(("solver", "letters"), [("own", 30), ("unipc", 30), ("heun", 59)])
def test_a_profile_drawn_out_fits_its_solvers(solver: str, letters: int) -> None:
    plan = ("FFSSS" * 8)[: 39 if solver == "heun" else 20]
    one = choice(2, 0.9, solver=solver, cache=CacheConfig(0, 0, plan=f"{plan}/{plan[0]}{plan[:0:-1]}"))
    parts = profile(choices=(one,)).fitted(30).choices[0].cache.plan.split("/")
    assert [len(part) for part in parts] == [letters, letters] and parts[0] != parts[1]


def test_a_plan_of_one_step_is_drawn_out_too() -> None:
    assert stretched("F", 9) == "F" * 9


def test_a_fidelity_never_gets_what_is_slower_than_no_cache() -> None:
    assert profile(choices=(choice(0.9, 0.999), choice(4, 0.9))).for_fidelity(0.99) is None


def test_a_profile_that_cannot_be_used_is_in_nobodys_way_and_is_told(tmp_path: Path) -> None:
    write_profile(profile())
    (user_folder() / "aa.toml").write_text("version = 1\n")
    made, notices = found()
    assert made == profile()
    assert len(notices) == 1 and "aa.toml' cannot be used" in notices[0]
    with pytest.raises(ProfileError, match=r"no profile for .*aa\.toml' cannot be used"):
        found(replace(HERE, steps=33))


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 33, 100])
def test_a_plan_for_another_number_of_steps_is_one(steps: int) -> None:
    plan = "FFFSSFSSSFSSSSFSSSSF"
    other = stretched(plan, steps)
    assert len(other) == steps and other[0] == "F"
    assert CacheConfig(plan=other).plan == other
    if steps >= len(plan):
        assert other.count("F") == plan.count("F")
    assert stretched(plan, 20) == plan


GOOD = to_toml(Profile(Path("x"), HERE, CURVE, {"pictures": 3}))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version = 1", "version = 2", "its version is 2"),
        ("version = 1", "versoin = 1", "did you mean 'version'"),
        ("steps = 20", "steps = 0", "situation: steps is 0"),
        ("steps = 20", 'steps = "20"', "situation: steps is '20'"),
        ('guidance_mode = "plain"', 'guidance_mode = "none"', "choose true or plain"),
        ("steps = 20", "steps = 10001", "situation: steps is 10001; give a whole number from 1 to 10000"),
        ("width = 128", "width = 0", "situation: width is 0"),
        ('model = "mine"', f'model = "{"x" * 999}"', "situation: model has more than 300 characters"),
        ('solver = "own"', 'solver = ["own"]', "choice 1: solver is a list"),
        ('solver = "own"', 'solver = "heun"', "plan has 20 letters, and 20 steps of Heun are 39 passes"),
        ('plan = "FF', 'plan = "F', "choice 1: plan is for 19 steps, and steps is 20"),
        ("speedup = 6.0", "speedup = 1e300", "speedup is 1e+300; give a number from"),
        ("ssim_mean = 0.8", "ssim_mean = 1.5", "ssim_mean is 1.5; give a number from -1 to 1"),
        ('solver = "own"', 'solver = "dpm"', "choice 1: solver 'dpm' is not supported"),
        ("tau1 = 0.0", "tau1 = -1.0", "choice 1: tau1 is -1"),
        ("tau1 = 0.0\n", "", "cache lacks tau1"),
        ("tau1 = 0.0", "tau3 = 0.0", "cache has an unknown key 'tau3'"),
        ('plan = "F', 'plan = "X', "choice 1: plan"),
        ("speedup = 6.0", "speedup = nan", "choice 1: figures: speedup is nan"),
        ("speedup = 6.0", "speedup = -6.0", "speedup is -6; give a number from"),
        ("speedup = 6.0\n", "", "figures lacks speedup"),
        ("[measured]", "[measurd]", "did you mean 'measured'"),
        ("version = 1", "version = ", "not valid TOML"),
        ("version = 1", "#" * 300_000, "larger than 256 KiB"),
    ],
)
def test_a_bad_profile_is_named_with_what_is_wrong_in_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    file = tmp_path / "bad.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        read_profile(file)
    assert words in str(caught.value) and "bad.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", f"version = '{'x' * 9999}'"),
        ("version = 1", f"version = 1\n{'x' * 9999} = 1"),
        ('guidance_mode = "plain"', f"guidance_mode = '{'x' * 9999}'"),
        ('solver = "own"', f"solver = '{'x' * 9999}'"),
        ("speedup = 6.0", f"speedup = '{'x' * 9999}'"),
        ("tau1 = 0.0", "tau1 = [" + "1," * 9999 + "]"),
    ],
    ids=range(6),
)
def test_a_strangers_value_is_not_told_at_length(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "bad.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        read_profile(tmp_path / "bad.toml")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_profile_without_choices_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(GOOD.split("[[choices]]")[0])
    with pytest.raises(ProfileError, match="must have choices"):
        read_profile(tmp_path / "bad.toml")


def test_the_name_of_a_file_is_safe_and_keeps_namesakes_apart() -> None:
    one = replace(HERE, model="../black forest/FLUX.1")
    assert file_name(one) == "black-forest-FLUX-1-20-128x128-abababab.toml"
    assert file_name(replace(one, content_hash="cd" * 32)) != file_name(one)
    assert "guided" in file_name(replace(one, guidance_mode="true"))


def test_the_profiles_that_come_along_are_of_the_model_that_does() -> None:
    bundled = (BUNDLED / HASH).read_text("ascii").strip()
    shipped = [read_profile(path) for path in (BUNDLED.parents[1] / "settings" / "profiles" / "shipped").glob("*.toml")]
    assert len(shipped) >= 2 and {profile.key.content_hash for profile in shipped} == {bundled}
