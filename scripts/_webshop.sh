# shellcheck shell=bash
# Sourced by run_webshop_*.sh: `run_webshop CONFIG "$@"` trains with recipe/aem/config/CONFIG.yaml.

# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

run_webshop() {
    local config=$1 method=aem argument script
    script=$(basename "$0")
    shift
    for argument in "$@"; do
        case $argument in method=*) method=${argument#method=} ;; esac
    done
    aem_setup
    cd "$AEM_ROOT" || exit
    if [ "$AEM_STACK" = cpu ] && [[ " $* " != *" machine=cpu "* ]]; then
        echo "No GPU here: add machine=cpu (and a small model, AEM_MODEL=…), or run this on a GPU node." >&2
        exit 1
    fi
    # a folder a method: verl resumes from what it finds in there
    AEM_OUTPUT=${AEM_OUTPUT:-outputs/${config}_$method}
    mkdir -p "$AEM_OUTPUT"
    AEM_OUTPUT=$(cd "$AEM_OUTPUT" && pwd)
    # verl writes this file anew in each run: one that resumes or evaluates would lose what was there
    local metrics=$AEM_OUTPUT/metrics.jsonl number=1
    while [ -e "$metrics" ]; do
        number=$((number + 1))
        metrics=$AEM_OUTPUT/metrics.$number.jsonl
    done
    export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$metrics}
    if [ -z "${WEBSHOP_DATA:-}" ]; then
        export WEBSHOP_DATA=$PWD/outputs/webshop
        python -m agent_loops.webshop.generate "$WEBSHOP_DATA"
    fi
    export WEBSHOP_PARQUET=${WEBSHOP_PARQUET:-$AEM_OUTPUT/tasks}
    python -m agent_loops.dataset agent_loops.webshop.WebShop "$WEBSHOP_PARQUET" data_dir="$WEBSHOP_DATA"

    python -m verl.trainer.main_ppo \
        --config-path=pkg://recipe.aem.config --config-name="$config" \
        trainer.default_local_dir="$AEM_OUTPUT/checkpoints" \
        trainer.experiment_name="${config}_$method" \
        "$@"

    local last
    last=$(cat "$AEM_OUTPUT/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || true)
    if [ -n "$last" ] && [[ " $* " != *" trainer.val_only=true "* ]]; then
        echo
        echo "checkpoint  $AEM_OUTPUT/checkpoints/global_step_$last"
        echo "metrics     $VERL_FILE_LOGGER_PATH"
        echo "evaluate it again with"
        # AEM_OUTPUT as it is: the checkpoint is found in there
        printf '    AEM_OUTPUT=%q WEBSHOP_DATA=%q%s bash scripts/%s' "$AEM_OUTPUT" "$WEBSHOP_DATA" \
            "${AEM_MODEL:+ AEM_MODEL=$(printf %q "$AEM_MODEL")}" "$script"
        printf ' %q' "$@" trainer.val_only=true trainer.val_before_train=true
        echo
    fi
}
