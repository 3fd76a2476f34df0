#!/usr/bin/env bash
# scripts/run_swe_32b.sh as a job of a Ray cluster that is there already (KubeRay, a cluster of your own, a cloud's).
#
#   RAY_DASHBOARD=http://head:8265 NODES=8 SWE_TASKS=… bash scripts/ray_swe_32b.sh                  # AEM over GRPO++
#   RAY_DASHBOARD=http://head:8265 NODES=8 SWE_TASKS=… bash scripts/ray_swe_32b.sh method=grpopp
#
# Arguments go to run_swe_32b.sh. The checkout lies with its environment, the tasks and the model at the same paths on every
# node, and Ray was started from that environment (each node: `.venv/bin/ray start …`), whose verl and plugin its
# processes then have. Follow and end the job with the commands that `ray job submit` prints.
#
# Knobs, from the environment: those of scripts/run_swe_32b.sh, and
#   RAY_DASHBOARD  the address of the cluster's dashboard (required)
#   NODES          how many nodes of eight GPUs take part (required)
set -euo pipefail
: "${RAY_DASHBOARD:?the address of the Ray cluster\'s dashboard, such as http://head:8265}"
: "${NODES:?how many nodes of eight GPUs take part}"
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck disable=SC2119 # its arguments are not the script's
aem_setup

# the job's shell knows nothing of this one; secrets, such as HF_TOKEN, belong to the cluster's own environment
KNOBS=()
for NAME in $(compgen -e | grep -E '^(AEM|SWE)_'); do
    KNOBS+=("$NAME=${!NAME}")
done

# Ray sets the cluster's address for what the job runs
exec ray job submit --address "$RAY_DASHBOARD" --no-wait -- \
    env "${KNOBS[@]}" bash "$AEM_ROOT/scripts/run_swe_32b.sh" trainer.nnodes="$NODES" "$@"
