"""The algorithms: a module for each with its settings, what it computes from a `Batch`, its metrics and its refusals.

`registry.py` lists them; estimators, settings, refusals at start-up, `aem replay`, the dump and the report follow. To
add one: its mathematics in `aem_core`, a module here (a `Modulator` or a `Base`, `algorithm.py`), its line in the
registry, a file in `config/method`, a section in docs/methods.md; tests/recipe/test_registry.py says what is missing.
"""
