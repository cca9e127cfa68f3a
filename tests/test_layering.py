"""What may import what, read from the sources themselves."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("pipeline", "transforms")
    for path in sorted((ROOT / package).rglob("*.py"))
}
INITS = sorted(str(path.relative_to(ROOT)) for path in FILES.values() if path.name == "__init__.py")

# Plain halves, which are used and tested without Beam.
PURE = {"transforms.elements", *(m for m in FILES if m.startswith("transforms.ndjson."))}
# Settings and names that the command line needs before anything heavy is imported.
LIGHT = {
    "pipeline.commands.console",
    *(m for m in FILES if m.startswith("pipeline.commands.options")),
    "pipeline.commands.serve",
    "pipeline.errors",
    "pipeline.logs",
    "pipeline.escaping",
    "pipeline.processors",
    "pipeline.__main__",
}


def _import_statements(nodes: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that are carried out when a module is imported: none of functions, none for type checkers."""
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield from _import_statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _import_statements([*node.body, *node.orelse, *node.finalbody])
            for handler in node.handlers:
                yield from _import_statements(handler.body)
        elif isinstance(node, (ast.ClassDef, ast.With)):
            yield from _import_statements(node.body)


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0, "a relative import"
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in FILES else str(node.module)


def _imports(module: str, *, everywhere: bool = False) -> set[str]:
    """What a module imports: when it is imported itself, or everywhere in it."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    if everywhere:
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    else:
        nodes = list(_import_statements(tree.body))
    return {name for node in nodes for name in _names(node)}


def _reached(module: str) -> set[str]:
    """Everything that comes along when a module is imported, as far as it is ours, and the names of what is not."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        one = waiting.pop()
        reached.add(one)
        if one in FILES:
            waiting |= _imports(one) - reached
    return reached


def _top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _below(package: str) -> list[str]:
    return [module for module in FILES if module == package or module.startswith(f"{package}.")]


def test_there_is_something_to_test() -> None:
    assert len(FILES) > 30
    assert "apache_beam" in _reached("pipeline.commands.run")
    assert "transforms.tei.client" in _reached("transforms.embed_shards")
    assert FILES.keys() > PURE | LIGHT


@pytest.mark.parametrize("module", _below("transforms"))
def test_what_runs_on_workers_knows_nothing_of_the_launcher(module: str) -> None:
    assert "pipeline" not in _top(_imports(module, everywhere=True))


@pytest.mark.parametrize("module", [*_below("transforms.tei"), *sorted(PURE)])
def test_the_client_and_the_plain_halves_know_nothing_of_beam(module: str) -> None:
    assert "apache_beam" not in _top(_imports(module, everywhere=True))
    assert "apache_beam" not in _top(_reached(module))


@pytest.mark.parametrize("module", _below("transforms.tei"))
def test_the_client_knows_of_the_transforms_only_their_elements(module: str) -> None:
    ours = {name for name in _imports(module, everywhere=True) if name.startswith("transforms")}
    assert ours <= {"transforms.elements", *_below("transforms.tei")}


@pytest.mark.parametrize("module", _below("pipeline.embedded_tei"))
def test_the_embedded_server_stands_alone(module: str) -> None:
    imports = _imports(module, everywhere=True)
    assert not _top(imports) & {"apache_beam", "transforms"}
    # The count of processors is of the standard library alone.
    allowed = {*_below("pipeline.embedded_tei"), "pipeline.processors"}
    assert {name for name in imports if name.startswith("pipeline")} <= allowed


@pytest.mark.parametrize("module", sorted({*FILES} - {*_below("pipeline.commands"), "pipeline.__main__"}))
def test_commands_are_imported_by_the_command_line_alone(module: str) -> None:
    assert not {name for name in _imports(module, everywhere=True) if name.startswith("pipeline.commands")}


def test_starting_the_embedded_server_takes_the_standard_library_alone() -> None:
    assert _top(_reached("pipeline.embedded_tei.process")) - {"pipeline"} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_the_command_line_comes_without_anything_heavy(module: str) -> None:
    assert _top(_reached(module)) - {"pipeline", "transforms"} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", INITS)
def test_a_package_says_what_it_holds_and_nothing_more(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_no_module_imports_itself_round_a_corner() -> None:
    graph = {module: _imports(module) & FILES.keys() for module in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_tests_and_scripts_are_imported_by_nothing() -> None:
    for module in FILES:
        assert not _top(_imports(module, everywhere=True)) & {"tests", "run_scripts", "pytest", "hypothesis"}
