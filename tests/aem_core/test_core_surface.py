"""What other people's code leans on: names, signatures, attributes, documentation, dependencies."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import pytest

import aem_core

FOLDER = Path(aem_core.__file__).parent
MODULES = ["aem_core", *(f"aem_core.{module.name}" for module in pkgutil.iter_modules([str(FOLDER)]))]

SIGNATURES = {
    "find_responses": "(response_mask_BT: 'Tensor', *, validate: 'bool' = True) -> 'Responses'",
    "Responses.from_spans": (
        "(spans: 'Sequence[Sequence[tuple[int, int]]]', shape: 'tuple[int, int]', mask_BT: 'Tensor | None' = None, *, "
        "validate: 'bool' = True) -> 'Responses'"
    ),
    "response_log_probs": "(log_prob_BT: 'Tensor', responses: 'Responses', *, validate: 'bool' = True) -> 'Tensor'",
    "response_entropies": "(entropy_BT: 'Tensor', responses: 'Responses', *, validate: 'bool' = True) -> 'Tensor'",
    "relative_surprisal": (
        "(log_prob_BT: 'Tensor', entropy_BT: 'Tensor', responses: 'Responses', *, validate: 'bool' = True) -> 'Tensor'"
    ),
    "modulation_coefficients": (
        "(entropy_N: 'Tensor', group_N: 'Tensor', lam: 'float' = 1.0, min_range: 'float' = 0.1, *, "
        "direction: 'Direction' = 'forward', validate: 'bool' = True) -> 'Tensor'"
    ),
    "rescale_advantages": (
        "(advantage_BT: 'Tensor', alpha_N: 'Tensor', responses: 'Responses', *, validate: 'bool' = True) -> 'Tensor'"
    ),
    "aem": (
        "(advantage_BT: 'Tensor', entropy_BT: 'Tensor', responses: 'Responses', group_B: 'Tensor', *, "
        "lam: 'float' = 1.0, min_range: 'float' = 0.1, scope: 'Scope' = 'group', "
        "trajectory_B: 'Tensor | None' = None, direction: 'Direction' = 'forward', shuffle: 'int | None' = None, "
        "validate: 'bool' = True) -> 'tuple[Tensor, AemStats]'"
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_frozen(name):
    """Adding a keyword with a default is compatible; then this text changes too, on purpose."""
    function = aem_core
    for part in name.split("."):
        function = getattr(function, part)
    assert str(inspect.signature(function)) == SIGNATURES[name]


def test_the_exported_names_are_frozen():
    assert sorted(aem_core.__all__) == sorted(
        [
            "AEMError",
            "AEMValueError",
            "AemStats",
            "Direction",
            "Responses",
            "Scope",
            "aem",
            "find_responses",
            "modulation_coefficients",
            "relative_surprisal",
            "rescale_advantages",
            "response_entropies",
            "response_log_probs",
        ]
    )
    assert all(hasattr(aem_core, name) for name in aem_core.__all__)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (aem_core.Responses, ["index_BT", "row_N", "length_N", "span_N", "token_M", "response_M"]),
        (aem_core.AemStats, ["alpha_N", "entropy_N", "scope_N", "range_N", "guarded_N"]),
    ],
)
def test_results_are_frozen_dataclasses(kind, fields):
    assert [field.name for field in dataclasses.fields(kind)] == fields
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(*[None] * len(fields)), fields[0], None)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    # Through sys.modules, for the attribute aem_core.aem is the function.
    importlib.import_module(name)
    assert doctest.testmod(sys.modules[name]).failed == 0


@pytest.mark.parametrize("name", [name for name in SIGNATURES])
def test_docstrings_have_their_sections(name):
    function = aem_core
    for part in name.split("."):
        function = getattr(function, part)
    doc = inspect.getdoc(function) or ""
    for section in ("Source: ", "Args:", "Returns:", "Raises:", "Example:", ">>> "):
        assert section in doc, section
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}:" in doc, parameter


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_torch_is_the_only_dependency(path):
    allowed = {"torch", "aem_core", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= allowed
