"""``tunesmith generate``: answer one prompt."""

from __future__ import annotations

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import GenerateOptions
from tunesmith.workflows.opening import open_model

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
    from tunesmith.generate.engine import Engine
    from tunesmith.generate.requests import Request, Sampling, attempt_seed
    from tunesmith.types import Segment

    loaded, renderer = open_model(options)
    head = (Segment("system", options.system),) if options.system else ()
    prompt = renderer.prompt_ids((*head, Segment("user", options.prompt)))
    sampling = Sampling(
        options.max_new_tokens or DEFAULT_TOKENS,
        options.temperature,
        options.top_p,
        options.top_k,
        options.min_p,
    )
    requests = [
        Request(index, prompt, sampling, attempt_seed(options.seed, options.prompt, index))
        for index in range(options.samples)
    ]
    engine = Engine(loaded.model, renderer.decode, renderer.stop_ids, max_slots=options.batch_size)
    done = {completion.key: completion.text for completion in engine.run(requests)}
    return [done[index] for index in range(options.samples)]
