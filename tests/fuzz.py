"""Structure-aware fuzzing of every reader: valid files with one to four facts of theirs changed.

    python tests/fuzz.py --seconds 10 [--reader gguf] [--seed 1]
    python tests/fuzz.py --cases 10000000       so many over all readers, however long it takes

Each reader starts from a small corpus of valid files. A case changes numbers, lengths, offsets,
dtypes or names where the format keeps them, or plain bytes, and then reads everything there is to
read. Allowed outcomes are success and an EdgeLMError; any other exception, a case of more than
CASE_LIMIT_S, or memory beyond MEMORY_LIMIT fails, and the case's file is kept. Printed: cases,
corpus, outcomes, branch coverage of the reader's modules; at last crashes, hangs and memory.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import fuzz_corpus as corpus
import fuzz_folders as folders
import fuzz_inputs as inputs
import torch

from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.errors import EdgeLMError
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import Settings
from edgelm.planning.solver import solve
from edgelm.text.tokenizer import load_tokenizer

CASE_LIMIT_S = 5
MEMORY_LIMIT = 1 << 30
FAILURES_LIMIT = 5  # of a reader, after which it is left
READ_LIMIT = 1 << 22  # bytes of a tensor that a case reads


@dataclass(frozen=True)
class Reader:
    """corpus: writes valid files into a folder and returns the one to change. use: reads all."""

    corpus: Callable[[Path], list[Path]]
    mutate: Callable[[bytes, random.Random], bytes]
    use: Callable[[Path], None]
    modules: tuple[str, ...]


def read_weights(path: Path) -> None:
    """What a load does before memory is spent, then each tensor, whole and in part."""
    checkpoint = open_checkpoint(path, allow_pickle=True)
    _read_tensors(checkpoint)
    files = ModelFiles(path.name, checkpoint)
    if files.config.num_layers < 64:
        plan(files)


def plan(files: ModelFiles) -> None:
    solve(files.assemble("causal-lm"), Settings(context=16))


def _read_tensors(checkpoint: Checkpoint) -> None:
    for name in checkpoint.names():
        info = checkpoint.info(name)
        if info.nbytes > READ_LIMIT:
            continue
        rows = info.shape[0] if info.shape else 1
        checkpoint.read(name)
        checkpoint.read(name, rows // 3, rows // 3 + 1)
        if info.scheme is not None:
            checkpoint.read_packed(name)


def read_config(path: Path) -> None:
    files = ModelFiles(path.name, open_checkpoint(path.parent))
    if files.config.num_layers < 64 and files.config.hidden_size < 4096:
        plan(files)


def read_folder_of(path: Path) -> None:
    read_weights(path.parent)


def read_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path.parent)
    _use_tokenizer(tokenizer)


def read_gguf_tokenizer(path: Path) -> None:
    _use_tokenizer(load_tokenizer(path, open_checkpoint(path).metadata))


def _use_tokenizer(tokenizer: Any) -> None:
    ids = tokenizer.encode("Hello, wörld! 1234 <s> 🎉")
    tokenizer.decode(ids)
    tokenizer.decode(range(min(tokenizer.vocab_size, 300)), skip_special=False)


CHECKPOINT = "edgelm/checkpoint/"
READERS = {
    "gguf": Reader(corpus.gguf_files, corpus.change_gguf, read_weights, (f"{CHECKPOINT}gguf_",)),
    "gguf-tokenizer": Reader(
        corpus.gguf_vocabularies, corpus.change_gguf, read_gguf_tokenizer,
        ("edgelm/text/",),
    ),
    "safetensors": Reader(
        corpus.safetensors_files, corpus.change_safetensors, read_folder_of,
        (f"{CHECKPOINT}safetensors_files",),
    ),
    "index": Reader(
        corpus.indexes, corpus.change_json, read_folder_of, (f"{CHECKPOINT}safetensors_files",)
    ),
    "packed": Reader(
        folders.packed_folders, folders.change_folder, read_folder_of,
        (f"{CHECKPOINT}packed", f"{CHECKPOINT}manifest"),
    ),
    "quantized": Reader(
        folders.quantized_folders, folders.change_folder, read_folder_of,
        tuple(f"{CHECKPOINT}{name}" for name in (
            "quantized_folders", "packed_matrix", "compressed_tensors", "bitsandbytes_files",
            "gptq", "awq", "act_order", "torchao_files", "torchao_layouts",
        )),
    ),
    "pickle": Reader(
        folders.pickles, folders.change_pickle, read_folder_of, (f"{CHECKPOINT}torch_files",)
    ),
    "flax": Reader(
        folders.flax_files, folders.change_msgpack, read_folder_of, (f"{CHECKPOINT}flax_files",)
    ),
    "config": Reader(
        corpus.configs, corpus.change_json, read_config, ("edgelm/config", "edgelm/models/")
    ),
    "tokenizer": Reader(
        corpus.tokenizers, corpus.change_tokenizer, read_tokenizer,
        ("edgelm/text/",),
    ),
    "generation-config": Reader(
        inputs.generation_configs, corpus.change_json, inputs.use_generation_config,
        ("edgelm/text/", "edgelm/generation/"),
    ),
    "template": Reader(
        inputs.templates, inputs.change_template, inputs.use_template, ("edgelm/text/",)
    ),
    "layouts": Reader(
        inputs.layouts, inputs.change_layout, inputs.use_layouts, ("edgelm/layerstore/",)
    ),
    "conversation": Reader(
        inputs.conversations, corpus.change_safetensors, inputs.use_conversation,
        ("edgelm/generation/conversation",),
    ),
    "schema": Reader(
        inputs.schemas, corpus.change_json, inputs.use_schema, ("edgelm/generation/grammar",)
    ),
    "links": Reader(
        inputs.links, inputs.change_links, inputs.use_links, (CHECKPOINT, "edgelm/models/")
    ),
}  # fmt: skip


class Branches:
    """Arcs between lines that ran in some modules, gathered by a trace of their frames alone."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.modules = modules
        self.arcs: set[tuple[CodeType, int, int]] = set()

    def start(self) -> None:
        sys.settrace(self._trace)

    def stop(self) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code, before = frame.f_code, frame.f_lineno
        if not any(module in code.co_filename for module in self.modules):
            return None

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event == "line":
                self.arcs.add((code, before, frame.f_lineno))
                before = frame.f_lineno
            return local

        return local

    def summary(self) -> str:
        """Arcs taken, and the share of lines in the functions that were entered."""
        codes = {code for code, *_ in self.arcs}
        seen = {(code, line) for code, _, line in self.arcs}
        lines = sum(len({line for *_, line in code.co_lines() if line}) for code in codes)
        return f"{len(self.arcs)} branches taken, {len(seen)} of {lines} lines"


