"""New tokens for a domain: what they replace, what they leave alone, and how they are measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import tunesmith
from test_minutes import fake
from test_workflows import weights
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.data.new_tokens import NewTokens, check_template, extended, mine, template_texts
from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer
from tunesmith.errors import CheckpointError, ContractError, Interrupted, UsageError
from tunesmith.models.vocabulary import add_rows, old_rows, tables
from tunesmith.train.batches import make_plan
from tunesmith.train.loop import Settings, State, fit, make_optimizer
from tunesmith.train.losses import row_losses
from tunesmith.train.new_rows import NewRows
from tunesmith.types import Example, Origin, Segment
from tunesmith.workflows import train as workflow

CPU = torch.device("cpu")
TEXTS = [
    f"The insulin receptor of patient {n} binds glucose; glucose and insulin, {n % 7} times.\n\n"
    f"A kinase phosphorylates the receptor — überall. assistant user\n"
    for n in range(40)
]


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    rows = ({"text": text} for text in TEXTS)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(**more: Any) -> Path:
    common = {"task": "domain", "dataset": "rows.jsonl", "model": "base", "max_steps": 6}
    common |= {"learning_rate": 0.01, "report_to": "none", "log_level": "error", "max_length": 64}
    common |= {"num_workers": 1, "new_tokens": 30, "run_name": "r"}
    return tunesmith.train(**{**common, **more}).run


def spaced() -> Any:
    """Return a SentencePiece-like BPE: no words are cut, spaces are marks, bytes as a fallback."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁"]
    letters += [*"abcdefghijklmnopqrstuvwxyz.,;\n", "th", "the", "abc"]
    model = models.BPE(
        {token: at for at, token in enumerate(letters)},
        [("t", "h"), ("th", "e")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def padded() -> Any:
    """Return a tokenizer whose special tokens lie behind the vocabulary, as Qwen's do."""
    fast = tiny_tokenizer(eos="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|late|>", "<|later|>"]})
    return fast


MAKERS = {"byte-level": tiny_tokenizer, "spaces as marks": spaced, "late specials": padded}


def grown(tokenizer: Any, texts: list[str], count: int) -> tuple[NewTokens, Any]:
    new = mine(Renderer(tokenizer), tokenizer, texts, count)
    return new, extended(tokenizer, new)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_longer_tokenizer_joins_where_mining_said_and_nowhere_else(kind: str) -> None:
    tokenizer = MAKERS[kind]()
    new, longer = grown(tokenizer, TEXTS, 40)
    assert len(new) == 40
    assert new.first == max(tokenizer.get_vocab().values()) + 1
    saved = 0
    for text in TEXTS:
        before, after = (
            t(text, add_special_tokens=False)["input_ids"] for t in (tokenizer, longer)
        )
        saved += len(before) - len(after)
        back = [
            i for at in after for i in (new.pieces[at - new.first] if at >= new.first else [at])
        ]
        assert back == before
        assert longer.decode(after) == tokenizer.decode(before)
    assert saved == new.places
    # A word ends before a space, also where the tokenizer itself cuts no words.
    assert not any("▁" in (a + b)[1:] for a, b in new.merges)


def test_each_pick_is_the_most_frequent_pair_left() -> None:
    tokenizer = tiny_tokenizer()
    new = mine(Renderer(tokenizer), tokenizer, TEXTS, 12)
    template = template_texts(Renderer(tokenizer), tokenizer)
    for at in range(len(new)):
        part = NewTokens(new.first, new.merges[:at], new.pieces[:at], 0)
        now = extended(tokenizer, part)
        backend, names = now.backend_tokenizer, now.convert_ids_to_tokens

        def pairs(texts: list[str], backend: Any = backend, names: Any = names) -> Counter[Any]:
            found: Counter[Any] = Counter()
            for one in backend.encode_batch(texts, add_special_tokens=False):
                last: Any = None
                for i in range(len(one.ids) - 1):
                    pair = tuple(names(one.ids[i : i + 2]))
                    inside = one.word_ids[i] == one.word_ids[i + 1]
                    if inside and (i - 1, pair) != last:
                        found[pair] += 1
                        last = (i, pair) if pair[0] == pair[1] else None
            return found

        known, fixed = now.get_vocab(), pairs(template)
        allowed = {p: n for p, n in pairs(TEXTS).items() if "".join(p) not in known}
        allowed = {p: n for p, n in allowed.items() if p not in fixed}
        assert allowed[new.merges[at]] == max(allowed.values())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab \n", min_size=1, max_size=30), min_size=1, max_size=8))
