"""Who writes questions about documents: a model of this machine, or one behind an address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tunesmith.config.schema_raft import RaftOptions
from tunesmith.errors import ModelError, UsageError
from tunesmith.grading.thinking import split_thinking
from tunesmith.workflows import console
from tunesmith.workflows.asking import key_of
from tunesmith.workflows.opening import open_model

if TYPE_CHECKING:
    from tunesmith.data.raft.questions import QuestionMaker
    from tunesmith.generate.backends import Backend

REPLY_TOKENS = 400


def question_maker(options: RaftOptions, who: str) -> QuestionMaker:
    """Return what ``--ask model`` or ``--ask address`` names."""
    return _local(options) if who == "model" else _remote(options)


class BackendMaker:
    """Asks any backend, greedily."""

    def __init__(self, backend: Backend, check: Callable[[str], None] = lambda _: None) -> None:
        """Take a backend, and what raises ``UsageError`` for a prompt that it has no room for."""
        self._backend, self._check = backend, check

    def replies(self, prompts: Sequence[str]) -> list[str]:
        """Return the reply to each prompt, without thinking; nothing of one that never ends it."""
        from tunesmith.generate.backends import Question
        from tunesmith.generate.requests import Sampling
        from tunesmith.types import Segment

        for prompt in prompts:
            self._check(prompt)
        questions = [
            Question(number, (Segment("user", prompt),), Sampling(REPLY_TOKENS))
            for number, prompt in enumerate(prompts)
        ]
        done = {}
        with console.bar("asking", len(questions)) as bar:
            for completion in self._backend.answers(questions):
                done[completion.key] = split_thinking(completion.text).answer or ""
                bar.advance()
        return [done[number] for number in range(len(questions))]


def _local(options: RaftOptions) -> BackendMaker:
    from tunesmith.generate.local import EngineBackend
    from tunesmith.types import Segment

    loaded, renderer = open_model(options)
    room = loaded.max_positions

    def check(prompt: str) -> None:
        count = len(renderer.prompt_ids((Segment("user", prompt),)))
        if count + REPLY_TOKENS > room:
            raise UsageError(
                f"A chunk with its prompt is {count} tokens long; the model takes {room} "
                f"with {REPLY_TOKENS} for the reply.",
                hint=f"--chunk-tokens {max(16, room - REPLY_TOKENS - 150)}",
            )

    return BackendMaker(EngineBackend(loaded.model, renderer), check)


class _Remote(BackendMaker):
    """Servers, which nothing of these questions is stored of before all are there."""

    def replies(self, prompts: Sequence[str]) -> list[str]:
        try:
            return super().replies(prompts)
        except ModelError as failure:
            failure.hint = "check --address, --address-model and the key; --address-retries"
            raise


def _remote(options: RaftOptions) -> BackendMaker:
    from tunesmith.generate.remote import RemoteBackend
    from tunesmith.generate.servers import ServerSettings, check_address

    if options.address is None:
        raise UsageError(
            "--ask address needs --address.", hint="--address http://localhost:8000/v1"
        )
    addresses = (check_address(options.address),)
    unset = options.address_key == RaftOptions.model_fields["address_key"].default
    settings = ServerSettings(
        addresses,
        options.address_model,
        key_of(None if unset else options.address_key, addresses, "--address-key"),
        timeout=options.address_timeout,
        retries=options.address_retries,
    )
    return _Remote(RemoteBackend(settings))
