"""Who may import whom, read from the source: nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT

ADAPTER = "lerobot_policy_selfflow"
ADAPTER_FOLDER = ROOT / "policies" / ADAPTER

# Package -> the packages of this repository that it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "worldmodel": set(),
    "envs": set(),
    "policies": {"worldmodel"},
    ADAPTER: {"worldmodel", "envs", "policies"},
    "scripts": {"worldmodel", "envs", "policies"},
}
OURS = {*MAY_IMPORT, "tests", "configs"}

# Inside worldmodel: a module may import those on earlier lines, never those on its own or later.
ORDER = [
    ["types"],
    ["flow", "tokens", "streams"],
    ["backbone", "inputs"],
    ["model"],
    ["selfflow", "sampler"],
    ["imagine", "train"],
]


def files_of(package: str) -> list[Path]:
    folder = ADAPTER_FOLDER if package == ADAPTER else ROOT / package
    return sorted(
        path
        for path in folder.rglob("*.py")
        if package == ADAPTER or not path.is_relative_to(ADAPTER_FOLDER)
    )


def module_of(package: str, path: Path) -> list[str]:
    """Dotted name of a file as a list, packages without their ``__init__``."""
    folder = ADAPTER_FOLDER if package == ADAPTER else ROOT / package
    parts = [package, *path.relative_to(folder).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def absolute_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, `importlib.import_module("x")` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def relative_imports(tree: ast.AST, module: list[str], is_package: bool) -> Iterator[list[str]]:
    """Dotted name, as a list, of what every relative import points at; [] if that is outside."""
    package = module if is_package else module[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = package[: len(package) - node.level + 1]
        if not base:
            yield []
        elif node.module:
            yield [*base, *node.module.split(".")]
        else:
            yield from ([*base, alias.name] for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


class _DropTypeChecking(ast.NodeTransformer):
    """Removes what only type checkers run, which can close no circle."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files_of(package)
        for line, name in absolute_imports(parse(path))
        if (top := name.split(".")[0]) in OURS and top not in {package, *MAY_IMPORT[package]}
    ]
    allowed = ", ".join(sorted(MAY_IMPORT[package])) or "no other package of this repository"
    assert not wrong, f"{package} may import {allowed}, but:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_inside_a_package_imports_are_relative_and_stay_inside(package: str) -> None:
    wrong = []
    for path in files_of(package):
        tree, name = parse(path), path.relative_to(ROOT)
        wrong += [
            f"{name}:{line} imports {target} by its absolute name"
            for line, target in absolute_imports(tree)
            if target.split(".")[0] == package
        ]
        wrong += [
            f"{name} imports beyond {package}"
            for target in relative_imports(
                tree, module_of(package, path), path.name == "__init__.py"
            )
            if not target
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_modules_of_a_package_do_not_import_in_circles(package: str) -> None:
    files = {".".join(module_of(package, path)): path for path in files_of(package)}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        is_package = path.name == "__init__.py"
        tree = _DropTypeChecking().visit(parse(path))
        for target in relative_imports(tree, name.split("."), is_package):
            # `from .x import y`: y is a module or something in x, so take the longest that exists.
            while target and ".".join(target) not in files:
                target = target[:-1]
            if target and ".".join(target) != name:
                graph[name].add(".".join(target))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_worldmodel_keeps_its_reading_order() -> None:
    rank = {name: i for i, names in enumerate(ORDER) for name in names}
    wrong = []
    for path in files_of("worldmodel"):
        module = module_of("worldmodel", path)
        if len(module) != 2 or module[1] not in rank:
            continue
        for target in relative_imports(parse(path), module, is_package=False):
            other = target[1] if len(target) > 1 else ""
            if other in rank and rank[other] >= rank[module[1]]:
                wrong.append(f"{module[1]} imports {other}")
    assert not wrong, f"expected {' <- '.join('|'.join(n) for n in ORDER)}, but: {wrong}"


def test_environment_entry_points_are_built_from_dunder_name() -> None:
    """A literal module path would break the day the package is renamed, and only at `make`."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.value.lineno}"
        for path in files_of("envs")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.keyword)
        and node.arg in {"entry_point", "vector_entry_point"}
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    assert not wrong, f'write entry_point=f"{{__name__}}..." at {wrong}'
