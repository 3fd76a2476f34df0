"""Every error that aem_core and recipe.aem raise on purpose is an `AEMError` and a standard error, and pickles."""

from __future__ import annotations

import ast
import builtins
import importlib
import pickle
from pathlib import Path

import pytest

from aem_core import AEMError

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("aem_core/**/*.py"), *ROOT.glob("recipe/aem/**/*.py")])
STANDARD = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
# the end of a process, and what Python's protocols ask for
PROTOCOLS = {"SystemExit", "KeyboardInterrupt", "StopIteration", "AttributeError", "NotImplementedError"}
BARE = {
    # started with `python -I -S`, so that it depends on nothing: it cannot import aem_core
    "recipe/aem/tools/supervise.py": {"OSError"},
}


def is_error(name: str) -> bool:
    kind = STANDARD.get(name)
    return kind is not None and issubclass(kind, Exception)


def raised(path: Path) -> set[str]:
    """The standard errors that a file raises by name."""
    calls = [node.exc for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Raise)]
    names = [call.func if isinstance(call, ast.Call) else call for call in calls]
    return {name.id for name in names if isinstance(name, ast.Name) and is_error(name.id)}


def test_no_standard_error_is_raised_bare():
    found = {path.relative_to(ROOT).as_posix(): raised(path) - PROTOCOLS for path in FILES}
    assert {path: names for path, names in found.items() if names} == BARE


def classes() -> list[tuple[str, str]]:
    """Module and name of each class that derives from an error, by the names of its bases."""
    found, known = [], {name for name in STANDARD if is_error(name)} | {"FileError"}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and known & {getattr(base, "id", "") for base in node.bases}:
                found.append((module, node.name))
    return found


CLASSES = classes()


def test_control_the_classes_are_found():
    names = {name for _, name in CLASSES}
    assert {"AEMError", "AEMValueError", "SettingsError", "StudyError", "TrainingFailed"} <= names


@pytest.mark.parametrize(("module", "name"), CLASSES, ids=[name for _, name in CLASSES])
def test_each_class_is_in_the_tree_and_pickles(module, name):
    try:
        kind = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert issubclass(kind, AEMError)
    if kind is not AEMError:
        assert any(is_error(base.__name__) and base is not Exception for base in kind.__mro__), kind.__mro__
    error = kind("steps.pt: got 1; expected 2")
    error.note = "kept"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) == "steps.pt: got 1; expected 2"
    assert vars(again) == vars(error)
