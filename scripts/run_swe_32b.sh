#!/usr/bin/env bash
# Qwen3-32B, thinking, on software engineering: nodes of eight GPUs, fsdp2 and vLLM, verl's own main_ppo.
#
#   SWE_TASKS=… bash scripts/run_swe_32b.sh                              # AEM over GRPO++ on one node
#   SWE_TASKS=… bash scripts/run_swe_32b.sh method=grpopp                # any file of recipe/aem/config/method
#   SWE_TASKS=… bash scripts/run_swe_32b.sh algorithm.aem.lam=0.5        # any setting of verl or ours, last wins
#   SWE_TASKS=… bash scripts/run_swe_32b.sh trainer.nnodes=8             # in a Ray cluster (RAY_ADDRESS) of eight nodes
#   AEM_MODEL=… bash scripts/run_swe_32b.sh machine=cpu algorithm.filter_groups.enable=false …    # no GPU, a small model
#
# Several nodes: scripts/slurm_swe_32b.sh starts the Ray cluster under Slurm, scripts/ray_swe_32b.sh sends the run to one
# that is there.
#
# Knobs, from the environment:
#   SWE_TASKS       a file or a directory of tasks: SWE-bench's, R2E-Gym's, or made by `aem data swe`
#                   (default: generated from packages of PyPI in outputs/swe, which takes minutes)
#   SWE_VALIDATION  the same with the tasks to validate on (default: whole repositories are held out)
#   SWE_BACKEND     where commands run: bubblewrap (default), docker, swerex_docker, swerex_modal, … (docs/swe.md); the
#                   tasks of SWE-bench and R2E-Gym come as container images, which bubblewrap does not run
#   SWE_PARQUET     where the tasks for verl are written (default: tasks in AEM_OUTPUT)
#   AEM_MODEL       the model's folder or hub name (default Qwen/Qwen3-32B)
#   AEM_OUTPUT      checkpoints and metrics (default outputs/swe_32b_METHOD); a run that finds a checkpoint resumes
# Settings: recipe/aem/config/swe_32b.yaml, protocol/swe.yaml, benchmark/swe.yaml, method/*, machine/*.
# It differs from DeepSWE's script as docs/swe.md says.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck disable=SC2119 # its arguments are not the script's
aem_setup
exec aem train swe_32b "$@"