def test_counts_hold_for_repeated_letters(texts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    new, longer = grown(tokenizer, texts * 5, 10)
    lengths = [
        sum(map(len, t(texts * 5, add_special_tokens=False)["input_ids"]))
        for t in (tokenizer, longer)
    ]
    assert lengths[0] - lengths[1] == new.places


def test_no_token_is_made_a_second_time() -> None:
    # «abc» is in the vocabulary, though no merge of the base leads to it.
    new, _ = grown(spaced(), ["zabc yabc xabc wabc"] * 20, 20)
    made = ["".join(pair) for pair in new.merges]
    assert len(made) > 1
    assert "abc" not in made


def test_rare_pairs_are_left_and_another_kind_of_tokenizer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    assert len(mine(Renderer(tokenizer), tokenizer, ["zqx zqx zqx zqx"], 50)) == 0
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("</s>", -9.0)], 0))
    fast = PreTrainedTokenizerFast(tokenizer_object=unigram, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(UsageError, match="this one is Unigram"):
        mine(Renderer(tokenizer), fast, ["a a"], 5)


@pytest.mark.parametrize("form", ["auto", "plain", "instruction"])
def test_no_token_of_the_template_changes(form: str) -> None:
    tokenizer = tiny_tokenizer()
    # The template's own words, so frequent that they would all be joined.
    texts = ["assistant user system Assistant User System ### Instruction Response"] * 50
    new = mine(Renderer(tokenizer, form), tokenizer, texts, 200)
    longer = extended(tokenizer, new)
    before, after = Renderer(tokenizer, form), Renderer(longer, form)
    check_template(before, after, tokenizer, longer)
    assert before.stop_ids == after.stop_ids
    turns = (Segment("system", "Be"), Segment("user", "q"), Segment("assistant", "x", 1.0))
    assert before.prompt_ids(turns[:2]) == after.prompt_ids(turns[:2])
    example = Example(turns, Origin("t", 1))
    assert before.encode(example, 99).rows == after.encode(example, 99).rows
    [row] = after.encode(example, 99).rows
    prompt = after.prompt_ids(turns[:2])
    assert row.ids[: len(prompt)] == prompt


def test_a_changed_template_and_a_changed_token_are_noticed() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("assistant", add_special_tokens=False)["input_ids"]
    [a, b] = tokenizer.convert_ids_to_tokens(ids[:2])
    new = NewTokens(len(tokenizer), ((a, b),), (tuple(ids[:2]),), 1)
    longer = extended(tokenizer, new)
    with pytest.raises(ContractError, match="template's own text"):
        check_template(Renderer(tokenizer), Renderer(longer), tokenizer, longer)
    with pytest.raises(ContractError, match="other tokens than it should"):
        extended(tokenizer, NewTokens(2, ((a, b),), ((1, 2),), 1))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "phi", "gemma3"])
def test_rows_are_the_mean_of_what_they_replace_and_ties_hold(arch: str) -> None:
    for tied in (True, False):
        model = tiny_model(arch, tie_word_embeddings=tied)
        old = [table.detach().clone() for table in tables(model)]
        pieces = [(5, 6), (7, 8, 9)]
        add_rows(model, 304, pieces)
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        assert (head.weight is embeddings.weight) == tied
        assert model.config.vocab_size == 306 == head.out_features
        for before, table in zip(old, tables(model), strict=True):
            assert torch.equal(table[:304], before)
            for at, ids in enumerate(pieces):
                assert torch.allclose(table[304 + at], before[list(ids)].mean(0), atol=1e-6)


