"""Python text, read and never run: the program of an answer, and the names that tests use."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Self

LONGEST = 100_000
"""Characters of a program; what is longer is none."""
_BLOCK = re.compile(
    r"^([ \t]*)```[ \t]*([\w+-]*)[^\n]*\n((?:```[^`\n]+```|.)*?)(?:^[ \t]*```|```[ \t]*$|\Z)",
    re.DOTALL | re.M,
)
"""A fence ends at the start of a line, or at its end where none begins in that line."""
_PYTHON = ("", "python", "py", "python3")


def parsed(source: str) -> tuple[ast.Module | None, str]:
    """Return the tree of a text, or None and why it is no Python."""
    if len(source) > LONGEST:
        return None, f"more than {LONGEST:,} characters"
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a text's doubtful escapes are none of ours
            tree = ast.parse(source)
            compile(tree, "program", "exec")  # a return outside of a function parses too
            return tree, ""
    except (SyntaxError, ValueError, MemoryError, RecursionError) as fault:
        return None, f"{type(fault).__name__}: {fault}"


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a text, in the order in which they occur."""

    all: tuple[str, ...]
    """Read, and neither built in nor bound by the text itself."""
    called: tuple[str, ...]
    made: frozenset[str]
    """Bound at the top level by a definition or an assignment; imports are not among them."""

    @classmethod
    def of(cls, source: str, defined: Set[str] = frozenset()) -> Self:
        """Return the names of a text; none where it is no Python.

        ``defined`` are names that another text defines, built-in functions' among them.
        """
        tree = parsed(source)[0]
        if tree is None:
            return cls((), (), frozenset())
        walked = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        bound = {node.id for node in walked if not isinstance(node.ctx, ast.Load)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
        known = bound | (set(dir(builtins)) - defined)
        called = [n.func.id for n in ast.walk(tree) if _is_named_call(n)]  # type: ignore[attr-defined]
        free = dict.fromkeys(node.id for node in walked if node.id not in known)
        made = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        tops = [node for node in tree.body if isinstance(node, ast.Assign)]
        made |= {t.id for node in tops for t in node.targets if isinstance(t, ast.Name)}
        return cls(
            tuple(free),
            tuple(dict.fromkeys(name for name in called if name not in known)),
            frozenset(made),
        )


def free_names(sources: Iterable[str], defined: Set[str] = frozenset()) -> Names:
    """Return what several texts, run one after the other, need from elsewhere."""
    parts = [source for source in sources if source.strip()]
    return Names.of("\n".join(parts), defined)


def imports_of(source: str) -> list[str]:
    """Return the import statements at the top level of a text."""
    tree = parsed(source)[0]
    found = tree.body if tree else []
    return [ast.unparse(node) for node in found if isinstance(node, ast.Import | ast.ImportFrom)]


def extracted(text: str, context: str, needed: Sequence[str]) -> str | None:
    """Return the program of an answer; None where it holds none.

    The last ``python`` block that defines what is needed counts, else the last block, else the
    whole text. ``context``, which ends in an unfinished function, comes first: a program that does
    not define the function again is taken for the rest of it.
    """
    found_blocks = [found for found in _BLOCK.findall(text) if found[1].lower() in _PYTHON]
    blocks = [_unindented(margin, body, needed) for margin, _, body in found_blocks]
    whole = [at for at, body in enumerate(blocks) if _defines(body, needed)]
    if whole:
        return _below(context, _with_parts(blocks[: whole[-1] + 1]))
    found = blocks[-1] if blocks else text
    if not found.strip() or len(found) > LONGEST:
        return None
    if not context or _defines(found, needed):
        shorter = _leading(found) if context or not blocks else found
        return _below(context, shorter)
    opening = context.rstrip().rpartition("\n")[0]
    for body in _bodies(found):
        made = f"{opening}\n{body}"
        if parsed(made)[0] is not None:
            return made
    return f"{opening}\n{found}"


def _unindented(margin: str, body: str, needed: Sequence[str]) -> str:
    """Return a block without the margin of its fence, or all that its lines share if it is whole.

    What goes on with an unfinished function keeps its own indentation.
    """
    whole = textwrap.dedent(body)
    if _defines(whole, needed):
        return whole
    return re.sub(f"^[ \t]{{0,{len(margin)}}}", "", body, flags=re.M)


def _with_parts(blocks: Sequence[str]) -> str:
    """Return the last block, below those of the others that define what it or they use."""
    kept = [blocks[-1]]
    for body in reversed(blocks[:-1]):
        made = Names.of(body).made
        if made & set(free_names(kept).all) and not made & Names.of("\n".join(kept)).made:
            kept.insert(0, body)
    return "\n".join(kept)


def _below(context: str, program: str) -> str:
    """Return a program below its context, with its future imports first, where they have to be."""
    if not context:
        return program
    future = "".join(f"{line}\n" for line in _FUTURE.findall(program))
    return f"{future}{context}\n{_FUTURE.sub('', program)}"


_FUTURE = re.compile(r"^from __future__ import [\w, ]+$", re.M)


def _defines(source: str, needed: Sequence[str]) -> bool:
    made = Names.of(source).made if parsed(source)[0] else _DEFINED.findall(source)
    return bool(needed) and set(needed) <= {*made}


_DEFINED = re.compile(r"^(?:async\s+)?(?:def|class)\s+(\w+)", re.M)


def _leading(text: str) -> str:
    """Return a text without the prose behind its program, as far as that makes it Python."""
    if parsed(text)[0] is not None:
        return text
    lines = text.splitlines()
    starts = [at for at, line in enumerate(lines) if _CODE.match(line)]
    begin = starts[0] if starts else 0
    for end in range(len(lines), begin, -1):
        kept = "\n".join(lines[begin:end])
        if len(lines) - end > 200:
            break
        if parsed(kept)[0] is not None:
            return kept
    return text


_CODE = re.compile(r"(?:def|class|import|from|async|@)\b|@\w")


def _bodies(text: str) -> list[str]:
    """Return what the rest of a function may be: as it is, cut behind its block, or indented."""
    cut = re.split(r"\n(?=\S)", text.strip("\n"), maxsplit=1)[0]
    first = "    " + text.strip("\n").lstrip(" ")
    first_cut = re.split(r"\n(?=\S)", first, maxsplit=1)[0]
    indented = "\n".join(f"    {line}" for line in text.strip("\n").splitlines())
    return [text, cut, first, first_cut, indented]


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
