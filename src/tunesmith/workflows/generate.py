"""``tunesmith generate``: answer a prompt, or every prompt of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_generate import GenerateOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import hash_json
from tunesmith.workflows import console
from tunesmith.workflows.answering import AnswerLog, answer_all, answer_live
from tunesmith.workflows.asking import (
    Respondent,
    open_respondent,
    respondent_on,
    sampling_of,
)
from tunesmith.workflows.documents import (
    NEEDS,
    Shelf,
    Shown,
    check_columns,
    citation_fields,
    tell_citations,
    tell_passages,
)
from tunesmith.workflows.idle import refuse_idle
from tunesmith.workflows.targets import check_output
from tunesmith.workflows.terminal import Answers, one_line
from tunesmith.workflows.voices import Base, open_base

if TYPE_CHECKING:
    from tunesmith.data.prompts import Prompt
    from tunesmith.data.render import Renderer
    from tunesmith.generate.backends import Question
    from tunesmith.generate.requests import Completion, Sampling
    from tunesmith.types import Segment

DEFAULT_TOKENS = 256


@dataclass(slots=True)
class Answered:
    """A prompt with its answers, in order."""

    prompt: Prompt
    turns: tuple[Segment, ...]
    """What the model was asked: the system message and the passages included."""
    shown: Shown | None = None
    answers: list[Completion] = field(default_factory=list)
    base: list[Completion] = field(default_factory=list)


def command(resolved: Resolved[GenerateOptions]) -> int:
    """Handle ``tunesmith generate``; nothing but the answers goes to stdout."""
    options = resolved.options
    out = Answers()
    done, streamed = _generate(options, out)
    if options.output is not None:
        console.say(f"Answers: {options.output}")
    elif not streamed:
        _print(done, out)
    return 0


def generate(prompt: str | None = None, **settings: Any) -> list[str]:
    """Answer a prompt, or a file of them; settings are those of ``tunesmith generate``.

    Returns the answers to the first prompt, then those to the next.
    """
    given = {"prompt": prompt, **settings}
    done, _ = _generate(resolve(GenerateOptions, given, origin="argument").options, None)
    return [answer.text for one in done for answer in one.answers]


def _generate(options: GenerateOptions, out: Answers | None) -> tuple[list[Answered], bool]:
    """Return the prompts with their answers, and whether they were written to ``out`` already."""
    _check(options)
    prompts = _prompts(options)
    shelf = Shelf(options) if options.documents else None
    respondent = open_respondent(options)
    base = None
    if options.compare_base and respondent.local is not None:
        base = open_base(options, *respondent.local)
    sampling = sampling_of(options, DEFAULT_TOKENS, stop=options.stop, logprobs=options.logprobs)
    asked = [_ask(options, prompt, shelf, respondent, sampling) for prompt in prompts]
    live = bool(
        out
        and out.on_terminal
        and len(prompts) * options.samples == 1
        and not (options.output or base)
    )
    if live and asked[0].shown:
        tell_passages(asked[0].shown)
    questions = _questions(options, asked, sampling)
    with _stored(options, respondent, questions) as log:
        if live and out is not None:
            made = {questions[0].key: answer_live(respondent, questions[0], out)}
        else:
            made = answer_all(respondent, questions, log)
        respondent.tell()
        for at, one in enumerate(asked):
            one.answers = [made[at, index] for index in range(options.samples)]
        if base is not None:
            _ask_base(options, base, asked, sampling)
        written = [answer for one in asked for answer in one.answers if answer.text]
        if options.logprobs and written and not any(answer.logprobs for answer in written):
            console.warn(f"{respondent.described} told no log-probabilities")
        for one in asked:
            _tell(one, several=len(asked) > 1, passages=not live)
        if options.output is not None:
            from tunesmith.data.writers import write_rows

            write_rows(options.output, (_row(one, respondent.renderer) for one in asked))
        if log is not None:
            log.remove()
    return asked, live


def _stored(
    options: GenerateOptions, respondent: Respondent, questions: Sequence[Question]
) -> AbstractContextManager[AnswerLog | None]:
    """Return the log of the answers so far; none where there is no output, or a single answer."""
    if options.output is None or len(questions) == 1:
        return nullcontext()
    identity, _ = respondent.facts()
    content = [[asdict(question) for question in questions], *identity]
    return AnswerLog(
        options.output,
        hash_json(content),
        sync_every=respondent.sync_every,
        overwrite=options.overwrite,
    )


def _prompts(options: GenerateOptions) -> list[Prompt]:
    from tunesmith.data.prompts import FIELDS, read_prompts, typed

    check_columns(options, *(FIELDS if options.prompts else ()))
    if options.prompts is not None:
        mine = {name: own for name, own in options.columns.items() if name in FIELDS}
        return read_prompts(options.prompts, mine, options.encoding)
    if options.prompt is None:
        raise UsageError(
            "Neither --prompt nor --prompts says what to answer.",
            expected="a prompt, or a file of them",
            hint='tunesmith generate --prompt "…", or --prompts FILE',
        )
    if options.prompt != "-":
        return [typed(options.prompt)]
    try:
        return [typed(sys.stdin.read().rstrip("\n"), "the prompt on stdin")]
    except UnicodeDecodeError as failure:
        raise DataError(
            f"The prompt on stdin is no UTF-8 ({failure.reason}).", expected="UTF-8 text"
        ) from None


def _check(options: GenerateOptions) -> None:
    refuse_idle(options, (*NEEDS, ("overwrite", "--output", lambda o: o.output)))
    if options.encoding and not (options.documents or options.prompts):
        raise UsageError("--encoding does nothing without --prompts or --documents.")
    if options.compare_base and (options.address or options.backend == "vllm"):
        raise UsageError(
            "--compare-base needs weights that are loaded here, to know what they were tuned from.",
            hint="leave out " + ("--address" if options.address else "--backend vllm"),
        )
    if "" in options.stop:
        raise UsageError("--stop is empty.", expected="a text that ends an answer")
    if options.output is not None:
        inputs = [*options.documents, *([options.prompts] if options.prompts else [])]
        check_output(Path(options.output), inputs, overwrite=options.overwrite)


def _ask(
    options: GenerateOptions,
    prompt: Prompt,
    shelf: Shelf | None,
    respondent: Respondent,
    sampling: Sampling,
) -> Answered:
    """Return what the model is asked: the prompt, behind a system message and with passages.

    ``UsageError`` for what is longer than a model of this machine takes; servers say it themselves.
    """
    from tunesmith.types import Segment

    turns = prompt.turns
    if options.system:
        rest = turns[1:] if turns[0].role == "system" else turns
        turns = (Segment("system", options.system), *rest)
    shown = None
    if shelf is not None:
        shown = shelf.show(prompt.text, _fits(turns, respondent, sampling))
        turns = (*turns[:-1], replace(turns[-1], text=shown.text))
    if respondent.local is not None:
        loaded, renderer = respondent.local
        _check_length(prompt, turns, renderer, loaded.max_positions)
    return Answered(prompt, turns, shown)


def _fits(
    turns: tuple[Segment, ...], respondent: Respondent, sampling: Sampling
) -> Callable[[str], bool]:
    """Return what says whether a text as the last turn leaves room for an answer."""
    if respondent.local is None:
        return lambda _: True
    loaded, renderer = respondent.local
    limit = loaded.max_positions - min(sampling.max_new_tokens, loaded.max_positions // 4)

    def fits(text: str) -> bool:
        return len(renderer.prompt_ids((*turns[:-1], replace(turns[-1], text=text)))) <= limit

    return fits


def _check_length(
    prompt: Prompt, turns: tuple[Segment, ...], renderer: Renderer, positions: int
) -> None:
    count = len(renderer.prompt_ids(turns))
    if count >= positions:
        raise UsageError(
            f"{prompt.place} is {count:,} tokens long; the model takes {positions:,}.",
            expected="a prompt that leaves room for an answer",
        )


def _questions(
    options: GenerateOptions, asked: Sequence[Answered], sampling: Sampling
) -> list[Question]:
    from tunesmith.generate.backends import Question
    from tunesmith.generate.requests import attempt_seed

    return [
        Question(
            (number, index),
            one.turns,
            sampling,
            attempt_seed(options.seed, one.prompt.text, index),
        )
        for number, one in enumerate(asked)
        for index in range(options.samples)
    ]


def _ask_base(
    options: GenerateOptions, base: Base, asked: Sequence[Answered], sampling: Sampling
) -> None:
    with base.around():
        for one in asked:
            _check_length(one.prompt, one.turns, base.renderer, base.loaded.max_positions)
        questions = _questions(options, asked, sampling)
        respondent = respondent_on(options, base.loaded, base.renderer)
        made = answer_all(respondent, questions, None, "asking the base")
    for number, one in enumerate(asked):
        one.base = [made[number, index] for index in range(options.samples)]


def _tell(one: Answered, *, several: bool, passages: bool) -> None:
    """Say on stderr what belongs to a prompt's answers; of many prompts the rows say it."""
    if several:
        return
    if one.shown is not None:
        if passages:
            tell_passages(one.shown)
        for answer in one.answers:
            tell_citations(one.shown, one.shown.citations(answer.text))
    for answer in one.answers:
        if not answer.logprobs:
            continue
        total, count = sum(answer.logprobs), len(answer.logprobs)
        mean = f", {total / count:.3f} a token" if count else ""
        console.say(f"Log-probability: {total:.3f} for {count} tokens{mean}.")


