"""Detection of parts of pytest, unittest, the builtins and the tests' modules that the patch has replaced."""

import builtins
import operator
import sys
import types
import unittest

from .words import COMPARING, RUNNERS


def make_replaced(facts, blame, deceit):
    """Return `take_baseline`, the checks against it, and `note_names`."""
    tree, tests, added, allowed = facts.tree, facts.tests, facts.added, facts.allowed
    made, is_of_patch, brought_by_patch = blame.made, blame.is_of_patch, blame.brought_by_patch
    baseline, functions, modules, test_names = [], [], {}, {}

    def take_baseline():
        holders: dict = {id(vars(builtins)): ("builtins", vars(builtins))}
        for name, module in sorted(sys.modules.items()):
            top = name.split(".")[0]
            if not isinstance(module, types.ModuleType) or top not in ("_pytest", "pytest", "pluggy", "unittest"):
                continue
            holders[id(vars(module))] = (name, vars(module))
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__.split(".")[0] == top:
                    holders[id(value)] = (f"{value.__module__}.{value.__qualname__}", vars(value))
        by_id = {}
        for title, holder in holders.values():
            names = tuple(holder)
            values = tuple(holder[name] for name in names)
            baseline.append((title, holder, names, values, len(holder)))
            for name, value in zip(names, values):  # noqa: B905  Python 3.8
                function = getattr(value, "__func__", value)
                if isinstance(function, types.FunctionType):
                    known = (f"{title}.{name}", function, function.__code__, function.__defaults__)
                    by_id[id(function)] = known
        functions.extend(by_id.values())
        for name, module in sys.modules.items():
            if name.split(".")[0] in RUNNERS or name in COMPARING:
                modules[name] = module

    def check_baseline():
        for title, holder, names, values, size in baseline:
            if not all(map(operator.is_, map(holder.get, names), values)):
                for name, value in zip(names, values):  # noqa: B905  Python 3.8
                    now = holder.get(name)
                    if now is not value and is_replaced(title, value, now):
                        deceit(f"{title}.{name} was replaced")
            if len(holder) != size and title.startswith(("_pytest", "pluggy")):
                for name in set(holder) - set(names):
                    if brought_by_patch(holder[name]):
                        deceit(f"{title}.{name} was put in")

    def is_replaced(title, value, now):
        runner = title.split(".")[0] in ("_pytest", "pluggy", "pytest")
        plain = not callable(now) and not isinstance(now, (property, classmethod, staticmethod))
        kept = plain and (_is_state(value) or isinstance(now, types.ModuleType))
        return brought_by_patch(now) or (runner and plain and not kept)

    def check_functions():
        """Check the code of the functions; while the tests run, the audit hook guards it."""
        for title, function, code, defaults in functions:
            if function.__code__ is not code or function.__defaults__ is not defaults:
                deceit(f"{title} was changed")

    def check_libraries():
        """Find functions of the patch in modules that compare values, and modules that replace the runner."""
        for name in COMPARING:
            module = sys.modules.get(name)
            if module is None or str(getattr(module, "__file__", None)).startswith(tree):
                continue
            holders = [module, *(value for value in vars(module).values() if isinstance(value, type))]
            for holder in holders:
                for title, value in list(vars(holder).items()):
                    code = getattr(getattr(value, "__func__", value), "__code__", None)
                    if isinstance(code, types.CodeType) and is_of_patch(code) and code.co_filename[:1] != "<":
                        deceit(f"{holder.__name__}.{title} was replaced")
        for name, module in modules.items():
            now = sys.modules.get(name)
            if now is not None and now is not module:
                values = [now, *vars(now).values()] if isinstance(now, types.ModuleType) else [now]
                if any(brought_by_patch(value) for value in values):
                    deceit(f"{name} was replaced")

    def check_plugins(manager):
        """Find hooks of the patch, which could keep tests from running."""
        if "pytest" in allowed:
            return
        for plugin in manager.get_plugins():
            for caller in manager.get_hookcallers(plugin) or ():
                for hook in caller.get_hookimpls():
                    code = getattr(getattr(hook.function, "__func__", hook.function), "__code__", None)
                    if (
                        isinstance(code, types.CodeType)
                        and code.co_filename not in tests
                        and (id(code) in made or code.co_firstlineno in added.get(code.co_filename, ()))
                    ):
                        deceit(f"{caller.name} was hooked")

    def note_names(holder):
        if id(holder) not in test_names:
            test_names[id(holder)] = (holder, names_in(holder))

    def names_in(holder):
        """Return the names of pytest, unittest or builtins in a module or class of the tests, with their values."""
        own = vars(holder)
        names = dir(unittest.TestCase) if isinstance(holder, type) else dir(builtins)
        for name, value in own.items():
            whose = getattr(value, "__name__" if isinstance(value, types.ModuleType) else "__module__", None)
            if str(whose).split(".")[0] in RUNNERS:
                names.append(name)
        return {name: own.get(name) for name in names}

    def check_names(holder):
        """Check that these names still refer to the same objects in a module or class of the tests."""
        _, before = test_names.get(id(holder), (None, None))
        if before:
            now = vars(holder)
            if not all(map(operator.is_, map(now.get, before), before.values())):
                for name, value in before.items():
                    if now.get(name) is not value and brought_by_patch(now.get(name)):
                        deceit(f"{holder.__name__}.{name} was replaced")

    return types.SimpleNamespace(
        take_baseline=take_baseline,
        check_baseline=check_baseline,
        check_functions=check_functions,
        check_libraries=check_libraries,
        check_plugins=check_plugins,
        note_names=note_names,
        check_names=check_names,
    )


def _is_state(value):
    """Return whether modules and classes keep and change such a value themselves: a number, text, flag or container."""
    return value is None or isinstance(value, (bool, int, float, str, bytes, list, dict, set, tuple, frozenset))
