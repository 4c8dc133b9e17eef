"""Scores of written answers: exact match with aliases, the last number, BLEU."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from edgelm.errors import EdgeLMError

# SQuAD's evaluation drops a, an and the; MKQA's drops the articles of each language.
_ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen eines einer einem das die der dem den",
    "fr": "le la les l un une des du de d",
    "es": "un una unos unas el la los las",
    "it": "un uno una il lo la i gli le l",
    "pt": "um uma uns umas o a os as",
}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def normalised(text: str, language: str = "en") -> str:
    """Lower case without punctuation, articles and extra white space, as SQuAD's evaluation has it;
    punctuation and articles are those of the language."""
    parting = " " if language in ("fr", "it") else ""  # l'eau is two words, cat's is one
    plain = "".join(parting if _is_punctuation(c) else c for c in text.lower())
    articles = set(_ARTICLES.get(language, "").split())
    return " ".join(word for word in plain.split() if word not in articles)


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(answer: str, accepted: Sequence[str], language: str = "en") -> float:
    """1 if the answer is one of the accepted ones, both normalised, else 0."""
    own = _key(answer, language)
    return float(any(own == _key(each, language) for each in accepted))


def _key(text: str, language: str) -> str:
    """A text of nothing but articles and punctuation stands for itself."""
    return normalised(text, language) or text.strip().lower()


def same_number(answer: str, accepted: Sequence[str], language: str = "en") -> float:
    """1 if the last number of the answer is that of an accepted one, else 0."""
    own = last_number(answer)
    return float(own is not None and any(own == last_number(each) for each in accepted))


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without the commas that part thousands; None if there is none."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def bleu(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU by sacrebleu with its tokenizer 13a, 0 to 100; the first accepted text counts.

    Raises EdgeLMError without the extra ``bleu``.
    """
    try:
        from sacrebleu import corpus_bleu
    except ModuleNotFoundError:
        raise EdgeLMError(
            "BLEU is computed by sacrebleu, which is not installed: pip install 'edgelm[bleu]'."
        ) from None
    references = [each[0] for each in accepted]
    return float(corpus_bleu(list(answers), [references], tokenize="13a").score)