def _print(done: Sequence[Answered], out: Answers) -> None:
    for number, one in enumerate(done, 1):
        if len(done) > 1 and out.on_terminal:
            console.say(one_line(f"[{number}] {one.prompt.text}", 78))
        for at, answer in enumerate(one.answers):
            if one.base:
                out.beside((("base", one.base[at].text), ("tuned", answer.text)))
            else:
                out.whole(answer.text)


def _row(one: Answered, renderer: Renderer | None) -> dict[str, Any]:
    """Return the row of a prompt in ``--output``; without a renderer nothing of tokens is known."""
    row: dict[str, Any] = {"prompt": one.prompt.text}
    if one.prompt.origin is not None:
        row["origin"] = str(one.prompt.origin)
    if len(one.prompt.turns) > 1:
        row["messages"] = [{"role": t.role, "content": t.text} for t in one.prompt.turns]
    row |= _fields(one.answers, renderer)
    if one.base:
        row["base"] = _fields(one.base, renderer)
    if one.shown is not None:
        row["passages"] = one.shown.fields()
        row["citations"] = [
            citation_fields(one.shown.citations(answer.text)) for answer in one.answers
        ]
    return row


def _fields(answers: Sequence[Completion], renderer: Renderer | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "answers": [answer.text for answer in answers],
        "stop_reasons": [answer.stop.value for answer in answers],
    }
    if renderer is not None:
        found["tokens"] = [len(answer.tokens) for answer in answers]
    if any(answer.logprobs for answer in answers):
        found["logprobs"] = [_logprobs(answer, renderer) for answer in answers]
    return found


def _logprobs(answer: Completion, renderer: Renderer | None) -> list[dict[str, Any]]:
    values = [round(logprob, 6) for logprob in answer.logprobs]
    if renderer is None:
        return [{"logprob": value} for value in values]
    return [
        {"token": renderer.decode_raw([token]), "logprob": value}
        for token, value in zip(answer.tokens, values, strict=True)
    ]
