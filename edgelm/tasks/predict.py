"""``predict``: texts in; labels, labelled tokens or answers out, as the model's head has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgelm.errors import ContextLengthError, UsageError
from edgelm.models.layers import Head
from edgelm.tasks.forward import Output
from edgelm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgelm.model import LanguageModel

MAX_ANSWER_TOKENS = 15
"""Of a question's answer, as transformers' pipeline bounds it."""


@dataclass(frozen=True)
class TextLabel:
    """The best label of a text, and the score of every label.

    Scores are probabilities: of one label among all, or of each by itself (multi-label); raw
    numbers for a regression.
    """

    label: str
    score: float
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TokenLabel:
    """A token's text, best label and its probability.

    ``start`` and ``end`` count characters of the text given; None where its tokens do not spell it
    (a tokenizer that normalizes).
    """

    text: str
    label: str
    score: float
    start: int | None
    end: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """A part of the context and the probability that it starts and ends there.

    ``start`` and ``end`` count characters of the context; None as in ``TokenLabel``.
    """

    text: str
    score: float
    start: int | None
    end: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Labels = TextLabel | tuple[TokenLabel, ...]
Prediction = Labels | Answer


@dataclass(frozen=True)
class _Input:
    """Ids as the model gets them; ``own`` are the columns of ``text``'s tokens."""

    ids: list[int]
    text: str
    own: slice

    def spans(self, tokenizer: Tokenizer) -> list[tuple[int, int]] | None:
        return tokenizer.spans(self.text, self.ids[self.own])


def predict(lm: LanguageModel, head: Head | None, inputs: Any) -> Prediction | list[Prediction]:
    """Result of the head for each input; for a list a list, in its order.

    Args:
        inputs: a text, or for question answering a pair (question, context); or a list of those.

    Returns:
        A TextLabel, a tuple of TokenLabels, or an Answer for each.

    Raises:
        UsageError: a head without labels, an input that is not a text or has no tokens.
        ContextLengthError: an input is longer than the model's context.
    """
    if head is None or head.is_language_model:
        task = "base" if head is None else head.task
        raise UsageError(
            f"predict() needs a head with labels; this model was loaded with task={task!r}. Load "
            "it with task= sequence-classification, token-classification or question-answering."
        )
    pairs = head.task == "question-answering"
    single = isinstance(inputs, tuple if pairs else str)
    if not single and not isinstance(inputs, list | tuple):
        raise UsageError(f"predict() got {inputs!r}; expected {_EXPECTED[pairs]}.")
    read = [_read(lm.tokenizer, given, pairs) for given in ([inputs] if single else inputs)]
    context = lm.plan.context
    for given in read:
        if len(given.ids) > context:
            raise ContextLengthError(
                f"An input has {len(given.ids)} tokens; this model was loaded with a context of "
                f"{context}.",
                len(given.ids),
                context,
            )
    found: list[Prediction] = []
    for group in _groups(read, context * lm.plan.rows):
        out = _run(lm, group)
        found += [_explain(head, lm.tokenizer, given, out, row) for row, given in enumerate(group)]
    return found[0] if single else found


def _read(tokenizer: Tokenizer, given: Any, pairs: bool) -> _Input:
    """Ids of an input; a pair's stand one after the other, each with its own BOS.

    That is what transformers' tokenizers of Llama (BOS before each) and BLOOM (none) do.
    """
    texts = given if pairs else (given,)
    count = 2 if pairs else 1
    if (
        not isinstance(texts, tuple | list)
        or len(texts) != count
        or not all(isinstance(text, str) for text in texts)
    ):
        raise UsageError(f"predict() got {given!r}; expected {_EXPECTED[pairs]}.")
    before = tokenizer.encode_whole(texts[0]) if pairs else []
    text = texts[-1]
    plain, framed = tokenizer.encode(text, add_special=False), tokenizer.encode_whole(text)
    if not plain:
        raise UsageError(f"predict() got {given!r}, whose text has no tokens; give some text.")
    starts = range(len(framed) - len(plain) + 1)
    start = next(s for s in starts if framed[s : s + len(plain)] == plain) + len(before)
    return _Input(before + framed, text, slice(start, start + len(plain)))


