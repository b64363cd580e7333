"""Reads a plugin class from its source, so that listing plugins imports none of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from hatbus.discovery.module_files import file_in, find_source
from hatbus.events.training import EVENTS, MOMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_DEEPEST: Final = 8
Function = ast.FunctionDef | ast.AsyncFunctionDef
_Node = TypeVar("_Node", bound=ast.stmt)


class Parameter(NamedTuple):
    """One constructor parameter as written.

    Attributes:
        name: with its stars.
        annotation: empty without one.
        default: None for a required one.
    """

    name: str
    annotation: str
    default: str | None


class Method(NamedTuple):
    """One method of a plugin class as written.

    Attributes:
        name, line: of the method.
        event: the event that it is called like, or that ``specname`` gives.
        is_marked: whether ``@hookimpl`` stands above it.
        mark: the options of ``@hookimpl``.
        is_wrapper, is_async, has_yield: what kind of function it is.
        arguments: its names, without ``self``.
        required: those without a default.
        rest: the name behind ``*``.
        by_keyword: what is required by keyword only.
    """

    name: str
    event: str
    is_marked: bool
    is_wrapper: bool
    is_async: bool
    has_yield: bool
    arguments: tuple[str, ...]
    required: tuple[str, ...]
    line: int
    mark: dict[str, Any]
    rest: str
    by_keyword: tuple[str, ...]


class ClassSource(NamedTuple):
    """What the source says about a class and the classes of its package that it is made of.

    Attributes:
        file, line: where it stands.
        doc: its docstring.
        declared: what ``@plugin`` gives it and its parents.
        methods: name to method.
        parameters: of its constructor.
        is_mixin: whether it is a ``CallbackMixin``.
        is_declared: whether ``@plugin`` stands above it, or above a parent.
        is_whole: whether no class of another package is among its parents.
        compares: whether two of it are equal when their values are.
    """

    file: Path
    line: int
    doc: str
    declared: dict[str, Any]
    methods: dict[str, Method]
    parameters: tuple[Parameter, ...]
    is_mixin: bool
    is_declared: bool
    is_whole: bool
    compares: bool

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0].strip()

    @property
    def events(self) -> list[str]:
        """Names of the events it implements."""
        return [m.event for m in self.methods.values() if m.is_marked or self.overrides(m)]

    def overrides(self, method: Method) -> bool:
        """Whether an unmarked method counts because the class is a ``CallbackMixin``."""
        return self.is_mixin and method.name in EVENTS and EVENTS[method.name].kind == MOMENT


class Module(NamedTuple):
    """One module's source."""

    name: str
    file: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that it belongs to."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]


