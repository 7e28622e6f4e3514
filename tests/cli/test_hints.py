"""Wrong usage ends in one line that says what to type instead, and nothing is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from h2gen.cli.app import run

HINTS: list[tuple[list[str], str]] = [
    (["a", "cat"], 'Put the prompt in quotes: h2gen "a cat"'),
    (["a", 'cat"s', "--steps", "2"], "Put the prompt in quotes: h2gen 'a cat\"s'"),
    (["a dog --seed 3"], "--seed 3 is inside the quotes of the prompt; put it after them, as --seed 3."),
    (["a dog --ar 16:9 --v 6"], "--ar 16:9 is inside the quotes of the prompt; put it after them, as --size 16:9."),
    (["compare", "a dog --steps 3"], "put it after them, as --steps 3."),
    (["-p", "a dog --num-inference-steps=3"], "put it after them, as --steps 3."),
    (["compare", "a", "cat"], 'Put the prompt in quotes: h2gen compare "a cat"'),
    (["batc", "prompts.txt"], "There is no command 'batc'; did you mean 'batch'?"),
    (["bathc", "x.txt"], "There is no command 'bathc'; did you mean 'batch'?"),
    (["replay", "a.png", "b.png"], "'h2gen replay' does not take b.png. See 'h2gen replay --help'."),
    (["batch"], ". See 'h2gen batch --help'."),
    (["info"], "PICTURE... is missing: Pictures and videos, or their .toml sidecars. See 'h2gen info --help'."),
    (["presets", "show"], "NAME is missing: A preset's name or file. See 'h2gen presets show --help'."),
    (["presets", "balanecd"], "There is no preset 'balanecd'; did you mean 'balanced'?"),
    (["presets", "--foo"], "There is no option --foo. See 'h2gen presets --help'."),
    (["batch", "x.txt", "--out"], "Option '--out' requires an argument. See 'h2gen batch --help'."),
    (["x", "--seed"], "Option '--seed' requires an argument. See 'h2gen --help'."),
    # Options, by what they mean elsewhere, by spelling, by the command that has them
    (["x", "--width", "512"], "There is no option --width; use --size WIDTHxHEIGHT, such as --size 1024x768."),
    (["x", "--height=512"], "There is no option --height; use --size WIDTHxHEIGHT"),
    (["x", "--num-inference-steps", "3"], "There is no option --num-inference-steps; use --steps. See 'h2gen --help'."),
    (["x", "--num_images", "3"], "There is no option --num_images; use --count."),
    (["x", "--output-dir", "a"], "There is no option --output-dir; use --out."),
    (["x", "--negative-prompt", "a"], "There is no option --negative-prompt; use --negative."),
    (["x", "--guidance-scale", "3"], "There is no option --guidance-scale; use --guidance."),
    (["batch", "x", "--sampler", "a"], "There is no option --sampler; use --solver. See 'h2gen batch --help'."),
    (["x", "-model", "dev"], "There is no option -model; use --model. See 'h2gen --help'."),
    (["x", "-seed=3"], "There is no option -seed=3; use --seed=3."),
    (["x", "--init_image", "a.png"], "There is no option --init_image; use --image."),
    (
        ["x", "--strength", "0.5"],
        "There is no option --strength; put the number after the picture: --image FILE:0.6.",
    ),
    (["img2img", "x"], "Give the picture with --image"),
    (["x", "-W", "512"], "There is no option -W; use --size WIDTHxHEIGHT"),
    (["x", "--stpes", "3"], "There is no option --stpes; did you mean --steps? See 'h2gen --help'."),
    (["x", "--shard", "1/2"], "There is no option --shard here; it belongs to 'h2gen batch'. See 'h2gen --help'."),
    (
        ["tune", "--speedup", "2"],
        "There is no option --speedup here; it belongs to 'h2gen', 'h2gen batch' and other commands.",
    ),
    (
        ["batch", "x.txt", "--devices", "2"],
        "no option --devices here; it belongs to 'h2gen', 'h2gen replay' and other commands.",
    ),
    (["bench", "--compile"], "no option --compile here; it belongs to 'h2gen', 'h2gen batch' and other commands."),
    (["a cat", "--preview", "now.png"], "--preview takes no file; use --preview-file now.png. See"),
    (["models", "--quick"], "There is no option --quick here; it belongs to 'h2gen models check'."),
    (["batch", "--version"], "There is no option --version here; it belongs to 'h2gen'."),
    (["x", "--lora-path", "a"], "There is no option --lora-path; use --lora."),
    (["x", "--vae", "a"], "There is no file 'a' for the autoencoder; check the path."),
    (["x", "--clip-l", "a"], "There is no option --clip-l; use --text-encoder."),
    (["x", "--torch-compile"], "There is no option --torch-compile; use --compile."),
    (["x", "--attn", "sage"], "There is no option --attn; use --attention."),
    (["x", "--shift", "0"], "--shift is '0'; give a number from 0.01 to 100, such as 3, or dynamic."),
    (["x", "--compile", "--offload", "sequential"], "--compile has no effect with --offload sequential"),
    (["x", "--fp8"], "There is no option --fp8; use --quantize."),
    (["x", "--load-in-4bit"], "There is no option --load-in-4bit; use --quantize."),
    (["x", "--quantize", "q4"], "--quantize 'q4' is not supported; choose"),
    (["x", "--upscale", "2"], "There is no --upscale yet. See 'h2gen --help'."),
    (["x", "--foo"], "There is no option --foo. See 'h2gen --help'."),
    # Commands of other tools
    (["serve", "--port", "80"], "There is no command 'serve'. h2gen has no server"),
    (
        ["download", "dev"],
        "prints where one is. To use the word as a prompt: h2gen -- download",
    ),
    (
        ["login"],
        "For models that need an account, run 'hf auth login'",
    ),
    (["list"], "'h2gen models' lists the models"),
    (["version"], "'h2gen --version' prints the version."),
    (["models", "download", "dev"], "There is no command 'download'. A model is downloaded when you first make a"),
    (["quit"], ":quit leaves 'h2gen shell'."),
    # Values
    (["x", "--steps", "abc"], "--steps is 'abc'; give a whole number from 1 to 10000."),
    (["x", "--steps", "0"], "--steps is 0; give a whole number from 1 to 10000."),
    (["x", "--guidance", "hot"], "--guidance is 'hot'; give a number from 0 to 1000."),
    (["x", "--tau1", "0.05,0.1"], "--tau1 is '0.05,0.1'; give a number from 0 (off) upwards, such as 0.15."),
    (["x", "--tolerance", "-1"], "--tolerance is -1; give a number from 0 (off) upwards, such as 0.006."),
    (["x", "--speedup", "fast"], "--speedup is 'fast'; give a number above 1, such as 2."),
    (["x", "--seed", ""], "--seed is ''; give whole numbers such as 7, or 1,5,10-13, or random."),
    (["x", "--seed", "99999999999999999999"], "give whole numbers from 0 to 9223372036854775807."),
    (["x", "--size", "big"], "--size is 'big'; give pixels such as 1024x768, a ratio such as 16:9, or one number for"),
    (["x", "--solver", "dpm"], "--solver 'dpm' is not supported; choose own, unipc, heun, dpm++ or lcm."),
    (
        ["x", "--offload", "gpu"],
        "--offload 'gpu' is not supported; choose none, text, model, group, sequential or",
    ),
    (
        ["x", "--preset", "./nope.toml"],
        "There is no preset file './nope.toml'; check the path",
    ),
    (["compare", "x", "--repeat", "n"], "--repeat is 'n'; give a whole number"),
    (["compare", "x", "--repeat", "0"], "h2gen: --repeat is 0; give a whole number from 1"),
    (["compare", "x", "--row", "9"], "h2gen: --row is 9; there are 1, counted from 1."),
    (["compare", "x", "--fewer", "99"], "h2gen: --fewer is '99'; give numbers of steps from 1 to 27."),
    (["batch", "x.txt", "--gpus", ","], "h2gen: --gpus is ','; give all, or numbers such as 0,1."),
    (["batch", "x.txt", "--out", "a.png"], "h2gen: --out is 'a.png'; a batch needs a folder"),
    (["x", "--plan", "FF"], "h2gen: --plan is for 2 steps, and steps is 28;"),
    (["bench", "--steps", "3"], "--steps is 3; give a whole number from 5 to 1000."),
    (["batch", "x.txt", "--shard", "17/16"], "--shard is '17/16'; give a part and the number of parts, such as 3/16."),
]


@pytest.mark.parametrize(("arguments", "words"), HINTS, ids=[" ".join(arguments) for arguments, _ in HINTS])
def test_wrong_usage_is_one_line_that_says_what_to_type(
    arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "x.txt").write_text("a cat\n")
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert words in err
    assert os.listdir(here) == ["x.txt"]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("H2GEN_SIZE", "big", "H2GEN_SIZE is 'big'; give pixels"),
        ("H2GEN_STEPS", "0", "H2GEN_STEPS is 0; give a whole number from 1 to 10000."),
        ("H2GEN_DTYPE", "fp8", "H2GEN_DTYPE 'fp8' is not supported; choose"),
    ],
)
def test_a_wrong_variable_is_named_as_it_was_set(
    variable: str, value: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert run(["a cat", "--dry-run"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--seed -1", "--size 96", "--solver euler", "--solver default"])
def test_what_other_tools_take_is_understood(words: str) -> None:
    assert run(["a cat", "--dry-run", *words.split()]) == 0


def test_a_word_that_is_a_command_elsewhere_can_be_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--", "serve"], ["-p", "serve"]):
        assert run(["--dry-run", *words]) == 0
        assert "serve" in capsys.readouterr().out
