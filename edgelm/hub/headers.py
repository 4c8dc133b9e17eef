"""Headers of a model on the Hub, without its weights, by ranged reads: all that a plan needs.

They are written to sparse files of the length the Hub reports, in a folder that is deleted with
the process. So every reader and every check of local files applies here too: a header that
contradicts the file's length is detected as it would be on a disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from edgelm.checkpoint.gguf_families import ROPE_FACTORS
from edgelm.checkpoint.gguf_header import HeaderGoesOn, read_header
from edgelm.checkpoint.gguf_names import part_names
from edgelm.errors import HubError, ModelFileError
from edgelm.hub.references import HUB_FILE, SAFETENSORS_FILES, explained, hub_reference, resolve
from edgelm.plain_file import SMALL_BYTES

CONFIG_FILES = (
    *("config.json", "generation_config.json", "edgelm.json", "quantize_config.json"),
    *("model.safetensors.index.json",),
)
FIRST_BYTES = 64 << 10  # of every file; most headers of a shard end before
LONGEST_HEADER = 100_000_000  # the safetensors library's limit
CONNECTIONS = 8
TIMEOUT_S = 30.0
# Small tensors stored with packed weights that describe the packing.
SETTINGS = re.compile(
    r".*\.(g_idx|weight_g_idx|weight_shape|weight_format|quant_map|nested_quant_map|quant_state\..*)"
)


@dataclass(frozen=True)
class Skeleton:
    """A model's files without weights; they are deleted with the last reference to ``folder``.

    Without ``folder`` they are the complete files in the Hub's cache.
    """

    path: Path
    folder: TemporaryDirectory[str] | None = None


def headers_or_cached(reference: str, revision: str | None) -> Skeleton | None:
    """As ``fetch_headers``; uses the Hub's cache if the Hub refuses or cannot be reached."""
    try:
        return fetch_headers(reference, revision)
    except HubError:
        try:
            return Skeleton(resolve(reference, revision=revision, offline=True))
        except HubError:
            pass
        raise


def fetch_headers(reference: str, revision: str | None) -> Skeleton | None:
    """Fetch the headers of a Hub model; None if they need whole files (pickled or Flax weights).

    Raises:
        HubError: the model is not there, is gated, or the Hub cannot be reached.
        ModelFileError: a header is damaged.
    """
    import huggingface_hub

    model_id, file, revision = hub_reference(reference, revision)
    with explained(model_id, revision):
        folder = TemporaryDirectory(prefix="edgelm-headers-")
        home = Path(folder.name) / model_id
        home.mkdir(parents=True)
        api = huggingface_hub.HfApi()
        commit = str(api.model_info(model_id, revision=revision).sha)
        entries = api.list_repo_tree(model_id, revision=commit)
        sizes = {entry.path: int(getattr(entry, "size", 0) or 0) for entry in entries}
        weights = part_names(file) if file else _weights(sizes)
        if not weights:
            return None
        remote = Remote(model_id, commit, sizes, home)
        for name in CONFIG_FILES:
            if name in sizes and not file:
                remote.whole(name)
        quantized = not file and _says_quantized(home)
        for name in weights:
            remote.header_of(name, quantized)
    return Skeleton(home / file if file else home, folder)


def _weights(sizes: Iterable[str]) -> list[str]:
    return [name for name in sizes if any(fnmatch(name, own) for own in SAFETENSORS_FILES)]


def _says_quantized(home: Path) -> bool:
    """True if small tensors describe how the weights are packed."""
    settings = home / "config.json"
    told = settings.is_file() and b'"quantization_config"' in settings.read_bytes()
    return told or (home / "quantize_config.json").is_file()


