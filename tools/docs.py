"""Generate what the README and docs/ show: tables from the program, pictures by running it.

python tools/docs.py            # the tables between "<!-- NAME: python tools/docs.py -->" and "<!-- end -->"
python tools/docs.py --pictures # also docs/images (not methods.svg, which comes from a report of "h2gen compare")
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h2gen
from h2gen.settings.presets import DEFAULT as DEFAULT_PRESET
from h2gen.settings.presets import list_presets, load_preset
from h2gen.settings.table import BY_NAME, TABLE, Setting

if TYPE_CHECKING:
    from PIL import Image

    from h2gen.models.fit_memory import Fit

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PACKAGES = (
    *("families", "cache", "models", "settings", "generation", "output", "batches", "evaluation"),
    *("cli", "cli/commands", "cli/views"),
)
"""In the order of the layers, the lowest first."""
PROMPTS = ("a cat", "a birthday cake", "a butterfly", "a car")
LORA = "tiny/blueprint"
VARIED = (
    "three apples", "four ducks", "a flat icon of a rocket", "a cartoon of a frog", "a blue car",
    "a tiny dog on a yellow background", "a tiger on a green background", "a sun above a house",
)  # fmt: skip
SHAPES = (
    ("a cat", 96, 96), ("a rocket", 96, 144), ("a birthday cake", 112, 160), ("an owl", 128, 128),
    ("a tiger beside a palm tree", 192, 128), ("a butterfly", 192, 192), ("a car", 256, 256),
)  # fmt: skip
"""Prompts, each with width and height in pixels."""
COLUMNS = 8
"""Pictures per row of the sheet."""
GAP = 6
"""Pixels between the pictures of different shapes."""
EDITS: dict[str, tuple[tuple[str, int, tuple[int, int, int, int] | None, str, float, int], ...]] = {
    "image-to-image.png": (
        ("a cat", 0, None, "a tiger on a green background", 0.75, 1),
        ("a car", 0, None, "a blue car on a yellow background", 0.75, 1),
    ),
    "inpainting.png": (
        ("a sun above a house", 1, (0, 0, 128, 62), "a rocket above a house", 1.0, 1),
        ("a tiger beside a palm tree", 0, (66, 0, 128, 128), "a tiger beside a house", 1.0, 1),
    ),
}
"""Pictures made from pictures: the prompt and seed of the input, the box of the mask, the prompt, strength and seed."""
PREVIEWED = "a tiger on a green background", 2, (1, 5, 10, 20)
"""The prompt and seed of the previews' picture, and the steps that are shown."""
TERMINAL = 88, 26
"""Columns and lines of the captured terminal."""
CAPTURES = {
    "paper.svg": ("a cat", "--tau1", "0.08", "--tau2", "0.2", "--seed", "0"),
    "default.svg": ("a cat", "--seed", "0"),
}
"""The live table's pictures, each with the arguments of the command that it shows."""

Q4_BITS = 4.5
"""Bits per weight of a Q4_K_S file."""
CARDS = (8, 12, 16, 24, 32, 48, 80)
"""GPU memory in GiB."""
IN_USE = 0.5e9
"""Bytes of it that the driver and the context take."""


def pages() -> list[Path]:
    """The README and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [re.sub(r"  +", " ", f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |") for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def fill(text: str) -> str:
    """A paragraph in lines of at most 120 columns."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


def commands() -> dict[str, Any]:
    """Every command of the program by its name."""
    import typer.main

    from h2gen.cli.app import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def option_rows(command: Any) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """The options of a command: the help's section of each, and its row."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            names = ", ".join(f"`{name}`" for name in reversed(parameter.opts))
            row = BY_NAME.get(parameter.name)
            same = row is not None and parameter.help == row.help  # not an option of another meaning
            default = default_of(row) if row and same and not parameter.default else shown_default(parameter.default)
            yield getattr(parameter, "rich_help_panel", None) or "Options", (names, default, parameter.help)


def default_of(row: Setting) -> str:
    """A setting's value if none is given."""
    return row.otherwise if row.otherwise.startswith(("the ", "random")) else shown_default(row.otherwise)


def shown_default(value: Any) -> str:
    return "" if value is None or value is False or value == "" else f"`{value}`"


