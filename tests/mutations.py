"""Small faults in a program's tree: each mutant differs from the original in one place.

A mutant that compiles to the original's own instructions, such as ``while 2`` for ``while 1``, is
the same program and is left out.
"""

from __future__ import annotations

import ast
import copy
import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

_OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_COMPARISONS: dict[type, type] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Yield (what was done, program): every single fault that can be made."""
    tree = ast.parse(source)
    own = instructions(ast.unparse(tree))
    for place, node in enumerate(ast.walk(tree)):
        for what in _faults(node):
            made = copy.deepcopy(tree)
            _break([*ast.walk(made)][place])
            program = ast.unparse(made)
            if instructions(program) != own:
                yield f"{what}, line {getattr(node, 'lineno', 0)}", program


def instructions(source: str | CodeType) -> list[Any]:
    """Return what a program compiles to, without places in the text."""
    code = compile(source, "", "exec") if isinstance(source, str) else source
    head = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    found: list[Any] = [head, code.co_varnames, code.co_freevars, code.co_exceptiontable]
    for one in dis.get_instructions(code):
        value = one.argval
        shown = instructions(value) if isinstance(value, CodeType) else (type(value), repr(value))
        found.append((one.opname, shown))
    return found


def _faults(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _OPERATORS:
        yield "operator swapped"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield "comparison flipped"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        yield "constant changed"
    if isinstance(node, ast.If | ast.While):
        yield "condition negated"
    if isinstance(node, ast.Assign) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ):
        yield "statement left out"
    # None for another false value is the same program to whoever only asks whether it is true.
    if isinstance(node, ast.Return) and not (node.value is None or _false(node.value)):
        yield "return None"


def _false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value


def _break(node: ast.AST) -> None:
    match node:
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign():
            node.op = _OPERATORS[type(node.op)]()
        case ast.Compare():
            node.ops[0] = _COMPARISONS[type(node.ops[0])]()
        case ast.Constant():
            node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        case ast.If() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Assign():
            node.targets = [ast.Name("_", ast.Store())]
        case ast.Expr() | ast.Return():
            node.value = ast.Constant(None)
