#!/usr/bin/env bash
# Qwen2.5-7B-Instruct on WebShop with AEM over GRPO: one node of eight GPUs, fsdp2 and vLLM, verl's own main_ppo.
#
#   WEBSHOP_DATA=… bash scripts/run_webshop_7b.sh                           # the real thing
#   bash scripts/run_webshop_7b.sh algorithm.aem.lam=0.5 trainer.nnodes=2    # any setting of verl or of AEM, last wins
#   AEM_MODEL=… bash scripts/run_webshop_7b.sh machine=cpu trainer.total_training_steps=2 …     # without a GPU, small model
#
# Knobs, from the environment:
#   WEBSHOP_DATA   a directory with WebShop's items_shuffle*.json, items_ins_v2*.json and goals.json
#                  (default: a generated catalogue in outputs/webshop, which is for trying things out)
#   AEM_MODEL      the model's folder or hub name (default Qwen/Qwen2.5-7B-Instruct)
#   AEM_OUTPUT     checkpoints and metrics (default outputs/webshop_7b)
# Settings: recipe/aem/config/webshop_7b.yaml, benchmark/webshop.yaml, method/aem.yaml, machine/*.yaml.
# It differs from verl-agent's script in the prompt's wording, which is ours, and in entropy_coeff=0 (theirs: 0.001).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
aem_setup
cd "$AEM_ROOT"

export AEM_MODEL=${AEM_MODEL:-Qwen/Qwen2.5-7B-Instruct}
AEM_OUTPUT=${AEM_OUTPUT:-outputs/webshop_7b}
mkdir -p "$AEM_OUTPUT"
export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$AEM_OUTPUT/metrics.jsonl}

if [ "$AEM_STACK" = cpu ] && [[ " $* " != *" machine=cpu "* ]]; then
    echo "No GPU here: add machine=cpu (and a small model, AEM_MODEL=…), or run this on a GPU node." >&2
    exit 1
fi
if [ -z "${WEBSHOP_DATA:-}" ]; then
    export WEBSHOP_DATA=$PWD/outputs/webshop
    python -m agent_loops.webshop.generate "$WEBSHOP_DATA"
fi
export WEBSHOP_PARQUET=${WEBSHOP_PARQUET:-$PWD/$AEM_OUTPUT/tasks}
python -m agent_loops.dataset agent_loops.webshop.WebShop "$WEBSHOP_PARQUET" data_dir="$WEBSHOP_DATA"

exec python -m verl.trainer.main_ppo \
    --config-path=pkg://recipe.aem.config --config-name=webshop_7b \
    trainer.default_local_dir="$AEM_OUTPUT/checkpoints" \
    "$@"
