"""What a client may ask, in OpenAI's shapes; everything else is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tunesmith.data.json_in import parse_line
from tunesmith.serve.faults import Fault, invalid, unsupported

DEEPEST = 24
"""Brackets within brackets that a body may have."""
LONGEST_STOP = 256
MOST_STOPS = 4
MOST_LIKELIEST = 20
MOST_MESSAGES = 4096

_COMMON: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "metadata": ({},),
}
NEUTRAL_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_COMMON,
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters of OpenAI's API that are not honoured, with the values besides null that ask for
nothing."""
NEUTRAL_TEXT: Mapping[str, tuple[Any, ...]] = {**_COMMON, "best_of": (1,), "suffix": ("",)}
NEUTRAL_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(_Shape):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


def integral(value: Any) -> Any:
    """Return a number without a fraction as an int: JSON writes 3 and 3.0 for the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(integral)]


class _Request(_Shape):
    model: str = Field(min_length=1, max_length=1000)
    max_tokens: Annotated[Int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    n: Annotated[Int, Field(ge=1, lt=2**31)] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the texts that end an answer."""
        if self.stop is None:
            return ()
        found = [self.stop] if isinstance(self.stop, str) else self.stop
        right = isinstance(found, list) and all(isinstance(one, str) for one in found)
        if not right or len(found) > MOST_STOPS:
            raise invalid("stop", f"stop is a text or a list of at most {MOST_STOPS} texts.")
        if not all(0 < len(one) <= LONGEST_STOP for one in found):
            raise invalid("stop", f"A stop text has between 1 and {LONGEST_STOP} characters.")
        for one in found:
            check_text(one, "stop")
        return tuple(found)

    @property
    def with_usage(self) -> bool:
        """Say whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Message(_Shape):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Any

    def text(self, place: str) -> str:
        """Return what was said; parts that are texts are joined."""
        if isinstance(self.content, str):
            return check_text(self.content, f"{place}.content")
        if not isinstance(self.content, list) or not self.content:
            raise invalid(f"{place}.content", "The content is a text or a list of texts.")
        said = []
        for number, part in enumerate(self.content):
            where = f"{place}.content[{number}]"
            if not isinstance(part, dict) or part.get("type") != "text":
                raise invalid(where, "This server takes parts of type text only.")
            if set(part) != {"type", "text"} or not isinstance(part["text"], str):
                raise invalid(where, "A part of type text holds type and text.")
            said.append(check_text(part["text"], where))
        return "".join(said)


class ChatRequest(_Request):
    """A body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: Annotated[Int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MOST_LIKELIEST)] | None = None


class TextRequest(_Request):
    """A body of /v1/completions."""

    prompt: Any
    echo: bool | None = None
    logprobs: Annotated[Int, Field(ge=0, le=MOST_LIKELIEST)] | None = None

    def prompts(self, vocabulary: int, most: int) -> list[str | tuple[int, ...]]:
        """Return the prompts, each a text or its token ids."""
        given = self.prompt
        if isinstance(given, list):
            given = [_integers(part) for part in given]
        one = isinstance(given, str) or (
            isinstance(given, list) and bool(given) and all(type(part) is int for part in given)
        )
        several = [given] if one else given
        if not isinstance(several, list) or not several:
            raise invalid("prompt", "The prompt is a text, a list of texts, or token ids.")
        if len(several) > most:
            raise invalid("prompt", f"A request may have at most {most} prompts.")
        found: list[str | tuple[int, ...]] = []
        for prompt in several:
            if isinstance(prompt, str):
                found.append(check_text(prompt, "prompt"))
            elif isinstance(prompt, list) and all(type(part) is int for part in prompt):
                if not all(0 <= part < vocabulary for part in prompt):
                    raise invalid("prompt", f"Token ids lie between 0 and {vocabulary - 1}.")
                found.append(tuple(prompt))
            else:
                raise invalid("prompt", "The prompt is a text, a list of texts, or token ids.")
        return found


def _integers(part: Any) -> Any:
    return list(map(integral, part)) if isinstance(part, list) else integral(part)


R = TypeVar("R", bound=_Request)


def check_text(text: str, param: str) -> str:
    """Return a text; one with half a character is refused, since no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(param, "The text holds half of a character (a lone surrogate).") from None
    return text


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; ``Fault`` for anything else, and for one that is deep."""
    depth = 0
    for found in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if found.group() in b"[{" else -1
        if depth > DEEPEST:
            raise invalid(None, f"The body is nested deeper than {DEEPEST} levels.", "too_deep")
    try:
        value = parse_line(body.decode())
    except ValueError as failure:
        raise Fault(
            400, "The body is no valid JSON.", code="invalid_json", detail=str(failure)
        ) from None
    if not isinstance(value, dict):
        raise invalid(None, "The body is no JSON object.", "invalid_json")
    return value


def chat_request(body: dict[str, Any]) -> ChatRequest:
    """Check a body of /v1/chat/completions."""
    messages = body.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _leave_out(message, NEUTRAL_MESSAGE, f"messages[{number}].")
    asked = _checked(ChatRequest, body, NEUTRAL_CHAT)
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise invalid("max_tokens", "max_tokens is another name of max_completion_tokens.")
    if asked.max_tokens == 0:
        raise invalid("max_tokens", "max_tokens is at least 1.")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    return asked


def text_request(body: dict[str, Any]) -> TextRequest:
    """Check a body of /v1/completions."""
    asked = _checked(TextRequest, body, NEUTRAL_TEXT)
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens", "max_tokens is at least 1, or 0 with echo.")
    if asked.echo and asked.logprobs is not None and asked.stream:
        raise unsupported("stream")
    return asked


def _checked(kind: type[R], body: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> R:
    _leave_out(body, neutral)
    try:
        asked = kind.model_validate(body)
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
        param = _path(error["loc"])
        if error["type"] == "extra_forbidden":
            raise invalid(param, "There is no such parameter.", "unknown_parameter") from None
        if error["type"] == "missing":
            raise invalid(param, f"{param} is missing.", "missing_parameter") from None
        raise invalid(param, f"{param}: {error['msg']}.") from None
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options", "stream_options needs stream to be true.")
    return asked


def _leave_out(
    body: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]], place: str = ""
) -> None:
    """Take parameters that ask for nothing out of a body, and refuse those that ask for more."""
    for name, values in neutral.items():
        if name not in body:
            continue
        value = body.pop(name)
        if value is not None and not any(_same(value, one) for one in values):
            raise unsupported(f"{place}{name}")


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _path(parts: tuple[int | str, ...]) -> str:
    """Return the place of a value in a body; a name that a client made up is shortened."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in part[:64])
            text += f".{shown}" if text else shown
    return text
