#!/usr/bin/env bash
# Qwen2.5-1.5B-Instruct on ALFWorld: one node of eight GPUs, fsdp2 and vLLM, verl's own main_ppo.
#
#   ALFWORLD_DATA=… bash scripts/run_alfworld_1.5b.sh                          # AEM over GRPO; the games: aem data alfworld
#   ALFWORLD_DATA=… bash scripts/run_alfworld_1.5b.sh method=gigpo             # any file of recipe/aem/config/method
#   ALFWORLD_DATA=… bash scripts/run_alfworld_1.5b.sh algorithm.aem.lam=0.5    # any setting of verl or ours, last wins
#   ALFWORLD_DATA=… bash scripts/run_alfworld_1.5b.sh data.val_split=valid_unseen    # rooms that nothing is trained on
#
# Knobs, from the environment:
#   ALFWORLD_DATA     the directory with ALFWorld's json_2.1.1; there are no generated games, so it has to be set
#   ALFWORLD_PARQUET  where the tasks for verl are written (default: tasks in AEM_OUTPUT)
#   AEM_MODEL         the model's folder or hub name (default Qwen/Qwen2.5-1.5B-Instruct)
#   AEM_OUTPUT        checkpoints and metrics (default outputs/alfworld_1.5b_METHOD); a run that finds a checkpoint resumes
# Settings: recipe/aem/config/alfworld_1.5b.yaml, protocol/alfworld.yaml, benchmark/alfworld.yaml, method/*, machine/*.
# It differs from verl-agent's script in the prompt's wording, which is ours, and in entropy_coeff=0 (theirs: 0.001).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck disable=SC2119 # its arguments are not the script's
aem_setup
exec aem train alfworld_1.5b "$@"
