"""Hydra configurations: `--config-path=pkg://recipe.aem.config`. Hydra needs this file to find them in a wheel."""
