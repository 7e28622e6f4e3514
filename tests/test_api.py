"""The public names: complete, documented, and cheap to import."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import h2gen
from h2gen import errors

MODULES = ("h2gen", "h2gen.cache", "h2gen.models")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there_and_documented(module: str) -> None:
    room = importlib.import_module(module)
    for name in room.__all__:
        thing = getattr(room, name)
        if callable(thing):
            assert thing.__doc__, name


@pytest.mark.parametrize("module", MODULES)
def test_a_name_that_is_not_there_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        importlib.import_module(module).nonsense  # noqa: B018


def test_a_name_that_is_misspelt_is_told_the_right_one() -> None:
    import h2gen

    with pytest.raises(AttributeError, match=r"has no attribute 'Sesion'; did you mean 'Session'\?$"):
        h2gen.Sesion  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute '__wrapped__'$"):
        h2gen.__wrapped__  # noqa: B018


def test_a_notebook_completes_every_public_name() -> None:
    code = "import sys, h2gen; sys.exit(dir(h2gen) != sorted(h2gen.__all__) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, h2gen, h2gen.cache, h2gen.settings.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_wrong_input_exits_2_and_a_failed_run_1() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, h2gen.H2GenError)]
    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.UsageError)} == {2}
    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.RunError)} == {1}


@pytest.mark.parametrize("code", ["from h2gen.cli import main; main(['a cat'])", "import h2gen; h2gen.load"])
def test_without_docstrings_one_line_says_why_nothing_can_be_loaded(code: str) -> None:
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert "Python removes docstrings (-OO or PYTHONOPTIMIZE=2), and transformers cannot" in done.stderr
    assert done.returncode == 2 or "UsageError" in done.stderr


def test_what_loads_no_model_works_without_docstrings() -> None:
    code = "import h2gen; h2gen.CacheConfig(tau1=0.1); h2gen.Settings; h2gen.H2GenError"
    assert subprocess.run([sys.executable, "-OO", "-c", code]).returncode == 0
