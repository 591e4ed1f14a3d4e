"""lm-evaluation-harness on our engine: the same numbers as its own Hugging Face model."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"
    ),
    pytest.mark.filterwarnings("ignore"),
]

WORDS = ("the", "cat", "sat", "on", "mat", "how", "many", "are", "there", "then", "some", "it")


def text(seed: int, count: int) -> str:
    """Return words in an order of their own."""
    return " ".join(WORDS[(seed * 7 + n * n * 3 + n) % len(WORDS)] for n in range(count))


CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITE = """
task: tiny_write
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/write.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e", " a", "zz"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLL = """
task: tiny_roll
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/roll.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a model and three tasks; keep the harness's own caches away."""
    folder = tmp_path_factory.mktemp("harness")
    model, tokenizer = tiny_model("phi"), tiny_tokenizer()
    with torch.no_grad():
        # It writes whole characters only: of half ones the harness's stop strings see other text.
        for token in range(model.config.vocab_size):
            written = tokenizer.decode([token]) if token < len(tokenizer) else ""
            if not (written.isascii() and written.isprintable() and written):
                model.lm_head.bias[token] = -100.0
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    choice = [
        {"question": text(n, 3 + n % 5), "choices": [f" {text(n + c, 1 + c)}" for c in range(4)]}
        | {"answer": n % 4}
        for n in range(24)
    ]
    write = [{"question": text(n, 2 + n % 7), "answer": text(n, 1)} for n in range(16)]
    roll = [{"text": text(n, 3 + 90 * (n % 2))} for n in range(6)]
    for name, rows in (("choice", choice), ("write", write), ("roll", roll)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for name, task in (("choice", CHOICE), ("write", WRITE), ("roll", ROLL)):
        (folder / "tasks" / f"{name}.yaml").write_text(task.replace("FOLDER", str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        yield folder


def both(home: Path, **more: Any) -> tuple[Any, Any]:
    """Return the harness's own model and ours, on the same weights."""
    from lm_eval.api.registry import get_model

    import tunesmith.evaluate.harness  # noqa: F401

    same = {"pretrained": str(home / "model"), "device": "cpu", "dtype": "float32", **more}
    # Its cache takes one answer for two questions that are cut into context and rest at different
    # places: with it, hf differs from itself.
    return get_model("hf")(**same, logits_cache=False), get_model("tunesmith")(**same)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


@pytest.mark.slow
def test_tasks_give_the_same_numbers(home: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ["tiny_choice", "tiny_write", "tiny_roll"]
    found = []
    for model in both(home, batch_size=4):
        manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
        found.append(simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0))
    theirs, ours = found
    for name in names:
        for key, value in theirs["results"][name].items():
            if isinstance(value, float) and "stderr" not in key:
                got = ours["results"][name][key]
                exact = name != "tiny_roll"
                assert got == value if exact else got == pytest.approx(value, rel=1e-5), key
        rows = zip(theirs["samples"][name], ours["samples"][name], strict=True)
        for one, other in rows:
            assert json.dumps(one["arguments"]) == json.dumps(other["arguments"])
            compare(one["resps"], other["resps"])
    print({name: ours["results"][name] for name in names})


def compare(one: Any, other: Any) -> None:
    """Compare answers of both models: texts and flags exactly, log-likelihoods to 1e-5."""
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            compare(left, right)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
    else:
        assert one == other


def test_odd_likelihoods_are_the_same(home: Path) -> None:
    theirs, ours = both(home)
    long = text(3, 200)
    pairs = [
        ("", "the cat"),
        ("", "<s>the cat"),
        ("the cat", " sat"),
        ("the cat ", "sat"),
        ("the cat", "sat"),
        ("the cat\n", " mat"),
        ("<s>the", " cat"),
        ("é", "漢字 🙂"),
        (long, " the mat"),
        (long, long[-150:]),
        ("the", " c"),
        ("the", " ca"),
    ]
    answers = [m.loglikelihood(asked("loglikelihood", *pairs)) for m in (theirs, ours)]
    compare(*answers)
    assert len(ours.tok_encode(long)) > ours.max_length
    greedy = ours.generate_until(
        asked("generate_until", ("the cat", {"until": [], "max_gen_toks": 3}))
    )[0]
    likeliest = [
        m.loglikelihood(asked("loglikelihood", ("the cat", greedy))) for m in (theirs, ours)
    ]
    compare(*likeliest)


def test_rolling_windows_are_the_same(home: Path) -> None:
    texts = [(text(5, count),) for count in (1, 40, 120, 260)] + [("",)]
    answers = [m.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)) for m in both(home)]
    compare(*answers)
    short = [
        m.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
        for m in both(home, max_length=16)
    ]
    compare(*short)
    assert short[0] != pytest.approx(answers[0])


def test_generations_end_at_the_same_places(home: Path) -> None:
    theirs, ours = both(home)
    contexts = ["the cat", "how many are", "<s>the mat", text(2, 200)]
    free = {"until": [], "max_gen_toks": 12, "do_sample": False}
    plain = [m.generate_until(asked("generate_until", *((c, free) for c in contexts)))
             for m in (theirs, ours)]  # fmt: skip
    compare(*plain)
    assert all(plain[0])
    # Stop strings that lie inside a token, across two, at the beginning, that never come, or that
    # overlap.
    for said in plain[0][:2]:
        middle = len(said) // 2
        across = said[middle : middle + 3]
        for until in ([said[middle]], [across], [said[:1]], ["\x00never"], said[middle],
                      [across[1:], across[:2]]):  # fmt: skip
            settings = {"until": until, "max_gen_toks": 12}
            asking = asked("generate_until", *((c, settings) for c in contexts))
            compare(*(m.generate_until(asking) for m in (theirs, ours)))


def test_a_template_is_the_renderers(home: Path) -> None:
    theirs, ours = both(home)
    turns = [{"role": "user", "content": "How many?"}]
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    begun = [*turns, {"role": "assistant", "content": "There are"}]
    assert ours.apply_chat_template(begun, False) == theirs.apply_chat_template(begun, False)
    assert ours.apply_chat_template(begun, False).endswith("There are")
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.tokenizer_name


def test_what_the_engine_cannot_do_is_refused(home: Path) -> None:
    from tunesmith.errors import UsageError

    _, ours = both(home)
    bad = (
        ({"until": [], "num_beams": 4}, "num_beams"),
        ({"until": [], "max_gen_toks": 256}, "leaves no room"),
        ({"until": ["e", ""], "max_gen_toks": 9}, "empty stop string"),
    )
    for settings, said in bad:
        with pytest.raises(UsageError, match=said):
            ours.generate_until(asked("generate_until", ("the", settings)))
    with pytest.raises(UsageError, match="longer than"):
        ours.loglikelihood(asked("loglikelihood", ("the", text(1, 300))))
    with pytest.raises(UsageError, match="max_length"):
        both(home, max_length=257)[1]


def test_samples_follow_from_the_seed(home: Path) -> None:
    from tunesmith.evaluate.harness import TunesmithLM

    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asking = asked("generate_until", ("the cat", settings), ("the mat", settings))
    texts = [
        TunesmithLM(str(home / "model"), device="cpu", seed=seed, batch_size=size).generate_until(
            asking
        )
        for seed, size in ((0, 1), (0, "auto"), (1, 1))
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("words", "model"),
    [
        (["--tasks", "a"], ["--model", "tunesmith"]),
        (["run", "--tasks", "a"], ["--model", "tunesmith"]),
        (["--model", "hf", "--tasks", "a"], []),
        (["--model=hf", "--tasks", "a"], []),
        (["--config", "own.yaml"], []),
        (["ls", "tasks"], []),
        (["--help"], []),
    ],
)
def test_the_command_takes_our_model_where_none_is_named(
    words: list[str], model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.__main__

    from tunesmith.evaluate.harness import main

    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append([*sys.argv[1:]]))
    assert main() == 0
    assert seen == [[*words, *model]]


def test_a_mistake_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.__main__

    from tunesmith.evaluate.harness import TunesmithLM, main

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: TunesmithLM("./nowhere"))
    assert main() == 5
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_the_command_runs(home: Path, tmp_path: Path) -> None:
    words = ["--model_args", f"pretrained={home / 'model'}", "--device", "cpu", "--limit", "4"]
    words += ["--tasks", "tiny_choice", "--include_path", str(home / "tasks")]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith.evaluate.harness", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tunesmith ({'pretrained'" in done.stdout
    assert "tiny_choice" in done.stdout
