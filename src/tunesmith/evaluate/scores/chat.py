"""Metrics of conversations: no reference is asked for, so bad replies were written to check them.

The names of requirement 003 that stand here without a formula there: response diversity, turn
coherence, conversation flow.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.data.words import content_words, normalised, words
from tunesmith.evaluate.scores.base import Metric, Replies, Reply, Values
from tunesmith.grading.overlap import ngrams
from tunesmith.types import StopReason

_LEAK = re.compile(
    r"^[ \t>*#]*(?:user|human|assistant)[ \t*]*:"
    r"|^[ \t]*#{2,}[ \t]*(?:instruction|input|response|user|human|assistant|system)[ \t]*:?[ \t]*$"
    r"|<\|[\w ]+\|>|\[/?INST\]|<<SYS>>|</?(?:start|end)_of_turn>",
    re.IGNORECASE | re.MULTILINE,
)
REPEATED = 3
"""Words of the runs that are looked for twice in a reply."""
_AT_ONCE = 512
"""Replies whose likeness to all turns is held in memory at once."""


def distinct(replies: Replies, size: int) -> float | None:
    """Return the distinct n-grams of all replies over all their n-grams (Li et al. 2016).

    It falls as replies grow in number and length, so compare it between equal sets only.
    """
    found: Counter[Any] = Counter()
    for reply in replies:
        found.update(ngrams(words(reply.text), size))
    return len(found) / found.total() if found else None


def distinct_1(replies: Replies) -> float | None:
    """Distinct words of all replies over all their words (Li et al. 2016)."""
    return distinct(replies, 1)


def distinct_2(replies: Replies) -> float | None:
    """Distinct pairs of neighbouring words of all replies over all pairs (Li et al. 2016)."""
    return distinct(replies, 2)


def repetition(replies: Replies) -> Values:
    """Share of a reply's runs of 3 words that it has had before: 1 - distinct / all.

    None for a reply of fewer than 3 words. (rep-n of Welleck et al. 2020, within one reply.)
    """
    found = [ngrams(words(reply.text), REPEATED) for reply in replies]
    return [1 - len(runs) / runs.total() if runs else None for runs in found]


def turn_coherence(replies: Replies) -> Values:
    """Share of the other conversations whose last turn is less like the reply than its own one.

    Likeness is the cosine of content words weighted by idf over the turns; a tie counts half, so
    shuffled replies have 0.5, and an empty reply 0. None where no other turn is there.
    """
    turns = list(dict.fromkeys((reply.problem_id, reply.before) for reply in replies))
    if len(turns) < 2:
        return [None] * len(replies)
    own = {problem_id: at for at, (problem_id, _) in enumerate(turns)}
    found: list[float | None] = []
    for start, likeness in _likeness(replies, [text for _, text in turns]):
        for reply, row in zip(replies[start : start + len(likeness)], likeness, strict=True):
            here = row[own[reply.problem_id]]
            less, tied = int((row < here).sum()), int((row == here).sum()) - 1
            found.append((less + tied / 2) / (len(turns) - 1) if reply.text.strip() else 0.0)
    return found


def _likeness(replies: Replies, turns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the first reply of a block, and likeness [replies of the block, turns]."""
    import numpy as np
    from scipy.sparse import csr_array

    sets = [content_words(text) for text in turns]
    frequency = Counter(word for found in sets for word in found)
    vocabulary = {word: at for at, word in enumerate(frequency)}
    idf = np.array([math.log((1 + len(turns)) / (1 + n)) + 1 for n in frequency.values()])
    unknown = math.log(1 + len(turns)) + 1

    def matrix(texts: Sequence[frozenset[str]]) -> Any:
        columns, starts, weights = [], [0], []
        for found in texts:
            known = sorted(vocabulary[word] for word in found if word in vocabulary)
            # What no turn has makes a reply longer, and so less like every one of them.
            squares = float((idf[known] ** 2).sum()) + unknown**2 * (len(found) - len(known))
            weights += [float(idf[at]) / math.sqrt(squares) for at in known]
            columns += known
            starts.append(len(columns))
        return csr_array((weights, columns, starts), shape=(len(texts), max(1, len(vocabulary))))

    of_turns = matrix(sets).T
    for start in range(0, len(replies), _AT_ONCE):
        block = matrix([content_words(r.text) for r in replies[start : start + _AT_ONCE]])
        # Rounded, so that equal turns are equal however their sums were added up.
        yield start, np.round((block @ of_turns).toarray(), 12)


def conversation_flow(replies: Replies) -> Values:
    """1 for a conversation that goes well up to and with the reply, else 0.

    User and assistant alternate, but for tools that speak between two turns of the assistant; no
    turn is repeated, the reply has no role in it, is not empty and ends by itself.
    """
    return [float(_flows(reply)) for reply in replies]


def _flows(reply: Reply) -> bool:
    turns = [(role, text) for role, text in reply.prompt if role != "system"]
    turns.append(("assistant", reply.text))
    pairs = itertools.pairwise(role for role, _ in turns)
    alternate = all(one != other or one == "tool" for one, other in pairs)
    said = [normalised(text) for role, text in turns if role != "tool" and text]
    return alternate and len(set(said)) == len(said) and not leaks(reply.text) and _ends(reply)


def role_leakage(replies: Replies) -> Values:
    """1 for a reply that speaks for another role or writes marks of a chat template, else 0.

    A line that begins with «User:» and the like counts, and ``<|…|>``, ``[INST]``, ``###
    Instruction``.
    """
    return [float(leaks(reply.text)) for reply in replies]


def leaks(text: str) -> bool:
    """Say whether a reply holds a turn of somebody else, or a template's marks."""
    return _LEAK.search(text) is not None


def _ends(reply: Reply) -> bool:
    own = reply.stop in (StopReason.STOP_TOKEN, StopReason.STOP_STRING)
    return own and bool(reply.text.strip())


def turns(replies: Replies) -> Values:
    """Turns of a conversation with its reply, system messages aside."""
    return [1.0 + sum(role != "system" for role, _ in reply.prompt) for reply in replies]


INFINITE = math.inf
DIVERSITY = (
    Metric("distinct_1", "distinct-1", "higher", 0, 1, whole=distinct_1),
    Metric("distinct_2", "distinct-2", "higher", 0, 1, whole=distinct_2),
    Metric("repetition", "repetition", "lower", 0, 1, each=repetition),
)
COHERENCE = (Metric("turn_coherence", "coherence", "higher", 0, 1, turn_coherence, paired=True),)
FLOW = (
    Metric("conversation_flow", "dialogues that flow", "higher", 0, 1, each=conversation_flow),
    Metric("role_leakage", "role leakage", "lower", 0, 1, each=role_leakage),
    Metric("turns", "turns", "neither", 1, INFINITE, each=turns, of_text=False),
)
