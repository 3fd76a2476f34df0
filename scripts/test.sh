#!/usr/bin/env bash
# All checks: ruff, pyright and the tests, several at a time, the runs of the real engine (marker e2e) one after the other
# beside them. Every stage runs, whatever failed before it.
#
#   bash scripts/test.sh                      # sets everything up (scripts/setup.sh --dev), then all but `--full`'s runs
#   bash scripts/test.sh --full               # everything; CI adds -m 'not release'
#   bash scripts/test.sh --quick              # for the loop of work: sets nothing up, leaves out what is slow (markers
#                                             # slow, full and e2e) and asks hypothesis for fewer examples
#   bash scripts/test.sh --quick -k setup     # further arguments go to pytest
#   bash scripts/test.sh tests/packaging      # these alone, in one process
#
# Knobs, from the environment: those of scripts/setup.sh (AEM_VENV, PYTHON, …), and
#   AEM_TEST_WORKERS   how many processes run tests (default: one more than there are cores, at most 4)
# The last line counts the tests; the table of stages is before it.
# The exit status is 0 only where every stage passed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
cd "$AEM_ROOT"
unset PYTHONDONTWRITEBYTECODE # this checkout's modules are compiled once, not by each process that a test starts

HOW=default
case ${1:-} in
--full | --quick) HOW=${1#--} && shift ;;
esac

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
    local options=(--continue-on-collection-errors --color=auto) paths=() workers argument status=0
    for argument in "$@"; do
        case $argument in tests | tests/*) paths=(given) ;; esac
    done
    if [ ${#paths[@]} = 0 ]; then
        workers=$(($(nproc) + 1)) # the one that has the engine's runs waits for them most of the time
        workers=${AEM_TEST_WORKERS:-$((workers < 4 ? workers : 4))}
        options+=(-n "$workers" --dist loadscope -q --durations=20 tests) # tests/conftest.py says what goes where
        case $HOW in
        default) options+=(-m 'not full') ;;
        quick) options+=(-m 'not slow and not full and not e2e' --hypothesis-profile=quick) ;;
        esac
    fi
    if [ -t 1 ]; then options+=(--color=yes); fi # through the pipe below it could not tell
    pytest "${options[@]}" "$@" </dev/null 2>&1 | tee "$OUTPUT" || status=$?
    return "$status"
}

counted() { # how many tests ended so, from pytest's closing line
    if [[ $CLOSING =~ ([0-9]+)\ $1 ]]; then echo "${BASH_REMATCH[1]}"; else echo 0; fi
}

if [ "$HOW" = quick ]; then
    if [ ! -x "$AEM_VENV/bin/pytest" ]; then
        echo "There is no pytest in $AEM_VENV: bash scripts/setup.sh --dev installs it." >&2
        exit 1
    fi
    aem_activate
else
    # no `stage`: where the set-up fails there is nothing to test with, and its own message is the last one
    aem_setup --dev
    TABLE+=$(printf '%-32s %-8s %5d s' 'set-up' passed "$SECONDS")$'\n'
    # older versions of verl, for tests/docs/test_versions.py; where they cannot be had, its tests are skipped and say so
    for OLDER in 0.7.1 0.8.0; do
        LAID=$AEM_VENV/older_verl/$OLDER
        if [ ! -d "$LAID" ]; then
            rm -rf "$LAID.part"
            (PIP_RETRIES=1 aem_lay "verl==$OLDER" "$LAID.part" && mv "$LAID.part" "$LAID") >/dev/null 2>&1 </dev/null || true
        fi
    done
    # the sandbox of agent_loops.swe; where it cannot be had, its tests are skipped and say so
    if ! command -v bwrap >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        (apt-get install -y -qq bubblewrap || { apt-get update -qq && apt-get install -y -qq bubblewrap; }) >/dev/null 2>&1 </dev/null || true
    fi
    # the browser that opens the page of `aem report`; likewise
    if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        (apt-get install -y -qq --no-install-recommends chromium chromium-driver || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }) >/dev/null 2>&1 </dev/null || true
    fi
fi
OUTPUT=$(mktemp)
trap 'rm -f "$OUTPUT"' EXIT

stage 'ruff check' ruff check .
stage 'ruff format' ruff format --check .
stage 'pyright' pyright --pythonpath "$AEM_VENV/bin/python"
stage "pytest${*:+ $*}" run_pytest "$@"

printf '\n%s\n' "$TABLE"
CLOSING=$(grep -E '[0-9]+ (passed|failed|error|skipped|deselected|warning).* in [0-9.]+s' "$OUTPUT" | tail -n 1 || true)
failed=$(($(counted failed) + $(counted error)))
if [ -z "$CLOSING" ]; then failed=1; fi # pytest itself
printf '%d passed, %d failed, %d skipped\n' "$(counted passed)" "$failed" "$(counted skipped)"
exit $FAILED