HEAD = ("option", "default", "meaning")


def options_table() -> str:
    """The options of ``h2gen PROMPT``, a table per section, in the order of its help."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for section, row in option_rows(commands()["generate"]):
        sections.setdefault(section, []).append(row)
    return "\n\n".join(f"### {section}\n\n{table(HEAD, *rows)}" for section, rows in sections.items())


def commands_table() -> str:
    """What the other commands take: their own options, and those of ``h2gen PROMPT``."""
    shared = dict.fromkeys(section for section, _ in option_rows(commands()["generate"]))
    above = [row[0].split(", ")[-1] for _, row in option_rows(commands()["generate"])]
    parts = []
    for name, command in commands().items():
        if name == "generate":
            continue
        parts.append(f"### `h2gen {name}`\n\n{fill(command.help.split('Example:')[0])}")
        rows = [] if hasattr(command, "commands") else list(option_rows(command))
        if own := [row for section, row in rows if section not in shared]:
            parts.append(table(HEAD, *own))
        taken = [row[0].split(", ")[-1] for section, row in rows if section in shared]
        missing = [option for option in above if option not in taken]
        if len(missing) < len(taken):
            parts.append(fill(f"Also takes all options above except {', '.join(missing)}."))
        elif taken:
            parts.append(fill(f"Also takes {', '.join(taken)}."))
    return "\n\n".join(parts)


def user_defaults_table() -> str:
    """What can be set permanently."""
    rows = [(f"`{row.name}`", f"`{row.variable}`", default_of(row)) for row in TABLE if row.lasting]
    return table(("key in the file", "variable", "default"), *rows)


def entry_keys() -> str:
    """What an entry of a prompt file may set."""
    return fill(f"An entry may set {', '.join(f'`{row.name}`' for row in TABLE if row.per_prompt)}.")


def name_fields() -> str:
    """What a file name can be made from."""
    from h2gen.output.names import DEFAULT, FIELDS

    names = ", ".join(f"`{{{field}}}`" for field in FIELDS)
    return fill(f"`--name` sets how pictures are named, by default `{DEFAULT}`. Fields: {names}.")


def packages_table() -> str:
    """The packages of h2gen with the first line of their docstrings."""
    rows = []
    for package in PACKAGES:
        docstring = ast.get_docstring(ast.parse((ROOT / "h2gen" / package / "__init__.py").read_text(encoding="utf-8")))
        rows.append((f"`h2gen/{package}/`", (docstring or "").splitlines()[0].replace("``", "`")))
    return table(("package", "what is in it"), *rows)


DEFAULTS = asdict(h2gen.CacheConfig())
"""The settings of the cache at their defaults."""


def presets_table() -> str:
    """The shipped presets with their settings and measured figures."""
    rows = []
    for preset in sorted(list_presets(), key=lambda preset: -preset.figures.get("share", 1.0)):
        found = preset.config
        given = {name: value for name, value in asdict(found).items() if value != DEFAULTS[name]}
        given |= {"tau1": found.tau1, "tau2": found.tau2}
        settings = ", ".join(f"`{name}` {value}" for name, value in given.items() if value) or "no cache"
        figures = preset.figures
        measured = (
            (f"{figures['share']:.0%}", f"{figures['speedup']:.2f}x", f"{figures['psnr_mean']:.1f} dB")
            if figures
            else ("100%", "1x", "identical")
        )
        worst = f"{figures['psnr_worst']:.1f} dB" if figures else "identical"
        name = f"`{preset.name}`" + (" (default)" if preset.name == DEFAULT_PRESET else "")
        rows.append((name, settings, *measured, worst, preset.description))
    head = ("preset", "settings", "blocks run", "speed-up", "PSNR, mean", "worst", "what it is for")
    return table(head, *rows)


def models_table() -> str:
    """The models that have an alias."""
    from h2gen.models.entries import CATALOGUE
    from h2gen.wording import count

    rows = []
    for model in CATALOGUE.values():
        where = f"[{model.repo}](https://huggingface.co/{model.repo})" if model.repo else "bundled"
        licence = f"{model.licence}, gated" if model.gated else model.licence
        download = f"{model.download_gb:g} GB" if model.repo else "none"
        defaults = model.defaults
        made_for = f"{defaults.width}x{defaults.height}, {defaults.steps} steps"
        takes = ", ".join(("text", *model.takes))
        rows.append((f"`{model.name}`", where, takes, licence, count(model.parameters), download, made_for))
    return table(("alias", "repository", "takes", "licence", "parameters", "download", "default"), *rows)


def published_table() -> str:
    """The published plans that ship with h2gen."""
    from h2gen.settings.profiles.published import rounded_down, shipped_plans

    rows = []
    for plan in shipped_plans():
        method = f"{plan.method} ({plan.paper})" if plan.paper else plan.method
        speed = rounded_down(plan.estimated_speedup)
        where = f"{plan.source} ({plan.licence})"
        rows.append((plan.made_for, f"{plan.steps}", f"{plan.computed}", speed, method, where))
    return table(("for", "steps", "computed", "estimated speed-up", "found by", "published in"), *rows)


def support_rows() -> list[tuple[str, str, str, str, str]]:
    """Model, task, pipelines in diffusers, whether h2gen's own commands have it, and what it was tested on."""
    from h2gen.families import TASKS
    from tests.matrix.rows import ROWS, UNTESTED, Row

    tasks = {task for model in TASKS.values() for task in model.items()}
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in (*ROWS, *UNTESTED):
        grouped.setdefault((row.model, row.task), []).append(row)
    rows = []
    for (model, task), found in grouped.items():
        trained = " and the bundled model" if any(row.trained for row in found) else ""
        tested = "not tested" if found[0] in UNTESTED else f"random weights{trained}"
        command = "yes" if any((row.key, row.pipeline) in tasks for row in found) else "only in Python"
        command = "-" if found[0] in UNTESTED else command
        rows.append((model, task, ", ".join(f"`{row.pipeline}`" for row in found), command, tested))
    return rows


