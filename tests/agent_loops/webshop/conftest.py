"""What these tests share: a generated catalogue, and the benchmark's own data where this machine has them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_loops.webshop import Catalogue, Goal, Product, load_catalogue
from agent_loops.webshop.generate import generate_catalogue

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def generated_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_catalogue(tmp_path_factory.mktemp("webshop") / "generated")


@pytest.fixture(scope="session")
def generated(generated_dir: Path) -> Catalogue:
    return load_catalogue(generated_dir)


@pytest.fixture(scope="session")
def real_dir() -> Path:
    directory = Path(os.environ.get("AEM_WEBSHOP_DATA", ROOT.parent / "shared" / "data" / "webshop"))
    if not (directory / "goals.json").is_file():
        pytest.skip(f"WebShop's data are not at {directory}; set AEM_WEBSHOP_DATA to where they are")
    return directory


@pytest.fixture(scope="session")
def real(real_dir: Path) -> Catalogue:
    return load_catalogue(real_dir)


def _product(**fields: Any) -> Product:
    values: dict[str, Any] = {
        "asin": "B000000001",
        "title": "steel lamp",
        "description": "gives light",
        "features": ("dimmable",),
        "price_text": "$20.0",
        "price": 20.0,
        "options": {"color": ("red", "blue"), "size": ("small", "large")},
        "attributes": ("long lasting",),
        "query": "lamps",
        "product_category": "Home \u203a Lighting \u203a Lamps",
    }
    return Product(**{**values, **fields})


def _goal(**fields: Any) -> Goal:
    values: dict[str, Any] = {
        "asin": "B000000001",
        "instruction": "Find me lasting lamps with color: red, and size: large, and price lower than 30.00 dollars",
        "attributes": ("long lasting",),
        "options": {"color": "red", "size": "large"},
        "price_upper": 30.0,
        "query": "lamps",
        "product_category": "Home \u203a Lighting \u203a Lamps",
        "title": "steel lamp",
    }
    return Goal(**{**values, **fields})


@pytest.fixture(scope="session")
def make_product() -> Callable[..., Product]:
    """Makes a steel lamp, with what a test wants different."""
    return _product


@pytest.fixture(scope="session")
def make_goal() -> Callable[..., Goal]:
    """Makes a goal that the steel lamp meets, with what a test wants different."""
    return _goal
