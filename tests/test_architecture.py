"""The boundaries between packages: allowed imports, model class names, and module length."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import diffusers

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "h2gen").rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}

LAYERS = (
    *("_version", "errors", "sanitize", "wording", "toml", "arguments", "checks", "files"),
    *("families", "cache", "models", "settings", "output", "generation", "batches", "evaluation", "cli", "__main__"),
)
"""From the bottom to the top: each imports only itself and the ones before it."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports that go up the layers, from one module to another, each with its reason."""

CLASSES = {
    name
    for name in dir(diffusers)
    if re.search(r"(Pipeline|Transformer\dDModel)$", name) and name != "DiffusionPipeline"  # the base of them all
}
MAY_NAME_CLASSES = ("h2gen.families", "h2gen.models.catalogue")


def package(module: str) -> str:
    return module.split(".")[1]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, also those inside functions, except under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


def imports(tree: ast.Module) -> set[str]:
    """The modules of h2gen that a module imports, at its top or later."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= MODULES.keys() else names | {str(node.module)}
    return found & MODULES.keys()


def words(tree: ast.Module) -> set[str]:
    """The names in a module's code and the words of its strings, but not of its docstrings."""
    docs = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            found |= set(re.findall(r"\w+", node.value))
    return found


GRAPH = {module: imports(tree) - {"h2gen"} for module, tree in TREES.items()}


def test_imports_go_down_the_layers() -> None:
    upwards = {
        (module, other)
        for module, others in GRAPH.items()
        if module != "h2gen"  # hands out public names of all of them
        for other in others
        if package(other) != package(module) and LAYERS.index(package(other)) > LAYERS.index(package(module))
    }
    assert upwards == EXCEPTIONS.keys()
    assert all(EXCEPTIONS.values())


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(GRAPH[module]):
                visit(other)
            done.add(path.pop())

    for module in GRAPH:
        visit(module)


def test_only_families_and_the_catalogue_name_the_classes_of_models() -> None:
    named = {module: words(tree) & CLASSES for module, tree in TREES.items() if not module.startswith(MAY_NAME_CLASSES)}
    assert {module: classes for module, classes in named.items() if classes} == {}


def test_modules_are_short() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    limits = {module: 200 if module.startswith("h2gen.cache") else 400 for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > limits[module]} == {}


def test_modules_say_what_they_are() -> None:
    silent = {module for module, tree in TREES.items() if not ast.get_docstring(tree)}
    assert silent <= {"h2gen.__main__", "h2gen._version"}


def test_these_checks_see_what_they_look_for() -> None:
    tree = ast.parse(
        '"""FluxPipeline"""\n'
        "if TYPE_CHECKING:\n    from h2gen.cli import app\n"
        "def f():\n"
        '    """FluxPipeline"""\n'
        "    from h2gen.models import load\n"
        "    from h2gen.models.hub import fetch\n"
        '    return "a ChromaPipeline", FluxTransformer2DModel, diffusers.Flux2Pipeline\n'
    )
    assert imports(tree) == {"h2gen.models.load", "h2gen.models.hub"}
    assert words(tree) & CLASSES == {"ChromaPipeline", "FluxTransformer2DModel", "Flux2Pipeline"}
    assert "h2gen.errors" in GRAPH["h2gen.models.load"] and len(GRAPH) > 100
