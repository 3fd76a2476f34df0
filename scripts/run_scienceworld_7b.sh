#!/usr/bin/env bash
# Qwen2.5-7B-Instruct on ScienceWorld: one node of eight GPUs, fsdp2 and vLLM, verl's own main_ppo. Needs Java; the tasks
# come with the package `scienceworld`.
#
#   bash scripts/run_scienceworld_7b.sh                            # AEM over GRPO
#   bash scripts/run_scienceworld_7b.sh method=epo_scienceworld    # any file of recipe/aem/config/method
#   bash scripts/run_scienceworld_7b.sh algorithm.aem.lam=0.5      # any setting of verl or ours, last wins
#   bash scripts/run_scienceworld_7b.sh data.val_split=test        # validate on the variations for the final test
#
# Knobs, from the environment:
#   SCIENCEWORLD_PARQUET  where the tasks for verl are written (default: tasks in AEM_OUTPUT)
#   AEM_MODEL             the model's folder or hub name (default Qwen/Qwen2.5-7B-Instruct)
#   AEM_OUTPUT            checkpoints and metrics (default outputs/scienceworld_7b_METHOD); a run that finds a checkpoint
#                         resumes
# Settings: recipe/aem/config/scienceworld_7b.yaml, protocol/scienceworld.yaml, benchmark/scienceworld.yaml, method/*,
# machine/*.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck disable=SC2119 # its arguments are not the script's
aem_setup
exec aem train scienceworld_7b "$@"
