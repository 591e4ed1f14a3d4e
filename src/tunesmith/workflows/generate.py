"""``tunesmith generate``: answer one prompt."""

from __future__ import annotations

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import GenerateOptions
from tunesmith.workflows.asking import open_respondent

DEFAULT_TOKENS = 256


def command(resolved: Resolved[GenerateOptions]) -> int:
    """Handle ``tunesmith generate``; the answers go to stdout."""
    for text in _generate(resolved.options):
        print(text)
    return 0


def generate(prompt: str, **settings: object) -> list[str]:
    """Answer a prompt; settings are those of ``tunesmith generate``."""
    given = {"prompt": prompt, **settings}
    return _generate(resolve(GenerateOptions, given, origin="argument").options)


def _generate(options: GenerateOptions) -> list[str]:
    from tunesmith.generate.backends import Question
    from tunesmith.generate.requests import Sampling, attempt_seed
    from tunesmith.types import Segment

    respondent = open_respondent(options)
    head = (Segment("system", options.system),) if options.system else ()
    messages = (*head, Segment("user", options.prompt))
    sampling = Sampling(
        options.max_new_tokens or DEFAULT_TOKENS,
        options.temperature,
        options.top_p,
        options.top_k,
        options.min_p,
    )
    questions = [
        Question(index, messages, sampling, attempt_seed(options.seed, options.prompt, index))
        for index in range(options.samples)
    ]
    made = respondent.backend.answers(questions)
    done = {completion.key: completion.text for completion in made}
    return [done[index] for index in range(options.samples)]
