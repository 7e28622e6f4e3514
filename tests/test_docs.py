"""The README and docs/ are a contract: what they show is what the program says and does."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from h2gen.batches.jobs import Jobs, file_name
from h2gen.batches.prompts import read_prompts
from h2gen.cache.outcome import Outcome
from h2gen.cache.trace import StageRecord, StepRecord
from h2gen.cli.app import run
from h2gen.settings.presets import list_presets
from tools.docs import PACKAGES, ROOT, generated, pages

PAGES = pages()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, *names: str) -> list[str]:
    """The blocks of code in a language, on the pages of these names or on all."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES if not names or page.name in names]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def anchors(page: Path) -> set[str]:
    """The headings of a page as links spell them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_the_programs_own(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generated(text) == text, "run python tools/docs.py"


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 200


def test_the_readme_opens_with_the_two_commands_that_do_everything() -> None:
    picture, tests = blocks("sh", "README.md")[0].splitlines()
    assert picture.endswith('.venv/bin/h2gen "a cat"')
    assert tests.endswith("tools/check.py")
    assert all(
        line.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt")
        for line in (picture, tests)
    )


@pytest.mark.slow
@pytest.mark.no_cover
def test_every_command_line_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "prompts.txt").write_text("a cat\n")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "cute80.jsonl").write_text('{"image_caption": ["a cat"]}\n')
    for name in ("cat.png", "sofa.png", "house.png", "mask.png"):
        Image.new("RGB", (128, 128), "white").save(name)
    quick = ["--steps", "2", "--cfg", "1"]
    assert run(["a cat", "--seed", "7", *quick]) == 0
    assert run(["a cat", "--image", "cat.png", "-o", "result.png", *quick]) == 0
    commands = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    lines = [shlex.split(line, comments=True) for line in commands]
    shown = {tuple(words[1:]) for words in lines if words and words[0] == "h2gen" and "--base" not in words}
    assert len(shown) > 20
    for words in sorted(shown - {("bench",)}):  # which has no dry run
        dry = [] if words[0] == "info" or "--dry-run" in words else ["--dry-run"]
        anywhere = ["--offload", "auto"] if "--offload" in words else []  # a CPU refuses the others
        assert run([*words, *dry, *anywhere]) == 0, words


def test_options_in_the_text_exist() -> None:
    options = ROOT / "docs" / "options.md"
    known = set(re.findall(r"--[a-z][\w-]*", options.read_text(encoding="utf-8")))
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`([^`]+)`", text):
            if not code.startswith(("python", "pip", ".venv")):
                assert set(re.findall(r"(?<!\w)--[a-z][\w-]*", code)) <= known, (page.name, code)


def test_the_prompt_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(blocks("yaml", "batches.md")[0])
    reading = read_prompts([str(tmp_path / "prompts.yaml")])
    assert reading.mistakes == []
    names = [file_name(job, "0" * 32, "tiny") for job in Jobs(reading, {}, {})]
    assert names[3:5] == ["0004-a-cat-4", "apple-1"] and len(names) == 8


def test_the_preset_and_the_configuration_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from h2gen.settings import user_defaults
    from h2gen.settings.presets import read_preset
    from h2gen.settings.resolve import resolve_request

    (tmp_path / "mine.toml").write_text(blocks("toml", "presets.md")[0])
    assert read_preset(tmp_path / "mine.toml").config.warmup_steps == 2
    (tmp_path / "config.toml").write_text(blocks("toml", "options.md")[0])
    monkeypatch.setattr(user_defaults, "config_file", lambda: tmp_path / "config.toml")
    assert resolve_request("a cat", {}, {}).out == "pictures"


def test_every_preset_stands_in_the_table_with_its_figures() -> None:
    for preset in list_presets():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{preset.name}`"))
        deciding = {"tau1": preset.config.tau1, "tau2": preset.config.tau2, "tolerance": preset.config.tolerance}
        assert all(f"`{name}` {value:g}" in row for name, value in deciding.items() if value)
        if preset.figures:
            assert f"{preset.figures['share']:.0%}" in row
            assert f"{preset.figures['psnr_mean']:.1f}" in row
            assert f"{preset.figures['psnr_worst']:.1f}" in row


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "python.md"])
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h2gen

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    pipeline_code, *session_code = (code for code in blocks("python", page) if "h2gen.Stages" not in code)
    names: dict[str, object] = {"h2gen": h2gen}
    for code in session_code:
        exec(compile(code, page, "exec"), names)
    assert (tmp_path / "cat.png").exists()
    session = names["session"]
    assert isinstance(session, h2gen.Session)

    class Small:
        """The pipeline, called for a small picture of few steps."""

        def __getattr__(self, name: str) -> object:
            return getattr(session.pipe, name)

        def __call__(self, prompt: str) -> object:
            return session.pipe(prompt, num_inference_steps=3, width=64, height=64, max_sequence_length=16)

    exec(compile(pipeline_code, page, "exec"), {"h2gen": h2gen, "pipe": Small()})
    h2gen.remove(session.pipe)


def test_the_python_for_models_outside_of_diffusers_runs() -> None:
    import h2gen
    from tests.families.test_other import Flux, draw_flux

    (code,) = (code for code in blocks("python", "python.md") if "h2gen.Stages" in code)
    names = {"model": Flux(), "denoise": draw_flux, "get_schedule": lambda n: [1 - i / n for i in range(n + 1)]}
    exec(compile(code, "python.md", "exec"), {"h2gen": h2gen} | names)


def test_the_line_of_a_trace_is_one() -> None:
    shown = json.loads(blocks("json", "pictures.md")[0])
    step = StepRecord(
        0,
        3,
        "cond",
        912.5,
        0.9125,
        StageRecord(0.041, Outcome.REUSED),
        StageRecord(None, Outcome.FORCED),
        2,
        57,
        0.0041,
    )
    assert step.to_json() == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_code_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:h2gen|tests|tools)/[\w/.]*)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_architecture_knows_every_package() -> None:
    folders = {path.parent.relative_to(ROOT / "h2gen").as_posix() for path in (ROOT / "h2gen").rglob("*/__init__.py")}
    top = {folder for folder in folders if "/" not in folder and folder != "."}
    assert top <= set(PACKAGES) <= folders


def test_lines_are_at_most_120_columns() -> None:
    for page in PAGES:
        lines = re.sub(r"```.*?```|<!-- \w+: .*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        long = [line for line in lines.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
        assert not long, page.name


def test_the_shell_knows_the_commands_that_its_page_lists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b":help\n:quit\n")))
    assert run(["shell"]) == 0
    told = " ".join(capsys.readouterr())
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    assert {command for command in re.findall(r"`(:\w+)", page) if command not in told} == set()
