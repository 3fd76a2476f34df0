"""An audit hook (PEP 578): the interpreter reports what the product does while the tests run."""

import _thread
import os
import sys
import threading
import traceback
import types

from .blame import nested, plain
from .facts import inode
from .words import READING, RUNNERS


def make_audit(facts, blame, deceit, check_file):
    """Return `audit`, the hook, and `quietly` and `aloud`, which call a function with the hook off and on."""
    get_frame, get_ident = sys._getframe, threading.get_ident
    allocate_lock, start_thread = _thread.allocate_lock, _thread.start_new_thread
    tree, tests, data, stems, allowed = facts.tree, facts.tests, facts.data, facts.stems, facts.allowed
    added, inodes, names, ran, test_codes = facts.added, facts.inodes, facts.names, facts.ran, facts.test_codes
    take, place_of, is_known = blame.take, blame.place_of, blame.is_known
    is_outside, is_importing, is_looking_glass = blame.is_outside, blame.is_importing, blame.is_looking_glass
    runners = tuple(f"{facts.library}/{name}" for name in ("unittest/", "test/support/"))
    frames = ("sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace", "sys.setprofile")
    collector = ("gc.get_objects", "gc.get_referrers", "gc.get_referents")
    attributes = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
    moving = ("os.rename", "os.link", "os.symlink")
    removing = ("os.remove", "os.truncate")
    starting = ("subprocess.Popen", "os.system", "os.posix_spawn")
    watched = ("object.__getattr__", "object.__setattr__", "exec", "open", "os.exec", "import", "function.__new__")
    watched = frozenset(frames + collector + moving + removing + starting + watched + ("sys.addaudithook",))
    busy = set()

    def quietly(function, *arguments):
        """Call a function of ours without judging it: our own inspections are not deceit."""
        ident = get_ident()
        mine = ident not in busy
        busy.add(ident)
        try:
            return function(*arguments)
        finally:
            if mine:
                busy.discard(ident)

    def aloud(function, *arguments):
        """Call the product's own code from within `quietly`."""
        busy.discard(get_ident())
        try:
            return function(*arguments)
        finally:
            busy.add(get_ident())

    def audit(event, args):
        if event not in watched and not event.startswith("ctypes."):
            return
        ident = get_ident()
        if ident in busy:
            return
        busy.add(ident)
        try:
            judge(event, args, get_frame(1))  # the frame of the caller
        except Exception:  # nothing here may change what the tests see
            # the stack may have been exhausted, and a thread has its own
            judged = allocate_lock()
            judged.acquire()
            start_thread(judge_again, (event, args, get_frame(1), judged))
            judged.acquire()
        finally:
            busy.discard(ident)

    def judge_again(event, args, frame, judged):
        """Judge an event again; if that fails too, blame whoever passed what cannot be read."""
        busy.add(get_ident())
        try:
            judge(event, args, frame)
        except Exception:  # an object of the patch may raise anything when it is read
            try:
                place = place_of(frame, is_outside)
            except Exception:  # nor may its frames keep the blame away
                place = "code that cannot be read"
            if place:
                deceit(f"{place}, hides what it does ({event})")
        finally:
            busy.discard(get_ident())
            judged.release()

    def judge(event, args, frame):
        # code made at run time
        if event in ("exec", "function.__new__"):
            code = args[0]
            if isinstance(code, types.CodeType):
                judge_code(event, code, frame)
            return
        # describe what the event does, if it is deceit, and choose the frames to look through
        what, through = None, is_looking_glass
        if event in frames:
            what = "frames" not in allowed and f"reads the frames of its callers ({event})"
        elif event in collector:
            what = "gc" not in allowed and f"looks through the garbage collector ({event})"
        elif event == "object.__getattr__":
            if args[1] == "__code__":
                through = is_outside
                what = id(args[0].__code__) in test_codes and f"reads the code of {args[0].__name__}"
            elif args[1] in attributes and "frames" not in allowed:
                formats = frame.f_code.co_filename == traceback.__file__ and blame.only_formats(frame)
                what = not formats and f"reads the frames of its callers ({args[1]})"
        elif event == "object.__setattr__":
            if args[1] == "__code__":
                if isinstance(args[2], types.CodeType) and place_of(frame):
                    take(args[2])
                file = plain(args[0].__code__.co_filename)
                runs = file in tests or any(name in file for name in ("pytest", "pluggy", "unittest"))
                what = runs and f"replaces the code of {args[0].__name__}"
        elif event == "open":
            through, what = is_outside, judge_path(args[0], frame, writes(args))
        elif event in moving or event in removing:
            through = is_outside
            what = any(is_test(path) or is_data(path) for path in args[:2]) and "moves a file of the tests"
        elif event in starting:
            through, what = is_outside, judge_command(event, args)
        elif event == "import":
            through = is_importing
            module = plain(args[0])
            top = module.split(".")[0]
            what = top in RUNNERS and top not in allowed and f"imports {module}"
        elif event == "sys.addaudithook":
            what = "listens to what the interpreter does"
        elif event.startswith("ctypes."):
            what = "ctypes" not in allowed and "reaches into the process with ctypes"
        elif event == "os.exec":
            what = "puts another program in the place of the tests"
        # report it if the patch did it
        if what:
            place = place_of(frame, through)
            if place:
                deceit(f"{place}, {what}")

    def judge_code(event, code, frame):
        file = plain(code.co_filename)
        if file in tests and code.co_name == "<module>":
            known = facts.codes.setdefault(file, (code, {id(inner): inner for inner in nested(code)}))[0]
            if known is not code and known != code:
                deceit(f"{file[len(tree) :]} was run a second time with other code")
            check_file(file)
        if place_of(frame) or (not is_known(file) and place_of(frame, is_outside)):
            if file in tests:
                deceit(f"runs code in the name of {file[len(tree) :]}")
            take(code)
        elif file in added and code.co_name == "<module>":
            ran.add(file)
        elif file.startswith(runners) and place_of(frame, is_importing) and not allowed.intersection(RUNNERS):
            deceit(f"{place_of(frame, is_importing)}, imports {os.path.basename(file)}")

    def is_test(path):
        """Return whether a path leads to a file of the tests, whatever its name."""
        path = plain(os.fspath(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
        here = os.path.abspath(path)
        return here in tests or inode(path) in inodes or (os.path.basename(path) in names and not os.path.exists(path))

    def is_data(path):
        """Return whether a path leads to data that the tests read, such as expected values."""
        return isinstance(path, (str, bytes, os.PathLike)) and os.path.realpath(plain(os.fspath(path))) in data

    def writes(args):
        mode, flags = args[1], args[2]
        if isinstance(mode, str):
            return any(letter in mode for letter in "wax+")
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))

    def judge_path(path, frame, writing):
        if not isinstance(path, (str, bytes)) or not place_of(frame, is_outside):
            return None
        path = plain(path)
        if is_test(path):
            return f"opens a file of the tests, {os.path.basename(path)}"
        if writing and is_data(path):
            return f"writes to a file of the tests, {os.path.basename(path)}"
        path = os.path.realpath(path)
        if path.startswith(tree + ".git/"):
            return "objects" in path and "opens what git has of the tree"
        inner = path.startswith("/proc/") and (path.split("/")[-1] in ("mem", "maps", "environ") or "/fd" in path)
        return inner and f"opens {path}"

    def judge_command(event, args):
        """Judge a command; other programs are not watched, so none may access the tests' files."""
        words = args[1] if event == "subprocess.Popen" else args[0]
        if event == "os.posix_spawn":
            words = args[1]
        words = [words] if isinstance(words, (str, bytes, os.PathLike)) else list(words)
        text = " ".join(plain(os.fspath(word)) for word in words)
        place = plain(os.fspath(args[2])) if event == "subprocess.Popen" and args[2] else "."
        if not (os.path.realpath(place) + "/").startswith(tree) and tree[:-1] not in text:
            return None
        found = [name for name in (*stems, *map(os.path.basename, data)) if name in text] or READING.findall(text)
        return found and "lets another program at the tests' files"

    return types.SimpleNamespace(audit=audit, quietly=quietly, aloud=aloud)
