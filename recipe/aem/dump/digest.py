"""A digest of the contents of a dump's file.

Parquet's own checksums cover the pages, but neither the footer nor the pages' headers, in which a flipped bit may
change a number, a name or a length. The digest has two parts, so that the metadata can be trusted without reading the
rows: one of the metadata's bytes, and one of the table's values, column by column, whatever pages and dictionaries they
are stored in.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

METADATA_KEY = b"verl_aem_digest"
_SIZE = 16


def digest_of(table: pa.Table, meta: bytes) -> bytes:
    """Return the value of `METADATA_KEY`: JSON with the digests of the metadata and of the rows."""
    return json.dumps({"metadata": of_bytes(meta), "rows": of_rows(table)}).encode()


def of_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_SIZE).hexdigest()


def of_rows(table: pa.Table) -> str:
    """Return the digest of a table's names, types and values; NaN counts by its bits, null differs from any value."""
    total = hashlib.blake2b(digest_size=_SIZE)
    for name in table.column_names:
        total.update(f"\0{name}\0".encode())
        _feed(total, table[name].combine_chunks())
    return total.hexdigest()


def _feed(total: Any, array: Any) -> None:
    if isinstance(array, pa.ChunkedArray):  # the column is empty, or has several chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_struct(kind):
        word = "list" if pa.types.is_list(kind) else "struct"
    else:
        word = str(kind)
    total.update(f"{word} {len(array)} {array.null_count}\0".encode())
    if array.null_count:
        total.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(kind):
        total.update(_bytes(pc.fill_null(pc.call_function("list_value_length", [array]), 0)))
        _feed(total, array.flatten())
    elif pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            total.update(f"{kind.field(place).name}\0".encode())
            _feed(total, array.field(place))
    elif pa.types.is_string(kind):
        filled = pc.fill_null(array, "")
        total.update(_bytes(pc.call_function("binary_length", [filled])))
        if len(filled):
            _, ends, texts = filled.buffers()
            ends = np.frombuffer(ends, np.int32)[filled.offset : filled.offset + len(filled) + 1]
            total.update(memoryview(texts or b"")[ends[0] : ends[-1]])
    else:
        total.update(_bytes(pc.fill_null(array, False if pa.types.is_boolean(kind) else 0)))


def _bytes(array: Any) -> bytes:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).tobytes()
