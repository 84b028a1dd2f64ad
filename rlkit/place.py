"""Paths of a configuration, which are found where it is read; and the user's own Python files.

A path stands in a field of type :data:`Place`. The reader of configurations looks for it beside the file that is read, and what it hands on
needs no folder any more. Paths that Python code gives are relative to the current folder.

Each of the user's Python files is executed once in a process, under a name of its own, and finds the files beside it.

The folder of a user's file is a package, and its name spells the path: ``/home/me/rewards.py`` is ``rlkit_user_2fhome_2fme.rewards``. So
two files of one name in different folders are two modules, a loss and a reward in one file come from one module, and another process that
has the file can import the module by its name alone. ``import helper`` beside ``helper.py`` is read as one from that package, unless it
would reach the same file anyway; names of the standard library are never taken from there.

A file that is already imported (``import rewards``, or the script itself) is not executed again: its module is used. If a file or one of
its neighbours has changed on disk since it was executed, as happens in a notebook, the next :func:`load_user_file` executes the folder's
files anew; objects that were made before keep the classes that they were made from. A process that gets a :func:`snapshot` executes the
text that its parent executed, so that an edit during a run does not reach half of its workers.
"""

from __future__ import annotations

import ast
import functools
import glob
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from rlkit.errors import ConfigError

PREFIX, ODD = "rlkit_user", "rlkit_file"
LIBRARIES = (f"{Path(__file__).parent}/", f"{sysconfig.get_path('stdlib')}/", "<frozen ")
_SOURCES: dict[str, bytes] = {}  # the text of every file that was executed
_GIVEN: dict[str, bytes] = {}  # texts from another process, used in place of what is on disk
_LOCK = threading.RLock()


# -- paths of a configuration -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """Marks a text that is a path, or holds one: the group of ``part``, a pattern of the whole text."""

    part: str = "(.+)"

    def resolve(self, text: str, folders: Iterable[Path]) -> str:
        """The text with the path as :func:`beside` finds it."""
        found = re.fullmatch(self.part, text)
        return text if found is None else text[: found.start(1)] + beside(found[1], folders) + text[found.end(1) :]


# Also a pattern of files; or a name, where there is no such file: of a model on the hub, of a data set.
Place = Annotated[str, Beside()]
PlacedFunction = Annotated[str, Beside(r"(.+\.py):[^:]+")]


def beside(path: str, folders: Iterable[Path]) -> str:
    """The path in the first of the folders that has it; else as it is, which is relative to the current folder."""
    places = (str(folder.resolve() / path) for folder in folders)
    return next((p for p in places if os.path.exists(p) or (glob.has_magic(path) and glob.glob(p))), path)


# -- the user's own files ---------------------------------------------------------------------------------------------


def load_user_file(path: str | Path) -> ModuleType:
    """The module of a file.

    Raises:
        ConfigError: no such file, or an error in it, with the line of the user's code.
    """
    path = Path(path).resolve()
    with _LOCK:
        if not _exists(path):
            raise ConfigError(f"there is no file {path}.")
        name = f"{_package(path.parent)}.{_component(path.stem)}"
        _forget_if_changed(_package(path.parent))
        module = sys.modules.get(name) or _imported_elsewhere(path)
        if module is not None:
            return module
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            said = str(error).split("\n")[0][:500]
            raise ConfigError(
                f"importing {path.name} failed at {_place(error, path)}: {type(error).__name__}: {said}"
            ) from error


def snapshot() -> dict[str, bytes]:
    """The texts of all files that were executed in this process, for :func:`use` in another one."""
    return {**_GIVEN, **_SOURCES}


def use(texts: Mapping[str, bytes]) -> None:
    """From now on these files have these texts, whatever is on disk."""
    _GIVEN.update(texts)


def by_value(module: ModuleType, pickler: Any) -> None:
    """What a user's file defines, and its neighbours, travel to another process as values, which need no file there."""
    root = module.__name__.partition(".")[0]
    pickler.register_pickle_by_value(sys.modules[root] if root.startswith(PREFIX) else module)


def user_file(module: str) -> Path | None:
    """The file of a module's name, if it is a user's file that was loaded here."""
    root, _, rest = module.partition(".")
    if not root.startswith(PREFIX) or not rest:
        return None
    return Path(_decode(root.removeprefix(PREFIX)), *(_stem(part) for part in rest.split("."))).with_suffix(".py")


# -- names ------------------------------------------------------------------------------------------------------------


def _encode(text: str) -> str:
    return re.sub(rb"[^0-9A-Za-z]", lambda m: b"_%02x" % m[0][0], text.encode()).decode()


def _decode(text: str) -> str:
    return re.sub(rb"_(..)", lambda m: bytes([int(m[1], 16)]), text.encode()).decode()


def _package(folder: Path) -> str:
    return PREFIX + _encode(str(folder))