class Hang(BaseException):
    """Not an Exception, so that no reader's handler can swallow it."""


def fuzz(name: str, seconds: float, most: float, seed: int) -> Counter[str]:
    """Run one reader for so long and at most so many cases; its crashes, hangs and so on."""
    reader, generator = READERS[name], random.Random(seed)
    outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    branches = Branches(reader.modules)
    with tempfile.TemporaryDirectory() as place:
        files = reader.corpus(Path(place))
        contents = {path: path.read_bytes() for path in files}
        for path in files:
            reader.use(path)  # the corpus itself must read
        begun = time.monotonic()
        while (
            time.monotonic() < begun + seconds
            and outcomes.total() < most
            and failures.total() < FAILURES_LIMIT
        ):
            path = generator.choice(files)
            case = reader.mutate(contents[path], generator)
            path.write_bytes(case)
            branches.start()
            outcome, failure = run_case(reader.use, path)
            branches.stop()
            outcomes[outcome] += 1
            if failure:
                failures[failure] += 1
                kept = f"fuzz-{name}-{seed}-{failures.total()}{path.suffix}"
                (Path(tempfile.gettempdir()) / kept).write_bytes(case)
                print(f"{name}: {outcome}; the case is kept as {kept}", flush=True)
            path.write_bytes(contents[path])
    lasted, size = time.monotonic() - begun, sum(map(len, contents.values()))
    print(
        f"{name}: {outcomes.total()} cases in {lasted:.0f} s from {len(files)} files of {size} "
        f"bytes; {dict(outcomes.most_common())}; {branches.summary()}",
        flush=True,
    )
    return failures + Counter(cases=outcomes.total())


def run_case(use: Callable[[Path], None], path: Path) -> tuple[str, str | None]:
    """(what came of it, what kind of failure that is)."""
    signal.setitimer(signal.ITIMER_REAL, CASE_LIMIT_S)
    try:
        use(path)
    except EdgeLMError as error:
        return type(error).__name__, None if str(error) else "crashes"
    except Hang:
        return f"more than {CASE_LIMIT_S} s", "hangs"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
        kind = "memory" if isinstance(error, MemoryError) else "crashes"
        return f"{type(error).__name__}: {str(error)[:120]} ({line})", kind
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted", None


def limit_memory() -> None:
    """Address space of the process as it is, and MEMORY_LIMIT on top: beyond it, MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=10, help="for each reader")
    length.add_argument("--cases", type=int, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, action="append")
    arguments = parser.parse_args()

    def alarm(signum: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    logging.getLogger("edgelm").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    limit_memory()
    names = arguments.reader or list(READERS)
    seconds, most = arguments.seconds, math.inf
    if arguments.cases is not None:
        seconds, most = math.inf, math.ceil(arguments.cases / len(names))
    found = sum((fuzz(name, seconds, most, arguments.seed) for name in names), Counter[str]())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{found['cases']} cases: {found['crashes']} crashes, {found['hangs']} hangs, "
        f"{found['memory']} out of memory; peak resident memory {peak} MiB"
    )
    return int(found.total() > found["cases"])


if __name__ == "__main__":
    sys.exit(main())
