"""The code that a training may import, as digests, so that an edit elsewhere in the tree spoils no finished cell."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import recipe.aem

OWN = ("recipe.aem", "agent_loops", "aem_core", "verl_aem")
_ROOTS = ("verl_aem.autoload", "recipe.aem.plugin")
_NAMED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_DATA = (".json", ".jinja", ".txt")


@cache
def code_of(target: str) -> dict[str, str]:
    """Digests of the modules that training on a benchmark may import, by path.

    It follows the imports of the plug-in and of the benchmark, those inside functions too, and module names in
    strings, within this package and the benchmark's own. Comments and docstrings count for nothing; a package's data
    files do.

    Args:
        target: the class of the benchmark, `package.module.Class`; may be empty.
    """
    own = (*OWN, target.partition(".")[0]) if target else OWN
    waiting, seen = [*_ROOTS, target], set()
    digests: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        found = _locate(name, own)
        if found is None or found in seen:
            continue
        seen.add(found)
        root, path = found
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        package = ".".join(path.relative_to(root).with_suffix("").parts[:-1])
        # a parent package is imported with its module
        waiting += [*_imports(tree, package), package]
        digests[path.relative_to(root).as_posix()] = _digest(ast.dump(_bare(tree)).encode())
        if path.name == "__init__.py":
            digests |= {data.relative_to(root).as_posix(): _digest(data.read_bytes()) for data in _data(path.parent)}
    return dict(sorted(digests.items()))


def _locate(name: str, own: tuple[str, ...]) -> tuple[Path, Path] | None:
    """The root on the path, and the file, of the longest part of a dotted name that is a module of ours."""
    if not any(name == one or name.startswith(f"{one}.") for one in own):
        return None
    roots = [Path(recipe.aem.__path__[0]).resolve().parents[1], *(Path(one or ".").resolve() for one in sys.path)]
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for root in roots:
            stem = root.joinpath(*parts[:length])
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if path.is_file():
                    return root, path
    return None


def _data(package: Path) -> Iterator[Path]:
    """The data files of a package, those of its subpackages left out."""
    for path in package.rglob("*"):
        owner = next(folder for folder in path.parents if (folder / "__init__.py").exists())
        if path.suffix in _DATA and owner == package:
            yield path


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAMED.fullmatch(node.value):
            yield node.value


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