def support_table() -> str:
    """What runs, and what it was tested on."""
    return table(("model", "task", "in diffusers", "`h2gen`", "tested on"), *support_rows())


def support_summary() -> str:
    """The same, a line for all models that are alike; without those that nothing tests."""
    models: dict[str, list[tuple[str, str, str, str, str]]] = {}
    for row in support_rows():
        models.setdefault(row[0], []).append(row)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for model, found in models.items():
        tested = [row for row in found if row[4] != "not tested"]
        if not tested:
            continue
        here, in_python = ([row[1] for row in tested if row[3] == where] for where in ("yes", "only in Python"))
        on = max((row[4] for row in tested), key=len)
        row = ", ".join(_shortened(here)) or "-", ", ".join(_shortened(in_python)) or "-", on
        alike.setdefault(row, []).append(model)
    rows = [("; ".join(found), *row) for row, found in alike.items()]
    return table(("model", "from `h2gen`", "in Python", "tested on"), *rows)


def _shortened(tasks: list[str]) -> list[str]:
    """Tasks whose names begin with another's are told with it: ``ControlNet (also image-to-image, inpainting)``."""
    roots = [task for task in tasks if not any(task.startswith(f"{other} ") for other in tasks)]
    short = []
    for root in roots:
        also = [task.removeprefix(f"{root} ") for task in tasks if task.startswith(f"{root} ")]
        short.append(f"{root} (also {', '.join(also)})" if also else root)
    return short


def needs_table() -> str:
    """What the models need on a GPU, by way of loading: computed for one picture at each model's own size."""
    from h2gen.models.choices import WAYS
    from h2gen.models.entries import CATALOGUE

    rows: dict[tuple[str, ...], list[str]] = {}
    for name in CATALOGUE:
        needs = _fit(name, 10**12).needs
        rows.setdefault(tuple(f"{needs[way] / 1e9:.1f}" for way in WAYS), []).append(f"`{name}`")
    return table(("model", *(f"`{way}`" for way in WAYS)), *((", ".join(names), *row) for row, names in rows.items()))


def memory_table() -> str:
    """What ``--memory auto`` chooses by the size of the card: arithmetic, not a measurement."""
    models = ("dev", "dev, 4-bit `.gguf`", "klein-4b", "klein-9b", "chroma", "flux2-dev")
    rows = []
    for card in CARDS:
        free = int(card * 2**30 - IN_USE)
        rows.append((f"{card} GB", *(f"`{_fit(name, free).offload}`" for name in models)))
    return table(("card", *(name if " " in name else f"`{name}`" for name in models)), *rows)


