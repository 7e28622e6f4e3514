"""The table of settings: name, allowed values, and where each can be given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2gen.cache.config import POLICIES, RULES, CacheConfig
from h2gen.checks import Rule
from h2gen.models.choices import DTYPES, OFFLOADS
from h2gen.models.quantization import CHOICES, SYNONYMS
from h2gen.settings.inputs import LORA, FileRule
from h2gen.settings.machine_rows import DEVICE, MEMORY
from h2gen.settings.pictures import PictureRule
from h2gen.settings.setting import (
    BATCH,
    CACHE,
    DETAILS,
    MEASURING,
    MODEL,
    OF_THIS_MACHINE,
    OUTPUT,
    PICTURE,
    SECTIONS,
    SPEED,
    Setting,
    picture_row,
)
from h2gen.settings.setting import MAKES as _MAKING
from h2gen.settings.setting import MEASURES as _MEASURING
from h2gen.settings.side_models import CONTROL, CONTROLNET, REDUX_MODEL
from h2gen.settings.solver_rows import ATTENTION, COMPILE, DEVICES, SHIFT, SOLVER
from h2gen.settings.video_rows import FPS, FRAMES, VIDEO_FORMATS

__all__ = [
    "BATCH", "BY_NAME", "CACHE", "DETAILS", "FORMATS", "LARGEST_SIDE", "LONGEST_PROMPT", "MEASURING", "MODEL",
    "MOST_SEEDS", "MOST_STEPS", "MOST_TOKENS", "OF_THIS_MACHINE", "OUTPUT", "PICTURE", "SECTIONS", "SEEDS", "SORTS",
    "SPEED", "TABLE", "Setting",
]  # fmt: skip

LARGEST_SIDE = 8192
"""Pixels. Above it even a tiled decoder needs more memory than any one GPU has."""
MOST_STEPS = 10_000
MOST_TOKENS = 512
"""Of text: what FLUX.1's and FLUX.2's pipelines take."""
LONGEST_TEXT = 8192
"""Tokens: what any model takes. One that takes more than ``MOST_TOKENS`` has that as its default."""
SEEDS = 2**63
MOST_SEEDS = 100_000
"""Of one prompt."""
LONGEST_PROMPT = 100_000
"""Characters; no text encoder reads more than a few hundred words of it."""
FORMATS = ("png", "jpg", "webp")


def _cache(name: str, help: str, **more: Any) -> Setting:
    """A row of the cache; its rule and its default are ``CacheConfig``'s."""
    places = {"per_prompt": True, "in_shell": True, "in_picture": True, "later": name in POLICIES}
    own: dict[str, Any] = {"default": getattr(CacheConfig(), name), "commands": (*_MAKING, "compare")}
    return Setting(name, help, RULES[name], CACHE, **{**places, **own, **more})


def _files(name: str, help: str, rule: FileRule, **more: Any) -> Setting:
    """A row of files that the picture is made from, as ``FILE[:NUMBER]``; the option can be repeated."""
    return picture_row(name, help, rule, **{"default": (), "later": True, **more})


def _input(name: str, help: str, rule: FileRule, metavar: str = "FILE") -> Setting:
    """A row of input pictures."""
    places = {"section": PICTURE, "commands": (*_MAKING, "compare"), "lasting": False}
    return _files(name, help, rule, metavar=metavar, **places)


def _goal(name: str, help: str, rule: Rule) -> Setting:
    """A row that makes a profile choose settings."""
    return Setting(name, help, rule, SPEED, commands=("generate", "batch", "shell"), in_shell=True, is_setting=False)


def _weights(name: str, help: str) -> Setting:
    return Setting(name, help, Rule(str, choices=CHOICES, aliases=SYNONYMS), MODEL, default="none", lasting=True)


def _behaviour(name: str, help: str, rule: Rule, section: str = OUTPUT, **more: Any) -> Setting:
    """A row that says how a command behaves."""
    return Setting(name, help, rule, section, **{"is_setting": False, **more})


def _preview(name: str, help: str, rule: Rule, **more: Any) -> Setting:
    """A row of previews."""
    return _behaviour(name, help, rule, commands=("generate", "replay", "shell"), **more)


SORTS = ("plan", "tolerance", "thresholds", "steps")
"""The sorts of settings in a profile, by what decides which steps and blocks are computed."""
_text = Rule(str, longest=LONGEST_PROMPT)
_scale = Rule(float, 0, 1000)
_strength = Rule(float, above=0, most=1, advice="give a strength above 0 and up to 1, such as 0.6")
_weight = Rule(float, -100, 100)
_side = Rule(int, 1, LARGEST_SIDE)
_speedup = Rule(float, above=1, most=1000, advice="give a number above 1, such as 2", unit="x")
_fidelity = Rule(float, above=0, most=1, advice="give an SSIM above 0 and up to 1, such as 0.95")