_EXPECTED = {
    False: "a text or a list of texts",
    True: "a tuple (question, context) or a list of those",
}


def _groups(read: Sequence[_Input], limit: int) -> Iterator[list[_Input]]:
    """Neighbours that make at most ``limit`` tokens with their padding."""
    group: list[_Input] = []
    for given in read:
        longest = max(len(other.ids) for other in [*group, given])
        if group and longest * (len(group) + 1) > limit:
            yield group
            group = []
        group.append(given)
    if group:
        yield group


def _run(lm: LanguageModel, group: Sequence[_Input]) -> Output:
    """One forward of a group, padded on the right; padding is not computed."""
    shape = (len(group), max(len(given.ids) for given in group))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, given in enumerate(group):
        ids[row, : len(given.ids)] = torch.tensor(given.ids)
        mask[row, : len(given.ids)] = 1
    return lm.forward(ids, attention_mask=mask)


def _explain(head: Head, tokenizer: Tokenizer, given: _Input, out: Output, row: int) -> Prediction:
    if head.task == "question-answering":
        assert out.start_logits is not None and out.end_logits is not None
        start, end = out.start_logits[row, given.own], out.end_logits[row, given.own]
        return _answer(tokenizer, given, start, end)
    assert out.logits is not None
    if head.task == "token-classification":
        return _label_tokens(head, tokenizer, given, out.logits[row, given.own])
    return _label_text(head, out.logits[row])


def _label_text(head: Head, logits: Tensor) -> TextLabel:
    if head.problem == "multi_label_classification":
        scores = logits.sigmoid()
    elif head.problem == "regression" or (head.problem is None and len(head.labels) == 1):
        scores = logits
    else:
        scores = logits.softmax(0)
    best = int(scores.argmax())
    named = dict(zip(head.labels, scores.tolist(), strict=True))
    return TextLabel(head.labels[best], float(scores[best]), named)


def _label_tokens(
    head: Head, tokenizer: Tokenizer, given: _Input, logits: Tensor
) -> tuple[TokenLabel, ...]:
    """logits [tokens, labels]"""
    best = logits.softmax(1).max(1)
    spans = given.spans(tokenizer)
    found = []
    for index, token in enumerate(given.ids[given.own]):
        start, end = spans[index] if spans else (None, None)
        text = given.text[start:end] if spans else tokenizer.decode([token], continues=True)
        label = head.labels[int(best.indices[index])]
        found.append(TokenLabel(text, label, float(best.values[index]), start, end))
    return tuple(found)


def _answer(tokenizer: Tokenizer, given: _Input, start: Tensor, end: Tensor) -> Answer:
    """The likeliest stretch of at most MAX_ANSWER_TOKENS tokens; start, end [context tokens].

    Probabilities are over the context alone, so that no answer reaches into the question.
    """
    starts, ends = start.softmax(0), end.softmax(0)
    score, first, last = -1.0, 0, 0
    for more in range(min(MAX_ANSWER_TOKENS, len(starts))):
        products = starts[: len(starts) - more] * ends[more:]
        best = int(products.argmax())
        if float(products[best]) > score:
            score, first, last = float(products[best]), best, best + more
    spans = given.spans(tokenizer)
    if spans is None:
        chosen = given.ids[given.own][first : last + 1]
        return Answer(tokenizer.decode(chosen, continues=True).strip(), score, None, None)
    begin, stop = spans[first][0], spans[last][1]
    text = given.text[begin:stop]
    begin += len(text) - len(text.lstrip())
    return Answer(text.strip(), score, begin, begin + len(text.strip()))
