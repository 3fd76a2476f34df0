"""The nouns of a product's title: the only place where the reward needs part-of-speech tags.

WebShop calls spaCy (`en_core_web_sm`) each time. Here the tags of the benchmark's small set are precomputed: for each
title, a digest of it and where its nouns begin and end, and no word of it. A title without precomputed tags is judged
by word lists: on the small set, from which their words were chosen, r_type then equals spaCy's for 97 % of random
pairs of products. `tag_titles` precomputes the tags of another data set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path

PREPARED_FILE = Path(__file__).with_name("nouns.json")

_TOKEN = re.compile(r"[^\W_]+|\|")
_AMOUNT = re.compile(r"\d+([a-z]*)")
_UNITS = frozenset(re.findall(r"\w+", "cm fl ft g gb in inch k kg l lb m mb ml mm oz pc pcs pack tb w"))
NOT_NOUNS = frozenset(
    re.findall(
        r"\w+",
        """
        a able about above after against all also am an and any apply are around as at away be been before below
        between both but by can cannot d de do does down each etc even ever every few for from full fully go had has
        have here how i if in include included includes including into is it its just keep less ll made make makes
        many me more most much must my near need new nor not of off on once one only onto or original other our out
        over own per plus provide re reduce s same shall should show so some still such suitable than that the their
        them then there these they this those three through to too two under until up upon use used uses using v ve
        very was we were what when where which while who whose why will with within without would yet you your six
        four five seven eight nine ten based built colorful comfortable damaged decorative designed elegant empty
        fashionable floating folding foldable imported infused inspired japanese korean large lasting oriental
        padded portable powered pressed removable resealable shaped shielded slim suitable tempered virtual washable
        wearable wide
        """,
    )
)


@lru_cache(maxsize=16384)
def title_nouns(title: str) -> tuple[str, ...]:
    """Return a title's nouns in lower case, in order, repeats included."""
    spans = prepared_spans(PREPARED_FILE).get(title_digest(title))
    return guess_nouns(title) if spans is None else nouns_at(title, spans)


def guess_nouns(title: str) -> tuple[str, ...]:
    """Return the words of a title that no list classifies as something other than a noun.

    Example:
        >>> guess_nouns("Slim Oak Lamp for the Men's Room, 16oz")
        ('oak', 'lamp', 'men', 'room', 'oz')
    """
    found: list[str] = []
    for token in _TOKEN.findall(title.lower()):
        amount = _AMOUNT.fullmatch(token)
        word = amount[1] if amount and (not amount[1] or amount[1] in _UNITS) else token
        if word and word not in NOT_NOUNS:
            found.append(word)
    return tuple(found)


def title_digest(title: str) -> str:
    """Return the key under which a title's tags are stored."""
    return blake2b(title.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def nouns_at(title: str, spans: str) -> tuple[str, ...]:
    """Return the words of a title at precomputed places.

    Args:
        title: the title.
        spans: alternating numbers: characters to skip, and characters to take.
    """
    numbers = [int(number) for number in spans.split()]
    nouns: list[str] = []
    position = 0
    for skipped, taken in zip(numbers[::2], numbers[1::2], strict=True):
        position += skipped + taken
        nouns.append(title[position - taken : position].lower())
    return tuple(nouns)


@cache
def prepared_spans(path: Path) -> Mapping[str, str]:
    """Return the precomputed tags of a file: digests of titles to the places of their nouns."""
    return json.loads(path.read_text(encoding="utf-8"))["titles"]