class Sources:
    """Parsed modules by name.

    Args:
        folders: where modules are looked for, beside hatbus's own; the installed ones when None.
    """

    def __init__(self, folders: Sequence[Path] | None = None) -> None:
        self._folders = folders
        self._modules: dict[str, Module | None] = {}

    def read(self, module: str, qualname: str) -> ClassSource | None:
        """What the source says about a class; None if there is no such class or no source."""
        found = self._find(module, qualname)
        return None if found is None else self._read(*found)

    def function(self, module: str, name: str) -> tuple[Module, Function] | None:
        """A function and the module that it stands in; None if there is none or no source."""
        return self._through_imports(module, name, _function_in, 0)

    def why_unreadable(self, module: str) -> str:
        """Why a module's source cannot be read; empty if it can."""
        file = self._file(module)
        if file is None:
            return f"module {module!r} is not there"
        try:
            ast.parse(file.read_bytes(), str(file))
        except SyntaxError as error:
            return f"module {module!r} does not parse: {file.name} line {error.lineno}: {error.msg}"
        except (ValueError, OSError) as error:
            return f"module {module!r} cannot be read: {error}"
        return ""

    def _read(self, module: Module, cls: ast.ClassDef) -> ClassSource:
        family = self._family(module, cls)
        methods: dict[str, Method] = {}
        parameters: tuple[Parameter, ...] | None = None
        for home, member in family:
            for function in _functions(member):
                methods.setdefault(function.name, _method(home, function))
            parameters = _parameters(member) if parameters is None else parameters
        declared = self._declared_by(family)
        return ClassSource(
            file=module.file,
            line=cls.lineno,
            doc=ast.get_docstring(cls) or "",
            declared=declared or {},
            methods=methods,
            parameters=parameters or (),
            is_mixin=any(_last(b) == "CallbackMixin" for _, c in family for b in c.bases),
            is_declared=declared is not None,
            is_whole={_last(b) for _, c in family for b in c.bases}
            <= {"object", "CallbackMixin", *(c.name for _, c in family)},
            compares="__eq__" in methods or any(_compares(*member) for member in family),
        )

    def _declared_by(self, family: Sequence[tuple[Module, ast.ClassDef]]) -> dict[str, Any] | None:
        """What ``@plugin`` makes of the nearest class that has it, over what that one inherits."""
        for place, (home, member) in enumerate(family):
            own = _declared(home, member)
            if own is not None:
                line = self._family(home, member)
                above = [one for one in family[place + 1 :] if one in line]
                return {**(self._declared_by(above) or {}), **own}
        return None

    def _family(self, module: Module, cls: ast.ClassDef) -> list[tuple[Module, ast.ClassDef]]:
        """The class and its bases inside the same package, or hatbus's, nearest first.

        Of a base by two ways the last one counts, so that it comes behind both, as Python has it.
        """
        ways = [*self._upwards(module, cls, ())]
        found = {id(member): (home, member) for home, member in reversed(ways)}
        return [*found.values()][::-1]

    def _upwards(
        self, module: Module, cls: ast.ClassDef, below: tuple[ast.ClassDef, ...]
    ) -> Iterator[tuple[Module, ast.ClassDef]]:
        yield module, cls
        for base in cls.bases:
            name = _last(base)
            found = self._find(module.name, name) if name != "CallbackMixin" else None
            if found is not None and found[1] not in (cls, *below):
                yield from self._upwards(*found, (*below, cls))

    def _find(self, module: str, qualname: str) -> tuple[Module, ast.ClassDef] | None:
        return self._through_imports(module, qualname, _class_in, 0)

    def _through_imports(
        self, module: str, name: str, look: Callable[[ast.Module, str], _Node | None], depth: int
    ) -> tuple[Module, _Node] | None:
        """A definition, through the imports of the modules that only pass it on."""
        home = self.module(module)
        if home is None or depth > _DEEPEST:
            return None
        node = look(home.tree, name)
        if node is not None:
            return home, node
        source = _imports(home).get(name)
        if source is None or not _is_near(source[0], module):
            return None
        return self._through_imports(*source, look, depth + 1)

    def module(self, name: str) -> Module | None:
        """A module, parsed; None where there is no source, or it does not parse."""
        if name not in self._modules:
            self._modules[name] = self._parsed(name)
        return self._modules[name]

    def _parsed(self, name: str) -> Module | None:
        file = self._file(name)
        if file is None:
            return None
        try:
            return Module(name, file, ast.parse(file.read_bytes(), str(file)))
        except (SyntaxError, ValueError, OSError):
            return None

    def _file(self, name: str) -> Path | None:
        if self._folders is None or name.partition(".")[0] == "hatbus":
            return find_source(name)
        return file_in(self._folders, name)


def first_line(node: ast.ClassDef | Function) -> str:
    """The first line of a docstring; empty without one."""
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()


