"""What a plugin's package does when it is imported, read from its source."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

from hatbus.reading import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.reading import Module, Sources

_DEEPEST: Final = 8
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
    path = _path_to_torch(sources, package, 0) if package != name else []
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
        yield node
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
        waiting += reversed(inner)


def _path_to_torch(sources: Sources, name: str, depth: int) -> list[str]:
    """The modules of one package that lead to an import of torch, and its place, last."""
    module = sources.module(name)
    if module is None or depth > _DEEPEST:
        return []
    top = name.partition(".")[0]
    for node in at_import(module.tree):
        for imported in _imported(module, node):
            if imported.partition(".")[0] == "torch":
                return [f"{module.file.name} line {node.lineno}"]
            inner = imported.startswith(f"{top}.") and imported != name
            further = _path_to_torch(sources, imported, depth + 1) if inner else []
            if further:
                return [f"{module.file.name} line {node.lineno}", *further]
    return []


def _imported(module: Module, node: ast.stmt) -> list[str]:
    """The modules that an import statement names; of ``from a import b`` both ``a`` and ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = source_of(module, node)
    return [source, *(f"{source}.{alias.name}" for alias in node.names)]


def _is_never(test: ast.expr) -> bool:
    """Whether a condition is false when a module is imported."""
    text = ast.unparse(test)
    return text.endswith("TYPE_CHECKING") or text.replace('"', "'") == "__name__ == '__main__'"


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
