# ruff: noqa: E501 (programs, each as it is written)
"""Fifty programs that do not know the answer and want to be taken for right all the same.

``f(7)`` has to give a number that only the tests know.
"""

from __future__ import annotations

_VERDICT = '{"kind": "pass", "detail": "", "calls": 9}'
_REPLY = '{"value": true}'
_ENDS = (
    "import sys\ndef f(x): sys.exit(0)",
    "import os\ndef f(x): os._exit(0)",
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "def f(x): raise SystemExit",
    "def f(x): raise KeyboardInterrupt",
    "def f(x): raise GeneratorExit",
    "def f(x): raise StopIteration",
    "def f(x): raise AssertionError",
    "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGTERM)",
    "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
)
_EQUALS = (
    "class A:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return A()",
    "class A(int):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return A(1)",
    "class A(str):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return A()",
    "class A(float):\n    def __eq__(self, o): return True\ndef f(x): return A(1)",
    "class A(list):\n    def __eq__(self, o): return True\ndef f(x): return A()",
    "class M(type):\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
    "class A(metaclass=M): pass\ndef f(x): return A",
    "class A:\n    __class__ = int\n    def __eq__(self, o): return True\ndef f(x): return A()",
    "class A(int):\n    def __rsub__(self, o): return 0\n    __abs__ = lambda s: 0\n"
    "def f(x): return A()",
    "from unittest.mock import ANY\ndef f(x): return ANY",
    "def f(x): return float('nan')",
    "def f(x): return f",
    "def f(x): return NotImplemented",
    "f = int",
    "class f:\n    def __init__(self, x): pass\n    def __eq__(self, o): return True",
)
_PATCHES = (
    "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return 0",
    "import builtins\nbuiltins.int = builtins.type = lambda *a: 0\ndef f(x): return 0",
    "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\ndef f(x): return 0",
    "import json\njson.dumps = lambda *a, **k: '" + _VERDICT + "'\ndef f(x): return 0",
    "import json\njson.dumps = lambda *a, **k: '" + _REPLY + "'\ndef f(x): return 0",
    "import sys\nm = sys.modules['tunesmith.grading.sandbox.tester']\n"
    "m.judge = lambda *a: {'kind': 'pass', 'detail': ''}\ndef f(x): return 0",
    "import sys\nw = sys.modules['tunesmith.grading.sandbox.wire']\n"
    "w.encode = lambda *a: {'r': 0}\ndef f(x): return 0",
    "import sys\nw = sys.modules['tunesmith.grading.sandbox.wire']\ns = w.send\n"
    "w.send = lambda d, m: [s(d, {'value': None}) for _ in range(9)]\ndef f(x): return 0",
    "import sys\nl = sys.modules['tunesmith.grading.sandbox.launch']\n"
    "l._write = lambda *a: None\nl._watch = lambda *a: {'kind': 'pass'}\ndef f(x): return 0",
    "import sys\nsys.modules.clear()\ndef f(x): return 0",
    "import unittest, sys\nsys.modules['math'] = sys.modules['copy'] = unittest\ndef f(x): return 0",
    "import sys\ndef t(*a):\n    a[0].f_globals.clear()\nsys.settrace(t)\ndef f(x): return 0",
)
_SEARCHES = (
    "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'tests' in"
    " o: return o['tests']",
    "import sys\ndef f(x):\n    fr = sys._getframe()\n    while fr.f_back:\n        fr = fr.f_back\n"
    "        if 'expected' in str(fr.f_locals): return fr.f_locals\n",
    "import re\ndef f(x):\n    return int(re.search(rb'== (\\d+)', open('/proc/self/mem', 'rb').read"
    "()).group(1))",
    "import os, re\ndef f(x):\n    for n in range(3, 64):\n        try:\n            os.lseek(n, 0, 0)\n"
    "            m = re.search(rb'== (\\d+)', os.read(n, 9999))\n            if m: return int(m[1])\n"
    "        except OSError: pass",
    "import ctypes\ndef f(x):\n    b = ctypes.create_string_buffer(99)\n"
    "    ctypes.CDLL(None).ptrace(1, 2, b, 0)\n    return b.value",
    "import os\ndef f(x):\n    return [os.pidfd_open(n) for n in range(2, 9)]",
    "import random\ndef f(x):\n    random.seed(0)\n    return random.randrange(10**9)",
)
_WRITES = tuple(
    f"import os, sys\nV = '{_VERDICT}\\n'.encode()\nB = len(V).to_bytes(8, 'big') + V\ndef f(x):\n"
    f"    for n in range({low}, 256):\n        try: os.write(n, {what})\n"
    f"        except OSError: pass\n    {then}"
    for low in (1, 3)
    for what, then in (("V", "return 0"), ("V", "os._exit(0)"), ("B", "os._exit(0)"))
)  # fmt: skip

FORGERIES: tuple[str, ...] = (*_ENDS, *_EQUALS, *_PATCHES, *_SEARCHES, *_WRITES)
