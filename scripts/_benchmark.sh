# shellcheck shell=bash
# Sourced by run_*.sh: `run_benchmark CONFIG "$@"` trains with recipe/aem/config/CONFIG.yaml. What CONFIG begins with names
# the benchmark, whose own part is the two functions NAME_before and NAME_tasks below.

# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

stop() {
    echo "$*" >&2
    exit 1
}

# NAME_before runs before anything is installed, in the caller's folder; NAME_data sees to the benchmark's data with the
# environment's python, in the checkout, and names in BENCHMARK_KNOBS what the evaluation needs again.
BENCHMARK_KNOBS=()

webshop_before() { :; }

webshop_data() {
    if [ -z "${WEBSHOP_DATA:-}" ]; then
        export WEBSHOP_DATA=$PWD/outputs/webshop
        python -m agent_loops.webshop.generate "$WEBSHOP_DATA"
    fi
    BENCHMARK_KNOBS=("WEBSHOP_DATA=$WEBSHOP_DATA")
}

alfworld_before() {
    local fetch="Run \`aem data alfworld\`: it fetches the games and prints the command with ALFWORLD_DATA."
    [ -n "${ALFWORLD_DATA:-}" ] || stop "ALFWORLD_DATA is not set, and ALFWorld has no generated games. $fetch"
    [ -d "$ALFWORLD_DATA" ] || stop "ALFWORLD_DATA=$ALFWORLD_DATA is not a directory. $fetch"
    ALFWORLD_DATA=$(cd "$ALFWORLD_DATA" && pwd)
    export ALFWORLD_DATA
}

alfworld_data() { BENCHMARK_KNOBS=("ALFWORLD_DATA=$ALFWORLD_DATA"); }

scienceworld_before() {
    local java=${JAVA_HOME:-}/bin/java
    [ -n "${JAVA_HOME:-}" ] && [ -x "$java" ] || java=java
    "$java" -version >/dev/null 2>&1 ||
        stop "ScienceWorld runs on Java, and \`$java\` does not start here. Debian and Ubuntu: apt-get install openjdk-17-jre-headless. Or point JAVA_HOME at one."
}

scienceworld_data() {
    python -c 'import scienceworld' 2>/dev/null ||
        stop "ScienceWorld's package is not installed: $AEM_VENV/bin/python -m pip install -c constraints/$AEM_STACK.txt -e '.[$AEM_STACK,scienceworld]'"
}

swe_before() {
    # the tasks' paths are the caller's; a folder that is not there is filled below
    local name
    for name in SWE_TASKS SWE_VALIDATION; do
        [ -z "${!name:-}" ] || export "$name=$(realpath -m "${!name}")"
    done
    [ -z "${SWE_VALIDATION:-}" ] || [ -e "$SWE_VALIDATION" ] || stop "SWE_VALIDATION=$SWE_VALIDATION does not exist."
    # the last word on where commands run is the arguments'
    local backend=${SWE_BACKEND:-bubblewrap} argument
    for argument in "$@"; do
        case $argument in *.benchmark.sandbox.backend=*) backend=${argument#*=} ;; esac
    done
    [ "$backend" != bubblewrap ] || command -v bwrap >/dev/null ||
        stop "Agents' commands run in bubblewrap, and there is no \`bwrap\` here. Debian and Ubuntu: apt-get install bubblewrap. Or name another sandbox: SWE_BACKEND=docker (docs/swe.md)."
}

swe_data() {
    python -c 'import swebench' 2>/dev/null ||
        stop "What grades is not installed: $AEM_VENV/bin/python -m pip install -c constraints/$AEM_STACK.txt -e '.[$AEM_STACK,swe]'"
    if [ -z "${SWE_TASKS:-}" ]; then
        export SWE_TASKS=$PWD/outputs/swe
        aem_supervised python -m agent_loops.swe.generate "$SWE_TASKS"
    fi
    BENCHMARK_KNOBS=("SWE_TASKS=$SWE_TASKS" ${SWE_VALIDATION:+"SWE_VALIDATION=$SWE_VALIDATION"} ${SWE_BACKEND:+"SWE_BACKEND=$SWE_BACKEND"})
}

# the method of a configuration that names none
default_method() {
    case $1 in swe_*) echo aem_grpopp ;; *) echo aem ;; esac
}

run_benchmark() {
    local config=$1 benchmark=${1%%_*} method argument script
    method=$(default_method "$config")
    script=$(basename "$0")
    shift
    for argument in "$@"; do
        case $argument in method=*) method=${argument#method=} ;; esac
    done
    "${benchmark}_before" "$@"
    # shellcheck disable=SC2119 # its arguments are not the script's
    aem_setup
    cd "$AEM_ROOT" || exit
    if [ "$AEM_STACK" = cpu ] && [[ " $* " != *" machine=cpu "* ]]; then
        stop "No GPU here: add machine=cpu (and a small model, AEM_MODEL=…), or run this on a GPU node."
    fi
    # a folder a method: verl resumes from what it finds in there
    AEM_OUTPUT=${AEM_OUTPUT:-outputs/${config}_$method}
    mkdir -p "$AEM_OUTPUT"
    AEM_OUTPUT=$(cd "$AEM_OUTPUT" && pwd)
    "${benchmark}_data"
    # held by this shell and by whatever it starts, until the last process has ended
    exec {AEM_LOCK}<>"$AEM_OUTPUT/.lock"
    python -m agent_loops.locks "$AEM_LOCK" "$AEM_OUTPUT" 'AEM_OUTPUT to another folder' "scripts/$script" || exit 1
    # verl writes this file anew in each run: one that resumes or evaluates would lose what was there
    local metrics=$AEM_OUTPUT/metrics.jsonl number=1
    while [ -e "$metrics" ]; do
        number=$((number + 1))
        metrics=$AEM_OUTPUT/metrics.$number.jsonl
    done
    export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$metrics}
    local parquet=${benchmark^^}_PARQUET
    export "$parquet=${!parquet:-$AEM_OUTPUT/tasks}"
    python -m recipe.aem.tools.task_files "$config" "${!parquet}" "$@"

    # in a Ray cluster that is there already, processes know nothing of this shell
    local cluster=() name
    if [ -n "${RAY_ADDRESS:-}" ]; then
        for name in $(compgen -e | grep -E "^(AEM|VERL|${benchmark^^})_"); do
            cluster+=("++ray_kwargs.ray_init.runtime_env.env_vars.$name='${!name//\'/\\\'}'")
        done
    fi

    aem_supervised python -m verl.trainer.main_ppo \
        --config-path=pkg://recipe.aem.config --config-name="$config" \
        trainer.default_local_dir="$AEM_OUTPUT/checkpoints" \
        trainer.experiment_name="${config}_$method" \
        "${cluster[@]}" "$@"

    local last
    last=$(cat "$AEM_OUTPUT/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || true)
    if [ -n "$last" ] && [[ " $* " != *" trainer.val_only=true "* ]]; then
        echo
        echo "checkpoint  $AEM_OUTPUT/checkpoints/global_step_$last"
        echo "metrics     $VERL_FILE_LOGGER_PATH"
        echo "evaluate it again with"
        # AEM_OUTPUT as it is: the checkpoint is found in there
        printf '   '
        printf ' %q' "AEM_OUTPUT=$AEM_OUTPUT" "${BENCHMARK_KNOBS[@]}" ${AEM_MODEL:+"AEM_MODEL=$AEM_MODEL"}
        printf ' bash scripts/%s' "$script"
        printf ' %q' "$@" trainer.val_only=true trainer.val_before_train=true
        echo
    fi
}
