"""What has to hold before verl's V1 trainer starts a run with this package: said by the trainer, and by the doctor."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from recipe.aem.epo import EpoSettings, check_epo
from recipe.aem.settings import ESTIMATORS, AemSettings, Settings, SettingsError, check_config, check_name

logger = logging.getLogger(__name__)

_ULYSSES = "ulysses_sequence_parallel_size"


def check_run(
    config: Mapping[str, Any], registered: Collection[str], verl_version: str
) -> tuple[Settings | None, EpoSettings]:
    """The settings of this package, None for an estimator that is not ours, and those of EPO.

    Args:
        config: verl's whole configuration.
        registered: the names of verl's estimator registry.
        verl_version: the installed verl.

    Raises:
        SettingsError: a setting that the run cannot be trained with.
    """
    estimator = config["algorithm"]["adv_estimator"]
    check_name(estimator)
    settings = None
    if estimator in ESTIMATORS:
        settings = check_config(config, registered, verl_version)
    else:
        AemSettings.from_config(config["algorithm"])  # the dump's settings hold for every estimator
    epo = check_epo(config, verl_version)
    if settings or epo.enable:
        check_sequence_parallelism(config)
    return settings, epo


def check_sequence_parallelism(config: Mapping[str, Any]) -> None:
    """Refuse Ulysses without flash attention: verl patches no other attention function, so each rank would attend to
    its own part of the sequence only, and nothing would say so.

    Raises:
        SettingsError: naming the two settings.
    """
    ours = config["actor_rollout_ref"]
    attention = (ours["model"].get("override_config") or {}).get("attn_implementation", "flash_attention_2")
    if str(attention).startswith("flash_attention"):
        return
    for role in ("actor", "ref"):
        its = ours.get(role) or {}
        place = f"actor_rollout_ref.{role}.fsdp_config"
        size = (its.get("fsdp_config") or {}).get(_ULYSSES) or 1
        if (older := its.get(_ULYSSES) or 1) > 1:  # verl's deprecated name, which it prefers
            place, size = f"actor_rollout_ref.{role}", older
        if size > 1:
            raise SettingsError(
                f"{place}.{_ULYSSES}={size} with "
                f"actor_rollout_ref.model.override_config.attn_implementation={attention}: verl splits sequences over "
                "ranks for flash attention alone, and would train on attention within each part. Set the size to 1, "
                "or attn_implementation to flash_attention_2"
            )


def check_template(config: Mapping[str, Any], layout: str) -> None:
    """Refuse a layout that the model's chat template cannot render: otherwise every session fails, and only after the
    engine has started. A tokenizer that is not on this disk is not looked at.

    Args:
        config: verl's whole configuration.
        layout: `episode.layout`.

    Raises:
        SettingsError: naming what to set.
    """
    from agent_loops.chat_template import load_tokenizer, why_not

    model = config["actor_rollout_ref"].get("model")
    if model is None:
        return
    try:
        tokenizer, model_type = load_tokenizer(model)
    except Exception as error:  # transformers raises OSError, ValueError and its hub's own; verl says what is wrong
        logger.info("the chat template is not looked at: %s", error)
        return
    if problem := why_not(layout, tokenizer, model_type, config["data"].get("apply_chat_template_kwargs"), model):
        raise SettingsError(f"{model.path}: {problem}")
