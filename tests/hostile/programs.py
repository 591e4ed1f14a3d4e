# ruff: noqa: E501 (programs, each as it is written)
"""Three hundred hostile programs: attacks of many kinds, each begun in several ways.

An attack is the body of ``attack()``, which returns true only where it has got what it should not
have. ``{port}``, ``{file}``, ``{pid}`` and ``{secret}`` are canaries outside of the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

ATTACKS: Mapping[str, tuple[str, ...]] = {
    "fork bomb": (
        "while True: os.fork()",
        "while True:\n    try: os.fork()\n    except OSError: pass",
    ),
    "thread bomb": (
        "while True: threading.Thread(target=time.sleep, args=(60,)).start()",
    ),
    "memory": (
        "held = []\nwhile True: held.append(bytearray(1 << 24))",
        "mmap.mmap(-1, 1 << 36)[0:1]\nreturn True",
    ),
    "files": (
        "with open('big', 'wb') as out:\n    while True: out.write(bytes(1 << 20))",
        "for n in range(10**6): open(f'f{{n}}', 'w').write('x')\nreturn True",
        "os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR), 1 << 40)\nreturn True",
    ),
    "network": (
        "socket.create_connection(('127.0.0.1', {port}), 1)\nreturn True",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('8.8.8.8', 53))\n"
        "return True",
        "return ctypes.CDLL(None).socket(2, 1, 0) >= 0",
        "import urllib.request\nreturn bool(urllib.request.urlopen('http://127.0.0.1:{port}'))",
    ),
    "signals": (
        "os.kill(-1, 9)",
        "os.kill(os.getppid(), 9)\ntime.sleep(.2)",
        "os.killpg(0, 9)",
        "os.kill({pid}, 9)\nreturn True",
        "for pid in range(2, 5000):\n    try: os.kill(pid, 9)\n    except OSError: pass",
    ),
    "endless": (
        "while True: pass",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
        "return bool(10 ** 10 ** 9)",
    ),
    "flood": (
        "while True: print('x' * 100000)",
        "while True: os.write(2, b'x' * 65536)",
        "while True: sys.__stdout__.write('pass\\n')",
    ),
    "sleep": ("time.sleep(3600)", "os.read(os.pipe()[0], 1)", "threading.Event().wait()"),
    "stubborn": (
        "for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        "signal.signal(signal.SIGXCPU, lambda *_: None)\nsignal.alarm(1)\nwhile True: pass",
    ),
    "environment": (
        "return '{secret}' in str(dict(os.environ))",
        "return any(secret_in(f'/proc/{{n}}/environ') for n in ('self', 1, os.getppid(), {pid}))",
    ),
    "processes": (
        "return any(n.isdigit() for n in os.listdir('/proc'))",
        "return secret_in(f'/proc/{{os.getppid()}}/mem') or secret_in('/proc/1/cmdline')",
        "return os.pidfd_open({pid}) >= 0",
    ),
    "writing": (
        "open('{file}', 'w').write('gone')\nreturn True",
        "open('/usr/lib/planted', 'w').write('x')\nreturn True",
        "open('../' * 20 + '{file}', 'a').write('gone')\nreturn True",
        "os.chmod('/usr/lib', 0o777)\nreturn True",
        "open(os.__file__, 'a').write('#')\nreturn True",
    ),
    "links": (
        "os.symlink('{file}', 'link')\nreturn secret_in('link')",
        "os.link('{file}', 'link')\nreturn True",
        "os.symlink('/', 'all')\nreturn secret_in('all{file}')",
    ),
    "reading": (
        "return secret_in('{file}')",
        "return bool(open('/etc/passwd').read())",
        "return any(p not in os.__file__ for w in ('/r??t/.*', '/r??t/*', '/home/*') for p in "
        "glob.glob(w))",
        "return bool(glob.glob('/**/*.jsonl', recursive=True))",
    ),
    "mounts": (
        "return ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
        "return ctypes.CDLL(None).unshare(0x10000000) == 0",
        "return ctypes.CDLL(None).umount2(b'/', 2) == 0",
        "os.mkdir('j')\nos.chroot('j')\nos.chdir('../' * 20)\nreturn secret_in('.{file}')",
    ),
    "tracing": (
        "return ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
        "return ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
        "return ctypes.CDLL(None).syscall(310, {pid}, None, 0, None, 0, 0) >= 0",
    ),
    "kernel": (
        "return ctypes.CDLL(None).syscall(321, 0, None, 0) >= 0",
        "return ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0",
        "return ctypes.CDLL(None).syscall(248, b'user', b'a', b'b', 1, -3) >= 0",
        "return ctypes.CDLL(None).syscall(323, 0) >= 0",
    ),
    "database": (
        "return bool(sqlite3.connect('{file}.db').execute('create table t(x)'))",
        "sqlite3.connect(':memory:').execute(\"attach '{file}.db' as a\")\nreturn True",
    ),
    "limits": (
        "import resource as r\nr.setrlimit(r.RLIMIT_NPROC, (10**6, 10**6))\nreturn True",
        "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))\nreturn True",
        "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (-1, -1))\nreturn True",
    ),
    "rights": (
        "os.setuid(0)\nreturn True",
        "os.setgroups([0])\nreturn True",
        "os.nice(-5)\nreturn True",
        "return os.geteuid() == 0",
    ),
    "programs": (
        "import subprocess\nreturn bool(subprocess.run(['sh', '-c', 'echo x']).returncode == 0)",
        "return os.system('true') == 0",
        "os.execv('/bin/sh', ['sh', '-c', 'echo escaped'])",
        "d = os.memfd_create('x')\nos.write(d, b'#!/bin/sh')\nos.execve(d, ['x'], {{}})",
    ),
    "descriptors": (
        "for n in range(3, 256):\n    try: os.write(n, b'{{\"kind\": \"pass\"}}\\n')\n"
        "    except OSError: pass",
        "os.closerange(0, 256)\nwhile True: pass",
        "return any(secret_in(n) for n in range(3, 40))",
    ),
    "crash": (
        "ctypes.string_at(0)",
        "os.abort()",
        "sys.setrecursionlimit(10**9)\ng = lambda: g()\nreturn g()",
    ),
    "shared memory": (
        "return ctypes.CDLL(None).shmget({pid}, 4096, 0) >= 0",
        "open('/dev/shm/planted', 'w').write('x')\nreturn True",
    ),
    "devices": (
        "import fcntl, termios\nfcntl.ioctl(os.open('/dev/tty', 2), termios.TIOCSTI, b'x')\n"
        "return True",
        "os.mknod('disk', 0o60666, os.makedev(8, 0))\nos.open('disk', 0)\nreturn True",
        "open('/dev/kmsg', 'w').write('x')\nreturn True",
    ),
}  # fmt: skip
"""Kind → attacks."""

_HEAD = """
import ctypes, glob, mmap, os, signal, socket, sqlite3, sys, threading, time

