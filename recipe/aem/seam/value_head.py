"""The attention of the critic: verl 0.9.1 loads every critic with flash attention 2 (verl#5210).

`verl.utils.model.load_valuehead_model` passes `attn_implementation="flash_attention_2"`, whatever
`critic.model.override_config.attn_implementation` says. Where flash-attn is missing it then asks for a class that trl
has removed. The engine loads the actor with the attention of its configuration; here the critic is loaded likewise.
A test tells when verl does this itself (tests/recipe/seam/test_contract_machine.py); then this module can go.
"""

from __future__ import annotations

from typing import Any

VERLS_ATTENTION = "flash_attention_2"


def with_configured_attention(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `load_valuehead_model`; load the token classifier with the attention of `model_config`."""

    def bound(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        if model_config._attn_implementation == VERLS_ATTENTION:
            return wrapped(local_path, torch_dtype, model_config, trust_remote_code)
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    return bound(*args, **kwargs)
