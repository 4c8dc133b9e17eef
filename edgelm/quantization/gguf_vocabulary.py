"""Export of a folder's tokenizer as GGUF metadata: the reverse of ``text.gguf_tokenizer``.

The pre-tokenizer for the file is found by trial: it is the one that encodes a probe text to the
same ids as the folder's tokenizer. Nothing is inferred from names.
"""

from __future__ import annotations

import json
import logging
import re
from itertools import product
from pathlib import Path
from typing import Any

from edgelm.errors import EdgeLMError, ModelFileError
from edgelm.models.model_files import ModelFiles
from edgelm.text.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    SENTENCEPIECE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from edgelm.text.sentencepiece_vocabulary import load_sentencepiece
from edgelm.text.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger("edgelm")

PROBE = (
    "Hello, world! It's 12345 o'clock; don't we'll I'M.\n\n  Zwei  Leerzeichen\tund "
    "Übermut, naïve café: 你好世界、こんにちは 🙂👍 x=3.14*y_2 <= {a[0]}; $5 #tag \r\n end   "
)


def vocabulary_metadata(files: ModelFiles) -> dict[str, Any]:
    """The ``tokenizer.`` keys for a model's folder; none, with a warning, if it has no tokenizer.

    Raises ModelFileError for a tokenizer that GGUF files cannot express.
    """
    folder = files.checkpoint.path
    if not folder.is_dir():
        return {k: v for k, v in files.checkpoint.metadata.items() if k.startswith("tokenizer.")}
    try:
        tokenizer = files.tokenizer
    except ModelFileError as error:
        logger.warning("the .gguf file will have no tokenizer: %s", error)
        return {}
    keys = _special_keys(tokenizer)
    if (folder / "tokenizer.model").is_file():
        return keys | _sentencepiece_keys(folder / "tokenizer.model", tokenizer, files)
    return keys | _byte_level_keys(folder / "tokenizer.json", tokenizer, files)


def _special_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    others = sorted(tokenizer.eos_ids - {tokenizer.eos_id})
    ids |= {"eot": others[0]} if others else {}
    keys: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items() if token is not None
    }
    keys["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
    keys["tokenizer.ggml.add_eos_token"] = tokenizer.add_eos
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    return keys


def _sentencepiece_keys(path: Path, tokenizer: Tokenizer, files: ModelFiles) -> dict[str, Any]:
    library = load_sentencepiece(path.read_bytes(), str(path))
    rows = range(files.config.vocab_size)
    pieces = library.get_piece_size()
    tokens = [library.id_to_piece(i) if i < pieces else _added(tokenizer, i) for i in rows]
    scores = [library.get_score(i) if i < pieces else 0.0 for i in rows]
    kinds = []
    for i in rows:
        if i >= pieces:
            padding = tokens[i].startswith("[PAD")
            own = CONTROL if not padding and tokenizer.is_special(i) else USER_DEFINED
            kinds.append(UNUSED if padding else own)
        elif library.is_unknown(i):
            kinds.append(UNKNOWN)
        elif library.is_control(i):
            kinds.append(CONTROL)
        elif library.is_byte(i):
            kinds.append(BYTE)
        else:
            kinds.append(UNUSED if library.is_unused(i) else NORMAL)
    keys: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
    }
    for model, space, extra in product(SENTENCEPIECE, (True, False), (False, True)):
        tried = keys | {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.add_space_prefix": space,
            "tokenizer.ggml.remove_extra_whitespaces": extra,
        }
        if _agrees(tokenizer, tried):
            return tried
    raise ModelFileError(
        f"{path} normalizes texts, which is not written into GGUF files. Give a folder as OUT."
    )


def _byte_level_keys(path: Path, tokenizer: Tokenizer, files: ModelFiles) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(data.get("decoder")):
        raise ModelFileError(
            f"{path} is not byte-level BPE, the only kind of tokenizer.json that GGUF supports. "
            "Put the model's tokenizer.model into its folder, or give a folder as OUT."
        )
    added = {entry["id"]: entry for entry in data.get("added_tokens", [])}
    named = {i: token for token, i in model["vocab"].items()}
    named |= {i: entry["content"] for i, entry in added.items()}
    tokens, kinds = [], []
    for i in range(files.config.vocab_size):
        tokens.append(named.get(i, f"[PAD{i}]"))
        special = CONTROL if i in added and added[i].get("special") else USER_DEFINED
        kinds.append(special if i in added else NORMAL if i in named else UNUSED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }
    for pre in PRE_TOKENIZERS:
        tried = keys | {"tokenizer.ggml.pre": pre}
        if _agrees(tokenizer, tried):
            return tried
    raise ModelFileError(
        f"{path} splits texts in a way that none of the supported pre-tokenizers does "
        f"({', '.join(PRE_TOKENIZERS)}). Give a folder as OUT."
    )


def _agrees(tokenizer: Tokenizer, keys: dict[str, Any]) -> bool:
    try:
        ours = load_tokenizer(Path("probe.gguf"), keys)
    except EdgeLMError:
        return False
    texts = [PROBE, *re.split(r"(?<=[.;:]) ", PROBE)]
    return all(
        ours.encode(text, add_special=False) == tokenizer.encode(text, add_special=False)
        for text in texts
    )


def _added(tokenizer: Tokenizer, token_id: int) -> str:
    """The name of a token after the model file's pieces; padding rows have none."""
    known = token_id < tokenizer.vocab_size and tokenizer.token_of(token_id)
    return known or f"[PAD{token_id}]"
