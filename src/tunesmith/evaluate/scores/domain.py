"""Whether a model uses the terms of a field where the field's own texts do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tunesmith.data.words import content_words, words
from tunesmith.evaluate.scores.base import Metric, Replies, Values

LEAST_TEXTS = 2
"""Texts that a term has to be in."""
MOST_OF_TEXTS = 0.5
"""A word of more than this share of the texts is no term: it tells none of them from another."""
MOST_TERMS = 1000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GENERAL = _words("""
    able about above according across after again against almost alone along already also although
    always among another anything around asked away back based because become been before began
    behind being believe below best better between beyond both bring brought came case cause come
    common comes could course days different does doing done down during each early easy either else
    enough even ever every everyone everything example fact feel felt find first following forget
    form found four from full gave give given gives goes going good great have having help here
    high himself hold however http idea important include instead into itself just keep kept kind
    knew know known large last later least leave left less life like likely line little live long
    look looked lost made main make makes making many matter maybe mean means might mind moment
    more most move much must myself name near need never next nothing number often once only open
    order other others over part past people perhaps place point possible problem question quite
    rather reason right said same says second seem seemed seems seen several shall should show side
    simple simply since small some someone something sometimes soon start state still stop such
    sure take taken takes tell than thank thanks that their them themselves then there therefore
    these they thing things think this those though thought three through thus time times today
    together told took toward turn under understand unless until upon used uses using usually very
    want wanted ways week well went were what whatever when where whether which while whole whom
    whose will with within without word words work world would write year years yesterday your
    yours yourself
    """)
"""General words of English with four letters and more; a list of terms needs none of it."""


def mine_terms(texts: Iterable[str], most: int = MOST_TERMS) -> tuple[str, ...]:
    """Return the terms of a field, by the number of its texts that have them, the first by ABC.

    A term is a content word of at least two of the texts and of at most half of them that is no
    general word; of fewer than four texts there is none.
    """
    sets = [content_words(text) for text in texts]
    found = Counter(word for one in sets for word in one)
    most_texts = MOST_OF_TEXTS * len(sets)
    terms = [
        word
        for word, number in found.items()
        if LEAST_TEXTS <= number <= most_texts and word not in _GENERAL
    ]
    return tuple(sorted(terms, key=lambda word: (-found[word], word))[:most])


def _has(text: Sequence[str], term: Sequence[str]) -> bool:
    first = [at for at, word in enumerate(text) if word == term[0]]
    return any(tuple(text[at : at + len(term)]) == tuple(term) for at in first)


def recall(terms: Iterable[str], text: str, reference: str) -> float | None:
    """Return the share of a reference's terms that a text has; None where it has none.

    A term may be several words; it has to stand there as they do.
    """
    ours, theirs = words(text), words(reference)
    wanted = [term for term in map(words, terms) if term and _has(theirs, term)]
    return sum(_has(ours, term) for term in wanted) / len(wanted) if wanted else None


def term_metrics(terms: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics that go by a list of terms; none without any."""

    def term_recall(replies: Replies) -> Values:
        """Share of the terms of the reference that the reply has; replies without any are out.

        Terms are those of a list, or words of 2 to half of the training texts that are not general.
        """
        return [recall(terms, reply.text, reply.reference) for reply in replies]

    if not terms:
        return ()
    return (Metric("term_recall", "term recall", "higher", 0, 1, each=term_recall, paired=True),)
