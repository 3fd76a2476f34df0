"""The algorithms: one module each, with its settings, its computation on a `Batch`, its metrics and start-up checks.

`registry.py` lists them; estimators, settings, start-up checks, `aem replay`, the dump and the report use that list. To
add an algorithm: its mathematics in `aem_core`, a module here (a `Modulator` or a `Base`, `algorithm.py`), its line in
the registry, a file in `config/method`, a section in docs/methods.md; tests/recipe/test_registry.py reports what is
missing.
"""
