"""Attacks on kernel resources: memory that belongs to no process, and resources shared by all users of a machine.

Each attack takes more than the sandbox's 256 MB if nothing stops it, and then waits to be killed: no test depends on
how quickly that happens. docs/swe_sandbox.md lists what each took from the host.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent_loops.swe.sandbox import Executed, SandboxError
from tests.helpers.in_sandbox import FINE, SECONDS, python, run

# ------------------------------------------------------------------------------------ memory that no process is charged

# In several processes. Each says what it has come to, and keeps what it has got till all have, and `wait` seconds more.
IN_CHILDREN = """
import ctypes, fcntl, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
kept, FAILED = [], ctypes.c_void_p(-1).value

def mapped(size, flags, file=-1, place=None):
    place = libc.mmap(place, size, 3 if size > 4096 else 1, flags, file, 0)
    if place == FAILED: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return place

def fill(one, more=b'x' * 65536):
    one.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF): one.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    try:
        while True: one.send(more)
    except OSError: pass

def until_refused(step, times=10 ** 9):
    try:
        for _ in range(times): kept.append(step())
    except OSError as error: return error.strerror
    return 'all of it'

{attack}

(hold, release), (arrived, arrive) = os.pipe(), os.pipe()
for child in range({children}):
    if os.fork() == 0:
        os.close(release)
        os.write(1, f'{{attack()}}\\n'.encode())
        os.write(arrive, b'x')
        os.read(hold, 1)
        time.sleep({wait})
        os._exit(0)
for child in range({children}): os.read(arrived, 1)
os.close(release)
for child in range({children}): os.wait()
"""
MEMORY = {  # in how many processes, and what
    "sockets, their buffers raised": (
        8,
        """
def step():
    pair = socket.socketpair()
    fill(pair[0]); fill(pair[1])
    return pair
def attack(): return until_refused(step)
""",
    ),
    "sockets on their way in messages": (
        8,
        """
def step():
    outer, inner = socket.socketpair(), socket.socketpair()
    fill(inner[0]); fill(inner[1])
    socket.send_fds(outer[0], [b'x'], [inner[0].fileno(), inner[1].fileno()])
    return outer
def attack(): return until_refused(step)
""",
    ),
    "connections over the loopback": (
        16,
        """
def attack():
    server = socket.create_server(('127.0.0.1', 0))
    def step():
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
        for _ in range(200):  # a reader that keeps up is given larger buffers
            one.sendall(b'x' * 65536)
            got = 0
            while got < 65536: got += len(two.recv(65536))
        fill(one); fill(two)
        return one, two
    return until_refused(step)
""",
    ),
    "datagrams": (
        16,
        """
def step():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(('127.0.0.1', 0))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    for _ in range(300): one.sendto(b'x' * 1000, one.getsockname())
    return one
def attack(): return until_refused(step)
""",
    ),
    "page tables": (
        4,
        """
def attack():
    for number in range(60000): ctypes.string_at(mapped(4096, 0x100022, place=0x100000000000 + (number << 30)), 1)
""",
    ),
    "mappings": (
        2,
        """
def attack():
    for number in range(60000): libc.mmap(None, 4096, number % 2, 0x22, -1, 0)
    for _ in range(25):
        if os.fork() == 0: time.sleep(1000)
""",
    ),
    "pipes": (
        40,
        """
def attack():
    written = 0
    def step():
        nonlocal written
        pair = os.pipe()
        try: fcntl.fcntl(pair[1], 1031, 1 << 20)
        except OSError: pass
        os.set_blocking(pair[1], False)
        try:
            while True: written += os.write(pair[1], b'x' * 65536)
        except BlockingIOError: pass
        return pair
    until_refused(step)
    return written
""",
    ),
    "shared memory that is mapped no more": (
        4,
        """
def step():
    place = mapped(8 << 20, 0x21)
    ctypes.memset(place, 1, 8 << 20)
    libc.munmap(place + 4096, (8 << 20) - 4096)
def attack(): return until_refused(step, 40)
""",
    ),
    "the same of /dev/zero": (
        4,
        """
def step():
    place = mapped(8 << 20, 0x01, os.open('/dev/zero', os.O_RDWR))
    ctypes.memset(place, 1, 8 << 20)
    libc.madvise(place, 8 << 20, 4)
def attack(): return until_refused(step, 40)
""",
    ),
    "locks on ranges of files": (
        4,
        """
def attack():
    for name in range(40):
        file = open(f'lock{os.getpid()}-{name}', 'w')
        kept.append(file)
        for number in range(2000): fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * number)
""",
    ),
    "empty files of /dev/shm": (
        4,
        """
def step():
    return open(f'/dev/shm/{os.getpid()}-{len(kept)}', 'w').close()
