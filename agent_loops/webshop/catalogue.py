"""The benchmark's data: products, goals and the search index over them, read once a process and shared.

A data directory holds WebShop's own files: `items_shuffle*.json` (products), `items_ins_v2*.json` (their attributes)
and `goals.json` (the goals, in their final order, prices frozen). Nothing here draws a random number: the order and
the prices are what the files say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from agent_loops.webshop.search import SearchIndex

DEFAULT_PRICE = 100.0
_PRODUCT_FIELDS = ("asin", "name", "full_description", "small_description", "customization_options", "pricing")
_GOAL_FIELDS = ("asin", "instruction_text", "attributes", "goal_options", "price_upper", "query", "product_category")


class CatalogueError(ValueError):
    """The data directory is missing, incomplete or malformed. The message names the file and what to change."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product as the shop shows it. `options` maps an option's name to its values, all lower-case."""

    asin: str
    title: str
    description: str
    features: tuple[str, ...]
    price_text: str
    price: float
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    query: str
    product_category: str


@dataclass(frozen=True, slots=True)
class Goal:
    """One task: an instruction and what the reward asks for. `asin` names the product it was made from."""

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: Mapping[str, str]
    price_upper: float
    query: str
    product_category: str
    title: str


@dataclass(frozen=True)
class Catalogue:
    """Products in file order, goals in file order, and the search index over the products."""

    products: Sequence[Product]
    goals: Sequence[Goal]
    index: SearchIndex = field(repr=False)

    @cached_property
    def by_asin(self) -> Mapping[str, Product]:
        """Products by their asin (upper-case)."""
        return {product.asin: product for product in self.products}

    def search(self, query: str) -> tuple[int, ...]:
        """Returns the positions of at most 50 products, best first."""
        return self.index.search(query)


def load_catalogue(directory: str | Path) -> Catalogue:
    """Reads a data directory.

    Raises:
        CatalogueError: the directory or a file is missing or malformed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CatalogueError(
            f"WebShop's data directory {str(directory)!r} does not exist. Set `data_dir` to a directory with "
            "items_shuffle*.json, items_ins_v2*.json and goals.json, or make one: "
            "python -m agent_loops.webshop.generate DIR"
        )
    items_file = _only_file(directory, "items_shuffle*.json")
    attributes_file = _only_file(directory, "items_ins_v2*.json")
    goals_file = _only_file(directory, "goals.json")
    goals = _read_goals(goals_file)
    price_limits = {goal.asin: goal.price_upper for goal in goals}
    products = _read_products(items_file, _read_json(attributes_file, dict), price_limits)
    if not price_limits.keys() & {product.asin for product in products}:
        raise CatalogueError(
            f"{goals_file} and {items_file} do not belong together: no goal's product is among the items"
        )
    return Catalogue(products, goals, SearchIndex(map(_searchable_text, products)))


def _only_file(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CatalogueError(f"{directory} (`data_dir`) must hold exactly one {pattern}; found: {names}")
    return found[0]


def _read_json(path: Path, kind: type) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise CatalogueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise CatalogueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(content, kind):
        raise CatalogueError(f"{path} must hold a JSON {kind.__name__}, not a {type(content).__name__}")
    return content


def _read_products(path: Path, attributes: dict[str, Any], price_limits: Mapping[str, float]) -> list[Product]:
    products: list[Product] = []
    seen: set[str] = set()
    for number, record in enumerate(_read_json(path, list)):
        where = f"{path}, product {number}"
        _require_fields(record, _PRODUCT_FIELDS, where)
        asin = record["asin"]
        if asin == "nan" or len(asin) > 10 or asin in seen:  # the benchmark drops these too
            continue
        seen.add(asin)
        try:
            features = record["small_description"]
            prices = [float(part.replace(",", "")) for part in (record["pricing"] or "").split("$")[1:]]
            prices = prices[:2] or [DEFAULT_PRICE]
            products.append(
                Product(
                    asin=asin,
                    title=record["name"],
                    description=record["full_description"],
                    features=tuple(features) if isinstance(features, list) else (features,),
                    price_text=" to ".join(f"${price}" for price in prices),
                    price=_fixed_price(prices, price_limits.get(asin)),
                    options=_read_options(record["customization_options"]),
                    attributes=tuple(attributes.get(asin, {}).get("attributes", ("DUMMY_ATTR",))),
                    query=record.get("query", "").lower().strip(),
                    product_category=record.get("product_category", ""),
                )
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CatalogueError(f"{where} ({asin}) is malformed: {error!r}") from error
    if not products:
        raise CatalogueError(f"{path} holds no products")
    return products


def _read_options(options: Mapping[str, Any] | str | None) -> dict[str, tuple[str, ...]]:
    if not options:
        return {}
    if isinstance(options, str):
        raise ValueError(f"customization_options is the text {options[:40]!r}, not a mapping")
    return {
        name.lower(): tuple(entry["value"].strip().replace("/", " | ").lower() for entry in entries)
        for name, entries in options.items()
        if entries is not None
    }


def _fixed_price(prices: Sequence[float], limit: float | None) -> float:
    """Returns the one price that the reward compares with a goal's limit.

    The benchmark draws it anew in each process, uniformly from the shown range, and then the limit from the second to
    the fourth of the next multiples of ten above it. Frozen goals fix the limit, so the price lies 10 to 40 dollars
    below it; the middle of what remains of the range is taken.
    """
    low, high = min(prices), max(prices)
    if limit is not None and low < high:
        narrow_low, narrow_high = max(low, limit - 40), min(high, limit - 10)
        if narrow_low <= narrow_high:
            low, high = narrow_low, narrow_high
    return (low + high) / 2


def _read_goals(path: Path) -> list[Goal]:
    goals: list[Goal] = []
    for number, record in enumerate(_read_json(path, list)):
        where = f"{path}, goal {number}"
        _require_fields(record, _GOAL_FIELDS, where)
        try:
            goals.append(
                Goal(
                    asin=record["asin"],
                    instruction=record["instruction_text"],
                    attributes=tuple(record["attributes"]),
                    options=dict(record["goal_options"]),
                    price_upper=float(record["price_upper"]),
                    query=record["query"],
                    product_category=record["product_category"],
                    title=record["name"],
                )
            )
        except (TypeError, ValueError, KeyError) as error:
            raise CatalogueError(f"{where} is malformed: {error!r}") from error
    if not goals:
        raise CatalogueError(f"{path} holds no goals")
    return goals


def _require_fields(record: Any, names: Sequence[str], where: str) -> None:
    if not isinstance(record, dict):
        raise CatalogueError(f"{where} must be a JSON object, not a {type(record).__name__}")
    missing = [name for name in names if name not in record]
    if missing:
        raise CatalogueError(f"{where} lacks {', '.join(missing)}")


def _searchable_text(product: Product) -> str:
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    feature = product.features[0] if product.features else ""
    return " ".join((product.title, product.description, feature, options)).lower()
