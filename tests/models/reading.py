"""A model folder read without this package, verl and transformers: tokenizers and jinja2 alone."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.cache
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


class Reading:
    """The tokenizer and the chat template of a folder.

    Args:
        folder: with tokenizer.json and tokenizer_config.json.
    """

    def __init__(self, folder: Path):
        self.tokenizer = _tokenizer((folder / "tokenizer.json").resolve())
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._words = {name: self._text(config.get(name)) for name in ("bos_token", "eos_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(config["chat_template"])
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {number: token.content for number, token in added.items() if token.special}

    @staticmethod
    def _text(token: Any) -> str:
        return token["content"] if isinstance(token, dict) else token or ""

    def text(self, contents: list[str]) -> str:
        """A chat that a user begins and is asked to be gone on with."""
        messages = [{"role": ("user", "assistant")[place % 2], "content": one} for place, one in enumerate(contents)]
        return self._template.render(messages=messages, add_generation_prompt=True, tools=None, **self._words)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return found

    def between(self, said: list[str], closing: str) -> list[int]:
        """What stands behind the closing token of the last of the responses to all but the last of what was said.

        Args:
            said: the user's messages.
            closing: how a response is closed; empty: by nothing.
        """
        contents: list[str] = []
        for place, one in enumerate(said):
            contents += [one, f"reply number {place}."]
        rest = self.text(contents[:-1]).split(f"reply number {len(said) - 2}.")[1]
        if not closing:
            return self.ids(rest)
        _, found, rest = rest.partition(closing)
        assert found, f"no {closing} behind a response"
        first, *ids = self.ids(closing + rest)
        assert first == self.id(closing)
        return ids
