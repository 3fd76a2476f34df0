"""A step's batch as a file, with everything that its advantages were made from (docs/dump.md describes the format).

`capture` collects it in the trainer, `writer` writes it in the background, `schema` is the format, `reader` reads it
back as a `Step`. `recipe.aem.tools.replay.advantages` computes on it.
"""
