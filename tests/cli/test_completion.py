"""Completion in the user's shell: commands, options before and after the prompt, and values."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from h2gen.cli.app import run
from tests.cli.test_app import HEAVY


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", ["batch", "presets", "help"]),
        ("he", ["help"]),
        ("help ba", ["batch"]),
        ("--pres", ["--preset"]),
        ("--vers", ["--version"]),
        ("cat --pres", ["--preset"]),
        ("--preset f", ["fast"]),
        ("cat --model kl", ["klein-4b", "klein-base-4b", "klein-9b", "klein-base-9b"]),
        ("batch --base sch", ["schnell"]),
        ("cat --solver ", ["own", "unipc", "heun", "dpm++", "lcm"]),
        ("cat --device c", ["cuda", "cpu"]),
        ("cat --dtype fp3", ["fp32"]),
        ("shell --offload g", ["group"]),
        ("cat --format ", ["png", "jpg", "webp", "mp4", "gif"]),
        ("presets q", ["quality"]),
        ("presets show q", ["quality"]),
        ("models path t", ["tiny", "tiny-video"]),
        ("cat --steps x --forec", ["--forecast"]),
        ("cat --out ", []),
    ],
)
def test_what_is_offered(
    typed: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_H2GEN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"h2gen {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" "))))
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    offered = capsys.readouterr().out.split()
    assert offered == words if typed else set(words) <= set(offered)


def test_it_loads_neither_torch_nor_pil() -> None:
    code = (
        "import atexit, sys\nfrom h2gen.cli.app import run\n"
        f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))\nrun([])"
    )
    words = {"_H2GEN_COMPLETE": "complete_bash", "COMP_WORDS": "h2gen cat --model t", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **words}
    )
    assert (done.stdout, done.stderr.splitlines()[-1]) == ("tiny\ntiny-video\n", "[]")
