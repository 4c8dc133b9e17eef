"""Companion files of the weights: tokenizer, generation defaults, licence and model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgelm.checkpoint.manifest import MANIFEST
from edgelm.errors import ModelFileError
from edgelm.models.model_files import ModelFiles

README = "README.md"
SOURCE_README = "README-source.md"
WRITTEN_HERE = "<!-- written by edgelm quantize -->"
"""In the README.md of a quantized folder, which says nothing of the original."""
CARRIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json", "*.jinja",
    SOURCE_README, "LICEN[CS]E*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def copy_companions(files: ModelFiles, folder: Path) -> None:
    """Copy them from a model's folder; a GGUF file's tokenizer is written as files."""
    source = files.checkpoint.path
    if source.is_dir():
        for pattern in CARRIED:
            for path in source.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
        _copy_card(source, folder)
        return
    try:
        tokenizer = files.tokenizer
    except ModelFileError:
        return  # a file without a tokenizer gives a folder without one
    tokenizer.save(folder)
    ends = sorted(tokenizer.eos_ids)
    if ends:
        told = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends}
        (folder / "generation_config.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def _copy_card(source: Path, folder: Path) -> None:
    """The original's model card, under another name than the folder's own."""
    card = source / README
    if not card.is_file():
        return
    ours = (source / MANIFEST).is_file() and WRITTEN_HERE.encode() in card.read_bytes()
    if not ours:
        shutil.copyfile(card, folder / SOURCE_README)