def _fit(model: str, free: int) -> Fit:
    from h2gen.models.catalogue import resolve
    from h2gen.models.facts import facts_of
    from h2gen.models.fit_memory import Available, choose_fit
    from h2gen.models.memory_needed import memory_needed
    from h2gen.settings.workload import default_work

    name, _, quantized = model.partition(", ")
    checkpoint = resolve(name)
    facts = facts_of(checkpoint)
    needed = None if facts is None else memory_needed(checkpoint, facts)
    assert needed is not None
    parts = [part.times(Q4_BITS / 16) if quantized and part.is_transformer else part for part in needed.parts]
    return choose_fit(parts, default_work(checkpoint), Available("cuda:0", free))


def quantizations_table() -> str:
    """The values of --quantize, and what 12 billion weights take."""
    from h2gen.models.quantization import QUANTIZATIONS

    def needs(each: Any) -> str:
        places = [place.replace("cuda", "NVIDIA or AMD GPU").replace("cpu", "CPU") for place in each.devices]
        oldest = f" (NVIDIA: compute capability {'.'.join(map(str, each.capability))})" if each.capability[0] else ""
        return ", ".join(places) + oldest + (f", {' or '.join(each.dtypes)}" if each.dtypes else "")

    return table(
        ("value", "weights", "bits per weight", "package", "runs on"),
        *(
            (f"`{each.name}`", each.about, f"{each.bits:g}", each.package, needs(each))
            for each in QUANTIZATIONS.values()
        ),
    )


def attentions_list() -> str:
    """The values of --attention besides the default, by the package that each needs."""
    from h2gen.models.attention_names import PACKAGES

    found: dict[str, list[str]] = {}
    for name, package in PACKAGES.items():
        found.setdefault("torch alone" if package is None else f"`{package[1]}`", []).append(f"`{name}`")
    return table(("needs", "values"), *((what, ", ".join(names)) for what, names in found.items()))


def sheet_prompts() -> list[str]:
    """What the sheet shows; a prompt's position is its seed. Some are from the evaluation, some are not."""
    from tools.train_tiny.evaluate import questions

    asked = [question.prompt for question in questions(names=100, singles=16, pairs=8)]
    return [*asked[:16], *VARIED, *asked[16:]]


def sheet_table() -> str:
    """The prompts of the sheet, row by row."""
    prompts = sheet_prompts()
    rows = [prompts[start : start + COLUMNS] for start in range(0, len(prompts), COLUMNS)]
    return "\n".join(f"{number}. {', '.join(row)}" for number, row in enumerate(rows, 1))


BLOCKS: dict[str, Callable[[], str]] = {
    "options": options_table,
    "commands": commands_table,
    "lasting": user_defaults_table,
    "keys": entry_keys,
    "names": name_fields,
    "packages": packages_table,
    "presets": presets_table,
    "models": models_table,
    "published": published_table,
    "memory": memory_table,
    "needs": needs_table,
    "quantizations": quantizations_table,
    "attentions": attentions_list,
    "support": support_table,
    "runs": support_summary,
    "sheet": sheet_table,
}
_BLOCK = re.compile(r"(<!-- (\w+): python tools/docs\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str) -> str:
    """A page with its generated blocks made again."""
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}", text)


