"""A step's batch as a file, with everything from which its advantages were computed (docs/dump.md has the format).

`recipe.aem.seam.capture` collects it in the trainer, `writer` writes it in the background, `schema` defines the format,
`reader` reads it back as a `Step`. `recipe.aem.tools.replay.advantages` computes on it.
"""
