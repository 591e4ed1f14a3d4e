"""``tunesmith eval`` of chat, code, instruct, domain and custom, and ``compare`` of such sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tunesmith
from fake_openai import FakeServer
from test_remote import quick
from test_scores import every_metric
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.data.render import Renderer
from tunesmith.errors import UsageError
from tunesmith.evaluate.scores import instruct
from tunesmith.grading import syntax
from tunesmith.tasks.base import QuestionSettings
from tunesmith.tasks.registry import get_reply_task
from tunesmith.types import Example, Origin, Segment
from tunesmith.workflows import console

__all__ = ["quick"]
REQUIRED = {
    "chat": {"response diversity", "turn coherence", "conversation flow"},
    "code": {"code completion accuracy", "pattern consistency"},
    "instruct": {"task completion rate", "response quality"},
    "domain": {"domain vocabulary", "general-purpose metrics"},
    "custom": {"general-purpose metrics"},
}
"""Task → names of requirement 003 that its output has."""


def rows_of(task: str) -> list[dict[str, Any]]:
    """Return eight rows of a task, each of another length."""
    if task == "chat":
        return [
            {"messages": [
                {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"},
                {"role": "user", "content": f"why {n}"}, {"role": "assistant", "content": "so" * n},
            ]} for n in range(1, 9)
        ]  # fmt: skip
    if task == "code":
        return [{"code": f"def f{n}(x):\n    y = x + {n}\n    return y\n"} for n in range(8)]
    if task == "domain":
        return [{"text": f"The fugue of night {n} begins with a slow theme."} for n in range(8)]
    asked = "instruction" if task == "instruct" else "frage"
    answered = "output" if task == "instruct" else "antwort"
    return [{asked: f"Add {n} and 2", answered: "It is" + f" {n}" * n} for n in range(1, 9)]


def test_a_split_that_is_none_is_refused() -> None:
    Path("rows.jsonl").write_text(json.dumps({"text": "The fugue begins."}) + "\n")
    task = get_reply_task("domain", QuestionSettings())
    with pytest.raises(UsageError, match="no split 'tset'"):
        task.problems("tset", source="rows.jsonl")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def write(rows: list[dict[str, Any]], path: str = "held.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(task: str, *more: str, path: str = "held.jsonl") -> list[str]:
    command = ["eval", "--task", task, "--model", "base", "--test-dataset-path", path]
    if task == "custom":
        command += ["--columns", "prompt=frage,completion=antwort"]
    return [*command, *([] if "--max-new-tokens" in more else ["--max-new-tokens", "6"]), *more]


def evaluated(task: str, **settings: Any) -> Any:
    given = {"model": "base", "dataset": "held.jsonl", "max_new_tokens": 6, **settings}
    return tunesmith.evaluate(task=task, log_level="warning", **given)


def figures(result: Any) -> dict[str, Any]:
    return {name: one["value"] for name, one in result.metrics["metrics"].items()}


@pytest.mark.parametrize("task", REQUIRED)
def test_a_task_is_replied_to_and_scored(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(rows_of(task))
    more = ["--terms-from", "held.jsonl"] if task == "domain" else []
    if task == "domain":
        write([*rows_of(task), *({"text": f"Nothing {n} is here to be read."} for n in range(12))],
              "held.jsonl")  # fmt: skip
    warm = ["--temperature", "1", "--max-new-tokens", "30"]  # else there is not one word
    assert main(ask(task, *more, *warm)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["n"] == (20 if task == "domain" else 8)
    assert REQUIRED[task] <= found["names"].keys()
    listed = [name for names in found["names"].values() for name in names]
    assert sorted(listed) == sorted(found["metrics"])
    for name, one in found["metrics"].items():
        assert one["formula"], name
        assert one["value"] is not None, name
        assert one["interval"]["low"] <= one["value"] <= one["interval"]["high"], name
        if every_metric()[name].paired and name != "turn_coherence":
            assert one["reference"] == pytest.approx(1.0), name
    assert "general-purpose metrics" in err
    folder = Path("runs") / f"{task}-direct-base"
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == found["metrics"]
    assert {"rouge_l"} <= json.loads((folder / "items.json").read_text())["metrics"].keys() or (
        task == "code"
    )


def test_the_loss_is_that_of_training() -> None:
    write(rows_of("chat"))
    found = figures(evaluated("chat", dtype="float32"))
    from tunesmith.data.prepare import Prepared
    from tunesmith.models.load import load as load_model
    from tunesmith.workflows.finish import byte_losses

    loaded = load_model("base", dtype="float32", device="cpu", trainable=False)
    renderer = Renderer(loaded.tokenizer, "auto", loaded.eos_ids)
    held = Prepared()
    for number, row in enumerate(rows_of("chat")):
        turns = tuple(
            Segment(m["role"], m["content"], float(m["role"] == "assistant"))
            for m in row["messages"]
        )
        made = renderer.encode(Example(turns, Origin("x", number)), 256)
        held.rows += made.rows
        held.documents += [number] * len(made.rows)
    losses = byte_losses(loaded, renderer, held)
    total, size = sum(one.loss for one in losses), sum(one.bytes for one in losses)
    tokens = sum(weight for row in held.rows for weight in row.weights)
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert found["loss_per_byte"] == pytest.approx(total / size, rel=1e-5)


def test_the_last_turn_is_asked_with_the_rows_own_turns_before_it() -> None:
    write(rows_of("chat"))
    result = evaluated("chat")
    for problem in result.results.problems.values():
        assert [s.text for s in problem.prompt][:2] == ["hello", "hi"]
        assert problem.reference == "so" * int(problem.prompt[-1].text.split()[-1])


def test_the_opening_of_a_text_begins_its_training_row() -> None:
    write(rows_of("domain"))
    renderer = Renderer(tiny_tokenizer())
    for problem in evaluated("domain").results.problems.values():
        [opening] = problem.prompt
        assert opening.role is None
        whole = Example((Segment(None, opening.text + problem.reference, 1.0),), Origin("x"))
        [row] = renderer.encode(whole, 256).rows
        ids = renderer.prompt_ids(problem.prompt)
        assert row.ids[: len(ids)] == ids
        assert 0 < len(ids) < len(row.ids) - 1


def test_rows_are_drawn_by_seed_and_settings_change_what_is_asked() -> None:
    write(rows_of("instruct"))
    usual = evaluated("instruct", limit=4, name="a")
    other = evaluated("instruct", limit=4, question_seed=1, name="b")
    assert usual.results.problems.keys() != other.results.problems.keys()
    again = evaluated("instruct", limit=4, name="c")
    assert [a.text for a in again.results.attempts] == [a.text for a in usual.results.attempts]
    system = evaluated("instruct", limit=4, system="Be brief.", name="d")
    assert [a.text for a in system.results.attempts] != [a.text for a in usual.results.attempts]
    warm = evaluated("instruct", limit=4, samples=3, temperature=1.0, name="e")
    assert warm.summary.n == 12
    assert warm.metrics["metrics"]["rouge_l"]["n"] == 12


def test_a_stopped_set_goes_on_to_the_same_figures() -> None:
    write(rows_of("chat"))
    whole = evaluated("chat")
    log = whole.folder / "attempts.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:4]))
    assert figures(evaluated("chat")) == figures(whole)
    assert len(log.read_text().splitlines()) == len(lines)


def test_two_sets_are_compared_by_a_metric_and_by_their_losses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(rows_of("instruct"))
    tiny_model("llama", seed=5).save_pretrained("other")
    tiny_tokenizer().save_pretrained("other")
    first, second = evaluated("instruct"), evaluated("instruct", model="other")
    capsys.readouterr()
    folders = [str(first.folder), str(second.folder)]
    assert main(["compare", *folders, "--metric", "chrf", "--output", "c.json"]) == 0
    out = capsys.readouterr().out
    assert "% chrf" in out
    assert "held-out loss" in out
    values = [json.loads((Path(f) / "items.json").read_text())["metrics"]["chrf"] for f in folders]
    gained = sum(values[1].values()) / 8 - sum(values[0].values()) / 8
    written = json.loads(Path("c.json").read_text())
    assert written["metric"] == "chrf"
    assert written["pairs"][0]["difference"] == pytest.approx(gained)
    assert main(["compare", *folders]) == 0
    assert "% alike (ROUGE-L)" in capsys.readouterr().out
    assert main(["compare", *folders, "--metric", "distinct_1"]) == 2
    assert "has no scores 'distinct_1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vote", "majority"], "--vote does nothing"),
        (["--choice-by", "likelihood"], "--choice-by does nothing"),
        (["--decomposer", "base"], "--decomposer does nothing"),
        (["--checker", "exact"], "--checker does nothing"),
        (["--prompt", "cot"], "no prompt style"),
        (["--terms", "held.jsonl"], "--terms does nothing"),
        (["--dataset", "held.jsonl"], "cannot both be given"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(rows_of("instruct"))
    assert main(ask("instruct", *more)) == 2
    assert message in capsys.readouterr().err


def test_terms_are_refused_where_nobody_looks_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--task", "units", "--terms", "t.txt"]) == 2
    assert "--terms does nothing" in capsys.readouterr().err


def test_a_graded_task_takes_the_other_name_of_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    write([{"question": "1?", "answer": "1"}])
    assert main(ask("qa")) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("chat", {"text": "Once upon a time."}, "plain text"),
        ("domain", {"text": "x"}, "cannot be cut in two"),
        ("chat", {"messages": [{"role": "assistant", "content": "Hello!"}]}, "nothing is asked"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(
    task: str, row: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write([row])
    assert main(ask(task)) not in (0, 70)
    err = capsys.readouterr().err
    assert "held.jsonl:1" in err
    assert message in err


def test_terms_of_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    write(rows_of("domain"))
    Path("terms.txt").write_text("slow theme\n\nfugue\n")
    found = evaluated("domain", terms="terms.txt")
    assert found.metrics["metrics"]["term_recall"]["n"] == 8
    assert main(ask("domain", "--name", "without")) == 0
    assert "Term recall is left out" in capsys.readouterr().err
    Path("none.txt").write_text("\n")
    assert main(ask("domain", "--terms", "none.txt")) not in (0, 70)
    assert "no terms in 'none.txt'" in capsys.readouterr().err


def test_rows_without_room_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    write([*rows_of("instruct"), {"instruction": "word " * 400, "output": "No."}])
    assert main(ask("instruct")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 8
    assert "1 of 9 rows leave no room" in " ".join(err.split())
    assert "held.jsonl:9" in err


def test_without_sacrebleu_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(rows_of("instruct"))
    monkeypatch.setattr(instruct, "has_chrf", lambda: False)
    assert main(ask("instruct")) == 0
    out, err = capsys.readouterr()
    assert "chrf" not in json.loads(out)["metrics"]
    assert "pip install 'tunesmith[eval]'" in err


def test_without_parsers_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(rows_of("code"))
    assert main(ask("code")) == 0
    out, _ = capsys.readouterr()
    assert "syntax_validity" in json.loads(out)["metrics"]
    monkeypatch.setattr(syntax, "has_parsers", lambda: False)
    assert main([*ask("code"), "--name", "again"]) == 0
    out, err = capsys.readouterr()
    assert "syntax_validity" not in json.loads(out)["metrics"]
    assert "pip install 'tunesmith[code]'" in err


def test_a_server_replies_and_has_no_losses(
    capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    write(rows_of("chat"))
    with FakeServer() as fake:
        words = ["eval", "--task", "chat", "--model", "teacher", "--address", fake.address]
        assert main([*words, "--test-dataset-path", "held.jsonl"]) == 0
        out, err = capsys.readouterr()
        found = json.loads(out)["metrics"]
        assert found["loss"]["value"] is None
        assert found["reply_tokens"]["value"] is None
        assert found["distinct_1"]["value"] is not None
        assert "need local weights" in err
        write(rows_of("domain"))
        words[2] = "domain"
        assert main([*words, "--test-dataset-path", "held.jsonl"]) == 2
        assert "local weights" in capsys.readouterr().err


def test_the_table_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, width=80)
    monkeypatch.setattr(console, "_console", narrow)
    for task in REQUIRED:
        write(rows_of(task))
        assert main(ask(task)) == 0
        lines = capsys.readouterr().err.splitlines()
        table = [line for line in lines if line.startswith(("│", "┃"))]
        assert max(map(len, table)) <= 80
        for metric in json.loads((Path("runs") / f"{task}-direct-base/metrics.json").read_text())[
            "metrics"
        ].values():
            assert any(f" {metric['title']} " in line for line in table), metric["title"]


def test_a_metric_where_lower_is_better_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    write(rows_of("chat"))
    first, second = evaluated("chat"), evaluated("chat", name="again")
    folders = [str(first.folder), str(second.folder)]
    assert main(["compare", *folders, "--metric", "role_leakage"]) == 0
    assert "Of role_leakage lower is better." in capsys.readouterr().out
    assert main(["compare", *folders, "--metric", "rouge_l"]) == 0
    assert "lower is better" not in capsys.readouterr().out


def test_losses_of_other_bytes_leave_the_comparison_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(rows_of("instruct"))
    first, second = evaluated("instruct"), evaluated("instruct", name="again")
    items = second.folder / "items.json"
    stored = json.loads(items.read_text())
    for loss in stored["losses"].values():
        loss[1] += 1
    items.write_text(json.dumps(stored))
    capsys.readouterr()
    assert main(["compare", str(first.folder), str(second.folder)]) == 0
    out = capsys.readouterr().out
    assert "problems gained" in out
    assert "The held-out losses are not compared." in out


def test_a_continuation_is_compared_as_far_as_the_row_was_kept() -> None:
    text = "".join(f"value_{n} = {n}\n" for n in range(200))
    write([{"code": text}])
    [problem] = get_reply_task("code", QuestionSettings()).problems("test", source="held.jsonl")
    rest = text.split(problem.prompt[0].text)[1]
    assert problem.reference.endswith("\n")
    assert len(problem.reference) < len(rest)
    assert get_reply_task("code", QuestionSettings()).judge(problem, rest).score == 1
    [short] = get_reply_task("code", QuestionSettings()).problems(
        "test", source=write(rows_of("code")[:1])
    )
    assert (
        get_reply_task("code", QuestionSettings()).judge(short, short.reference + "more = 1").score
        < 1
    )


def test_terms_without_a_word_are_no_terms(capsys: pytest.CaptureFixture[str]) -> None:
    write(rows_of("domain"))
    Path("terms.txt").write_text("!!!\nfugue\n")
    assert main(ask("domain", "--terms", "terms.txt")) == 0
    assert "Terms: 1" in capsys.readouterr().err
