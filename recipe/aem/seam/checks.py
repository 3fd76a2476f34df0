"""What has to hold before verl's V1 trainer starts a run with this package: said by the trainer, and by the doctor."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recipe.aem.seam.epo import EpoSettings, check_epo
from recipe.aem.seam.precision import CHUNKED, PACKED, PARAM_DTYPE, entropy_precision, log_prob_precision
from recipe.aem.seam.trajectories import TrajectorySettings
from recipe.aem.settings import (
    ESTIMATORS,
    GAE,
    OVER_TRAJECTORIES,
    RESPONSE_BASES,
    AemSettings,
    Settings,
    SettingsError,
    check_config,
    check_name,
)

logger = logging.getLogger(__name__)

_ULYSSES = "ulysses_sequence_parallel_size"
_EXECUTOR = "distributed_executor_backend"
_ENGINE_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
_MICRO_BATCH = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
_LOG_PROB_BATCH = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"
_COPIES = "actor_rollout_ref.rollout.n"
PASS_AT_K = "grpo_passk"
GROUP_ESTIMATORS = (
    *("gpg", "grpo", "grpo_vectorized", "opo", "reinforce_plus_plus_baseline", "rloo", "rloo_vectorized"),
    *(PASS_AT_K, *RESPONSE_BASES),
)
"""Estimators that compare a prompt's trajectories with each other."""


@dataclass(frozen=True)
class Caution:
    """What a run may start with, and its user should know before.

    Attributes:
        title: what was looked at; the same words for the same thing.
        detail: what is so.
        remedy: what to set.
    """

    title: str
    detail: str
    remedy: str


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
    check_executor(config)
    settings = None
    if estimator in ESTIMATORS:
        settings = check_config(config, registered, verl_version)
    else:
        AemSettings.from_config(config["algorithm"])  # the dump's settings hold for every estimator
    TrajectorySettings.from_config(config["algorithm"])
    epo = check_epo(config, verl_version)
    if settings or epo.enable:
        check_sequence_parallelism(config)
        check_precision(config, settings, epo)
    check_group_size(config, settings)
    return settings, epo


def cautions(config: Mapping[str, Any], settings: Settings | None, epo: EpoSettings) -> Iterator[Caution]:
    """What is worth saying of a run that `check_run` takes.

    Args:
        config: verl's whole configuration.
        settings: those of this package, None for an estimator that is not ours.
        epo: EPO's settings.
    """
    if _reads_entropies(settings, epo):
        precision = entropy_precision(config)
        if precision.level != "float32":
            yield Caution(
                "Precision of entropies",
                f"float32 is not certain: {precision.why}",
                f"set {PACKED}=true and {CHUNKED}=true (docs/choices.md, Precision)",
            )
    base = _base(config, settings)
    if base in GROUP_ESTIMATORS and _copies(config) == 1:
        yield Caution(
            "Size of groups",
            f"{_COPIES}=1, and {base} compares the trajectories of one prompt with each other: with one each, their "
            "advantages are the bare rewards, or 0",
            f"set {_COPIES} to 2 or more (8 in the papers), or algorithm.adv_estimator=reinforce_plus_plus",
        )
    yield from _long_rows(config)


def check_precision(config: Mapping[str, Any], settings: Settings | None, epo: EpoSettings) -> None:
    """Refuse entropies, or log-probabilities in their place, that verl computes in half precision for certain.

    Raises:
        SettingsError: naming the settings that give float32.
    """
    remedy = f"Set {PARAM_DTYPE}=fp32 (machine=cpu does)"
    read = []
    if _reads_entropies(settings, epo):
        reader = settings.estimator if settings is not None and settings.measure == "entropy" else "EPO"
        chunks = f"{remedy}, or {PACKED}=true and {CHUNKED}=true"
        read.append((reader, "entropies", entropy_precision(config), chunks))
    if settings is not None and settings.measure == "old_log_probs":
        read.append((settings.estimator, "surprisals", log_prob_precision(config), remedy))
    for reader, what, precision, advice in read:
        if precision.level == "half":
            raise SettingsError(
                f"{reader} reads {what} in half precision, most of which are exactly 0 under a confident policy: "
                f"{precision.why}. {advice}"
            )