@dataclass(frozen=True)
class Remote:
    """One commit of a model on the Hub; sizes by file name, and the folder it is fetched into."""

    model_id: str
    commit: str
    sizes: dict[str, int]
    home: Path

    def whole(self, name: str) -> None:
        """Fetch a small file."""
        size = self.sizes[name]
        if size > SMALL_BYTES:
            raise ModelFileError(
                f"{self.model_id}: {name} has {size} bytes; a config file may have at most "
                f"{SMALL_BYTES}. The model is damaged: take another one."
            )
        (self.home / name).write_bytes(self.read(name, 0, size) if size else b"")

    def header_of(self, name: str, quantized: bool) -> None:
        """Fetch the file's header into a sparse file of the full length."""
        if name not in self.sizes:
            raise ModelFileError(
                f"{self.model_id} has no file {name} on the Hub; it has {', '.join(self.sizes)}."
            )
        path, size = self.home / name, self.sizes[name]
        try:
            with path.open("wb") as file:
                file.write(self.read(name, 0, min(size, FIRST_BYTES)))
                file.truncate(size)
        except OSError as error:
            raise ModelFileError(
                f"{self.model_id}: {name} is said to have {size} bytes, and no file can be made "
                f"so long here ({error.strerror})."
            ) from error
        if HUB_FILE.fullmatch(f"{self.model_id}/{name}"):
            self._gguf(name)
        else:
            self._safetensors(name, quantized)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) of a file; anything beyond that is discarded."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.model_id, name, revision=self.commit)
        headers = build_hf_headers() | {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        found = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as answer:
            hf_raise_for_status(answer)
            if start and answer.status_code != 206:
                raise OSError("the server does not send parts of files")
            for piece in answer.iter_bytes(FIRST_BYTES):
                found += piece
                if len(found) >= stop - start:
                    break
        if len(found) < stop - start:
            raise OSError(f"{name} ended {stop - start - len(found)} bytes early")
        return bytes(found[: stop - start])

    def _fill(self, name: str, start: int, stop: int) -> None:
        content = self.read(name, start, stop)
        with (self.home / name).open("r+b") as file:
            file.seek(start)
            file.write(content)

    def _safetensors(self, name: str, quantized: bool) -> None:
        """Fetch the rest of the header, and the tensors that describe packed weights."""
        with (self.home / name).open("rb") as file:
            end = 8 + int.from_bytes(file.read(8), "little")
        if end > min(self.sizes[name], LONGEST_HEADER):
            return  # wrong; the reader of local files explains it
        if end > FIRST_BYTES:
            self._fill(name, FIRST_BYTES, end)
        if quantized:
            ranges = _settings_ranges(self.home / name, end, self.sizes[name])
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(lambda span: self._fill(name, *span), ranges))

    def _gguf(self, name: str) -> None:
        """Fetch as much as the header needs, which only its parser knows, then the rope factors."""
        path, held = self.home / name, min(self.sizes[name], FIRST_BYTES)
        while True:
            try:
                header = read_header(path, held)
                break
            except HeaderGoesOn as short:
                if short.needed > LONGEST_HEADER:
                    raise ModelFileError(
                        f"{self.model_id}: the header of {name} claims at least {short.needed} "
                        "bytes. The file is damaged: take another one."
                    ) from None
                wanted = min(max(short.needed, 2 * held), self.sizes[name])
                self._fill(name, held, wanted)
                held = wanted
        factors = header.tensors.get(ROPE_FACTORS)
        if factors is not None:
            self._fill(name, factors.offset, factors.offset + factors.nbytes)


def _settings_ranges(path: Path, data: int, size: int) -> list[tuple[int, int]]:
    """Byte ranges of the small tensors in a file; neighbours are fetched in one piece."""
    with path.open("rb") as file:
        file.seek(8)
        try:
            entries = json.loads(file.read(data - 8))
            spans = sorted(
                (data + entry["data_offsets"][0], data + entry["data_offsets"][1])
                for tensor, entry in entries.items()
                if SETTINGS.fullmatch(tensor)
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return []  # damaged; the reader of local files explains it
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and 0 <= start - merged[-1][1] <= FIRST_BYTES:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return [(start, stop) for start, stop in merged if data <= start < stop <= size]
