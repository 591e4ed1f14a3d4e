"""A dialogue: what is computed anew, what is left out, what can be taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.data.render import Renderer
from tunesmith.errors import UsageError
from tunesmith.generate.dialogue import Dialogue, Voice
from tunesmith.generate.requests import Sampling
from tunesmith.models.load import LoadedModel, ModelRef
from tunesmith.types import Segment, StopReason


def voice(**config: Any) -> Voice:
    model, tokenizer = tiny_model("llama", **config), tiny_tokenizer()
    ref = ModelRef("none", None, "a random model")
    loaded = LoadedModel(model, tokenizer, ref, torch.device("cpu"), torch.float32)
    return Voice.of(loaded, Renderer(tokenizer))


def test_a_turn_computes_only_what_is_new() -> None:
    dialogue = Dialogue.open(max_new_tokens=12)
    engine, known = dialogue.voice.engine, 0
    for question in ("What is 3 + 4?", "And 5 + 6?", "Thank you."):
        before = engine.prefilled
        reply = dialogue.ask(question)
        # The last token of an answer that was cut off was chosen but never ran.
        assert engine.prefilled - before == reply.prompt_tokens - known
        ended = reply.stop is StopReason.STOP_TOKEN
        known = reply.prompt_tokens + reply.tokens - (not ended)
    assert [turn.role for turn in dialogue.turns] == ["user", "assistant"] * 3


def test_the_oldest_exchanges_go_and_the_system_message_stays() -> None:
    dialogue = Dialogue(voice(), Sampling(8), "be brief")
    replies = [dialogue.ask(f"question {n} " + "x" * 40) for n in range(8)]
    assert max(reply.prompt_tokens for reply in replies) <= dialogue.room == 248
    left = [reply.left_out for reply in replies]
    assert left[:2] == [0, 0]
    assert sum(left) > 1
    assert 0 in left[left.index(max(left)) :], "some turns fit again after a cut"
    assert sum(turn.role == "user" for turn in dialogue.turns[: dialogue.first]) == sum(left)
    assert len(dialogue.turns) == 16  # nothing said is lost
    seen = dialogue.voice.renderer.decode_raw(dialogue.voice.renderer.prompt_ids(dialogue._seen()))
    assert "be brief" in seen
    assert "question 0" not in seen
    assert "question 7" in seen


def test_a_question_that_is_too_long_changes_nothing() -> None:
    dialogue = Dialogue(voice(), Sampling(8))
    dialogue.ask("hello")
    before = list(dialogue.turns)
    with pytest.raises(UsageError, match="the model takes 256"):
        dialogue.ask("y" * 400)
    assert (dialogue.turns, dialogue.first) == (before, 0)
    assert not dialogue.fits("y" * 400)
    assert dialogue.fits("y")


def test_an_answer_that_is_stopped_is_kept_and_remembered() -> None:
    dialogue = Dialogue(voice(), Sampling(100))
    assert dialogue.stop() is False
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            assert dialogue.stop()

    reply = dialogue.ask("how many are there", show=show)
    assert reply.stop is StopReason.CANCELLED
    assert 3 <= reply.tokens < 100
    assert dialogue.turns[-1] == Segment("assistant", reply.text, 0.0)
    before = dialogue.voice.engine.prefilled
    again = dialogue.ask("the cat")
    assert again.stop is not StopReason.CANCELLED
    # The prompt at least is not computed again, though the answer may be spelled otherwise.
    computed = dialogue.voice.engine.prefilled - before
    assert computed <= again.prompt_tokens - reply.prompt_tokens


def test_undo_retry_and_reset() -> None:
    dialogue = Dialogue(voice(), Sampling(8, temperature=1.0))
    first = dialogue.ask("the cat")
    tried = {first.text} | {dialogue.retry().text for _ in range(4)}
    assert len(tried) > 2
    assert len(dialogue.turns) == 2
    assert Dialogue(dialogue.voice, dialogue.sampling).ask("the cat").text == first.text
    dialogue.ask("the mat")
    assert dialogue.undo() == "the mat"
    assert [turn.text for turn in dialogue.turns[:1]] == ["the cat"]
    dialogue.reset()
    assert dialogue.undo() is None
    with pytest.raises(UsageError, match="no answer to make again"):
        dialogue.retry()


def test_a_retry_that_fails_leaves_the_answer() -> None:
    dialogue = Dialogue(voice(), Sampling(8))
    dialogue.ask("the cat")
    before = list(dialogue.turns)
    dialogue.system = "z" * 400
    with pytest.raises(UsageError):
        dialogue.retry()
    assert dialogue.turns == before


def test_another_voice_leaves_no_trace() -> None:
    dialogue = Dialogue(voice(), Sampling(8))
    other = Voice.of(
        LoadedModel(
            tiny_model("llama", seed=3),
            tiny_tokenizer(),
            ModelRef("none", None, "another"),
            torch.device("cpu"),
            torch.float32,
        ),
        dialogue.voice.renderer,
    )
    aside = dialogue.ask("the cat", voice=other, keep=False)
    assert dialogue.turns == []
    assert dialogue.ask("the cat").text != aside.text


def test_a_dialogue_goes_on_from_turns() -> None:
    dialogue = Dialogue(voice(), Sampling(8))
    said = [Segment("system", "be brief"), Segment("user", "a"), Segment("assistant", "b", 1.0)]
    dialogue.take([*said, Segment("user", "unanswered")])
    assert (dialogue.system, dialogue.turns) == ("be brief", said[1:])
    dialogue.ask("c")
    assert [turn.text for turn in dialogue.turns[:3]] == ["a", "b", "c"]
