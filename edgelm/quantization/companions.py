"""Companion files of the weights: tokenizer, generation defaults, licence and model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgelm.errors import ModelFileError
from edgelm.models.model_files import ModelFiles

CARRIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json", "*.jinja",
    "README.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def copy_companions(files: ModelFiles, folder: Path) -> None:
    """Copy them from a model's folder; a GGUF file's tokenizer is written as files."""
    source = files.checkpoint.path
    if source.is_dir():
        for pattern in CARRIED:
            for path in source.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
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
