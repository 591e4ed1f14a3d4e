"""``tunesmith generate``: answer a prompt, or every prompt of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_generate import GenerateOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.workflows import console
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
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.targets import check_output
from tunesmith.workflows.terminal import Answers, one_line
from tunesmith.workflows.voices import Base, open_base

if TYPE_CHECKING:
    from tunesmith.data.prompts import Prompt
    from tunesmith.data.render import Renderer
    from tunesmith.generate.requests import Completion, Request, Sampling
    from tunesmith.models.load import LoadedModel
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
    loaded, renderer = open_model(options, int8=options.weights == "int8")
    base = open_base(options, loaded, renderer) if options.compare_base else None
    sampling = _sampling(options)
    asked = [_ask(options, prompt, shelf, loaded, renderer, sampling) for prompt in prompts]
    live = bool(
        out
        and out.on_terminal
        and len(prompts) * options.samples == 1
        and not (options.output or base)
    )
    if live and asked[0].shown:
        tell_passages(asked[0].shown)
    requests = _requests(options, asked, renderer, sampling, loaded.max_positions)
    made = _run(options, loaded, renderer, requests, out if live else None)
    for one, answers in zip(asked, made, strict=True):
        one.answers = answers
    if base is not None:
        _ask_base(options, base, asked, sampling)
    for one in asked:
        _tell(options, one, several=len(asked) > 1, passages=not live)
    if options.output is not None:
        from tunesmith.data.writers import write_rows

        write_rows(options.output, (_row(one, renderer) for one in asked))
    return asked, live


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
    if "" in options.stop:
        raise UsageError("--stop is empty.", expected="a text that ends an answer")
    if options.output is not None:
        inputs = [*options.documents, *([options.prompts] if options.prompts else [])]
        check_output(Path(options.output), inputs, overwrite=options.overwrite)


def _sampling(options: GenerateOptions) -> Sampling:
    from tunesmith.generate.requests import Sampling

    return Sampling(
        options.max_new_tokens or DEFAULT_TOKENS,
        options.temperature,
        options.top_p,
        options.top_k,
        options.min_p,
        tuple(options.stop),
        options.logprobs,
    )


def _ask(
    options: GenerateOptions,
    prompt: Prompt,
    shelf: Shelf | None,
    loaded: LoadedModel,
    renderer: Renderer,
    sampling: Sampling,
) -> Answered:
    """Return what the model is asked: the prompt, behind a system message and with passages."""
    from tunesmith.types import Segment

    turns = prompt.turns
    if options.system:
        rest = turns[1:] if turns[0].role == "system" else turns
        turns = (Segment("system", options.system), *rest)
    if shelf is None:
        return Answered(prompt, turns)
    limit = loaded.max_positions - min(sampling.max_new_tokens, loaded.max_positions // 4)

    def fits(text: str) -> bool:
        return len(renderer.prompt_ids((*turns[:-1], Segment("user", text)))) <= limit

    shown = shelf.show(prompt.text, fits)
    return Answered(prompt, (*turns[:-1], replace(turns[-1], text=shown.text)), shown)


def _requests(
    options: GenerateOptions,
    asked: Sequence[Answered],
    renderer: Renderer,
    sampling: Sampling,
    positions: int,
) -> list[Request]:
    from tunesmith.generate.requests import Request, attempt_seed

    requests = []
    for number, one in enumerate(asked):
        ids = renderer.prompt_ids(one.turns)
        if len(ids) >= positions:
            raise UsageError(
                f"{one.prompt.place} is {len(ids):,} tokens long; the model takes {positions:,}.",
                expected="a prompt that leaves room for an answer",
            )
        for index in range(options.samples):
            seed = attempt_seed(options.seed, one.prompt.text, index)
            requests.append(Request((number, index), ids, sampling, seed))
    return requests


def _run(
    options: GenerateOptions,
    loaded: LoadedModel,
    renderer: Renderer,
    requests: Sequence[Request],
    live: Answers | None,
    what: str = "answering",
) -> list[list[Completion]]:
    """Return the answers to each prompt; with ``live`` the only one is written as it grows."""
    from tunesmith.generate.engine import Engine

    engine = Engine(loaded.model, renderer.decode, renderer.stop_ids, max_slots=options.batch_size)
    if live is not None:
        [done] = engine.run(requests, show=lambda _, piece: live.piece(piece))
        live.end()
        return [[done]]
    made: dict[Any, Completion] = {}
    with console.bar(what, len(requests)) as bar:
        for completion in engine.run(requests):
            made[completion.key] = completion
            bar.advance()
    return [
        [made[number, index] for index in range(options.samples)]
        for number in range(len(requests) // options.samples)
    ]


def _ask_base(
    options: GenerateOptions, base: Base, asked: Sequence[Answered], sampling: Sampling
) -> None:
    with base.around():
        requests = _requests(options, asked, base.renderer, sampling, base.loaded.max_positions)
        made = _run(options, base.loaded, base.renderer, requests, None, "asking the base")
    for one, answers in zip(asked, made, strict=True):
        one.base = answers


def _tell(options: GenerateOptions, one: Answered, *, several: bool, passages: bool) -> None:
    """Say on stderr what belongs to a prompt's answers; of many prompts the rows say it."""
    if several:
        return
    if one.shown is not None:
        if passages:
            tell_passages(one.shown)
        for answer in one.answers:
            tell_citations(one.shown, one.shown.citations(answer.text))
    for answer in one.answers if options.logprobs else ():
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


def _row(one: Answered, renderer: Renderer) -> dict[str, Any]:
    """Return the row of a prompt in ``--output``."""
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


def _fields(answers: Sequence[Completion], renderer: Renderer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "answers": [answer.text for answer in answers],
        "stop_reasons": [answer.stop.value for answer in answers],
        "tokens": [len(answer.tokens) for answer in answers],
    }
    if any(answer.logprobs for answer in answers):
        found["logprobs"] = [list(_logprobs(answer, renderer)) for answer in answers]
    return found


def _logprobs(answer: Completion, renderer: Renderer) -> Iterator[dict[str, Any]]:
    for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
        yield {"token": renderer.decode_raw([token]), "logprob": round(logprob, 6)}
