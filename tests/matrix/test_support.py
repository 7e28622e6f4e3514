"""The table of what runs says no more than the matrix tests."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import diffusers
import pytest

from h2gen.families import FAMILIES, TASKS
from tests.generation import test_controls as controls
from tests.generation import test_editing as editing
from tests.generation import test_flux3 as flux3
from tests.generation import test_videos as videos
from tests.matrix.rows import ROWS, UNTESTED, Row
from tools.docs import support_rows

DIFFUSERS = Path(diffusers.__file__).parent
TRANSFORMERS = "|".join(FAMILIES)


def pipelines_of_the_families() -> set[str]:
    """Every pipeline in diffusers that is made of a family's transformer, by what its source says."""
    found = set()
    for file in DIFFUSERS.glob("pipelines/*/pipeline_*.py"):
        source = file.read_text(encoding="utf-8")
        if re.search(rf"\btransformer: ({TRANSFORMERS})\b", source):
            found |= {*re.findall(r"^class (\w+Pipeline)\(", source, re.MULTILINE)}
    for folder in DIFFUSERS.glob("modular_pipelines/*/"):
        source = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
        if re.search(rf'ComponentSpec\("transformer", ({TRANSFORMERS})\)', source):
            found |= {*re.findall(r"^class (\w+AutoBlocks)\(SequentialPipelineBlocks", source, re.MULTILINE)}
    return found


def test_every_pipeline_that_runs_a_familys_transformer_is_in_the_table() -> None:
    found = pipelines_of_the_families()
    assert len(found) > 20
    assert found == {blocks_of(row.pipeline) for row in (*ROWS, *UNTESTED)}


def blocks_of(pipeline: str) -> str:
    """The blocks of a modular pipeline; of another one, its own name."""
    name: str = getattr(getattr(diffusers, pipeline, None), "default_blocks_name", pipeline)
    return name


@pytest.mark.parametrize("loaded", TASKS)
def test_every_task_of_the_families_is_tested(loaded: str) -> None:
    tested = {(row.key, row.pipeline) for row in ROWS}
    for key, pipeline in TASKS[loaded].items():
        # A model that only edits makes a picture from text alone too, by the same code.
        also = {"text": "edit"}.get(key, key)
        assert {(key, pipeline), (also, pipeline)} & tested, f"{key} with {pipeline}"


def run_by_sessions() -> set[tuple[str, str]]:
    """The pipelines that tests run through a session, each with what they give it."""
    edited = {(name, "pictures" if pictures else "text") for _, pictures, *_, name, _ in editing.CASES.values()}
    controlled = {(name, "pictures") for _, name, *_ in controls.WAYS.values()}
    redux = {(name, "redux") for name in controls.WITH_REDUX.values()}
    modular = {(name, "pictures" if count else "text") for name in flux3.NAMES for count in flux3.COUNTS}
    return edited | controlled | redux | modular | {(name, "text") for name in videos.MAKERS}


def given_to(row: Row) -> str:
    return "redux" if "redux" in row.call else "text" if row.key == "text" else "pictures"


def test_what_h2gen_has_itself_is_run_by_a_session_in_a_test() -> None:
    told = {(model, task) for model, task, _, h2gen, _ in support_rows() if h2gen == "yes"}
    rows = [row for row in ROWS if row.key]
    assert {(row.model, row.task) for row in rows} == told
    assert {(row.pipeline, given_to(row)) for row in rows} <= run_by_sessions()
    known = {(name, "text" if key == "text" else "pictures") for tasks in TASKS.values() for key, name in tasks.items()}
    assert known <= run_by_sessions()


def test_no_row_is_there_twice() -> None:
    assert Counter(map(str, ROWS)).most_common(1)[0][1] == 1


def test_the_table_tells_tested_from_untested() -> None:
    told = {(model, task): tested for model, task, _, _, tested in support_rows()}
    assert told.keys() == {(row.model, row.task) for row in (*ROWS, *UNTESTED)}
    for (model, task), tested in told.items():
        rows = [row for row in ROWS if (row.model, row.task) == (model, task)]
        assert ("random" in tested) == bool(rows)
        assert ("bundled" in tested) == any(row.trained for row in rows)
        assert ("not tested" in tested) == (not rows)
