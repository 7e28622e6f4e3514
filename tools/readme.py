"""Make what the README shows: the table of options, pictures, and a capture of the live table.

python tools/readme.py            # the table of options, from the program's own help, and the prompts of the sheet
python tools/readme.py --pictures # also tools/readme/*.png and *.svg, by running the program
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import typer.main
from rich.console import Console
from rich.text import Text

import h2gen
from h2gen.cli.app import DEFAULT, app
from h2gen.settings.presets import DEFAULT as DEFAULT_PRESET
from h2gen.settings.presets import load_preset

README = Path(__file__).resolve().parents[1] / "README.md"
PICTURES = Path(__file__).resolve().parent / "readme"
PROMPTS = ("a cat", "a birthday cake", "a butterfly", "a car")
COLUMNS = 8
"""Of the sheet."""
VARIED = (
    "three apples", "four ducks", "a flat icon of a rocket", "a cartoon of a frog", "a blue car",
    "a tiny dog on a yellow background", "a tiger on a green background", "a sun above a house",
)  # fmt: skip
SHAPES = (
    ("a cat", 96, 96), ("a rocket", 96, 144), ("a birthday cake", 112, 160), ("an owl", 128, 128),
    ("a tiger beside a palm tree", 192, 128), ("a butterfly", 192, 192), ("a car", 256, 256),
)  # fmt: skip
"""Prompts, each with width and height in pixels."""
GAP = 6
"""Pixels between them."""
PROMPT, SEED, TAU1, TAU2 = PROMPTS[0], 0, 0.08, 0.2


def options_table() -> str:
    """The options of ``h2gen PROMPT`` as a Markdown table, in the order of its help."""
    command = typer.main.get_command(app).commands[DEFAULT]  # type: ignore[attr-defined]
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            names = ", ".join(f"`{name}`" for name in reversed(parameter.opts))
            rows.append(f"| {names} | {parameter.help} |")
    return "\n".join(rows)


def sheet_prompts() -> list[str]:
    """What the sheet shows, each with its place as its seed: some of what the evaluation asks, and what it does not."""
    from tools.train_tiny.evaluate import questions

    asked = [question.prompt for question in questions(names=100, singles=16, pairs=8)]
    return [*asked[:16], *VARIED, *asked[16:]]


def sheet_table() -> str:
    """The prompts of the sheet, row by row."""
    prompts = sheet_prompts()
    rows = [prompts[start : start + COLUMNS] for start in range(0, len(prompts), COLUMNS)]
    return "\n".join(f"{number}. {', '.join(row)}" for number, row in enumerate(rows, 1))


def with_made(text: str) -> str:
    """The README's text with what is made for it made anew."""
    for name, made in (("options", options_table()), ("sheet", sheet_table())):
        before, begin, rest = text.partition(f"<!-- {name}: python tools/readme.py -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"README.md has no block for {name}.")
        text = f"{before}{begin}{made}\n{end}{after}"
    return text


def make_pictures() -> None:
    from diffusers.utils import make_image_grid
    from PIL import Image

    PICTURES.mkdir(exist_ok=True)
    session = h2gen.load("tiny")
    make_table(session)
    pair = Image.new("RGB", (128 * len(PROMPTS), 2 * 128), "white")
    for column, prompt in enumerate(PROMPTS):
        for row, config in enumerate((None, load_preset(DEFAULT_PRESET).config)):
            pair.paste(session.generate(prompt, seed=SEED, cache=config).image, (128 * column, 128 * row))
    pair.save(PICTURES / "pictures.png", optimize=True)
    made = [session.generate(prompt, seed=seed).image for seed, prompt in enumerate(sheet_prompts())]
    make_image_grid(made, len(made) // COLUMNS, COLUMNS).save(PICTURES / "sheet.png", optimize=True)
    make_shapes(session)


def make_shapes(session: h2gen.Session) -> None:
    """Pictures of several sizes side by side, on gray, so that their shapes show."""
    from PIL import Image

    size = sum(width + GAP for _, width, _ in SHAPES) + GAP, max(height for *_, height in SHAPES) + 2 * GAP
    strip, left = Image.new("RGB", size, "gray"), GAP
    for prompt, width, height in SHAPES:
        picture = session.generate(prompt, seed=SEED, width=width, height=height).image
        strip.paste(picture, (left, strip.height - GAP - height))
        left += width + GAP
    strip.save(PICTURES / "shapes.png", optimize=True)


def make_table(session: h2gen.Session) -> None:
    """A capture of the live table."""
    from h2gen.cli.views.live_table import LiveTable

    cache = h2gen.CacheConfig(tau1=TAU1, tau2=TAU2)
    session.generate(PROMPT, seed=SEED)  # warm up
    console = Console(record=True, file=io.StringIO(), width=80, height=42, force_terminal=True)
    facts = f"tiny · 128x128 · 28 steps · seed {SEED} · guidance 1 · tau1 {TAU1:g}, tau2 {TAU2:g} · cpu float32"
    table = LiveTable(console, [Text(PROMPT, style="bold"), Text(facts, style="dim")], cache, 28, contexts=False)
    session.generate(PROMPT, seed=SEED, cfg=1.0, cache=cache, on_step=table.on_step)
    console.print(table.render())
    title = f'h2gen "{PROMPT}" --tau1 {TAU1:g} --tau2 {TAU2:g} --preset paper --cfg 1 --seed {SEED}'
    # Without the fonts that rich would have a browser fetch from elsewhere: a monospace of its own will do.
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)
    (PICTURES / "table.svg").write_text(drawing, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    if parser.parse_args().pictures:
        make_pictures()
    README.write_text(with_made(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
