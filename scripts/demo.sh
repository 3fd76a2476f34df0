#!/usr/bin/env bash
# Sets everything up, trains a small shopping agent with AEM through verl, prints and plots what it learned.
# No GPU is needed: two cores and 16 GB do; about ten minutes, downloads aside. With a GPU it uses one.
#
#   bash scripts/demo.sh [--seed 0] [--steps 30] [--output outputs/demo] [settings of verl or AEM …]
#   bash scripts/demo.sh algorithm.adv_estimator=grpo --output outputs/grpo      # the base estimator, for comparison
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
# shellcheck disable=SC2119 # its arguments are not the script's
aem_setup
cd "$AEM_ROOT"
if [ "$AEM_STACK" = gpu ]; then set -- "$@" machine=gpu1; fi
exec python -m recipe.aem.tools.demo "$@"
