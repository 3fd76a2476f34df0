"""One JVM for all tests that only play; where there is no Java they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("textworld_express", reason="TextWorldExpress is not installed (pip install 'verl-aem[textworld]')")

from agent_loops.java import JavaError, find_java
from agent_loops.textworld_express import Simulator


@pytest.fixture(scope="session")
def textworld() -> Iterator[Simulator]:
    try:
        find_java("TextWorldExpress")
    except JavaError as error:
        pytest.skip(str(error))
    simulator = Simulator()
    yield simulator
    simulator.close()
