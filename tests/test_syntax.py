"""Well-formed and broken code of each language."""

from __future__ import annotations

import sys

import pytest

from tunesmith.errors import UsageError
from tunesmith.grading.syntax import LANGUAGES, LONGEST, Syntax, check, language, parse_rates

CODE = {
    "python": ("def f(x):\n    return x + 1\n", "def f(x:\n    return x +\n"),
    "javascript": ("const f = (x) => x + 1;\n", "const f = (x => { x + ;\n"),
    "typescript": ("function f(x: number): number { return x; }", "function f(x: number: { ret"),
    "java": ("class A { int f(int x) { return x; } }", "class A { int f(int x { return x; }"),
    "c": ("int main(void) { return 0; }", "int main(void { return 0 }"),
    "cpp": ("template <class T> T f(T x) { return x; }", "template <class T T f(T x) { return x;"),
    "csharp": ("class A { int F(int x) => x + 1; }", "class A { int F(int x => x + ; }"),
    "go": ("package main\n\nfunc f(x int) int { return x }\n", "package main\n\nfunc f(x int { r"),
    "rust": ("fn f(x: i32) -> i32 { x + 1 }", "fn f(x: i32 -> i32 { x + }"),
    "ruby": ("def f(x)\n  x + 1\nend\n", "def f(x\n  x +\n"),
    "php": ("<?php function f($x) { return $x; }", "<?php function f($x { return $x; "),
    "bash": ("for x in a b; do echo \"$x\"; done\n", "for x in a b; do echo \"$x\"\n"),
    "sql": ("SELECT a, b FROM t WHERE a = 1;", "SELECT FROM WHERE ( a = ;"),
    "html": ("<p>Hello <b>there</b></p>", "<p>Hello <b>there</i"),
    "css": ("p { color: red; }", "p { color: ; } } {"),
    "json": ('{"a": [1, 2]}', '{"a": [1, 2}'),
    "kotlin": ("fun f(x: Int): Int = x + 1", "fun f(x: Int: Int = x + "),
    "swift": ("func f(x: Int) -> Int { return x }", "func f(x: Int -> Int { return"),
    "scala": ("object A { def f(x: Int): Int = x + 1 }", "object A { def f(x: Int: Int = x + "),
    "lua": ("local function f(x) return x + 1 end", "local function f(x return x + "),
    "r": ("f <- function(x) x + 1", "f <- function(x { x + "),
    "haskell": ("f :: Int -> Int\nf x = x + 1\n", "f :: Int -> -> = =\n"),
    "yaml": ("a: 1\nb:\n  - 2\n", "a: [1, 2\nb: }\n"),
    "toml": ("[a]\nb = 1\n", "[a\nb = = 1\n"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _parsers(request):
    if "without" not in request.node.name:
        pytest.importorskip("tree_sitter_language_pack")


def test_every_language_has_examples():
    assert set(CODE) == set(LANGUAGES)
    assert len(LANGUAGES) >= 10


@pytest.mark.parametrize("name", LANGUAGES)
def test_well_formed_code_is_told_from_broken_code(name):
    good, bad = CODE[name]
    assert check(good, name) == Syntax(True)
    assert not check(bad, name).valid


def test_the_first_fault_has_its_line():
    assert check("x = 1\ny = 2\nz = = 3\n", "python").line == 3


@pytest.mark.parametrize("text", ["", "  \n", "x\n" * LONGEST])
def test_nothing_and_too_much_are_no_code(text):
    assert not check(text, "python").valid


def test_php_needs_no_opening_tag():
    assert check("function f($x) { return $x; }", "php").valid


def test_a_language_goes_by_several_names():
    assert [language(name) for name in ("JS", " c++", "sh", "brainfuck")] == [
        "javascript", "cpp", "bash", None,
    ]  # fmt: skip


def test_rates_are_by_language():
    texts = [(text, name) for name in ("python", "go") for text in CODE[name]]
    rates = parse_rates([*texts, (CODE["python"][0], "py"), ("+-", "brainfuck")])
    assert rates == {"go": (1, 2), "other": (0, 1), "python": (2, 3)}


def test_an_unknown_language_is_named():
    with pytest.raises(UsageError, match="brainfuck"):
        check("+", "brainfuck")


def test_without_the_parsers_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_language_pack", None)
    with pytest.raises(UsageError, match="not installed"):
        check("x", "python")