def attack(): return until_refused(step, 50_000)
""",
    ),
}
KILLED = dict.fromkeys(list(MEMORY)[:6], "more than 256 MB of memory")
KILLED.pop("sockets on their way in messages")
KILLED["locks on ranges of files"] = "more than 5000 locks on files"
REFUSED = {
    "sockets on their way in messages": "Too many references: cannot splice",
    "shared memory that is mapped no more": "Cannot allocate memory",
    "the same of /dev/zero": "No such device",
    "empty files of /dev/shm": "No space left on device",
}


def attack(kind: str, wait: float = 1000) -> str:
    """The attack as a program."""
    children, code = MEMORY[kind]
    return IN_CHILDREN.format(attack=code, children=children, wait=wait)


@pytest.mark.parametrize("kind", KILLED)
def test_memory_of_the_kernel_counts(sandbox, kind):
    done = python(sandbox, attack(kind))
    assert done.returncode == 137 and KILLED[kind] in done.output
    assert run(sandbox, "echo fine") == FINE


@pytest.mark.parametrize("kind", REFUSED)
def test_memory_that_cannot_be_counted_is_refused(sandbox, kind):
    done = python(sandbox, attack(kind, wait=0))
    said = set(done.output.splitlines())
    assert REFUSED[kind] in said and said <= {REFUSED[kind], "Too many open files"}
    assert run(sandbox, "rm -f /dev/shm/*; echo fine") == FINE


def test_pipes_are_bounded_by_the_kernel(sandbox):
    """64 MB for each user, then 8 kB for each pipe; commands run as a user of their own where this process is root."""
    done = python(sandbox, attack("pipes", wait=0))
    assert sum(map(int, done.output.split())) < 128 << 20


def test_open_files_have_a_limit_of_their_own(make_sandbox):
    code = "import os\nkept = 0\ntry:\n    while True: os.dup(0); kept += 1\nexcept OSError: print(kept)"
    assert (
        int(python(make_sandbox(), code).output) < 256 <= int(python(make_sandbox(open_files=400), code).output) < 400
    )


# ------------------------------------------------------------------------------------ what all users of a machine share


TERMINALS = """
import pty
kept = []
try:
    while True: kept.append(pty.openpty())
except OSError: print(len(kept), flush=True)
"""


def test_terminals_are_few_and_the_sandboxs_own(sandbox, make_sandbox):
    with ThreadPoolExecutor(1) as threads:
        holding = f"{TERMINALS}open('began', 'w').close()\nimport time\ntime.sleep(1000)"
        held = threads.submit(sandbox.execute, "python -", seconds=900, stdin=holding.encode())
        while run(sandbox, "test -e began").returncode:
            pass
        free = int(python(make_sandbox(), TERMINALS).output)
        sandbox.close()
        with pytest.raises(SandboxError, match="closed while"):
            held.result(SECONDS)
    assert 4 <= free <= 16
    echo = "import os, pty\npty.spawn(['/bin/echo', 'fine'], lambda fd: os.read(fd, 1024))"
    assert python(make_sandbox(), echo).output.strip() == "fine"


@pytest.mark.parametrize("call", ["inotify_init1(0)", "inotify_init()", "fanotify_init(0, 0)"])
def test_no_watches_on_files_which_the_host_has_few_of(sandbox, call):
    code = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    code += f"print(libc.{call}, os.strerror(ctypes.get_errno()))"
    assert python(sandbox, code).output == "-1 Function not implemented\n"


def test_the_kernels_killer_goes_on_taking_it_first(sandbox):
    code = (
        "import os\n"
        "for name in ('oom_score_adj', 'oom_adj', 'coredump_filter', 'mem'):\n"
        "    for pid in ('self', '1', os.getpid()):\n"
        "        try: os.open(f'/proc/{pid}/{name}', os.O_WRONLY); print('opened', pid, name)\n"
        "        except OSError as error: print(error.strerror)"
    )
    assert set(python(sandbox, code).output.splitlines()) == {"Read-only file system"}
    run(sandbox, "echo 0 >/proc/self/oom_score_adj; echo 0 >/proc/1/oom_score_adj")
    assert run(sandbox, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").output == "1000\n1000\n"


# ------------------------------------------------------------------------------------------------- how a command ended

FORGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
found = []
for pid in range(1, 5):
    pidfd = os.pidfd_open(pid)
    for number in range(64):
        got = libc.syscall(438, pidfd, number, 0)
        if got >= 0: found.append(got)
        try: found.append(os.open(f'/proc/{pid}/fd/{number}', os.O_WRONLY | os.O_NONBLOCK))
        except OSError: pass
    if pid == 1: break
for file in set(found) - {0, 1, 2}:
    for said in (b'{"exit-code": 0}\\n', (1).to_bytes(8, 'little')):
        try: os.write(file, said)
        except OSError: pass
os._exit(3)
"""


def test_the_exit_status_cannot_be_forged(sandbox):
    done = python(sandbox, FORGE)
    assert done.returncode == 3


