"""Answers from documents: what is read of them, what is measured, and what stands in the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.raft.answers import abstains, cited, is_label, quotes, short_answer, stands_in
from tunesmith.data.raft.chunks import Chunk
from tunesmith.data.raft.contexts import Condition, Dressed, Pool, fewer, place_of
from tunesmith.data.raft.items import Item, item_of
from tunesmith.data.raft.prompt import instruction
from tunesmith.data.readers import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.scores.base import Reply, measure, values
from tunesmith.evaluate.scores.rag import RAG
from tunesmith.tasks.raft import RaftTask, best_f1, exact
from tunesmith.types import Origin, StopReason

HERE = Origin("rows.jsonl", 1)
METRICS = {metric.name: metric for metric in RAG}
TEXTS = [
    f"{town} lies on the river {river}. Its bridge was built in {year}."
    for town, river, year in (
        ("Arlon", "Semois", 1823),
        ("Brest", "Penfeld", 1861),
        ("Dijon", "Ouche", 1740),
        ("Fulda", "Rhön", 1912),
    )
]


def reply(text: str, n: int = 0, **meta: Any) -> Reply:
    given = {"golds": ["1823"], "documents": TEXTS[:2], "hits": [1], "rank": 1, "strict": True}
    given = {**given, "context": "retrieved-2", **meta}
    return Reply(f"q{n}", (("user", "?"),), given["golds"][0], text, StopReason.STOP_TOKEN, 1,
                 meta=given)  # fmt: skip


def found(name: str, replies: list[Reply]) -> float | None:
    return measure(METRICS[name], replies).value


# --- reading answers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Based on the documents: 1823", "1823"),
        ("##Reason: it says <x>\n<ANSWER>: The Semois\nQuestion: another", "The Semois"),
        ("The documents do not tell. From memory: 1823", "1823"),
        ("Arlon,\n  I think", "Arlon, I think"),
        ("<ANSWER>: one\n<ANSWER>: Based on the documents: no", "Based on the documents: no"),
    ],
)
def test_the_short_answer(text: str, said: str) -> None:
    assert short_answer(text) == said


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Based on the documents: Yes.", "yes"),
        ("No, although some say yes.", "no"),
        ("It may be: the answer is maybe", "maybe"),
        ("yes or no", "yes"),
        ("perhaps yes, perhaps no", "perhaps yes, perhaps no"),
        ("Nobody knows", "Nobody knows"),
    ],
)
def test_labels_are_read(text: str, label: str) -> None:
    assert short_answer(text, ["yes"]) == label
    assert is_label("Maybe.")
    assert not is_label("yesterday")


def test_a_label_is_read_only_where_labels_are_right() -> None:
    assert short_answer("Yes, the Semois", ["the Semois"]) == "Yes, the Semois"


@pytest.mark.parametrize(
    ("text", "gives_up"),
    [
        ("Based on the documents: the answer is not given.", True),
        ("##Reason: None of the documents tells this.\n<ANSWER>: the answer is not given.", True),
        ("The documents do not mention the bridge.", True),
        ("I don't know.", True),
        ("This cannot be determined from the text.", True),
        ("Based on the documents: 1823", False),
        ("The documents do not tell. From memory: 1823", False),
        ("##Reason: Document [2] does not say it.\n<ANSWER>: 1823", False),
        ("", False),
    ],
)
def test_abstaining(text: str, gives_up: bool) -> None:
    assert abstains(text) is gives_up


@pytest.mark.parametrize(
    ("text", "gives_up"),
    [
        ("Das STEHT  nicht\nim Text.", True),
        ("Based on the documents: Das steht nicht im Text.", True),
        (
            "Ce n\u2019est pas mentionne\u0301.",
            True,
        ),  # an accent of its own, as some models write it
        ("文中没有提到。", True),
        ("I don't know.", True),  # English phrases stay
        ("Das steht im Text.", False),
        ("1823" + " und" * 60 + " mehr steht nicht im Text", False),
    ],
)
def test_abstaining_in_further_phrases(text: str, gives_up: bool) -> None:
    phrases = ["steht nicht im Text", " pas  MENTIONNÉ", "没有提到"]
    assert abstains(text, phrases) is gives_up


def test_quotes_and_citations() -> None:
    text = "Document [2] says ##begin_quote##built\n in 1861##end_quote## and ##begin_quote##cut"
    assert quotes(text) == ["built in 1861", None]
    assert stands_in("built in 1861", TEXTS[1])
    assert not stands_in(None, TEXTS[1])
    assert not stands_in("", TEXTS[1])
    assert cited(text, TEXTS) == 2
    assert cited("##begin_quote##river Ouche##end_quote##", TEXTS) == 3
    assert cited("Document [9] says so", TEXTS) is None


def test_exact_match_takes_the_best_of_several() -> None:
    golds = ["the Semois", "Semois river"]
    assert exact("Semois.", golds)
    assert exact("The Semois River", golds)
    assert not exact("Ouche", golds)
    assert not exact("", golds)
    assert best_f1("river", golds) == pytest.approx(2 / 3)
    assert exact("%", ["%"])
    assert not exact("", ["%"])


# --- what is measured


def test_gold_is_full_and_shuffled_gold_is_chance() -> None:
    replies = [
        reply(
            f"Document [1] says ##begin_quote##{text}##end_quote##\n<ANSWER>: {text[-5:]}",
            n,
            golds=[text[-5:-1]],
            documents=[text],
        )
        for n, text in enumerate(TEXTS)
    ]
    for name in ("answer_em", "answer_f1", "right_or_abstains", "quote_validity", "cites_oracle"):
        one = measure(METRICS[name], replies)
        assert one.value == 1.0, name
        if name != "cites_oracle":  # with one document each there is nothing else to cite
            assert one.shuffled == 0.0, name
    assert found("quoting", replies) == 1.0
    assert measure(METRICS["answer_em"], replies).reference == 1.0


def test_invented_quotes_score_nothing() -> None:
    said = "##begin_quote##built in 1999##end_quote## <ANSWER>: 1823"
    half = "##begin_quote##built in 1823##end_quote## ##begin_quote##in 1999##end_quote##"
    assert found("quote_validity", [reply(said)]) == 0.0
    assert found("quote_validity", [reply(half)]) == 0.5
    assert found("quote_validity", [reply("##begin_quote##built in 1823")]) == 0.0
    assert found("quote_validity", [reply("1823")]) is None
    assert found("quoting", [reply("1823"), reply(said, 1)]) == 0.5
    assert found("cites_oracle", [reply("Document [2] says so. <ANSWER>: 1823")]) == 0.0


def test_always_and_never_abstaining() -> None:
    shown = [[1], [2], [], [1]]
    never = [reply("Based on the documents: 1823", n, hits=hits) for n, hits in enumerate(shown)]
    always = [reply("the answer is not given.", n, hits=hits) for n, hits in enumerate(shown)]
    assert found("abstention_recall", always) == 1.0
    assert found("abstention_precision", always) == 0.25  # the base rate
    assert found("right_or_abstains", always) == 0.25
    assert found("abstention_recall", never) == 0.0
    assert found("abstention_precision", never) is None
    assert found("right_or_abstains", never) == 0.75
    assert found("answer_em", always) == 0.0
    # A prompt that does not ask to abstain says nothing of it.
    assert found("abstention_recall", [reply("not given", hits=[], strict=False)]) is None


def test_the_retriever_is_measured_by_hits() -> None:
    ranks = [(1, [1]), (3, []), (None, [])]
    replies = [reply("x", n, rank=r, hits=h) for n, (r, h) in enumerate(ranks)]
    assert found("recall_at_k", replies) == pytest.approx(1 / 3)
    assert found("reciprocal_rank", replies) == pytest.approx((1 + 1 / 3) / 3)
    others = [reply("x", context="mixed-2-first")]
    assert found("recall_at_k", others) is None


def test_every_metric_says_what_it_is_and_bears_no_reply() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "metrics_guide.md").read_text("utf-8")
    for name, metric in METRICS.items():
        [line] = [one for one in guide.splitlines() if one.startswith(f"| `{name}` |")]
        assert metric.formula
        assert metric.formula in line
        assert values(metric, []) == []
        assert measure(metric, []).value is None


# --- rows


def row(**fields: Any) -> Item:
    return item_of(Row(fields, HERE))


def test_rows_of_data_raft_are_read_back() -> None:
    for style, output in (("plain", "Based on the documents: 1823"), ("quoted", "<ANSWER>: 1823")):
        for strict in (True, False):
            asked = instruction("When?", TEXTS[:3], style, strict=strict)
            one = row(instruction=asked, output=output, question="When?", answer="1823",
                      oracle_context=TEXTS[0], document="a.txt")  # fmt: skip
            assert one.shown == tuple(TEXTS[:3])
            assert (one.strict, one.style, one.golds) == (strict, style, ("1823",))
            assert (one.document, one.span) == ("a.txt", True)


def test_other_layouts_are_read() -> None:
    old = "Use the following documents to answer...\nDocument [1]: One.\nDocument [2]: Two\n"
    old += "Document [9]: of this\nQuestion: Which?"
    one = row(instruction=old, output="Based on the documents: Two.", oracle_context="Two")
    assert (one.question, one.golds) == ("Which?", ("Two.",))
    assert one.shown == ("One.", "Two\nDocument [9]: of this")
    gorilla = {"title": [["a", "b"]], "sentences": [["One.", "Two."]]}
    one = row(question="Which?", context=gorilla, cot_answer="<ANSWER>: Two", answer="Two")
    assert (one.shown, one.style) == (("One.", "Two."), "quoted")
    one = row(question="Which?", answers={"text": ["Two", "two", "Two"], "answer_start": [0]})
    assert (one.golds, one.shown, one.oracle) == (("Two", "two"), None, "")
    one = row(question="Is it?", final_decision="yes", context="It is.")
    assert (one.golds, one.span, one.oracle) == (("yes",), False, "It is.")
    with pytest.raises(DataError, match="no question"):
        row(answer="x")
    with pytest.raises(DataError, match="no answer"):
        row(question="Which?")


# --- what stands in the prompt


def chunks() -> list[Chunk]:
    return [
        Chunk(f"{n}.txt#0", f"{n}.txt", "", text, 0, len(text), f"{n}.txt")
        for n, text in enumerate(TEXTS)
    ]


ITEM = Item("When was the bridge of Arlon built?", ("1823",), HERE, document="0.txt")


def dress(context: str, k: int = 0, position: str = "") -> Dressed:
    pool = Pool(chunks(), 0)
    oracle = pool.oracle(ITEM)
    assert oracle is not None
    assert oracle.document == "0.txt"
    return pool.dress(ITEM, oracle, Condition(context, k, position))


def test_each_context_shows_what_it_says() -> None:
    assert dress("none").documents == ()
    assert dress("oracle") == Dressed((TEXTS[0],), (1,), 1, 1)
    alone = dress("distractors", 3)
    assert len(alone.documents) == 3
    assert TEXTS[0] not in alone.documents
    assert alone.hits == ()
    for position, place in (("first", 1), ("middle", 2), ("last", 3), ("2", 2)):
        mixed = dress("mixed", 3, position)
        assert mixed.hits == (place,)
        assert mixed.documents[place - 1] == TEXTS[0]
        assert len(set(mixed.documents)) == 3
    assert dress("retrieved", 1).documents == (TEXTS[0],)
    assert dress("retrieved", 9).wanted == 9
    assert dress("mixed", 9, "last").hits == (4,)


def test_the_oracle_is_found_by_text_by_answer_or_not_at_all() -> None:
    pool = Pool(chunks(), 0)
    by_text = Item("?", ("yes",), HERE, oracle=TEXTS[2], span=False)
    by_answer = Item("In which year?", ("1912",), HERE)
    nowhere = Item("In which year?", ("2024",), HERE)
    other = Item("?", ("2024",), HERE, oracle="Another text.")
    assert pool.oracle(by_text) == pool.chunks[2]
    assert pool.oracle(by_answer) == pool.chunks[3]
    assert pool.oracle(nowhere) is None
    assert getattr(pool.oracle(other), "text", "") == "Another text."


def test_an_answer_by_accident_in_another_document_is_no_hit() -> None:
    same = Chunk("x#0", "x.txt", "", "In 1823 Arlon was not yet known for a bridge.", 0, 9, "x.txt")
    pool = Pool([*chunks(), same], 0)
    shown = pool.dress(ITEM, pool.oracle(ITEM), Condition("retrieved", 5))
    assert [TEXTS.index(shown.documents[n - 1]) for n in shown.hits] == [0]


def test_shuffled_places_are_spread() -> None:
    places = {place_of("shuffled", 4, at / 8) for at in range(8)}
    assert places == {0, 1, 2, 3}
    assert place_of("9", 3, 0.0) == 2


def test_what_does_not_fit_is_cut_from_the_end_but_the_oracle() -> None:
    shown = Dressed(("a", "b", "c"), (3,), 1, 3)
    assert fewer(shown, keep_hits=True) == Dressed(("a", "c"), (2,), 1, 3)
    assert fewer(shown, keep_hits=False) == Dressed(("a", "b"), (), 1, 3)
    assert fewer(Dressed(("a",), (), None, 1), keep_hits=False) is None


# --- public sets


def test_gold_answers_of_xquad_score_full(shared: Path) -> None:
    task = RaftTask()
    problems = task.problems("test", source=str(shared / "data/docqa/xquad.en.json"))
    assert len(problems) == 623
    assert all(task.judge(p, str(p.meta["solution"])).score == 1.0 for p in problems)
    for lead in ("Based on the documents: ", "##Reason: so\n<ANSWER>: "):
        assert all(task.judge(p, f"{lead}{p.meta['solution']}").score == 1.0 for p in problems)
    others = [*problems[1:], problems[0]]
    pairs = zip(problems, others, strict=True)
    chance = sum(task.judge(p, o.reference).score or 0.0 for p, o in pairs)
    assert chance / len(problems) < 0.02
    assert all(best_f1(p.reference, [str(g) for g in p.meta["golds"]]) == 1.0 for p in problems)


def test_labels_of_pubmedqa_map(shared: Path) -> None:
    task = RaftTask()
    source = str(shared / "data/docqa/pubmedqa_ori_pqal.json")
    problems = task.problems("test", source=source, limit=60)
    assert {p.reference for p in problems} == {"yes", "no", "maybe"}
    for p in problems:
        assert task.judge(p, f"{p.reference.title()}, for the trial shows it.").score == 1.0
        assert task.chance(p) == pytest.approx(1 / 3)
    wrong = {"yes": "No.", "no": "Maybe.", "maybe": "Yes."}
    assert not any(task.judge(p, wrong[p.reference]).score for p in problems)
    assert task.continuations(problems[0], "plain")[0] == "Based on the documents: yes"


def test_a_row_as_it_is_wants_what_it_teaches(tmp_path: Path) -> None:
    fields = {
        "instruction": instruction("When?", TEXTS[1:3], "plain"),
        "output": "Based on the documents: the answer is not given.",
        "question": "When?",
        "answer": "1823",
        "oracle_context": TEXTS[0],
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(fields) + "\n")
    task = RaftTask()
    [problem] = task.problems("test", source=str(file))
    assert problem.prompt[0].text == fields["instruction"]
    assert task.judge(problem, "Based on the documents: 1823").score == 0.0
    assert task.judge(problem, "The documents do not say.").score == 1.0
    assert task.answer_example(problem).segments[-1].text == fields["output"]
    assert task.hint(problem) is None
    # With other documents the question is asked after its answer again.
    shown = Dressed((TEXTS[0],), (1,), 1, 1)
    dressed = task.dressed(problem, shown, "oracle", "plain")
    assert task.judge(dressed, "Based on the documents: 1823").score == 1.0
    assert dressed.reference == problem.reference
    assert dressed.id == problem.id


def test_right_answers_of_several_lines_and_with_marks_are_right() -> None:
    assert found("answer_em", [reply("From memory: x", golds=["From memory: x"])]) == 1.0
    for gold in ("a\nb", "0"):
        for text in (gold, f"Based on the documents: {gold}", f"<ANSWER>: {gold}"):
            assert found("answer_em", [reply(text, golds=[gold])]) == 1.0, (gold, text)


def test_zero_and_false_are_answers_and_documents() -> None:
    item = item_of(Row({"question": "How many?", "answer": 0, "document": 0}, HERE))
    assert (item.golds, item.document) == (("0",), "0")
    assert item_of(Row({"question": "Is it?", "answer": False}, HERE)).golds == ("False",)


def test_problems_say_of_which_document_they_are() -> None:
    fields = {"question": "How many?", "answer": "2", "document": "d7"}
    assert RaftTask().problem(Row(fields, HERE)).meta["document"] == "d7"
