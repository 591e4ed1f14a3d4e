"""An Ollama Modelfile beside a GGUF file: the same chat template, said in Ollama's language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.data.render import Renderer
from tunesmith.data.templates import Template
from tunesmith.errors import ContractError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the turns of a conversation."""

    head: str
    around: dict[str, tuple[str, str]]
    """By role: what stands before and after a turn's text."""
    asking: str
    """What an answer begins after."""

    def text(self, turns: list[dict[str, str]]) -> str:
        """Return the prompt of a conversation."""
        inner = (
            self.around[t["role"]][0] + t["content"] + self.around[t["role"]][1] for t in turns
        )
        return self.head + "".join(inner) + self.asking


def frame_of(tokenizer: Any, renderer: Renderer) -> Frame | None:
    """Find a template's frame by what it makes of known turns; None where it is no such frame."""
    template = Template(tokenizer, renderer.template)

    def shown(*roles: str, prompt: bool = False) -> tuple[str, list[dict[str, str]]]:
        turns = [{"role": role, "content": f"q{n}zq"} for n, role in enumerate(roles)]
        return template.render(turns, prompt=prompt), turns

    try:
        alone, _ = shown("user")
        twice, _ = shown("user", "user")
        asked, _ = shown("user", prompt=True)
        first, second = alone.partition("q0zq")[0], twice.partition("q0zq")[2]
        between, _, after = second.partition("q1zq")
        if not between.startswith(after) or not asked.startswith(alone):
            return None
        before = between[len(after) :]
        head = first.removesuffix(before)
        around = {"user": (before, after)}
        for role in ("system", "assistant"):
            order = (role, "user") if role == "system" else ("user", role)
            text, _ = shown(*order)
            ours = text[len(head) :].replace(before + f"q{order.index('user')}zq" + after, "", 1)
            opening, _, closing = ours.partition(f"q{order.index(role)}zq")
            around[role] = (opening, closing)
        frame = Frame(head, around, asked[len(alone) :])
        for roles in (("user",), ("system", "user"), ("system", "user", "assistant", "user")):
            text, turns = shown(*roles, prompt=True)
            if frame.text(turns) != text:
                return None
    except ContractError:
        return None
    parts = [head, frame.asking, *(part for pair in around.values() for part in pair)]
    return None if any(mark in part for part in parts for mark in ("{{", '"""')) else frame


def modelfile(tokenizer: Any, renderer: Renderer, weights: str) -> tuple[str, bool]:
    """Return the text of a Modelfile, and whether the chat template could be said in it."""
    lines = [f"FROM ./{weights}"]
    frame = frame_of(tokenizer, renderer)
    if frame is not None:
        # Where the tokenizer adds it by itself, the template must not.
        bos = str(tokenizer.bos_token or "") if renderer.bos_id is not None else ""
        head = frame.head.removeprefix(bos)
        roles = [
            f'{{{{ {"if" if n == 0 else "else if"} eq .Role "{role}" }}}}'
            f"{frame.around[role][0]}{{{{ .Content }}}}{frame.around[role][1]}"
            for n, role in enumerate(ROLES)
        ]
        turns = f"{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}"
        lines.append(f'TEMPLATE """{head}{turns}{frame.asking}"""')
    else:
        lines.append(
            "# The chat template has no form in Ollama's language; the GGUF file holds it."
        )
    for number in renderer.stop_ids:
        stop = renderer.decode_raw([number]).replace('"', '\\"')
        lines.append(f'PARAMETER stop "{stop}"')
    return "\n".join([*lines, "PARAMETER temperature 0", ""]), frame is not None