def test_other_processes_are_neither_read_nor_written(sandbox):
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for call in (101, 310, 311, 312, 438) if os.uname().machine == 'x86_64' else (117, 270, 271, 272, 438):\n"
        "    assert (libc.syscall(call, 1, 1, 1, 1, 1, 1), ctypes.get_errno()) == (-1, 38), call\n"
        "open('/proc/1/mem', 'rb')\nprint('fine')"
    )
    assert python(sandbox, code) == FINE


# ---------------------------------------------------------------------------------------------------------------- locks


LOCK = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX | fcntl.LOCK_NB); print('fine')"


def with_a_lock(sandbox, path: str) -> Executed:
    """What a command says that locks a file of which this process holds a lock."""
    if not Path(path).exists():
        pytest.skip(f"there is no {path}")
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return run(sandbox, f"python -c {shlex.quote(LOCK)} {path}")
    finally:
        os.close(file)


@pytest.mark.parametrize(
    "path",
    [os.path.realpath(sys.executable), os.__file__, pytest.__file__, "/usr/bin/env", "/usr/bin", "/etc/services"],
    ids=["the Python", "its library", "a package", "a program", "a directory", "a file of /etc"],
)
def test_a_lock_on_a_shared_file_is_seen_by_nobody_else(sandbox, path):
    assert with_a_lock(sandbox, path) == FINE


@pytest.mark.xfail(strict=True, reason="devices are the host's own, and cannot be made in a user namespace")
def test_a_lock_on_a_device_is_seen_by_nobody_else(sandbox):
    assert with_a_lock(sandbox, "/dev/null") == FINE


# ------------------------------------------------------------------------------------------------- what goes on working

ORDINARY = """
import asyncio, concurrent.futures, mmap, multiprocessing, os, selectors, signal, socket, sqlite3, subprocess, sys
import tempfile, threading
from multiprocessing import shared_memory

def double(x): return 2 * x

async def served():
    async def answer(reader, writer):
        writer.write(await reader.readexactly(500_000)); await writer.drain(); writer.close()
    async with await asyncio.start_server(answer, '127.0.0.1', 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b'x' * 500_000)
        assert len(await reader.read(-1)) == 500_000
    one = await asyncio.create_subprocess_exec(sys.executable, '-c', 'print(1)', stdout=subprocess.PIPE)
    assert (await one.communicate())[0] == b'1\\n'

if __name__ == '__main__':
    asyncio.run(served())
    with sqlite3.connect('a.db') as data:
        data.execute('pragma journal_mode=wal'); data.execute('create table t (x)')
        data.executemany('insert into t values (?)', [(n,) for n in range(1000)])
    assert sqlite3.connect('a.db').execute('select sum(x) from t').fetchone() == (499500,)
    for method in ('fork', 'spawn', 'forkserver'):
        with multiprocessing.get_context(method).Pool(3) as pool: assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]
    value = multiprocessing.Value('i', 3); queue = multiprocessing.Queue()
    queue.put(value.value); assert queue.get() == 3
    block = shared_memory.SharedMemory(create=True, size=1 << 20); block.buf[:2] = b'ab'; block.unlink()
    with multiprocessing.Manager() as manager: assert manager.dict(a=1)['a'] == 1
    with concurrent.futures.ProcessPoolExecutor(2) as pool: assert list(pool.map(double, [1])) == [2]
    with concurrent.futures.ThreadPoolExecutor(20) as pool: assert sum(pool.map(double, range(100))) == 9900
    assert subprocess.getoutput('head -c 100000 /dev/zero | wc -c').strip() == '100000'
    with tempfile.TemporaryFile() as file:
        file.write(b'x' * 8192); file.flush()
        with mmap.mmap(file.fileno(), 8192) as mapped: mapped[0:1] = b'y'
    with mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped: mapped[0:1] = b'y'
    with socket.create_server(('::1', 0), family=socket.AF_INET6) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    socket.if_nameindex(); signal.setitimer(signal.ITIMER_REAL, 100); open('/dev/zero', 'rb').read(4096)
    print('fine')
"""


def test_what_repositories_tests_need_goes_on_working(make_sandbox):
    sandbox = make_sandbox(memory_mb=512)
    sandbox.execute("cat >ordinary.py", seconds=SECONDS, stdin=ORDINARY.encode())
    assert run(sandbox, "python ordinary.py") == FINE
    test = "def test_it(tmp_path, capfd):\n    print('said')\n    assert capfd.readouterr().out == 'said\\n'\n"
    sandbox.execute("cat >test_it.py", seconds=SECONDS, stdin=test.encode())
    assert "1 passed" in run(sandbox, "pytest -q -p no:cacheprovider").output
    assert "1 passed" in run(sandbox, "python -P -m pytest -q -p no:cacheprovider -rA --color=yes").output
    assert run(sandbox, "git init -q; git add test_it.py; tail -n 1 test_it.py | cat").returncode == 0