def make_pictures() -> None:
    from diffusers.utils import make_image_grid

    IMAGES.mkdir(exist_ok=True)
    for name, arguments in CAPTURES.items():
        (IMAGES / name).write_text(terminal_picture(*arguments), encoding="utf-8")
    session = h2gen.load("tiny")
    default = load_preset(DEFAULT_PRESET).config
    rows_of(session, {"cache": None}, {"cache": default}).save(IMAGES / "pictures.png", optimize=True)
    with_lora = [{"cache": config, "lora": LORA} for config in (None, default)]
    rows_of(session, {"cache": None}, *with_lora).save(IMAGES / "lora.png", optimize=True)
    sheet = [session.generate(prompt, seed=seed, cache=None).image for seed, prompt in enumerate(sheet_prompts())]
    make_image_grid(sheet, len(sheet) // COLUMNS, COLUMNS).save(IMAGES / "sheet.png", optimize=True)
    shapes = [session.generate(prompt, seed=0, width=w, height=h, cache=None).image for prompt, w, h in SHAPES]
    side_by_side(shapes).save(IMAGES / "shapes.png", optimize=True)
    make_previews(session)
    make_edits(session)


def make_previews(session: h2gen.Session) -> None:
    """What some steps of a picture expect it to become, and the picture."""
    prompt, seed, steps = PREVIEWED
    shown: list[Image.Image] = []
    made = session.generate(
        prompt, seed=seed, cfg=1, cache=None, on_preview=lambda each: each.step in steps and shown.append(each.image)
    )
    large = [image.resize(made.image.size) for image in shown]
    side_by_side([*large, made.image]).save(IMAGES / "previews.png", optimize=True)


def make_edits(session: h2gen.Session) -> None:
    """Inputs, uncached and cached pictures; prints how far the cached ones are from the others, and their blocks."""
    from PIL import Image, ImageDraw

    from h2gen.evaluation.metrics.psnr_ssim import psnr

    for name, edits in EDITS.items():
        row = []
        for prompt, seed, box, wanted, strength, own in edits:
            before = session.generate(prompt, seed=seed, cache=None).image
            given: dict[str, Any] = {"image": (before, strength), "seed": own}
            shown = before
            if box is not None:
                mask = Image.new("L", before.size)
                ImageDraw.Draw(mask).rectangle(box, fill=255)
                given["mask"] = mask
                shown = Image.composite(
                    Image.blend(before, Image.new("RGB", before.size, "magenta"), 0.4), before, mask
                )
            plain = session.generate(wanted, cache=None, **given).image
            cached = session.generate(wanted, **given)
            assert cached.summary is not None
            print(f"{name}: {wanted}: {psnr(cached.image, plain):.1f} dB, {cached.summary.share:.0%} of blocks")
            row += [shown, plain, cached.image]
        side_by_side(row).save(IMAGES / name, optimize=True)


def rows_of(session: h2gen.Session, *rows: dict[str, Any]) -> Image.Image:
    """A row of pictures of ``PROMPTS`` for each of some arguments of ``Session.generate``."""
    from diffusers.utils import make_image_grid

    pictures = [session.generate(prompt, seed=0, **row).image for row in rows for prompt in PROMPTS]
    grid: Image.Image = make_image_grid(pictures, len(rows), len(PROMPTS))
    return grid


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of several sizes on gray, so that their shapes show."""
    from PIL import Image

    width = sum(picture.width + GAP for picture in pictures) + GAP
    strip = Image.new("RGB", (width, max(picture.height for picture in pictures) + 2 * GAP), "gray")
    left = GAP
    for picture in pictures:
        strip.paste(picture, (left, strip.height - GAP - picture.height))
        left += picture.width + GAP
    return strip


def terminal_picture(*arguments: str) -> str:
    """What ``h2gen ARGUMENTS`` leaves on a terminal, as an SVG. Needs POSIX."""
    from rich.console import Console
    from rich.text import Text

    with tempfile.TemporaryDirectory() as folder:
        last = re.split(r"(?:\x1b\[1A\x1b\[2K)+", in_terminal([sys.executable, "-m", "h2gen", *arguments], folder))[-1]
    console = Console(record=True, file=io.StringIO(), width=TERMINAL[0], force_terminal=True)
    for line in re.sub(r"\x1b\[\?25[hl]|\r", "", last).strip("\n").splitlines():
        console.print(Text.from_ansi(line), no_wrap=True)
    words = (f'"{word}"' if " " in word else word for word in arguments)
    drawing = console.export_svg(title=f"h2gen {' '.join(words)}")
    # Without the fonts that rich would have a browser fetch: any monospaced one will do.
    return re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)


def in_terminal(command: list[str], folder: str) -> str:
    """Everything that a command writes to its own terminal."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    columns, lines = TERMINAL
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            written += (part := os.read(ours, 65536))
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
    os.close(ours)
    if process.wait():
        raise RuntimeError(written.decode(errors="replace"))
    return written.decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    if parser.parse_args().pictures:
        make_pictures()
    for page in pages():
        page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
