"""One step's batch in memory, as it is written and as it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aem_core.errors import AEMError
from agent_loops.reading import FileError
from recipe.aem.batch import Batch
from recipe.aem.columns import Ragged


class DumpError(AEMError, FileError):
    """A dump that cannot be read or used; the message is one line and names the file."""


@dataclass(frozen=True)
class Meta:
    """What a file says about itself.

    Attributes:
        step: verl's global step.
        part, parts: which of the step's sub-batches (`parameter_sync_step` of separate_async); 0 of 1 elsewhere.
        width: how many tokens wide the batch was for the estimator: its longest response part.
        rows, groups: how many the batch had, padding rows not counted.
        rows_left_out, groups_left_out: how many of them `algorithm.dump.rows` left out.
        estimator: `algorithm.adv_estimator`.
        settings: of every block that this package reads, defaults included.
        algorithm: verl's whole `config.algorithm`.
        weights: what the column `weights` holds, `alpha` (AEM) or `scale` (EMPG); None without a modulation.
        centre: what EMPG's re-centring took off every advantage.
        run: project, experiment, model, tokenizer.
        data: what the run was trained on: files, benchmark.
        packages: versions.
        machine: threads and vector instructions, on which the last bit of a sum may depend.
        written: when, ISO 8601.
        digest: of the rows, which were compared with it when they were read; of a file of version 1 that it has none.
            Not among what is written.
    """

    step: int
    part: int
    parts: int
    width: int
    rows: int
    groups: int
    rows_left_out: int
    groups_left_out: int
    estimator: str
    settings: Mapping[str, Any]
    algorithm: Mapping[str, Any]
    weights: str | None = None
    centre: float | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""
    digest: str = field(default="", compare=False)

    @property
    def file_name(self) -> str:
        part = f"_{self.part}" if self.parts > 1 else ""
        return f"step_{self.step:06d}{part}.parquet"


@dataclass(frozen=True)
class Step:
    """A batch, one entry a row of verl's, padding rows included, in its order.

    Attributes:
        meta: of the file.
        keys: `{uid}_{session}_{index}`, verl's name of a row.
        groups: verl's uid.
        is_padding: rows that verl added to fill a mini-batch.
        extra_fields: what the agent loop left, as far as the format has a place for it.
        tokens: columns by the names of the format (`schema.TOKENS`); some may be missing.
        weights: for each row one factor a span, None where nothing of the span counts; see `Meta.weights`.
        bonuses: the same of EMPG's bonus.
    """

    meta: Meta
    keys: Sequence[str]
    groups: Sequence[str]
    is_padding: Sequence[bool]
    extra_fields: Sequence[Mapping[str, Any]]
    tokens: Mapping[str, Ragged]
    weights: Sequence[Sequence[float | None]] | None = None
    bonuses: Sequence[Sequence[float | None]] | None = None

    @cached_property
    def batch(self) -> Batch:
        """The rows as everything that computes on them reads them."""
        return Batch.from_dump(self)
