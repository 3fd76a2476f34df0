"""Reading dumps: bad files are one line that names them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.aem.dump import digest, schema
from recipe.aem.dump.reader import find_files, read_metas, read_step
from recipe.aem.dump.step import DumpError
from recipe.aem.dump.writer import write_step


@pytest.fixture
def path(step, tmp_path) -> Path:
    return write_step(step, tmp_path)


def rewritten(path: Path, change) -> Path:
    """The file with other metadata, and the digests that go with them."""
    table = pq.read_table(path)
    meta = json.loads(table.schema.metadata[schema.METADATA_KEY])
    change(meta)
    written = json.dumps(meta).encode()
    digests = digest.digest_of(table, written)
    pq.write_table(table.replace_schema_metadata({schema.METADATA_KEY: written, digest.METADATA_KEY: digests}), path)
    return path


def test_bad_files_are_one_line_that_names_them(path, tmp_path):
    def said(*paths) -> str:
        with pytest.raises(DumpError) as error:
            read_metas(files := find_files(list(paths)))
            for file in files:
                read_step(file)
        assert "\n" not in str(error.value) and str(paths[-1]) in str(error.value)
        return str(error.value)

    whole = path.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is cut short" in said(path)
    path.write_bytes(b"")
    assert "is empty" in said(path)
    path.write_text("<html>")
    assert "is not a dump: no Parquet file" in said(path)
    pq.write_table(pa.table({"a": [1]}), path)
    assert "is a Parquet file but not a dump" in said(path)

    path.write_bytes(whole)
    assert "has version 3 of the format, this verl-aem reads 1 and 2" in said(
        rewritten(path, lambda meta: meta.update(schema=3))
    )
    path.write_bytes(whole)
    assert "is a damaged dump: its metadata" in said(rewritten(path, lambda meta: meta.pop("width")))
    path.write_bytes(whole)
    pq.write_table(pq.read_table(path).drop_columns(["advantages"]), path)
    assert "it has no column advantages" in said(path)

    path.write_bytes(whole)
    other = tmp_path / "step_000004.parquet"
    other.write_bytes(whole)
    rewritten(other, lambda meta: meta.update(data={"train_files": ["other"], "benchmark": {"target": "shop"}}))
    assert re.search(r"is of a run on other data than .*step_000003.*\(train_files differ\)", said(path, other))

    assert "does not exist" in said(tmp_path / "nowhere")
    (empty := tmp_path / "empty").mkdir()
    assert said(empty).endswith("holds no dump: no file step_*.parquet")
    (empty / "step_000001.parquet.part").write_bytes(whole)
    assert said(empty).endswith("only 1 unfinished ones (step_*.parquet.part)")


def test_files_come_in_the_order_of_their_steps(step, tmp_path):
    for number in (10, 2, 1):
        write_step(dataclasses.replace(step, meta=dataclasses.replace(step.meta, step=number)), tmp_path)
    files = find_files([tmp_path, tmp_path / "step_000002.parquet"])
    assert [meta.step for meta in read_metas(files)] == [1, 2, 10]
