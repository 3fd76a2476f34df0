"""The plugin: the assembled parts, and the hooks that pytest calls."""

import os
import sys
import time

import pytest

from .audit import make_audit
from .blame import make_blame
from .channel import make_channel
from .facts import make_facts, read_settings
from .own_tests import make_own_tests
from .replaced import make_replaced
from .statuses import make_statuses
from .uses import make_uses
from .values import make_values


def _make():
    get_frame = sys._getframe
    clock = time.monotonic  # tests may stop the clock
    given = read_settings()
    if given is None:
        return {}  # a second pytest process of the same command, which is not recorded
    # build the parts
    settings, pipe = given
    facts = make_facts(settings)
    channel = make_channel(pipe, settings["key"])
    send = channel.send
    blame = make_blame(facts)
    own_tests = make_own_tests(facts, blame, channel.deceit)
    replaced = make_replaced(facts, blame, channel.deceit)
    check_uses = make_uses(facts, channel.deceit)
    statuses = make_statuses(facts, blame, channel)
    watch = make_audit(facts, blame, channel.deceit, own_tests.check_file)
    quietly = watch.quietly
    values = make_values(facts, blame, channel.deceit, watch.aloud)
    state = {"off": "", "manager": None}
    looks = {"count": 0, "ended": 0.0, "took": 0.0}

    if any(str(sys.modules[name].__file__).startswith(facts.tree) for name in ("pytest", "_pytest", "pluggy")):
        state["off"] = "the tests are about pytest itself"

    def watch_approx(kind):
        """Watch `pytest.approx`, which equals everything if it has no bounds: only tests may use it."""
        kind = next(base for base in kind.__mro__ if "__init__" in vars(base))
        begin = kind.__init__

        def begin_watched(self, *args, **kwargs):
            place = "pytest" not in facts.allowed and blame.place_of(get_frame(1), blame.is_outside)
            if place:
                channel.deceit(f"{place}, uses pytest.approx")
            begin(self, *args, **kwargs)

        kind.__init__ = begin_watched

    def hide_values(runner):
        """Remove the values in a test's name from PYTEST_CURRENT_TEST, which the product can read."""
        tell = getattr(runner, "_update_current_test_var", None)
        if tell is None:
            return

        def tell_less(item, when):
            tell(item, when)
            if when and hasattr(item, "callspec") and "PYTEST_CURRENT_TEST" in os.environ:
                os.environ["PYTEST_CURRENT_TEST"] = f"{item.nodeid.partition('[')[0]} ({when})"

        runner._update_current_test_var = tell_less

    def pytest_configure(config):
        package = __name__.rpartition(".")[0]
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]
        if getattr(config.option, "numprocesses", None):
            state["off"] = "pytest-xdist runs the tests in other processes"
        if state["off"]:
            send("off", why=state["off"])
            return
        state["manager"] = config.pluginmanager
        send("begin", python=sys.version.split()[0], pytest=pytest.__version__)

    def look(whole=False, item=None):
        for holder in (getattr(item, "module", None), getattr(item, "cls", None)):
            if holder is not None:
                replaced.check_names(holder)
        began = clock()
        if not whole and looks["count"] > 100 and began - looks["ended"] < 5 * looks["took"]:
            return  # in a long run it takes at most a fraction of the time
        replaced.check_baseline()
        values.check_values(whole)
        looks["ended"] = clock()
        looks.update(count=looks["count"] + 1, took=looks["ended"] - began)
        if whole:
            replaced.check_functions()
            replaced.check_libraries()
            replaced.check_plugins(state["manager"])

    def begin(collected):
        own_tests.note_items(collected)
        for item in collected:
            for holder in (getattr(item, "module", None), getattr(item, "cls", None)):
                if holder is not None:
                    replaced.note_names(holder)

    def look_at_last():
        replaced.check_baseline()
        replaced.check_functions()
        replaced.check_libraries()
        check_uses()
        channel.take_from_forks()
        for path in facts.digests:
            own_tests.check_file(path)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtestloop(session):
        if not state["off"]:
            quietly(begin, session.items)
            quietly(look, True)
            statuses.run_canaries(session)
        yield
        if not state["off"]:
            quietly(look, True)
            statuses.run_canaries(session)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(item):
        if not state["off"] and item.nodeid not in statuses.canaries:
            quietly(own_tests.check_test, item)
        yield

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_makereport(item, call):
        outcome = yield
        if not state["off"]:
            word = quietly(statuses.status, item, call, outcome.get_result())
            if item.nodeid in statuses.canaries:
                statuses.canaries[item.nodeid] = word or statuses.canaries[item.nodeid]
            else:
                statuses.note(item.nodeid, word)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(item, nextitem):
        yield
        if state["off"]:
            return
        quietly(look, False, item)  # by now, tests have restored what they replaced themselves
        if item.nodeid in statuses.statuses:
            send("test", name=item.nodeid, status=statuses.statuses[item.nodeid])

    def pytest_collectreport(report):
        if report.failed and not state["off"]:
            send("test", name=report.nodeid, status="ERROR")

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_sessionfinish(session, exitstatus):
        yield
        if not state["off"]:
            quietly(look_at_last)
            send("end", status=int(exitstatus), tests=len(statuses.statuses))

    # take the baseline before any code of the product runs, then start watching
    hide_values(sys.modules["_pytest.runner"])
    watch_approx(type(pytest.approx(0)))
    replaced.take_baseline()
    values.note_classes()
    sys.addaudithook(watch.audit)
    return {name: value for name, value in locals().items() if name.startswith("pytest_")}


globals().update(_make())
