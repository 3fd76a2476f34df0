#!/usr/bin/env bash
# Qwen2.5-1.5B-Instruct on WebShop: one node of eight GPUs, fsdp2 and vLLM, verl's own main_ppo.
#
#   WEBSHOP_DATA=… bash scripts/run_webshop_1.5b.sh                            # AEM over GRPO
#   WEBSHOP_DATA=… bash scripts/run_webshop_1.5b.sh method=gigpo               # any file of recipe/aem/config/method
#   bash scripts/run_webshop_1.5b.sh algorithm.aem.lam=0.5 trainer.nnodes=2     # any setting of verl or ours, last wins
#   AEM_MODEL=… bash scripts/run_webshop_1.5b.sh machine=cpu trainer.total_training_steps=2 …    # no GPU, a small model
#
# Knobs, from the environment:
#   WEBSHOP_DATA   a directory with WebShop's items_shuffle*.json, items_ins_v2*.json and goals.json
#                  (default: a generated catalogue in outputs/webshop, which is for trying things out)
#   AEM_MODEL      the model's folder or hub name (default Qwen/Qwen2.5-1.5B-Instruct)
#   AEM_OUTPUT     checkpoints and metrics (default outputs/webshop_1.5b_METHOD); a run that finds a checkpoint resumes
# Settings: recipe/aem/config/webshop_1.5b.yaml, protocol/webshop.yaml, benchmark/webshop.yaml, method/*, machine/*.
# It differs from verl-agent's script in the prompt's wording, which is ours, and in entropy_coeff=0 (theirs: 0.001).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck disable=SC2119 # its arguments are not the script's
aem_setup
exec aem train webshop_1.5b "$@"