TABLE = (
    Setting("prompt", "What to paint.", _text, PICTURE, commands=(), label="The prompt", in_picture=True),
    picture_row(
        "seed",
        "The same seed gives the same picture; 1,5,10-13 makes several.",
        Rule(int, 0, SEEDS - 1),
        commands=(*_MAKING, "compare"),
        typed=str,
        lasting=False,
    ),
    Setting(
        "count",
        "Number of pictures per prompt.",
        Rule(int, 1, MOST_SEEDS),
        PICTURE,
        commands=("generate", "batch", "replay", "compare"),
        short="-n",
        per_prompt=True,
    ),
    _behaviour("batch_size", "Pictures per batch.", Rule(int, 1), DETAILS, commands=("generate", "batch")),
    picture_row(
        "size",
        "1024x768, a ratio such as 16:9, or one number for a square.",
        Rule(str, numbers=True),
        metavar="SIZE",
        in_picture=False,
    ),
    Setting("width", "Pixels.", _side, PICTURE, commands=(), per_prompt=True, in_picture=True),
    Setting("height", "Pixels.", _side, PICTURE, commands=(), per_prompt=True, in_picture=True),
    FRAMES,
    FPS,
    picture_row("steps", "Denoising steps.", Rule(int, 1, MOST_STEPS), short="-s"),
    SOLVER,
    SHIFT,
    picture_row("guidance", "Distilled guidance scale.", _scale, section=DETAILS),
    picture_row("cfg", "True guidance scale, two passes per step; 1 is off.", _scale, section=DETAILS),
    picture_row(
        "negative",
        "What to steer away from; needs --cfg.",
        _text,
        section=DETAILS,
        label="The negative prompt",
        default="",
    ),
    picture_row(
        "max_sequence_length", "Prompt tokens that the model reads.", Rule(int, 1, LONGEST_TEXT), section=DETAILS
    ),
    _files(
        "lora",
        "A LoRA's file or repository, with its scale; can be repeated.",
        LORA,
        metavar="FILE[:SCALE]",
    ),
    _input(
        "image",
        "Start from a picture, or use it as a reference; can be repeated.",
        PictureRule(number=_strength),
        "FILE[:STRENGTH]",
    ),
    _input("mask", "Change only the part of --image that is white in FILE.", PictureRule(what="mask", several=False)),
    _input(
        "control",
        "Picture to follow; canny:FILE finds its edges, FILE is used as is.",
        CONTROL,
        "[KIND:]FILE",
    ),
    _files(
        "controlnet",
        "ControlNet to follow --control with: a file, folder or repository.",
        CONTROLNET,
        section=PICTURE,
        commands=(*_MAKING, "compare"),
        metavar="NAME[:SCALE]",
        lasting=False,
    ),
    _input(
        "redux",
        "Read a picture like a prompt, by FLUX.1 Redux; can be repeated.",
        PictureRule(what="Redux picture", number=_weight),
        "FILE[:SCALE]",
    ),
    _files(
        "redux_model",
        "Model that reads --redux pictures: redux, a folder or a repository.",
        REDUX_MODEL,
        section=MODEL,
        commands=(*_MAKING, "compare"),
        metavar="NAME",
        lasting=False,
    ),
    Setting(
        "preset",
        "A preset's name or file; see 'h2gen presets'.",
        Rule(str),
        SPEED,
        metavar="NAME",
        commands=(*_MAKING, "compare"),
        default="balanced",
        lasting=True,
        per_prompt=True,
        in_shell=True,
    ),
    _cache("tau1", "Threshold of the structure stage; 0 is off.", commands=_MAKING),
    _cache("tau2", "Threshold of the detail stage; 0 is off.", commands=_MAKING),
    _cache("warmup_steps", "The first N steps are always full."),
    _cache("final_steps", "The last N steps are always full."),
    _cache("max_consecutive", "At most N steps in a row without a full one."),
    _cache("forecast", "Reuse the last result (0), or extrapolate from the last two (1)."),
    _cache("plan", "What each step does, such as FFRDSF.", metavar="PLAN"),
    _cache("tolerance", "Skip steps while the estimated error stays below this; 0 is off.", commands=_MAKING),
    _cache("budget", "Add up the changes from step to step since the last computed one.", switch=True),
    _cache("hierarchy", "After a structure hit, the detail stage is forced or checked."),
    _cache("max_detail_age", "Reuse a detail result for at most N steps; 0 is no limit."),
    _cache("pfs", "How changes are pooled: paper, or stable across sizes."),
    _cache("cache_memory", "How residuals are kept: device, cpu, bf16 or fp8."),
    _behaviour(
        "replay_decisions",
        "Replay the decisions recorded in a trace.",
        Rule(Path),
        CACHE,
        commands=("generate",),
        metavar="TRACE",
    ),
    Setting(
        "no_cache",
        "Plain diffusers, without the cache.",
        Rule(bool),
        SPEED,
        commands=_MAKING,
        per_prompt=True,
        in_shell=True,
    ),
    _goal("speedup", "Target speed-up, such as 3, as faithful as possible; uses a profile.", _speedup),
    _goal("fidelity", "Target mean SSIM, such as 0.95, as fast as possible; uses a profile.", _fidelity),
    _goal(
        "policy",
        "Choose only a plan, tolerance, thresholds or steps; auto: any of these.",
        Rule(str, choices=("auto", *SORTS), aliases={"plans": "plan", "tolerances": "tolerance", "all": "auto"}),
    ),
    _goal("nearest", "Use the nearest profile if none fits.", Rule(bool)),
    Setting(
        "name",
        "Names of the pictures: {index:04}-{slug}-{seed}.",
        Rule(str),
        BATCH,
        commands=("batch",),
        per_prompt=True,
    ),
    Setting(
        "model",
        "Alias, hub id, folder, .safetensors or .gguf; see 'h2gen models'.",
        Rule(str),
        PICTURE,
        short="-m",
        metavar="NAME",
        helps={"bench": "The model to measure."},
        default="tiny",
        lasting=True,
    ),
    Setting(
        "base",
        "Model that supplies the rest of a single-file checkpoint.",
        Rule(str),
        MODEL,
        metavar="NAME",
        lasting=True,
    ),
    Setting("vae", "File that supplies the autoencoder, such as ae.safetensors.", Rule(str), MODEL, metavar="FILE"),
    Setting(
        "text_encoder",
        "File that supplies a text encoder (T5, CLIP, ...); can be repeated.",
        Rule(list),
        MODEL,
        metavar="FILE",
    ),
    DEVICE,
    DEVICES,
    Setting(
        "dtype", "auto, bf16, fp16, fp32.", Rule(str, choices=("auto", *DTYPES)), MODEL, default="auto", lasting=True
    ),
    Setting(
        "offload",
        "What to offload: auto, none, text, model, group, sequential.",
        Rule(str, choices=OFFLOADS),
        MODEL,
        default="auto",
        lasting=True,
    ),
    MEMORY,
    ATTENTION,
    COMPILE,
    _weights("quantize", "Quantize the transformer: none, int8, fp8, nf4, fp4, int4, ..."),
    _weights("quantize_text", "Quantize the text encoders except CLIP, with the same values."),
    Setting(
        "out",
        "A folder, or a .png, .jpg, .webp, .mp4 or .gif file.",
        Rule(str),
        PICTURE,
        commands=(*_MAKING, "compare"),
        short="-o",
        metavar="PATH",
        helps={
            **dict.fromkeys(("batch", "shell"), "Folder for the pictures."),
            "compare": "Folder for NAME-compare.png and the charts.",
        },
        default=".",
        lasting=True,
        in_shell=True,
    ),
    Setting(
        "format",
        "png, jpg or webp; for a video mp4, gif or webp.",
        Rule(str, choices=(*FORMATS, *VIDEO_FORMATS[:2])),
        OUTPUT,
        commands=_MAKING,
        lasting=True,
        in_shell=True,
    ),
    _behaviour("no_metadata", "Do not record in the picture how it was made.", Rule(bool), commands=_MAKING),
    _behaviour(
        "overwrite",
        "Replace existing files instead of adding a number.",
        Rule(bool),
        commands=("generate", "replay"),
    ),
    _behaviour("sidecar", "Also write how it was made to NAME.toml.", Rule(bool), commands=_MAKING),
    _behaviour("trace", "Write each step's decisions as JSON Lines.", Rule(Path), commands=("generate", "replay")),
    _preview("preview", "Show the picture in the terminal while it is made.", Rule(bool)),
    _preview("preview_file", "Write previews to a .png, .jpg or .webp file.", Rule(Path), metavar="FILE"),
    _preview("preview_every", "Preview only every N-th step.", Rule(int, 1)),
    _preview("preview_model", "Tiny autoencoder for previews: a folder or a repository.", Rule(str), metavar="NAME"),
    _behaviour(
        "as_json",
        "Print one JSON object per picture instead of its path.",
        Rule(bool),
        flag="--json",
        helps={
            **dict.fromkeys(_MEASURING, "Print all figures as one JSON object."),
            "bench": "Print JSON instead of tables.",
        },
    ),
    _behaviour(
        "strict",
        "Fail if the model would ignore an option, instead of warning.",
        Rule(bool),
        section=MODEL,
        commands=(*_MAKING, "compare"),
    ),
    _behaviour("quiet", "Print only results and errors.", Rule(bool), short="-q"),
    _behaviour("verbose", "Show all steps and the libraries' messages.", Rule(bool), short="-v"),
    _behaviour(
        "dry_run",
        "Show the settings and where they come from; all of them with -v.",
        Rule(bool),
        commands=("generate", "batch", "replay", *_MEASURING),
    ),
)
"""Settings and options in the order of the help, the docs and messages."""

BY_NAME: Mapping[str, Setting] = {row.name: row for row in TABLE}
