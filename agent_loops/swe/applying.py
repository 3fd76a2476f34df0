"""An agent's patch, applied to a fresh copy of the repository by git; and the hidden tests, added to it."""

from __future__ import annotations

import shlex
from collections.abc import Container

from agent_loops.swe.patches import glob_escaped, is_protected, patched_paths
from agent_loops.swe.sandbox import Executed, Sandbox
from agent_loops.swe.tasks import SweTask

# The tree's own git configuration is the data set's; a tree that another user made is one all the same.
GIT = "git -c safe.directory='*' -c core.hooksPath=/dev/null -c core.quotePath=true"
_GIT_SECONDS = 60.0
_KB = 1024


class NotApplied(Exception):
    """Why a patch is not one that tests can run on."""


def add_tests(test_patch: str) -> str:
    """Return shell lines that put a trusted patch of tests over whatever lies there, and fail where that cannot be."""
    files = " ".join(shlex.quote(path) for path in sorted(patched_paths(test_patch)))
    return (
        f"for f in {files}; do {GIT} checkout -q HEAD -- $f 2> /dev/null || rm -rf -- $f; done\n"
        f"printf %s {shlex.quote(test_patch)} | {GIT} apply --whitespace=nowarn -"
    )


def apply_patch(sandbox: Sandbox, task: SweTask, patch: str, shadows: Container[str] = ()) -> tuple[str, ...]:
    """Apply what counts of an agent's patch to the tree, and put the tests back.

    Args:
        sandbox: with a fresh copy of the task's tree.
        task: whose tests are guarded.
        patch: untrusted.
        shadows: new files that would stand in the place of a module of the tests' Python.

    Returns:
        The files whose edits did not count.

    Raises:
        NotApplied: it cannot be applied, with the reason and those files.
    """
    stdin = patch.encode(errors="replace")
    # git's own reading of the patch decides, so that no other reading of it can be played off against git's
    listed = sandbox.execute(f"{GIT} apply --numstat -z -", seconds=_GIT_SECONDS, stdin=stdin, output_kb=8 * _KB)
    if listed.returncode or listed.cut:
        raise NotApplied(f"the patch does not apply: {_first_line(listed)}")
    paths = [entry.split("\t", 2)[-1] for entry in listed.output.split("\0") if entry]
    exempt = patched_paths(task.patch)
    guarded = patched_paths(task.test_patch)

    def left_out(path: str) -> bool:
        return path in guarded or ((is_protected(path) or path in shadows) and path not in exempt)

    dropped = tuple(sorted({path for path in paths if left_out(path)}))
    if len(dropped) == len(set(paths)):
        raise NotApplied("the patch only edits tests and what configures them, which does not count", *dropped)
    excluded = " ".join(f"--exclude={shlex.quote(glob_escaped(path))}" for path in dropped)
    if len(excluded) > 100 * _KB:  # the longest argument of a command
        raise NotApplied(f"the patch edits {len(dropped)} tests and files that configure them, too many", *dropped)
    done = sandbox.execute(f"{GIT} apply --whitespace=nowarn {excluded} -", seconds=_GIT_SECONDS, stdin=stdin)
    if done.returncode:
        raise NotApplied(f"the patch does not apply: {_first_line(done)}", *dropped)
    # a rename away from a test counts as an edit of its new name: the test comes back here
    tracked = sandbox.execute(f"{GIT} ls-files -z", seconds=_GIT_SECONDS, output_kb=64 * _KB)
    kept = [path for path in tracked.output.split("\0") if path and left_out(path) and "�" not in path]
    if kept and not tracked.returncode:
        restore = f"{GIT} --literal-pathspecs checkout -q HEAD --pathspec-from-file=- --pathspec-file-nul"
        done = sandbox.execute(restore, seconds=_GIT_SECONDS, stdin="\0".join(kept).encode())
    if tracked.returncode or tracked.cut or done.returncode:
        raise NotApplied(f"the tests could not be put back: {_first_line(tracked if tracked.returncode else done)}")
    return dropped


def _first_line(executed: Executed) -> str:
    if executed.timed_out:
        return "git did not end in time"
    lines = [line for line in executed.output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "fatal:"))]
    return (errors or lines or [f"git ended with {executed.returncode}"])[0][:300]
