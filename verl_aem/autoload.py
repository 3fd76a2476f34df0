"""The entry point `verl.plugins`: verl only imports the module that an entry point names, and calls nothing in it."""

from verl_aem import load

load()
