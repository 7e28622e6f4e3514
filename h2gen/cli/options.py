"""The options that commands share, each declared once: its names, its help, and its section of the help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from h2gen.errors import SettingError

SETTINGS = (
    *("seed", "count", "size", "steps", "solver", "guidance", "cfg", "negative", "max_sequence_length"),
    *("preset", "tau1", "tau2", "warmup_steps", "final_steps", "max_consecutive"),
    *("forecast", "plan", "tolerance", "budget", "hierarchy", "max_detail_age", "pfs", "no_cache"),
    *("model", "base", "device", "dtype", "offload", "out", "format"),
)
"""The options that say how a picture is made and where it goes; the others say how a command behaves."""

PICTURE, CACHE, MODEL, OUTPUT, MEASURING = "Picture", "Cache", "Model", "Output", "Measuring"


def option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    """An option without a default of its own: defaults come from the environment, the configuration and the model."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False)


def check_batch_size(given: int) -> int:
    """What ``--batch-size`` says.

    Raises:
        SettingError: it is no number of pictures.
    """
    if given < 1:
        raise SettingError(f"batch-size is {given}; give a whole number from 1 upwards.")
    return given


def settings_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those that are settings; ``no_cache`` only where it was given."""
    return {name: values[name] or None if name == "no_cache" else values[name] for name in SETTINGS if name in values}


Seeds = Annotated[
    str | None,
    option("--seed", help="Same seed, same picture; 1,5,10-13 makes several.", panel=PICTURE),
]
Count = Annotated[int | None, option("--count", "-n", help="So many pictures of a prompt.", panel=PICTURE)]
BatchSize = Annotated[int, option("--batch-size", help="Make so many pictures at once, if they can.", panel=PICTURE)]
Size = Annotated[str | None, option("--size", help="1024x768, or a ratio such as 16:9.", panel=PICTURE, metavar="SIZE")]
Steps = Annotated[int | None, option("--steps", "-s", help="Denoising steps.", panel=PICTURE)]
Solver = Annotated[str | None, option("--solver", help="own, unipc, heun (two passes a step).", panel=PICTURE)]
Guidance = Annotated[float | None, option("--guidance", help="Distilled guidance scale.", panel=PICTURE)]
Cfg = Annotated[float | None, option("--cfg", help="True guidance, two passes a step; 1 is off.", panel=PICTURE)]
Negative = Annotated[str | None, option("--negative", help="What to steer away from; needs --cfg.", panel=PICTURE)]
MaxSequenceLength = Annotated[
    int | None, option("--max-sequence-length", help="Tokens of text that the model sees.", panel=PICTURE)
]
Preset = Annotated[str | None, option("--preset", help="A preset's name or file; see 'h2gen presets'.", panel=CACHE)]
Tau1 = Annotated[float | None, option("--tau1", help="Threshold of the structure stage; 0 is off.", panel=CACHE)]
Tau2 = Annotated[float | None, option("--tau2", help="Threshold of the detail stage; 0 is off.", panel=CACHE)]
WarmupSteps = Annotated[int | None, option("--warmup-steps", help="The first N steps are always full.", panel=CACHE)]
FinalSteps = Annotated[int | None, option("--final-steps", help="The last N steps are always full.", panel=CACHE)]
MaxConsecutive = Annotated[
    int | None, option("--max-consecutive", help="At most N steps in a row without a full one.", panel=CACHE)
]
Forecast = Annotated[
    int | None, option("--forecast", help="Reused stages: 0 as computed last, 1 a line through two.", panel=CACHE)
]
Plan = Annotated[
    str | None,
    option("--plan", help="What each step does, such as FFRDSF.", panel=CACHE, metavar="PLAN"),
]
Tolerance = Annotated[float | None, option("--tolerance", help="Skip steps within this error; 0 is off.", panel=CACHE)]
Budget = Annotated[
    bool | None, option("--budget/--no-budget", help="Hold the sum of the changes under the threshold.", panel=CACHE)
]
Hierarchy = Annotated[
    str | None, option("--hierarchy", help="After a structure hit, detail is forced or checked.", panel=CACHE)
]
MaxDetailAge = Annotated[
    int | None, option("--max-detail-age", help="Reuse a detail for at most N steps; 0 is off.", panel=CACHE)
]
Pfs = Annotated[str | None, option("--pfs", help="How changes are pooled: paper, or stable over sizes.", panel=CACHE)]
ReplayDecisions = Annotated[
    Path | None, option("--replay-decisions", help="Do at each step what a trace says.", panel=CACHE, metavar="TRACE")
]
NoCache = Annotated[bool, option("--no-cache", help="Plain diffusers.", panel=CACHE)]
Speedup = Annotated[
    float | None,
    option("--speedup", help="So many times as fast, as close as can be; needs a profile.", panel=CACHE),
]
Fidelity = Annotated[
    float | None, option("--fidelity", help="As fast as an SSIM of so much allows; needs a profile.", panel=CACHE)
]
Nearest = Annotated[bool, option("--nearest", help="Where no profile fits, use the nearest.", panel=CACHE)]
Model = Annotated[
    str | None,
    option("--model", "-m", help="Alias, hub id, folder, .safetensors or .gguf; see 'h2gen models'.", panel=MODEL),
]
Base = Annotated[str | None, option("--base", help="Model that supplies the rest of a single file.", panel=MODEL)]
Device = Annotated[str | None, option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu.", panel=MODEL)]
Dtype = Annotated[str | None, option("--dtype", help="auto, bf16, fp16, fp32.", panel=MODEL)]
Offload = Annotated[str | None, option("--offload", help="none, model, group, sequential, auto.", panel=MODEL)]
Out = Annotated[str | None, option("--out", "-o", help="A folder, or a .png, .jpg or .webp file.", panel=OUTPUT)]
OutFolder = Annotated[str | None, option("--out", "-o", help="The folder of the pictures.", panel=OUTPUT)]
Format = Annotated[str | None, option("--format", help="png, jpg or webp.", panel=OUTPUT)]
NoMetadata = Annotated[
    bool, option("--no-metadata", help="Do not write into the picture how it was made.", panel=OUTPUT)
]
Sidecar = Annotated[bool, option("--sidecar", help="Write how it was made into NAME.toml too.", panel=OUTPUT)]
TracePath = Annotated[Path | None, option("--trace", help="Write each step's decisions as JSON Lines.", panel=OUTPUT)]
AsJson = Annotated[bool, option("--json", help="Print an object a picture instead of its path.", panel=OUTPUT)]
Quiet = Annotated[bool, option("--quiet", "-q", help="Say nothing but errors.", panel=OUTPUT)]
Verbose = Annotated[bool, option("--verbose", "-v", help="All steps, and what the libraries say.", panel=OUTPUT)]
DryRun = Annotated[bool, option("--dry-run", help="Show every setting and where it came from.", panel=OUTPUT)]
Prompts = Annotated[
    list[str] | None, option("--prompts", help="Prompts as .txt, .yaml or .jsonl.", panel=MEASURING, metavar="FILE")
]
PromptKey = Annotated[
    str | None, option("--prompt-key", help="The key of the prompt in .jsonl.", panel=MEASURING, metavar="KEY")
]
Report = Annotated[
    Path | None, option("--report", help="Write a page to look at into this folder.", panel=MEASURING, metavar="DIR")
]
FiguresAsJson = Annotated[bool, option("--json", help="Print an object with every figure.", panel=OUTPUT)]