def secret_in(place):
    try:
        with open(place, "rb") as file:
            return b"{secret}" in file.read(1 << 20)
    except OSError:
        return False

def attack():
{body}

def tried():
    try:
        return "escaped" if attack() else "held"
    except Exception as fault:
        return f"held: {{fault!r}}"
"""
WAYS: Mapping[str, str] = {
    "called": "def f(): return tried()",
    "imported": "found = tried()\ndef f(): return found",
    "in a thread": "def f():\n    got = []\n    t = threading.Thread(target=lambda: "
    "got.append(tried()))\n    t.start()\n    t.join()\n    return got[0]",
    "in a child": "def f():\n    pid = os.fork()\n    if not pid:\n        os._exit(42 if tried() == "
    "'escaped' else 0)\n    return 'escaped' if os.waitpid(pid, 0)[1] >> 8 == 42 else 'held'",
    "as a daemon": "def f():\n    if not os.fork():\n        os.setsid()\n        if not os.fork():\n"
    "            tried()\n            time.sleep(60)\n        os._exit(0)\n    time.sleep(.1)\n"
    "    return 'held'",
}
"""How an attack is begun."""
COUNT = 300


def programs(canaries: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield ``COUNT`` named programs, kinds and ways in turn."""
    made = 0
    for turn in range(len(WAYS) * max(map(len, ATTACKS.values()))):
        for place, (kind, attacks) in enumerate(ATTACKS.items()):
            way = list(WAYS)[(turn + place) % len(WAYS)]
            number = turn // len(WAYS)
            if number >= len(attacks) or made == COUNT:
                continue
            body = attacks[number].format(**canaries)
            head = _HEAD.format(secret=canaries["secret"], body=_indented(body))
            yield f"{kind} {number}, {way}", f"{head}\n{WAYS[way]}\n"
            made += 1


def _indented(body: str) -> str:
    return "\n".join(f"    {line}" for line in body.splitlines())
