"""What the tests of dumps share: a step to dump, and the writer's log."""

from __future__ import annotations

import pytest

# verl and pyarrow may be missing: each module skips itself then, so nothing here imports them at the top


@pytest.fixture
def warned(caplog):
    """Where verl has set up its loggers, theirs do not reach the root, which is where pytest listens."""
    from recipe.aem.dump import writer

    writer.logger.addHandler(caplog.handler)
    yield caplog
    writer.logger.removeHandler(caplog.handler)


@pytest.fixture
def step():
    from tests.helpers.dumps import AEM, Shelf, advance, make_batch, make_trainer

    trainer = make_trainer({**AEM, "dump": {"dir": "x"}}, aem_dump=(shelf := Shelf()))
    advance(trainer, make_batch(1))
    return shelf.steps[0]