def check_group_size(config: Mapping[str, Any], settings: Settings | None) -> None:
    """Refuse groups of one where training cannot start, or learns nothing.

    Raises:
        SettingsError: naming `rollout.n`.
    """
    if _copies(config) != 1 or (config.get("trainer") or {}).get("val_only", False):
        return
    base = _base(config, settings)
    if base == PASS_AT_K:
        raise SettingsError(
            f"{_COPIES}=1: {base} needs two trajectories of a prompt, and verl stops without; set 2 or more"
        )
    if base in RESPONSE_BASES:
        raise SettingsError(
            f"{_COPIES}=1: {base} compares the trajectories of one prompt with each other, and with one each their "
            "outcomes cancel, so that winning teaches nothing; set 2 or more (8 in the papers)"
        )


def _reads_entropies(settings: Settings | None, epo: EpoSettings) -> bool:
    return epo.enable or (settings is not None and settings.measure == "entropy")


def _base(config: Mapping[str, Any], settings: Settings | None) -> str:
    """The estimator that compares trajectories: ours is over another one, verl's own is itself."""
    return (
        settings.base
        if settings is not None
        else str(config["algorithm"]["adv_estimator"]).removesuffix(OVER_TRAJECTORIES)
    )


def _copies(config: Mapping[str, Any]) -> Any:
    return (config["actor_rollout_ref"].get("rollout") or {}).get("n")


def _long_rows(config: Mapping[str, Any]) -> Iterator[Caution]:
    """verl stops on a row that is longer than a micro-batch by tokens (utils/seqlen_balancing.py:384)."""
    ours = config["actor_rollout_ref"]
    rollout, actor = ours.get("rollout") or {}, ours.get("actor") or {}
    if not actor.get("use_dynamic_bsz", False):
        return
    prompt, response = rollout.get("prompt_length"), rollout.get("response_length")
    if prompt is None or response is None:
        return
    longest = min(prompt + response, rollout.get("max_model_len") or prompt + response)
    shared = _ulysses(ours, "actor")[1]
    for name, most in (
        (_MICRO_BATCH, actor.get("ppo_max_token_len_per_gpu")),
        (_LOG_PROB_BATCH, rollout.get("log_prob_max_token_len_per_gpu")),
    ):
        if most is not None and most * shared < longest:
            of = f" on each of {shared} GPUs" if shared > 1 else ""
            yield Caution(
                "Size of micro-batches",
                f"{name}={most}{of}, and a row may have {longest} tokens: verl stops on one that is longer than a "
                "micro-batch",
                f"set {_MICRO_BATCH} to {-(-longest // shared)} or more (the other follows it), or shorten "
                "data.max_prompt_length and data.max_response_length",
            )
            return


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


def check_executor(config: Mapping[str, Any]) -> None:
    """Refuse vLLM's executor of one process (`machine=cpu`'s) where an engine has several ranks: it starts the first
    and waits for the others without end.

    Raises:
        SettingsError: naming the executor and the sizes.
    """
    rollout = config["actor_rollout_ref"].get("rollout") or {}
    executor = str(((rollout.get("engine_kwargs") or {}).get("vllm") or {}).get(_EXECUTOR))
    sizes = {name: rollout.get(name) or 1 for name in _ENGINE_SIZES}
    if executor.endswith("UniProcExecutor") and any(size > 1 for size in sizes.values()):
        said = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        place = f"actor_rollout_ref.rollout.engine_kwargs.vllm.{_EXECUTOR}"
        raise SettingsError(
            f"actor_rollout_ref.rollout.{said} with {place}={executor}, which runs one rank only. Set the size to 1, "
            f"or {place}=mp"
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
        place, size = _ulysses(ours, role)
        if size > 1:
            raise SettingsError(
                f"{place}.{_ULYSSES}={size} with "
                f"actor_rollout_ref.model.override_config.attn_implementation={attention}: verl splits sequences over "
                "ranks for flash attention alone, and would train on attention within each part. Set the size to 1, "
                "or attn_implementation to flash_attention_2"
            )


def _ulysses(ours: Mapping[str, Any], role: str) -> tuple[str, int]:
    """Where the number of GPUs that share a row is set, and that number."""
    part = ours.get(role) or {}
    if (older := part.get(_ULYSSES) or 1) > 1:  # verl's deprecated name, which it prefers
        return f"actor_rollout_ref.{role}", older
    return f"actor_rollout_ref.{role}.fsdp_config", (part.get("fsdp_config") or {}).get(_ULYSSES) or 1


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