def source_of(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of the module that ``from ... import`` names."""
    source = node.module or ""
    if node.level:
        parts = module.package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        source = ".".join([*parts, *([source] if source else [])])
    return source


def _is_near(source: str, module: str) -> bool:
    """Whether a module belongs to the same package, or to hatbus."""
    top = source.partition(".")[0]
    return top == module.partition(".")[0] or top.startswith("hatbus")


def _imports(module: Module) -> dict[str, tuple[str, str]]:
    """Local name to (module, name) of every ``from ... import ...``, for type checkers too."""
    found = {}
    for node in _statements(module.tree):
        if isinstance(node, ast.ImportFrom):
            source = source_of(module, node)
            for alias in node.names:
                found[alias.asname or alias.name] = (source, alias.name)
    return found


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """What stands at the top level, or there in an ``if``: a lazy module's imports do."""
    for node in tree.body:
        yield from (node, *node.body) if isinstance(node, ast.If) else (node,)


def _class_in(tree: ast.Module, qualname: str) -> ast.ClassDef | None:
    body: Sequence[ast.stmt] = tree.body
    cls = None
    for name in qualname.split("."):
        classes = (n for n in body if isinstance(n, ast.ClassDef) and n.name == name)
        cls = next(classes, None)
        if cls is None:
            return None
        body = cls.body
    return cls


def _function_in(tree: ast.Module, name: str) -> Function | None:
    return next((n for n in tree.body if isinstance(n, Function) and n.name == name), None)


def _functions(cls: ast.ClassDef) -> Iterator[Function]:
    return (node for node in cls.body if isinstance(node, Function))


def _last(node: ast.expr) -> str:
    """The last name of ``a.b.c``, of a call to it, or of a subscript of it."""
    while isinstance(node, (ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _decorator(module: Module, node: ast.ClassDef | Function, name: str) -> ast.expr | None:
    """The decorator of this name, also when it was imported under another."""
    imports = _imports(module) if node.decorator_list else {}
    for decorator in node.decorator_list:
        local = _last(decorator)
        if local == name or imports.get(local, ("", ""))[1] == name:
            return decorator
    return None


def _compares(module: Module, cls: ast.ClassDef) -> bool:
    """Whether a class is a dataclass whose instances are equal when their fields are."""
    mark = _decorator(module, cls, "dataclass")
    return mark is not None and _keywords(mark).get("eq", True) is not False


def _keywords(decorator: ast.expr | None) -> dict[str, Any]:
    """The literal keyword arguments of a decorator that is a call."""
    found = {}
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
        try:
            found[keyword.arg or "**"] = ast.literal_eval(keyword.value)
        except ValueError:
            found[keyword.arg or "**"] = ast.unparse(keyword.value)
    return found


def _declared(module: Module, cls: ast.ClassDef) -> dict[str, Any] | None:
    """What a class's own ``@plugin`` gives; None without one."""
    decorator = _decorator(module, cls, "plugin")
    if decorator is None:
        return None
    return {name: value for name, value in _keywords(decorator).items() if value is not None}


def _method(module: Module, function: Function) -> Method:
    mark = _decorator(module, function, "hookimpl")
    options = _keywords(mark)
    arguments = function.args
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    required = named[: len(named) - len(arguments.defaults)]
    return Method(
        name=function.name,
        event=options.get("specname") or function.name,
        is_marked=mark is not None,
        is_wrapper=bool(options.get("wrapper")),
        is_async=isinstance(function, ast.AsyncFunctionDef),
        has_yield=any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in ast.walk(function)),
        arguments=tuple(named[1:]),
        required=tuple(required[1:]),
        line=function.lineno,
        mark=options,
        rest=arguments.vararg.arg if arguments.vararg else "",
        by_keyword=tuple(
            a.arg
            for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if default is None
        ),
    )


def _parameters(cls: ast.ClassDef) -> tuple[Parameter, ...] | None:
    """The constructor's parameters; None when the class inherits its constructor."""
    init = next((f for f in _functions(cls) if f.name == "__init__"), None)
    if init is not None:
        return tuple(_signature(init.args))
    if any(_last(decorator) == "dataclass" for decorator in cls.decorator_list):
        return tuple(
            Parameter(n.target.id, ast.unparse(n.annotation), _source(n.value))
            for n in cls.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        )
    return None


def _signature(arguments: ast.arguments) -> Iterator[Parameter]:
    named = [*arguments.posonlyargs, *arguments.args]
    missing = [None] * (len(named) - len(arguments.defaults))
    pairs = [*zip(named, [*missing, *arguments.defaults], strict=True)][1:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        yield Parameter(argument.arg, _text(argument), _source(default))
    if arguments.kwarg is not None:
        yield Parameter(f"**{arguments.kwarg.arg}", _text(arguments.kwarg), "")


def _text(argument: ast.arg) -> str:
    return _source(argument.annotation) or ""


def _source(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)
