"""Every metric of replies is checked: gold is full, shuffled gold chance, bad replies low."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tunesmith.data.words import words
from tunesmith.evaluate.scores import base, chat
from tunesmith.evaluate.scores.base import Metric, Reply, TextLoss, measure, shuffled, value, values
from tunesmith.evaluate.scores.domain import mine_terms, recall
from tunesmith.evaluate.scores.table import metrics_of
from tunesmith.evaluate.statistics import jackknife
from tunesmith.grading.overlap import (
    code_of,
    edit_similarity,
    ngram_f1,
    squad_f1,
    squad_normalised,
)
from tunesmith.grading.rouge import rouge_l
from tunesmith.tasks.replies import REPLY_TASKS
from tunesmith.types import StopReason

TERMS = (
    "river level",
    "fugue",
    "sourdough",
    "eclipse",
    "harbour",
    "compiler",
    "glacier",
    "vaccine",
)
TOPICS = (
    ("Why does the river flood in spring?", "Snow melts and fills every river level upstream."),
    ("How is a fugue built from one theme?", "Each voice of a fugue enters with that theme."),
    ("What makes sourdough bread rise?", "Wild yeast makes gas, and sourdough bread swells."),
    ("When does a solar eclipse happen?", "An eclipse comes as our moon hides solar light."),
    ("Who dredges the harbour basin?", "Port authorities dredge a harbour basin yearly."),
    ("What does a compiler optimise first?", "A compiler will optimise loops before calls."),
    ("Can a glacier move downhill?", "Ice deforms, so glacier tongues move downhill slowly."),
    ("How long does a vaccine protect?", "Most vaccine doses protect people for years."),
)
CODE = (
    "def area(r):\n    return 3.14 * r ** 2",
    "for name in names:\n    print(name.upper())",
    "import os\nsize = os.stat('f').st_size",
    "class Node:\n    left = right = None",
    "while queue:\n    node = queue.pop(0)",
    "total = sum(x * y for x, y in pairs)",
    "if not path.exists():\n    raise OSError(path)",
    "with open(log) as f:\n    lines = f.readlines()",
)
SURE = TextLoss(0.0, 10.0, 10, 10, 40)
LOST = TextLoss(10 * math.log(1000), 10.0, 10, 0, 40)
"""Of a model that knows every token, and of one that guesses among a thousand."""


def talk(text: str | None = None, **changes: object) -> list[Reply]:
    """Return a conversation about each topic; the reply is the reference, or ``text``."""
    found = [
        Reply(f"q{at}", (("user", asked),), said, said if text is None else text,
              StopReason.STOP_TOKEN, 10, SURE)
        for at, (asked, said) in enumerate(TOPICS)
    ]  # fmt: skip
    return [replace(reply, **changes) for reply in found]


def codes(text: str | None = None) -> list[Reply]:
    return [
        Reply(f"c{at}", (("user", "go on"),), code, code if text is None else text,
              StopReason.STOP_TOKEN, 10)
        for at, code in enumerate(CODE)
    ]  # fmt: skip


def history(*turns: tuple[str, str]) -> list[Reply]:
    """Return the topics behind the same earlier turns."""
    return [replace(reply, prompt=(*turns, *reply.prompt)) for reply in talk()]


CUT = {"stop": StopReason.LENGTH}
NONSENSE = "Zq xv jj kw."
LOOP = "well yes well yes well yes well yes well yes well yes well yes"


@dataclass(frozen=True)
class Check:
    """What one metric has to say of replies that are known to be good, and known to be bad."""

    gold: Sequence[Reply]
    full: float
    bad: Sequence[Sequence[Reply]]
    low: float
    """What every bad set reaches at best."""
    chance: tuple[float, float] | None = None
    """Between what the gold replies lie once they are shuffled, where that matters."""


LIKE = {"gold": talk(), "full": 1.0, "bad": [talk(""), talk(NONSENSE)], "low": 0.1}
LIKE_CODE = {"gold": codes(), "full": 1.0, "bad": [codes(""), codes("§")], "low": 0.05}
CHECKS = {
    "distinct_1": Check([replace(r, text=" ".join(f"w{n}{r.problem_id}" for n in range(9)))
                         for r in talk()], 1.0, [talk("I do not know."), talk(LOOP)], 0.13),
    "distinct_2": Check([replace(r, text=" ".join(f"w{n}{r.problem_id}" for n in range(9)))
                         for r in talk()], 1.0, [talk("I do not know."), talk(LOOP)], 0.13),
    "repetition": Check(talk(), 0.0, [talk(LOOP), talk("and so on and so on and so on")], 0.5),
    "turn_coherence": Check(talk(), 1.0, [talk(""), talk("I see."), talk(NONSENSE)], 0.5,
                            (0.35, 0.65)),
    "conversation_flow": Check(
        talk(), 1.0,
        [talk(**CUT), talk(""), talk("Fine.\nUser: and you?"),
         [replace(r, text=r.before) for r in talk()],
         history(("user", "Hello."), ("user", "Anybody?")),
         history(("user", "Why?"), ("assistant", "No."), ("user", "Why?"), ("assistant", "Yes."))],
        0.0),
    "role_leakage": Check(
        talk(), 0.0,
        [talk("Sure.\nUser: thanks\nAssistant: welcome"), talk("Yes.<|im_end|>"),
         talk("[INST] more [/INST]"), talk("Done.\n### Instruction\nNext")], 1.0),
    "turns": Check(talk(), 2.0, [history(("user", "Hi."), ("assistant", "Hi."))], 4.0),
    "task_completion": Check(talk(), 1.0, [talk(**CUT), talk(""), talk(" \n")], 0.0),
    "exact_match": Check(**LIKE, chance=(0, 0)),
    "token_f1": Check(**LIKE, chance=(0, 0.2)),
    "rouge_l": Check(**LIKE, chance=(0, 0.2)),
    "chrf": Check(**LIKE, chance=(0, 0.3)),
    "syntax_validity": Check(
        codes(), 1.0, [codes(""), codes("def (:"), codes("```js\nfunction {\n```")], 0.0),
    "code_exact": Check(**LIKE_CODE, chance=(0, 0)),
    "edit_similarity": Check(**LIKE_CODE, chance=(0, 0.35)),
    "pattern_consistency": Check(**LIKE_CODE, chance=(0, 0.2)),
    "term_recall": Check(talk(), 1.0, [talk(""), talk(NONSENSE), talk("level river")], 0.0,
                         (0, 0.1)),
    "loss": Check(talk(), 0.0, [talk(loss=LOST)], 6.9),
    "loss_per_byte": Check(talk(), 0.0, [talk(loss=LOST)], 1.7),
    "perplexity": Check(talk(), 1.0, [talk(loss=LOST)], 999.9),
    "byte_perplexity": Check(talk(), 1.0, [talk(loss=LOST)], 5.6),
    "token_accuracy": Check(talk(), 1.0, [talk(loss=LOST)], 0.0),
    "reply_tokens": Check(talk(), 10.0, [talk(tokens=900)], 900),
    "length_ratio": Check(talk(), 1.0, [talk(NONSENSE * 9)], 4.0),
}  # fmt: skip
"""Metric → what it is checked with. A metric that is not in it is not to be trusted."""


def every_metric() -> dict[str, Metric]:
    named = [pair for task in REPLY_TASKS for pair in metrics_of(task, TERMS)]
    return {metric.name: metric for _, metrics in named for metric in metrics}


def test_every_metric_has_a_check() -> None:
    assert set(CHECKS) == set(every_metric())


@pytest.mark.parametrize("name", list(CHECKS))
def test_gold_is_full_and_bad_replies_are_low(name: str) -> None:
    metric, check = every_metric()[name], CHECKS[name]
    found = measure(metric, check.gold)
    assert found.value == pytest.approx(check.full)
    assert metric.low <= check.full <= metric.high
    for bad in check.bad:
        reached = value(metric, bad)
        assert reached is not None
        if metric.better == "higher":
            assert reached <= check.low < check.full
        else:
            assert reached >= check.low > check.full


@pytest.mark.parametrize("name", list(CHECKS))
def test_shuffled_gold_is_chance(name: str) -> None:
    metric, check = every_metric()[name], CHECKS[name]
    assert metric.paired is (check.chance is not None)
    if check.chance is not None:
        found = measure(metric, check.gold).shuffled
        assert found is not None
        assert check.chance[0] <= found <= check.chance[1]


@pytest.mark.parametrize("name", list(CHECKS))
def test_a_metric_says_what_it_is(name: str) -> None:
    metric = every_metric()[name]
    assert len(metric.title) <= 22
    assert len(metric.formula) > 20
    assert sum(one is not None for one in (metric.each, metric.parts, metric.whole)) == 1
    found = measure(metric, [*CHECKS[name].gold, *CHECKS[name].bad[0]][::-1])
    assert found.interval is not None
    assert metric.low <= found.interval.low <= found.value <= found.interval.high <= metric.high


@pytest.mark.parametrize("name", list(CHECKS))
def test_no_reply_and_one_reply_are_no_crash(name: str) -> None:
    metric = every_metric()[name]
    assert measure(metric, []).value is None
    measure(metric, CHECKS[name].gold[:1])


def test_replies_to_one_question_are_no_chance_level() -> None:
    replies = [replace(reply, problem_id="one") for reply in talk()]
    assert measure(every_metric()["rouge_l"], replies).shuffled is None


def test_many_replies_are_counted_in_time_that_grows_with_them() -> None:
    many = [replace(r, problem_id=f"{n}", text=f"{r.text} {n} {n * n}")
            for n in range(300) for r in talk()]  # fmt: skip
    began = time.process_time()
    assert 0 < value(every_metric()["distinct_2"], many) < 1
    assert time.process_time() - began < 2


def test_tools_may_speak_between_two_turns_of_the_assistant() -> None:
    turns = (("user", "Hot?"), ("assistant", "I look."), ("tool", "21"))
    flow = every_metric()["conversation_flow"]
    assert value(flow, [replace(r, prompt=turns) for r in talk()]) == 1
    assert value(flow, [replace(r, prompt=turns[:2]) for r in talk()]) == 0


@pytest.mark.parametrize("said", ["## Input validation", "### Response time matters"])
def test_a_heading_is_no_other_role(said: str) -> None:
    assert value(every_metric()["role_leakage"], talk(f"Well.\n{said}\nMore.")) == 0


def test_code_parses_in_the_language_that_it_names() -> None:
    metric = every_metric()["syntax_validity"]
    script, other = "```js\nlet a = () => 1;\n```", "```brainfuck\n+[>\n```"
    asked = (("user", "go on"),)
    stop = StopReason.STOP_TOKEN
    replies = [
        Reply("named", asked, "x = 1", script, stop, 9),
        Reply("as the reference", asked, script, "let b = 2;", stop, 9),
        Reply("unknown", asked, "x = 1", other, stop, 9),
        Reply("neither", asked, "nothing (of the kind", "x = 1", stop, 9),
        Reply("goes on", ((None, "print("),), "x)", "1)", stop, 9),
        Reply("breaks off", ((None, "print("),), "x)", "1", stop, 9),
    ]
    assert values(metric, replies) == [1.0, 1.0, None, None, 1.0, 0.0]


def test_the_guide_has_every_metric_with_its_formula() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "metrics_guide.md").read_text("utf-8")
    for metric in every_metric().values():
        [line] = [one for one in guide.splitlines() if one.startswith(f"| `{metric.name}` |")]
        assert metric.formula in line
        assert {"higher": "↑", "lower": "↓", "neither": "–"}[metric.better] in line


def test_rouge_l_is_the_librarys() -> None:
    """Values of rouge-score 0.1.2, ``rougeL`` without a stemmer."""
    for first, second, wanted in (
        ("the cat sat on the mat", "the cat lay on a mat", 0.6666666666666666),
        ("police killed the gunman", "the gunman police killed", 0.5),
        ("It is 42, I think.", "It is 42.", 0.7499999999999999),
        ("a b c d e f g", "g f e d c b a", 0.14285714285714285),
        ("one two three", "four five six", 0.0),
        (
            "Rain fell all night; the river rose, and the bridge was closed by noon.",
            "By noon the bridge was closed because the river rose after rain fell all night.",
            0.2758620689655172,
        ),
    ):
        assert rouge_l(words(first), words(second)) == pytest.approx(wanted)


def test_squads_normalisation_by_hand() -> None:
    assert squad_normalised("  The Answer, isn't  an apple! ") == "answer isnt apple"
    assert squad_f1("The cat sat.", "a cat") == pytest.approx(2 / 3)
    assert (squad_f1("the", "A"), squad_f1("", "cat")) == (1.0, 0.0)


def test_code_out_of_a_fence() -> None:
    text = "Here:\n```python\nx = 1  \n```\nand\n```\ny\n```"
    assert code_of(text) == "x = 1"
    assert code_of("x = 1\n") == "x = 1"
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert (edit_similarity("", ""), edit_similarity("", "ab")) == (1.0, 0.0)


def test_ngrams_by_hand() -> None:
    # 1-grams: 2 of 3 shared; 2-grams: 1 of 2; 3-grams: none of 1; no 4-grams.
    assert ngram_f1("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert (ngram_f1("", ""), ngram_f1("a", "")) == (1.0, 0.0)


def test_terms_are_shared_rarer_words() -> None:
    texts = [f"The patient{n} shows dyspnoea; however the doctor waits." for n in range(3)]
    texts += ["Dialysis helps the doctor.", "Dialysis ends.", "The doctor sleeps now."]
    assert mine_terms(texts) == ("dyspnoea", "shows", "waits", "dialysis")
    assert mine_terms(texts, 1) == ("dyspnoea",)
    assert recall(["river level", "gauge"], "the level", "a river level gauge") == 0.0
    assert recall(["river level", "gauge"], "the gauge", "a river level gauge") == 0.5
    assert recall(["moon"], "the gauge", "a river level gauge") is None


def test_few_texts_have_no_terms() -> None:
    assert mine_terms(["a fugue begins", "a fugue ends", "a fugue"]) == ()


def test_shuffling_leaves_no_reply_at_home() -> None:
    twice = [replace(reply, text=f"{reply.text} {n}") for reply in talk() for n in range(2)]
    home = {reply.problem_id: reply.reference for reply in twice}
    moved = shuffled(twice)
    assert sorted(r.text for r in moved) == sorted(r.text for r in twice)
    assert not any(r.text.startswith(home[r.problem_id]) for r in moved)


def test_samples_of_a_question_are_one_cluster() -> None:
    """Four copies of each reply say no more than one: the interval must not shrink."""
    metric = every_metric()["token_f1"]
    mixed = [r if at % 2 else replace(r, text=NONSENSE) for at, r in enumerate(talk())]
    once, often = measure(metric, mixed), measure(metric, mixed * 4)
    assert often.value == pytest.approx(once.value)
    assert often.interval is not None
    assert once.interval is not None
    width = once.interval.high - once.interval.low
    assert often.interval.high - often.interval.low > 0.8 * width


def test_a_metric_of_the_set_is_inside_its_interval() -> None:
    """A bootstrap of distinct-n is not: what it draws twice counts as repeated."""
    many = [replace(r, problem_id=f"{n}{r.problem_id}") for n in range(9) for r in talk()]
    found = measure(chat.DIVERSITY[0], many)
    assert found.interval is not None
    assert found.interval.low < found.value < found.interval.high
    assert found.interval_method.startswith("jackknife")


def test_the_jackknife_of_a_mean_is_the_standard_error() -> None:
    sample = [1.0, 2.0, 4.0, 7.0, 11.0]
    left = [(sum(sample) - one) / 4 for one in sample]
    ends = jackknife(5.0, left)
    spread = math.sqrt(sum((one - 5.0) ** 2 for one in sample) / 4 / 5)
    assert ends.high - 5.0 == pytest.approx(2.7764451 * spread)
    with pytest.raises(ValueError, match="1 group"):
        jackknife(1.0, [1.0])


def test_likeness_of_turns_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chat.turn_coherence(talk())
    monkeypatch.setattr(chat, "_AT_ONCE", 3)
    assert chat.turn_coherence(talk()) == whole


def test_thinking_is_no_part_of_a_reply() -> None:
    from tunesmith.evaluate.records import Header, ResultSet
    from tunesmith.types import Attempt, Problem, Segment

    problem = Problem("p", "chat", (Segment("user", "Why?"),), "So.")
    texts = ("<think>User: hm</think>So.", "<think>never")
    attempts = tuple(
        Attempt("p", at, 0, text, (1, 2), StopReason.STOP_TOKEN) for at, text in enumerate(texts)
    )
    header = Header("n", "chat", "test", "direct", "m", 0)
    found = base.replies_of(ResultSet(header, attempts, {"p": problem}))
    assert [reply.text for reply in found] == ["So.", ""]
    assert chat.role_leakage(found) == [0.0, 0.0]
