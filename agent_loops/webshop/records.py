"""Products and goals, and what the shop makes of the benchmark's records of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_PRICE = 100.0
MAX_ASIN = 10
_PRODUCT_FIELDS = ("asin", "name", "full_description", "small_description", "customization_options", "pricing")
_GOAL_FIELDS = ("asin", "instruction_text", "attributes", "goal_options", "price_upper", "query", "product_category")
_NOT_A_NUMBER = re.compile(r"[^\d.]")


class CatalogueError(ValueError):
    """The data are missing, incomplete or malformed. The message names the file and what to change."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product as the shop shows it. `options` maps an option's name to its values, all lower-case.

    `instruction` and `instruction_attributes` are what synthetic goals are made from, empty where there are none.
    """

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
    instruction: str = ""
    instruction_attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Goal:
    """One task: an instruction and what the reward asks for. `asin` names the product it was made from.

    `options` maps an option's name to the wanted value; goals that people wrote list the values alone.
    """

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: Mapping[str, str] | tuple[str, ...]
    price_upper: float
    query: str
    product_category: str
    title: str


def is_sold(asin: str) -> bool:
    """Whether the shop takes a product of this asin: the benchmark drops the others."""
    return asin != "nan" and len(asin) <= MAX_ASIN


def read_product(record: Any, facts: Mapping[str, Any], limit: float | None, where: str) -> Product:
    """Returns the product of a record.

    Args:
        record: from items_shuffle*.json.
        facts: what items_ins_v2*.json says of it; empty where it says nothing.
        limit: the price limit of the product's frozen goals; None where it has none.
        where: the record's place, for errors.

    Raises:
        CatalogueError: the record is malformed.
    """
    asin = record["asin"]
    try:
        features = record["small_description"]
        pieces = (record["pricing"] or "").split("$")[1:]
        prices = [float(_NOT_A_NUMBER.sub("", piece)) for piece in pieces][:2] or [DEFAULT_PRICE]
        return Product(
            asin=asin,
            title=record["name"],
            description=record["full_description"],
            features=tuple(features) if isinstance(features, list) else (features,),
            price_text=" to ".join(f"${price}" for price in prices),
            price=fixed_price(prices, limit),
            options=_read_options(record["customization_options"]),
            attributes=tuple(facts.get("attributes", ("DUMMY_ATTR",))),
            query=record.get("query", "").lower().strip(),
            product_category=record.get("product_category", ""),
            instruction=facts.get("instruction") or "",
            instruction_attributes=tuple(facts.get("instruction_attributes") or ()),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CatalogueError(f"{where} ({asin}) is malformed: {error!r}") from error


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


def fixed_price(prices: Sequence[float], limit: float | None) -> float:
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


def read_goal(record: Any, where: str) -> Goal:
    """Returns the goal of a record of goals.json.

    Raises:
        CatalogueError: the record is malformed.
    """
    require_fields(record, _GOAL_FIELDS, where)
    try:
        wanted = record["goal_options"]
        return Goal(
            asin=record["asin"],
            instruction=record["instruction_text"],
            attributes=tuple(record["attributes"]),
            options=tuple(wanted) if isinstance(wanted, list) else dict(wanted),
            price_upper=float(record["price_upper"]),
            query=record["query"],
            product_category=record["product_category"],
            title=record["name"],
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CatalogueError(f"{where} is malformed: {error!r}") from error


def require_fields(record: Any, names: Sequence[str] = _PRODUCT_FIELDS, where: str = "") -> None:
    """Raises a `CatalogueError` unless the record is an object with these fields, of which `asin` is a text."""
    if not isinstance(record, dict):
        raise CatalogueError(f"{where} must be a JSON object, not a {type(record).__name__}")
    missing = [name for name in names if name not in record]
    if missing:
        raise CatalogueError(f"{where} lacks {', '.join(missing)}")
    if not isinstance(record["asin"], str):
        raise CatalogueError(f"{where} is malformed: its asin is {record['asin']!r}, not a text")


def searchable_text(product: Product) -> str:
    """Returns what the search reads of a product."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    feature = product.features[0] if product.features else ""
    return " ".join((product.title, product.description, feature, options)).lower()


def pack(record: Product | Goal) -> bytes:
    """Returns a product or a goal as a line of JSON without its line break."""
    return json.dumps({name: getattr(record, name) for name in record.__slots__}, separators=(",", ":")).encode()


def unpack_product(line: bytes) -> Product:
    """Returns the product of a packed line."""
    fields = json.loads(line)
    fields["options"] = {name: tuple(values) for name, values in fields["options"].items()}
    for name in ("features", "attributes", "instruction_attributes"):
        fields[name] = tuple(fields[name])
    return Product(**fields)


def unpack_goal(line: bytes) -> Goal:
    """Returns the goal of a packed line."""
    fields = json.loads(line)
    fields["attributes"] = tuple(fields["attributes"])
    if isinstance(fields["options"], list):
        fields["options"] = tuple(fields["options"])
    return Goal(**fields)
