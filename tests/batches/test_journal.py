"""The record of a batch: whatever a kill leaves of it, the next run knows what is finished."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h2gen.batches.journal import Journal
from h2gen.errors import OutputError


def picture(folder: Path, name: str, content: bytes = b"pixels") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def digest(content: bytes = b"pixels") -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_finished_picture_is_known_to_the_next_run(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        path = picture(tmp_path, "a.png")
        journal.finished("1", path, {"seed": 7})
    with Journal(tmp_path) as journal:
        assert journal.made() == {"1": path}


def test_a_picture_that_somebody_deleted_is_not_done(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        path = picture(tmp_path, "a.png")
        journal.finished("1", path, {})
        path.unlink()
        assert journal.made() == {}


def test_a_picture_named_just_before_the_kill_is_done(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.writing("1", tmp_path / "a.png", digest())
        picture(tmp_path, "a.png")
    assert list(Journal(tmp_path).made()) == ["1"]


def test_somebody_elses_picture_under_the_name_is_not_taken_for_ours(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.writing("1", tmp_path / "a.png", digest())
        picture(tmp_path, "a.png", b"a holiday")
    assert Journal(tmp_path).made() == {}


def test_an_earlier_picture_of_the_job_still_counts_when_a_later_one_was_not_finished(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        path = picture(tmp_path, "a.png")
        journal.finished("1", path, {})
        journal.writing("1", tmp_path / "a-2.png", digest(b"other"))
    assert Journal(tmp_path).made() == {"1": path}


def test_a_file_belongs_to_the_job_that_claimed_it_last(tmp_path: Path) -> None:
    """Somebody deletes a picture, and another job gets its name."""
    with Journal(tmp_path) as journal:
        path = picture(tmp_path, "a.png")
        journal.finished("1", path, {})
        journal.writing("2", path, digest(b"other"))
        assert journal.made() == {"1": path}  # killed before it had the name
        path.write_bytes(b"other")
        assert journal.made() == {"2": path}
        journal.finished("2", path, {})
        assert journal.made() == {"2": path}


def test_a_picture_that_lost_its_content_is_not_done(tmp_path: Path) -> None:
    """As a power failure may leave the file."""
    with Journal(tmp_path) as journal:
        path = picture(tmp_path, "a.png")
        journal.finished("1", path, {"bytes": len(b"pixels")})
        assert journal.made() == {"1": path}
        path.write_bytes(b"")
        assert journal.made() == {}


def test_a_file_beside_a_picture_that_a_kill_kept_away_is_cleared(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for name in ("gone", "there", "changed"):
            journal.writing(name, tmp_path / f"{name}.png", digest(), digest(b"beside"))
            picture(tmp_path, f"{name}.toml", b"beside" if name != "changed" else b"somebody's")
        picture(tmp_path, "there.png")
        journal.clear_orphans()
    assert sorted(path.name for path in tmp_path.glob("*.toml")) == ["changed.toml", "there.toml"]


def test_a_failed_job_is_not_done(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.failed("1", "out of memory")
        assert journal.made() == {}


def test_all_parts_of_a_run_in_the_folder_are_read(tmp_path: Path) -> None:
    with Journal(tmp_path, "1of2") as one, Journal(tmp_path, "2of2") as two:
        one.finished("1", picture(tmp_path, "a.png"), {})
        two.finished("2", picture(tmp_path, "b.png"), {})
    assert sorted(Journal(tmp_path).made()) == ["1", "2"]


def test_no_record_reaches_outside_the_folder(tmp_path: Path) -> None:
    outside = picture(tmp_path, "a.png")
    folder = tmp_path / "out"
    folder.mkdir()
    lines = [{"event": "made", "id": "1", "file": name} for name in ("../a.png", str(outside), "", ".", "..")]
    (folder / "h2gen-batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Journal(folder).made() == {}


@pytest.mark.parametrize(
    "line", ["", "nonsense", "[]", "3", "null", '"made"', '{"event": "made"}', '{"id": 3, "file": 4}', "{" * 100_000]
)
def test_lines_that_are_no_record_are_passed_over(tmp_path: Path, line: str) -> None:
    with Journal(tmp_path) as journal:
        journal.finished("1", picture(tmp_path, "a.png"), {})
    with journal.path.open("a") as file:
        file.write(line + "\n\x00\x00\xff\n")
    with Journal(tmp_path) as journal:
        journal.finished("2", picture(tmp_path, "b.png"), {})
        assert sorted(journal.made()) == ["1", "2"]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["writing", "named", "made", "failed"]), st.integers(0, 5), st.text(max_size=5)),
    max_size=12,
)


@settings(max_examples=150)
@given(events=EVENTS, cut=st.floats(0, 1), more=EVENTS)
def test_a_record_cut_at_any_byte_resumes(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[str, int, str]],
    cut: float,
    more: list[tuple[str, int, str]],
) -> None:
    """Cut a journal anywhere: existing pictures in complete lines count as made, and later events are recorded."""
    folder = tmp_path_factory.mktemp("cut")
    with Journal(folder) as journal:
        expected = play(journal, events)
        whole = journal.path.read_bytes()
    kept = whole[: round(cut * len(whole))]
    journal.path.write_bytes(kept)
    before = Journal(folder).made()
    assert set(before) == {job for job, line in expected.items() if line <= len(kept.rstrip(b"\n")) + 1}
    for path in before.values():
        assert path.is_file()
    with Journal(folder) as journal:
        picture(folder, "new.png")
        journal.finished("new", folder / "new.png", {})
        after = journal.made()
    assert set(after) == {*before, "new"}
    with Journal(folder) as journal:  # and a second time, after which everything continues normally
        play(journal, more)
        assert {*before, "new"} <= set(journal.made())


def play(journal: Journal, events: list[tuple[str, int, str]]) -> dict[str, int]:
    """Record events; returns each finished job with the journal's length at that moment."""
    done: dict[str, int] = {}
    for kind, number, text in events:
        job, path = f"job {number}", journal.folder / f"{number}.png"
        content = f"picture {number}".encode()
        if kind == "writing":
            journal.writing(job, path, digest(content))
        elif kind == "named":  # the kill comes before "made"
            journal.writing(job, path, digest(content))
            path.write_bytes(content)
        elif kind == "made":
            path.write_bytes(content)
            journal.finished(job, path, {"note": text})
        else:
            journal.failed(job, text)
            continue
        done.setdefault(job, journal.path.stat().st_size)
    return {job: at for job, at in done.items() if (journal.folder / f"{job[4:]}.png").exists()}


def test_the_second_run_in_a_folder_is_told_so(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(OutputError, match="Another run is working in"), Journal(tmp_path):
        pass
    with Journal(tmp_path):
        pass


@pytest.mark.posix
def test_the_lock_of_a_killed_run_holds_nobody_up(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from h2gen.batches.journal import Journal\n"
        "Journal(pathlib.Path(sys.argv[1])).__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    with Journal(tmp_path) as journal:
        assert journal.made() == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "h2gen-batch.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*h2gen-batch\.jsonl"), Journal(tmp_path):
        pass