def _component(stem: str) -> str:
    """As an import statement spells it, or, if no import statement could, an identifier that stands for it."""
    return stem if stem.isidentifier() and not stem.startswith(ODD) else ODD + _encode(stem)


def _stem(component: str) -> str:
    return _decode(component.removeprefix(ODD)) if component.startswith(ODD) else component


def _imported_elsewhere(path: Path) -> ModuleType | None:
    """The module of a file that Python imported under another name, e.g. the script that runs."""
    for name, module in list(sys.modules.items()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if (
            isinstance(file, str)
            and file.endswith(path.name)
            and not name.startswith(PREFIX)
            and Path(file).resolve() == path
        ):
            _SOURCES[str(path)] = path.read_bytes()
            return module
    return None


# -- finding and executing --------------------------------------------------------------------------------------------


def _exists(path: Path) -> bool:
    return str(path) in _GIVEN or path.is_file()


def _forget_if_changed(package: str) -> None:
    """Drops the modules of a folder if one of its files is not what was executed."""
    loaded = {name: module for name, module in sys.modules.items() if name.startswith(f"{package}.")}
    if any(
        module.__spec__ is not None and getattr(module.__spec__, "_initializing", False) for module in loaded.values()
    ):
        return  # in the middle of an import of one of them
    files = [module.__file__ for module in loaded.values() if module.__file__ is not None]
    if any(file in _SOURCES and _read(file) != _SOURCES[file] for file in files):
        for name in loaded:
            del sys.modules[name]
            vars(sys.modules[package]).pop(name.split(".")[1], None)


def _read(file: str) -> bytes | None:
    try:
        return _GIVEN.get(file) or Path(file).read_bytes()
    except OSError:
        return None


class _Loader(SourceFileLoader):
    """Executes the text itself: a cached ``.pyc`` is found by size and second, and an edit can keep both."""

    def get_code(self, fullname: str) -> Any:
        data = _GIVEN[self.path] if self.path in _GIVEN else Path(self.path).read_bytes()
        _SOURCES[self.path] = data
        tree = _Neighbours(fullname.partition(".")[0]).visit(ast.parse(data, self.path))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        if not root.startswith(PREFIX):
            return None
        if not rest:
            return _folder(fullname, _decode(root.removeprefix(PREFIX)))
        for parent in path or ():
            here = Path(parent, _stem(fullname.rpartition(".")[2]))
            file, package = here.with_name(f"{here.name}.py"), here / "__init__.py"
            if _exists(package):
                return importlib.util.spec_from_file_location(
                    fullname, package, loader=_Loader(fullname, str(package)), submodule_search_locations=[str(here)]
                )
            if _exists(file):
                return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, str(file)))
            if here.is_dir():
                return _folder(fullname, str(here))
        return None


def _folder(name: str, path: str) -> ModuleSpec:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [path]
    return spec


sys.meta_path.insert(0, _Finder())


class _Neighbours(ast.NodeTransformer):
    """``import helper``, where ``helper.py`` is beside the file, becomes an import from the folder's package."""

    def __init__(self, package: str) -> None:
        self.package, self.folder = package, Path(_decode(package.removeprefix(PREFIX)))
        self.is_beside = functools.cache(self._is_beside)

    def _is_beside(self, name: str) -> bool:
        if name in sys.stdlib_module_names:
            return False
        candidates = [p for p in (self.folder / name / "__init__.py", self.folder / f"{name}.py") if _exists(p)]
        if name in sys.modules:
            found = getattr(sys.modules[name], "__file__", None)
        else:
            spec = importlib.util.find_spec(name)
            if not candidates and spec is None:
                return (self.folder / name).is_dir()
            found = None if spec is None else spec.origin
        return bool(candidates) and (found is None or Path(found).resolve() != candidates[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module is not None and self.is_beside(node.module.partition(".")[0]):
            node.module = f"{self.package}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for alias in node.names:
            top, _, rest = alias.name.partition(".")
            if not self.is_beside(top):
                out.append(ast.Import(names=[alias]))
                continue
            parent, _, last = f"{self.package}.{alias.name}".rpartition(".")
            out.append(ast.ImportFrom(module=parent, names=[ast.alias(last, alias.asname or top)], level=0))
            if rest and alias.asname is None:  # `import a.b` imports a.b and binds a
                out.append(ast.ImportFrom(module=self.package, names=[ast.alias(top)], level=0))
        return [ast.fix_missing_locations(ast.copy_location(statement, node)) for statement in out]


# -- errors -----------------------------------------------------------------------------------------------------------


def is_user_frame(file: str) -> bool:
    """Whether code of this file is the user's own, as far as one can tell."""
    return file in _SOURCES or not (file.startswith(LIBRARIES) or "-packages/" in file)


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the user's own files, the innermost last; all frames, if there are none."""
    frames = list(traceback.extract_tb(error.__traceback__))
    return [f for f in frames if is_user_frame(f.filename)] or frames


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in user_frames(error) if f.filename in _SOURCES]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(path)
