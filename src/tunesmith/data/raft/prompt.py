"""The one form in which documents are shown to a model, when it is trained and when it is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

BEGIN_QUOTE, END_QUOTE = "##begin_quote##", "##end_quote##"
ANSWER = "<ANSWER>: "
BASED = "Based on the documents: "
NOT_TOLD = "the answer is not given."
QUOTES = re.compile(re.escape(BEGIN_QUOTE) + r"(.*?)" + re.escape(END_QUOTE), re.DOTALL)


def instruction(question: str, texts: Sequence[str], style: str, *, strict: bool = True) -> str:
    """Return the user's turn of a question with documents, numbered from 1.

    ``style`` is plain or quoted; ``strict`` asks to say so where the documents do not tell.
    """
    otherwise = "say so" if strict else "answer from what you know"
    head = (
        "Use the following documents to answer the question. "
        f"If they do not contain the answer, {otherwise}."
    )
    if style == "quoted":
        head += " Quote the words that you rely on, then give the answer."
    documents = [f"Document [{number}]: {text}" for number, text in enumerate(texts, 1)]
    return "\n\n".join([head, *documents, f"Question: {question}"])
