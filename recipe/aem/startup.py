"""What has to hold before verl's V1 trainer starts a run with this package: said by the trainer, and by the doctor."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

from recipe.aem.epo import EpoSettings, check_epo
from recipe.aem.settings import ESTIMATORS, GAE, AemSettings, Settings, SettingsError, check_config, check_name
from recipe.aem.trajectories import TrajectorySettings

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
    check_critic(config)
    settings = None
    if estimator in ESTIMATORS:
        settings = check_config(config, registered, verl_version)
    else:
        AemSettings.from_config(config["algorithm"])  # the dump's settings hold for every estimator
    TrajectorySettings.from_config(config["algorithm"])
    epo = check_epo(config, verl_version)
    if settings or epo.enable:
        check_sequence_parallelism(config)
    return settings, epo


def check_critic(config: Mapping[str, Any]) -> None:
    """Refuse a critic that verl 0.9.1 cannot load.

    `verl.utils.model.load_valuehead_model` asks for flash attention 2 whatever
    `critic.model.override_config.attn_implementation` says (verl#5210), and reports its absence as that of trl.

    Raises:
        SettingsError: naming what turns the critic on.
    """
    algorithm, critic = config["algorithm"], config.get("critic") or {}
    estimator, enabled = algorithm["adv_estimator"], critic.get("enable")
    base = Settings.from_config(algorithm).base if estimator in ESTIMATORS else estimator
    # as verl.trainer.ppo.utils.need_critic, but that a base is known by its name too
    if not (base == GAE if enabled is None else enabled or base == GAE):
        return
    cpu = (config.get("trainer") or {}).get("device") == "cpu"
    if critic.get("strategy", "fsdp") not in ("fsdp", "fsdp2") or (not cpu and importlib.util.find_spec("flash_attn")):
        return
    if base != GAE:
        asked = f"critic.enable={enabled}"
    else:
        asked = f"algorithm.{f'{estimator}.base' if base != estimator else 'adv'}_estimator={GAE}"
    raise SettingsError(
        f"{asked} cannot start: verl 0.9.1 loads every critic with flash attention 2, whatever critic.model."
        "override_config.attn_implementation says (https://github.com/verl-project/verl/issues/5210), and "
        f"{'there is none without a GPU' if cpu else 'flash-attn is not installed'}. Use an estimator without a "
        "critic, such as grpo, grpo_rows, gigpo or rloo, and critic.enable=null"
    )


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
