#!/usr/bin/env bash
# Sets everything up (scripts/setup.sh --dev), then runs all checks: ruff, pyright, and the tests, the fast ones first and
# the runs of the real engine (marker e2e, one at a time) last. Every stage runs, whatever failed before it.
#
#   bash scripts/test.sh                      # everything
#   bash scripts/test.sh -m 'not e2e'         # arguments go to pytest: without the engine
#   bash scripts/test.sh tests/packaging -k setup
#
# Knobs, from the environment: those of scripts/setup.sh (AEM_VENV, PYTHON, …).
# The last line is pytest's, which counts the tests; the table of stages stands before it.
# The exit status is 0 only where every stage passed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
cd "$AEM_ROOT"

TABLE='' FAILED=0

stage() { # title, command…
    local title=$1 began=$SECONDS result=passed
    shift
    printf '\n== %s\n' "$title"
    "$@" || { result=FAILED && FAILED=1; }
    TABLE+=$(printf '%-32s %-8s %5d s' "$title" "$result" $((SECONDS - began)))$'\n'
}

# shellcheck disable=SC2317 # `stage` calls it
run_pytest() {
    local paths=() argument color=auto status=0
    for argument in "$@"; do
        case $argument in tests | tests/*) paths=(given) ;; esac
    done
    if [ ${#paths[@]} = 0 ]; then # by folder, the engine last
        mapfile -t paths < <(find tests -mindepth 1 -maxdepth 1 -type d ! -name e2e ! -name '[._]*' | sort)
        if [ -d tests/e2e ]; then paths+=(tests/e2e); fi
        set -- "${paths[@]}" "$@"
    fi
    if [ -t 1 ]; then color=yes; fi # through the pipe below it could not tell
    pytest --continue-on-collection-errors --color="$color" "$@" </dev/null 2>&1 | tee "$OUTPUT" || status=$?
    return "$status"
}

# no `stage`: where the set-up fails there is nothing to test with, and its own message is the last one
aem_setup --dev
TABLE+=$(printf '%-32s %-8s %5d s' 'set-up' passed "$SECONDS")$'\n'
# the sandbox of agent_loops.swe; where it cannot be had, its tests are skipped and say so
if ! command -v bwrap >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get install -y -qq bubblewrap || { apt-get update -qq && apt-get install -y -qq bubblewrap; }) >/dev/null 2>&1 </dev/null || true
fi
# the browser that opens the page of `aem report`; likewise
if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get install -y -qq --no-install-recommends chromium chromium-driver || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }) >/dev/null 2>&1 </dev/null || true
fi
OUTPUT=$(mktemp)
trap 'rm -f "$OUTPUT"' EXIT

stage 'ruff check' ruff check .
stage 'ruff format' ruff format --check .
stage 'pyright' pyright --pythonpath "$AEM_VENV/bin/python"
stage "pytest${*:+ $*}" run_pytest "$@"

printf '\n%s\n' "$TABLE"
tail -n 1 "$OUTPUT"
exit $FAILED