def test_padding_of_the_vocabulary_is_used_before_it_grows() -> None:
    model = tiny_model(vocab=320)
    assert add_rows(model, 304, [(5, 6)] * 10) == 0
    assert model.config.vocab_size == 320
    assert add_rows(model, 314, [(5, 6)] * 10) == 4 * 32 * len(tables(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
def test_old_rows_stay_to_the_bit_in_the_warm_up_and_move_behind_it(optim: str, tied: bool) -> None:
    tokenizer = tiny_tokenizer()
    new, longer = grown(tokenizer, TEXTS, 20)
    examples = [Example((Segment(None, t, 1.0),), Origin("t", n)) for n, t in enumerate(TEXTS)]
    rows = prepare(examples, Renderer(longer), 64).rows
    model = tiny_model(tie_word_embeddings=tied)
    add_rows(model, new.first, new.pieces)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    chosen = Settings(
        0.01, weight_decay=0.5, optim=optim, new_rows=NewRows(new.first, len(new), 3), capacity=512
    )
    from accelerate import Accelerator

    state = State(model, make_optimizer(model, chosen))
    plan = make_plan(len(rows), 4, 1, 6, 0)
    own = {id(table) for table in tables(model)}
    for done in fit(state, rows, plan, chosen, Accelerator(cpu=True)):
        for name, value in model.named_parameters():
            old, now = before[name], value.detach()
            if id(value) in own:
                assert not torch.equal(now[new.first :], old[new.first :])
                old, now = old[: new.first], now[: new.first]
            same = torch.equal(old.view(torch.int32), now.contiguous().view(torch.int32))
            assert same == (done.step <= 3), (name, done.step)


@pytest.mark.usefixtures("in_a_folder")
def test_a_run_saves_one_tokenizer_everywhere_and_loads_without_us() -> None:
    run = train(eval_steps=2)
    model = AutoModelForCausalLM.from_pretrained(run / "final_model")
    tokenizer = AutoTokenizer.from_pretrained(run / "final_model")
    assert len(tokenizer) == 304 + 30 - (304 - len(tiny_tokenizer()))
    best = (run / "best_model" / "tokenizer.json").read_text()
    assert best == (run / "final_model" / "tokenizer.json").read_text()
    state = run / "checkpoints" / "checkpoint-step-6" / "state.json"
    stored = json.loads(state.read_text())["extra"]["new_tokens"]
    assert stored == json.loads((run / "new_tokens.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    sentence = manifest["losses"][0]
    assert "nats per byte" in sentence
    assert "30 new tokens (merges of BPE" in (run / "final_model" / "README.md").read_text()

    from tunesmith.models.load import load

    ours = load(str(run / "final_model"))
    text = TEXTS[0]
    ids = tokenizer(text)["input_ids"]
    assert max(ids) >= stored["first"]
    [row] = (
        Renderer(ours.tokenizer)
        .encode(Example((Segment(None, text, 1.0),), Origin("t", 1)), 256)
        .rows
    )
    assert list(row.ids[:-1]) == ids
    [(loss, _)] = row_losses(ours.model, [row], CPU, 512)
    with torch.no_grad():
        batch = torch.tensor([row.ids])
        plain = model(batch, labels=batch).loss * (len(row.ids) - 1)
    assert loss == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.usefixtures("in_a_folder")
def test_nothing_is_mined_from_held_out_rows() -> None:
    held = [json.dumps({"text": "xyzzy quux " * 30 + str(n)}) + "\n" for n in range(3)]
    Path("held.jsonl").write_text("".join(held))
    lines = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("both.jsonl").write_text("".join(lines + held))
    found = []
    for name in ("rows", "both"):
        more = {"dataset": f"{name}.jsonl", "run_name": name, "max_steps": 1}
        run = train(**more, **({"eval_dataset": "held.jsonl"} if name == "rows" else {}))
        merges = json.loads((run / "new_tokens.json").read_text())["merges"]
        found.append(any("zz" in a + b or "uu" in a + b for a, b in merges))
    assert found == [False, True]


@pytest.mark.usefixtures("in_a_folder")
def test_resumed_equals_uninterrupted_with_the_tokens_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = {"save_steps": 2, "new_tokens_warmup": 0.5}
    train(**common, run_name="whole")
    checkpoint = workflow._Run._checkpoint

    for stop in (2, 4):  # inside the warm-up, and behind it

        def stop_there(self: Any, state: Any, stop: int = stop) -> None:
            checkpoint(self, state)
            if state.step == stop:
                raise Interrupted("stopped")

        monkeypatch.setattr(workflow._Run, "_checkpoint", stop_there)
        with pytest.raises(Interrupted):
            train(**common, run_name=f"parts{stop}")
        monkeypatch.setattr(workflow._Run, "_checkpoint", checkpoint)
        with monkeypatch.context() as patch:
            patch.setattr("tunesmith.data.new_tokens.mine", None)  # a resume does not mine
            train(**common, run_name=f"parts{stop}", resume="auto")
        left, right = (weights(name) for name in ("whole", f"parts{stop}"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    with pytest.raises(CheckpointError, match="begun with 30 new tokens"):
        train(run_name="whole", resume="auto", new_tokens=10)
    stored = Path("runs/whole/new_tokens.json")
    other = json.loads(stored.read_text())
    other["places"] += 1
    stored.write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="made with other new tokens"):
        train(run_name="whole", resume="auto")
    stored.write_text("{")
    with pytest.raises(CheckpointError, match="no readable new_tokens"):
        train(run_name="whole", resume="auto")


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"lora": True}, "an adapter has no place for rows"),
        ({"freeze_ratio": 0.5}, "the embeddings would be frozen"),
        ({"new_tokens": 0, "new_tokens_warmup": 0.5}, "does nothing without --new-tokens"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        train(**more)


@pytest.mark.parametrize("kind", MAKERS)
def test_base_and_tuned_are_compared_on_the_same_bytes(kind: str) -> None:
    from tunesmith.data.new_tokens import token_bytes
    from tunesmith.evaluate.aligned import aligned, document_losses
    from tunesmith.evaluate.losses import compare_losses

    tokenizer = MAKERS[kind]()
    _, longer = grown(tokenizer, TEXTS, 60)
    plain = [Example((Segment(None, t, 1.0),), Origin("t", n)) for n, t in enumerate(TEXTS)]
    chats = [
        Example((Segment("user", "glucose?"), Segment("assistant", t.strip(), 1.0)), Origin("c", n))
        for n, t in enumerate(TEXTS)
    ]
    for examples, limit in ((plain, 40), (chats, 400)):
        made = [prepare(examples, Renderer(t, "plain"), limit) for t in (tokenizer, longer)]
        spells = (token_bytes(tokenizer), token_bytes(longer))
        sides = aligned(made[0], made[1], spells)
        losses = [
            document_losses([(1.0, 1.0)] * len(side.rows), side, spell)
            for side, spell in zip(sides, spells, strict=True)
        ]
        compared = compare_losses(*losses)  # raises if the bytes of a document differ
        assert compared.rows == len(TEXTS)
        assert compared.missing == 0
        whole = sum(len(t.strip().encode() if examples is chats else t.encode()) for t in TEXTS)
        # All but the first token of a text, which is never scored, and what it spells.
        assert whole - 12 * len(TEXTS) < compared.bytes <= whole + 2 * len(TEXTS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("unused", [0, 1, 9])
def test_rows_for_a_look_are_taken_off_again(tied: bool, unused: int) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    first = model.config.vocab_size - unused
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = list(model.parameters())
    with old_rows(model, first):
        add_rows(model, first, [(4, 5), (6, 7), (8, 9)])
        assert model.config.vocab_size >= first + 3
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(one is other for one, other in zip(kept, model.parameters(), strict=True))
    head = model.get_output_embeddings()
    assert model.config.vocab_size == model.vocab_size == head.out_features == len(head.weight)
    assert (head.weight is model.get_input_embeddings().weight) == tied


@pytest.mark.usefixtures("in_a_folder")
def test_a_run_with_new_tokens_is_rehearsed_and_measured_without_a_trace() -> None:
    plain = train(rehearsal=False, max_steps=None)
    expected = weights(plain.name)
    for name, more in (("rehearsed", {"rehearsal": True}), ("measured", {"minutes": 60})):
        other = train(max_steps=None, run_name=name, **more)
        found = weights(other.name)
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        # The base, too, was measured as it is: without the rows that the look had added.
        first, second = (json.loads((run / "manifest.json").read_text()) for run in (plain, other))
        assert first["losses"] == second["losses"] != []


@pytest.mark.usefixtures("in_a_folder")
def test_minutes_offer_no_method_that_new_tokens_cannot_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = fake(monkeypatch, 0.0, 20.0)
    given: dict[str, Any] = {"task": "domain", "dataset": "rows.jsonl", "model": "base"}
    tunesmith.train(**given, max_length=64, num_workers=1, new_tokens=30, minutes=1)
    assert asked == [{}]
