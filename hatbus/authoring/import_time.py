"""What a plugin's package does when it is imported, read from its source."""

from __future__ import annotations

import ast
from collections import deque
from typing import TYPE_CHECKING, Final

from hatbus.discovery.class_source import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.discovery.class_source import Module, Sources

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_SETTERS: Final = ("set_", "manual_seed", "seed", "use_deterministic_algorithms")


def settings_changed(sources: Sources, name: str) -> Iterator[str]:
    """What importing a module changes in torch, which nobody who only looks at it expects."""
    module = sources.module(name)
    for node in at_import(module.tree) if module else ():
        found = _changed_by(node)
        if found and module:
            yield (
                f"{module.file.name} line {node.lineno}: {found} when it is imported; "
                "do that in on_loop_begin, and undo it in on_loop_end"
            )


def early_torch(sources: Sources, name: str) -> str:
    """How a package itself brings torch in, before a plugin is asked for; empty if it does not."""
    package = name.partition(".")[0]
    path = _path_to_torch(sources, package) if package != name else []
    if not path:
        return ""
    through = "".join(f", by way of {one}" for one in path[:-1])
    return (
        f"import {package} imports torch ({path[-1]}{through}), and so does all that only looks "
        "the package up; import it in the plugin's own module"
    )


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported; functions and ``TYPE_CHECKING`` do not."""
    waiting: list[ast.stmt] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Function):
            continue
        if isinstance(node, ast.If) and _is_never(node.test):
            waiting += reversed(node.orelse)
            continue
        if isinstance(node, ast.If) and _is_always(node.test):
            waiting += reversed(node.body)
            continue
        yield node
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
        waiting += reversed(inner)


def _path_to_torch(sources: Sources, package: str) -> list[str]:
    """The fewest modules of a package that lead to an import of torch, and its place, last."""
    waiting: deque[tuple[str, list[str]]] = deque([(package, [])])
    seen = {package}
    while waiting:
        name, path = waiting.popleft()
        module = sources.module(name)
        if module is None:
            continue
        for node in at_import(module.tree):
            further = [*path, f"{module.file.name} line {node.lineno}"]
            for imported in imported_by(module, node):
                if imported.partition(".")[0] == "torch":
                    return further
                if imported.startswith(f"{package}.") and imported not in seen:
                    seen.add(imported)
                    waiting.append((imported, further))
    return []


def imported_by(module: Module, node: ast.AST) -> list[str]:
    """The modules that an import statement names; of ``from a import b`` both ``a`` and ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = source_of(module, node)
    return [source, *(f"{source}.{alias.name}" for alias in node.names)]


def _is_never(test: ast.expr) -> bool:
    """Whether a condition is false when a module is imported."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(_is_never(one) for one in test.values)
    if isinstance(test, ast.Compare):
        return ast.unparse(test) == "__name__ == '__main__'"
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return bool(name == "TYPE_CHECKING")


def _is_always(test: ast.expr) -> bool:
    """Whether a condition is true when a module is imported."""
    return (
        isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and _is_never(test.operand)
    )


def _changed_by(node: ast.stmt) -> str:
    """The setting of torch that a statement changes; empty if none."""
    if isinstance(node, ast.Assign):
        places = [ast.unparse(one) for one in node.targets]
        return next((f"sets {one}" for one in places if one.startswith("torch.backends.")), "")
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = ast.unparse(node.value.func)
        if called.startswith("torch.") and called.rpartition(".")[2].startswith(_SETTERS):
            return f"calls {called}()"
    return ""
