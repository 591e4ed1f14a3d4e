"""Choosing by likelihood: batches equal single pairs, and attempts are stored like others."""

from __future__ import annotations

import json
import random

import pytest
import torch

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith import compare, evaluate
from tunesmith.errors import UsageError
from tunesmith.generate.likelihood import log_likelihoods, score
from tunesmith.types import StopReason


def pairs(count=9, seed=0):
    rng = random.Random(seed)
    return [
        ([rng.randrange(4, 300) for _ in range(rng.randint(1, 30))],
         [rng.randrange(4, 300) for _ in range(rng.randint(1, 9))])
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_batches_equal_single_pairs_and_the_plain_formula(arch):
    model, several = tiny_model(arch), pairs()
    together = log_likelihoods(model, several)
    small = log_likelihoods(model, several, batch_tokens=64)
    for (prompt, continuation), one, other in zip(several, together, small, strict=True):
        [alone] = log_likelihoods(model, [(prompt, continuation)])
        ids = torch.tensor([[*prompt, *continuation]])
        with torch.no_grad():
            logs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        steps = range(len(prompt), ids.shape[1])
        plain = sum(float(logs[at - 1, ids[0, at]]) for at in steps)
        near = 1e-5 * max(1.0, abs(plain))
        assert abs(one - alone) <= near
        assert abs(other - alone) <= near
        assert abs(alone - plain) <= near


def test_what_cannot_be_scored_is_said():
    model = tiny_model()
    for bad, said in (([], [5]), "empty"), (([5], []), "empty"), (([5] * 250, [5] * 8), "256"):
        with pytest.raises(UsageError, match=said):
            log_likelihoods(model, [bad])


def test_the_last_token_needs_no_position_and_greedy_ones_are_known():
    model = tiny_model()
    ids = [5 + n % 200 for n in range(256)]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    best = int(logs[-1].argmax())
    [right, wrong] = score(model, [(ids, [best]), (ids, [best + 1])])
    assert right.logprob == pytest.approx(float(logs[-1].log_softmax(-1)[best]), abs=1e-5)
    assert (right.greedy, wrong.greedy) == (True, False)
    [padded, _] = score(model, [([5], [int(logs[0].argmax())]), (ids, [best])])
    assert padded.greedy


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    model, several = tiny_model(), pairs()
    wanted = log_likelihoods(model, several)
    real = type(model).forward

    def narrow(self, *args, **kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", narrow)
    assert log_likelihoods(model, several) == pytest.approx(wanted, abs=1e-4)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = (
        {"question": f"Which is number {n}?", "choices": [f"{n}", f"{n + 1}", "a long other one"],
         "answer": n % 3}
        for n in range(12)
    )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return str(path)


def asked(rows, tmp_path, **settings):
    folder = str(tmp_path / "runs")
    return evaluate(task="choice", dataset=rows, output_dir=folder, **settings)


def test_choices_are_stored_graded_and_compared(rows, tmp_path, capsys):
    summed = asked(rows, tmp_path, choice_by="likelihood", name="summed")
    by_byte = asked(rows, tmp_path, choice_by="likelihood-normalised", name="by-byte")
    cloze = asked(rows, tmp_path, choice_by="likelihood", prompt="cloze", name="cloze")
    assert "chance 33.3%" in capsys.readouterr().err
    assert summed.summary.chance == pytest.approx(1 / 3)
    for result in (summed, by_byte, cloze):
        assert result.summary.n == result.summary.graded == 12
        assert {a.stop for a in result.results.attempts} == {StopReason.SCORED}
        again = result.results.regraded(lambda p, t: evaluate_task().grade(p, t))
        scores = [a.verdict.score for a in result.results.attempts]
        assert [a.verdict.score for a in again.attempts] == scores
    for one, other in zip(summed.results.attempts, by_byte.results.attempts, strict=True):
        sums, means = (_scores(a.verdict.reason) for a in (one, other))
        options = evaluate_task().continuations(summed.results.problems[one.problem_id], "direct")
        assert [s / len(o.encode()) for s, o in zip(sums, options, strict=True)] == pytest.approx(
            means, abs=1e-4
        )
        assert one.text == options[sums.index(max(sums))]
        assert other.text == options[means.index(max(means))]
    found = compare([str(summed.folder), str(by_byte.folder)])
    assert found is not None


def _scores(reason):
    return [float(part.split(": ")[1]) for part in reason.partition("by option: ")[2].split(", ")]


def evaluate_task():
    from tunesmith.tasks.choice import ChoiceTask

    return ChoiceTask()


def test_another_way_to_choose_does_not_go_on_with_a_log(rows, tmp_path):
    asked(rows, tmp_path, choice_by="likelihood", name="one")
    with pytest.raises(Exception, match="another fingerprint"):
        asked(rows, tmp_path, choice_by="likelihood-normalised", name="one")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "units"}, "no options to score"),
        ({"prompt": "cot"}, "no options to score"),
        ({"samples": 2}, "--samples does nothing"),
        ({"temperature": 0.5}, "--temperature does nothing"),
        ({"max_new_tokens": 5}, "--max-new-tokens does nothing"),
    ],
)
def test_what_does_nothing_there_is_refused(rows, tmp_path, settings, said):
    given = {"task": "choice", "dataset": rows, **settings}
    if given["task"] == "units":
        del given["dataset"]
    with pytest.raises(UsageError, match=said):
        evaluate(output_dir=str(tmp_path), choice_by="likelihood", **given)
