"""Chat templates: which one is used, and the text that it makes of a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.chats import TOOLS
from tunesmith.data.thinking import MASKED
from tunesmith.errors import ContractError, UsageError
from tunesmith.types import Segment

PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Assistant:\\n' + m['content'] + eos_token + '\\n' }}"
    "{% else %}{{ m['role'] | capitalize + ':\\n' + m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
INSTRUCTION = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
FORMS = {"plain": PLAIN, "instruction": INSTRUCTION}
"""Templates for models that bring none; they use nothing but the tokens that a model has."""


def choose_template(own: str | None, wanted: str) -> tuple[str, str]:
    """Return a template's text and name: the model's own, a built-in form, or a file's."""
    if wanted == "auto":
        return (own, "the model's own") if own else (PLAIN, "plain")
    if wanted in FORMS:
        return FORMS[wanted], wanted
    if "{{" in wanted or "{%" in wanted:
        return wanted, "given"
    path = Path(wanted)
    if path.is_file():
        return path.read_text(encoding="utf-8"), path.name
    raise UsageError(
        f"There is no chat template {wanted!r}.",
        expected="auto, plain, instruction, a file with a Jinja template, or the template itself",
        hint="--chat-template auto",
    )


class Template:
    """One chat template of one tokenizer, compiled once.

    Messages of nothing but role and content go straight to the template that transformers
    compiled, in its sandbox; all others through ``apply_chat_template``, which tidies them first.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self._tokenizer = tokenizer
        self._compiled = _compiled(tokenizer, text)

    def render(self, turns: list[dict[str, Any]], *, prompt: bool, tools: Any = None) -> str:
        """Return the text of turns; ``ContractError`` when the template refuses them."""
        try:
            plain = all(len(turn) == 2 for turn in turns) and not tools
            if self._compiled is None or not plain:
                return self._slowly(turns, prompt, tools)
            return str(
                self._compiled.render(
                    messages=turns,
                    tools=None,
                    documents=None,
                    add_generation_prompt=prompt,
                    **self._tokenizer.special_tokens_map,
                )
            )
        except MemoryError as failure:
            raise ContractError(
                "The chat template takes more memory than there is.",
                hint="--chat-template instruction, or shorter conversations",
            ) from failure
        except Exception as failure:  # whatever a foreign template raises
            raise ContractError(
                f"The chat template refuses the conversation: {failure}",
                hint="--chat-template instruction, or change the roles",
            ) from None

    def _slowly(self, turns: list[dict[str, Any]], prompt: bool, tools: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )


def _compiled(tokenizer: Any, text: str) -> Any:
    """Return the template as transformers compiles it; None where that is not all it does."""
    from transformers import PreTrainedTokenizerBase

    own = getattr(type(tokenizer), "apply_chat_template", None)
    if own is not PreTrainedTokenizerBase.apply_chat_template:
        return None
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return _compile_jinja_template(text)
    except Exception:  # another version, or a template that does not compile: said at first use
        return None


class Chat:
    """The renders of one conversation's turns, each made once."""

    def __init__(self, template: Template, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self._template = template
        self._turns = [
            {
                "role": s.role,
                "content": s.text,
                **{k: v for k, v in s.extra.items() if k not in (TOOLS, MASKED)},
            }
            for s in segments
        ]
        self._tools = segments[0].extra.get(TOOLS) if segments else None
        self._known: dict[tuple[tuple[int, ...], bool], str] = {}
        self._keeps: dict[tuple[int, ...], bool] = {}

    def text(self, numbers: tuple[int, ...], *, prompt: bool) -> str:
        """Return the render of some turns, by their numbers."""
        key = (numbers, prompt)
        known = self._known.get(key)
        if known is None:
            turns = [self._turns[number] for number in numbers]
            known = self._known[key] = self._template.render(
                turns, prompt=prompt, tools=self._tools
            )
        return known

    def missing(self, numbers: tuple[int, ...]) -> str | None:
        """Say which message or tool the template loses, or why it refuses them.

        An answer must be there when its turn is the last one: later on a template may shorten it.
        """
        try:
            whole = self.text(numbers, prompt=False)
            unseen = [name for name in map(_tool_name, self._tools or ()) if name not in whole]
            if unseen:
                return f"the template leaves out the row's tools ({unseen[0]})"
            for place, number in enumerate(numbers, 1):
                segment = self.segments[number]
                answer = segment.role == "assistant"
                text = self.text(numbers[:place], prompt=False) if answer else whole
                if not any(form in text for form in _forms(segment)):
                    return f"the template loses turn {place} ({segment.role})"
                lost = _lost_call(segment, text)
                if lost:
                    return f"the template loses the tool call in turn {place} ({lost})"
        except ContractError as refusal:
            return refusal.found
        return None

    def keeps_earlier_turns(self, numbers: tuple[int, ...]) -> bool:
        """Say whether every prefix of the conversation renders to a prefix of its text."""
        if numbers not in self._keeps:
            self._keeps[numbers] = self._compare(numbers)
        return self._keeps[numbers]

    def _compare(self, numbers: tuple[int, ...]) -> bool:
        whole = self.text(numbers, prompt=False)
        for place, number in enumerate(numbers):
            if self.segments[number].role != "assistant":
                continue
            before = self.text(numbers[:place], prompt=True)
            after = self.text(numbers[: place + 1], prompt=False)
            if not (after.startswith(before) and whole.startswith(after)):
                return False
        return True


def _tool_name(tool: Any) -> str:
    """Return the name of a tool, in OpenAI's form or flat."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else tool
    return str(inner.get("name", "")) if isinstance(inner, Mapping) else ""


def _forms(segment: Segment) -> tuple[str, ...]:
    """Return the forms in which a render may show a turn's text: tool results also as JSON."""
    text = segment.text.strip()
    if segment.role != "tool":
        return (text,)
    written = (json.dumps(segment.text, ensure_ascii=ascii_) for ascii_ in (False, True))
    return (text, *(form.strip('"') for form in written))


def _lost_call(segment: Segment, text: str) -> str | None:
    """Name a part of a turn's tool calls that a render does not hold."""
    for call in segment.extra.get("tool_calls", ()):
        function = call["function"]
        for part in (function["name"], *_leaves(function["arguments"])):
            written = json.dumps(part, ensure_ascii=False)
            forms = (str(part), written.strip('"'), json.dumps(part).strip('"'))
            if not any(form in text for form in forms):
                return repr(part)
    return None


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the names and the plain values of a nested argument."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
