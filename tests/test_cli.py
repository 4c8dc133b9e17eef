"""The command line: exit codes, messages without tracebacks, one JSON document, streamed text."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import edgelm
from edgelm import loading
from edgelm.budget.parts import PartName
from edgelm.cli.generate import _lines
from edgelm.cli.main import main
from edgelm.cli.opening import open_files_or_shape
from edgelm.cli.options import LoadOptions, OutputOptions, RunOptions, SourceOptions
from edgelm.machine import hardware
from edgelm.models.model_files import TOKENIZER_BYTES, ModelFiles
from edgelm.planning import kernel_choice
from edgelm.reports import diagnosis
from quant import native
from quant.triton.choices import FILE as TILES

BENCH_KEYS = [
    *("model", "scheme", "bits_per_weight", "backend", "device", "threads"),
    *("prompt_tokens", "prefill_tok_s", "decode_tokens", "decode_tok_s", "weight_bytes"),
    *("bytes_per_token", "decode_gb_s", "read_gb_s", "load_s", "first_token_s"),
    *("peak_rss_bytes", "peak_device_bytes", "predicted_peak_bytes"),
]
PLAN_KEYS = {
    *("fits", "scheme", "kv", "context", "rows", "chunk", "placement", "budget_bytes"),
    *("expected_tok_s", "parts", "load_peak_bytes", "predicted_peak_bytes", "rejected"),
    *("steady_peak_bytes", "predicted_device_peak_bytes"),
}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in this process with a cache folder of its own, ``piped`` on stdin."""
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "read_gb_s", lambda: 20.0)

    def run(*arguments: object, piped: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        ran = Ran(code, *capsys.readouterr())
        assert "Traceback" not in ran.out + ran.err
        return ran

    return run


@pytest.fixture
def nano(assets: Path, tmp_path: Path) -> Path:
    """A copy of the nano Llama, whose files a test may change."""
    return Path(shutil.copytree(assets / "nano" / "llama", tmp_path / "nano"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_tensor(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("model.norm.weight"))


def put_nan(folder: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")

    change_weights(folder, change)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def point_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    index = {"weight_map": {"model.norm.weight": "../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "cut off"),
    "missing shard": (lose_shard, "model-00001.safetensors is missing"),
    "missing name": (drop_tensor, "no tensor model.norm.weight"),
    "wrong shape": (lambda f: edit_config(f, intermediate_size=96), "implies"),
    "nan": (put_nan, "up_proj.weight"),
    "outside": (point_outside, "outside"),
    "model type": (lambda f: edit_config(f, model_type="mamba"), "'mamba'; supported: "),
    "activation": (lambda f: edit_config(f, hidden_act="xielu"), "'xielu'; supported: silu"),
    "rope": (lambda f: edit_config(f, rope_parameters={"rope_type": "su"}), "'su'"),
    "quantized": (lambda f: edit_config(f, quantization_config={"quant_method": "x9"}), "'x9'"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "no tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_end_with_4(damage: str, nano: Path, run: Run) -> None:
    change, message = DAMAGES[damage]
    change(nano)
    ran = run("generate", nano, "Once", "--json")
    print(ran.err)
    assert ran.code == 4
    assert ran.err.startswith("edgelm: ") and message in ran.err
    error = ran.document["error"]
    assert error["exit_code"] == 4 and message in error["message"]
    assert error["type"] in ("ModelFileError", "UnsupportedModelError")


def test_a_lying_gguf_ends_with_4(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little") * 2)
    assert run("inspect", path).code == 4


WRONG_USAGE = {
    "empty prompt": (("generate", ""), "empty"),
    "long prompt": (("generate", "word " * 60, "--context", 32), "context"),
    "answer beyond context": (("generate", "Once", "--max-tokens", 100_000), "context"),
    "scheme": (("generate", "Once", "--quant", "int3"), "'int3'"),
    "method": (("generate", "Once", "--method", "magic"), "'magic'"),
    "backend": (("generate", "Once", "--device", "tpu"), "'tpu'"),
    "context": (("generate", "Once", "--context", "many"), "'many'"),
    "budget": (("generate", "Once", "--budget", "lots"), "'lots'"),
    "temperature": (("generate", "Once", "--temperature", -1), "temperature is -1"),
    "threads": (("generate", "Once", "--threads", 0), "threads is 0"),
    "revision": (("generate", "Once", "--revision", "main"), "--revision"),
    "workload": (("bench", "--repeat", 0), "repeat is 0"),
    "option": (("generate", "Once", "--bogus"), "No such option: --bogus"),
    "missing prompt": (("generate",), "PROMPT"),
    "no template": (("chat",), "chat template"),
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_ends_with_2(case: str, nano: Path, run: Run) -> None:
    (verb, *rest), message = WRONG_USAGE[case]
    ran = run(verb, nano, *rest, "--json")
    print(ran.err)
    assert ran.code == 2
    assert ran.err.startswith("edgelm: ") and message.lower() in ran.err.lower()
    assert message.lower() in ran.document["error"]["message"].lower()


def test_bench_takes_a_model_or_a_shape(nano: Path, run: Run) -> None:
    assert run("bench").code == run("bench", nano, "--shape", "llama-2-7b").code == 2
    ran = run("bench", "--shape", "llama-9")
    assert ran.code == 2 and "llama-3.2-1b" in ran.err


def test_a_path_that_is_not_there_ends_with_4(run: Run) -> None:
    ran = run("plan", "./no/such/folder")
    assert ran.code == 4 and "no/such/folder" in ran.err


def test_what_does_not_fit_ends_with_3_and_carries_the_plan(nano: Path, run: Run) -> None:
    ran = run("generate", nano, "Once", "--budget", "1MiB", "--json")
    assert ran.code == 3
    error = ran.document["error"]
    assert error["type"] == "DoesNotFitError" and error["plan"]["budget_bytes"] == 1 << 20
    planned = run("plan", nano, "--budget", "1MiB", "--json")
    assert planned.code == 3 and planned.document["fits"] is False


@pytest.mark.parametrize("verb", ["eval", "bench"])
def test_files_that_are_here_are_not_planned_ahead(
    verb: str, nano: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a command runs is planned once, with its own context, after its usage was checked."""

    def planned(*_: Any, **__: Any) -> None:
        raise AssertionError("planned ahead")

    monkeypatch.setattr(loading, "prepare", planned)
    files, _ = open_files_or_shape(
        str(nano), None, SourceOptions(), LoadOptions.of({"budget": "1MiB"}), RunOptions(),
        OutputOptions(),
    )  # fmt: skip
    assert files.name == str(nano)
    ran = run("eval", nano, "--budget", "1MiB")
    assert ran.code == 2 and "Give a text or a task" in ran.err


def test_a_plan_counts_the_tokenizer(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is here is read before the process is measured; of another the size is estimated."""
    read: list[bool] = []

    def resident() -> int:
        read.append("tokenizer" in vars(files))
        return 100 << 20

    def runtime() -> int:
        [part] = [p for p in edgelm.plan(files, context=32).parts if p.name == PartName.RUNTIME]
        return part.bytes

    monkeypatch.setattr(hardware, "resident_bytes", resident)
    files = ModelFiles.open(assets / "nano" / "llama")
    here = runtime()
    assert read and all(read)
    files = ModelFiles.open(assets / "nano" / "llama")
    read.clear()
    monkeypatch.setattr(files, "skeleton", object())
    assert runtime() - here == TOKENIZER_BYTES * files.config.vocab_size > 0
    assert not any(read)


def test_plan(nano: Path, run: Run) -> None:
    ran = run("plan", nano, "--json")
    assert ran.code == 0
    plan = ran.document
    assert set(plan) >= PLAN_KEYS
    assert plan["expected_tok_s"] > 0
    assert sum(part["bytes"] for part in plan["parts"]) == plan["steady_peak_bytes"]
    assert plan["predicted_peak_bytes"] == max(plan["steady_peak_bytes"], plan["load_peak_bytes"])
    shown = run("plan", nano)
    assert shown.code == 0 and "kv cache.full" in shown.out and "fits" in shown.out


def test_plan_of_answers_side_by_side(nano: Path, run: Run) -> None:
    shown = run("plan", nano, "--rows", 3)
    assert shown.code == 0 and "3 answers of 1024 tokens each" in " ".join(shown.out.split())
    found = run("plan", nano, "--rows", "auto", "--json").document
    assert found["rows"] == 8 and {other["rows"] for other in found["rejected"]} == {1, 2, 4, 8}


def test_generate_streams_what_json_holds(nano: Path, run: Run) -> None:
    options = ("--max-tokens", 12, "--temperature", 0)
    shown = run("generate", nano, "Once upon", *options)
    ran = run("generate", nano, "Once upon", *options, "--json")
    document = ran.document
    assert set(document) == {"text", "token_ids", "finish_reason", "stats"}
    assert (shown.code, shown.out) == (0, document["text"] + "\n")
    assert len(document["token_ids"]) == document["stats"]["new_tokens"] <= 12


def test_a_seed_repeats_a_sampled_answer(nano: Path, run: Run) -> None:
    options = ("--max-tokens", 12, "--temperature", 1.5, "--seed", 7)
    first, second = (run("generate", nano, "Once upon", *options) for _ in range(2))
    assert first.code == 0 and first.out == second.out
    stopped = run("generate", nano, "Once upon", *options, "--stop", first.out.strip()[3:6])
    assert len(stopped.out) < len(first.out)


def test_chat_from_a_pipe(nano: Path, run: Run) -> None:
    (nano / "chat_template.jinja").write_text(TEMPLATE)
    options = ("--max-tokens", 4, "--temperature", 0, "--json")
    piped = "Hello\n\nAnd you?\n/reset\nBye\n/exit\nnever read\n"
    ran = run("chat", nano, *options, piped=piped)
    assert ran.code == 0
    assert ran.document["messages"][0] == {"role": "user", "content": "Bye"}
    kept = [answer["stats"]["kept_tokens"] for answer in ran.document["answers"]]
    print(f"tokens kept in the cache by turn: {kept}")
    assert len(kept) == 3 and kept[1] > kept[0]
    shown = run("chat", nano, *options[:-1], piped="Hello\n")
    assert shown.code == 0 and shown.out == ran.document["answers"][0]["text"] + "\n"


class Typed(io.StringIO):
    """Lines typed on a terminal."""

    def isatty(self) -> bool:
        return True


class Lines:
    """A prompt at which these lines are typed."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.offered: list[str] = []

    def prompt(self, message: str, default: str) -> str:
        self.offered.append(default)
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", Typed())
        monkeypatch.setattr("edgelm.cli.chat_terminal.prompt_session", lambda *_: self)


def test_a_pipe_is_text(nano: Path, run: Run, tmp_path: Path) -> None:
    """Paths begin a line; /save writes nothing, said once; lines end at line feeds alone."""
    (nano / "chat_template.jinja").write_text(TEMPLATE)
    kept = tmp_path / "kept"
    lines = ["/etc/hosts is what?", f"/save {kept}", f"/save {kept}", "a\u2028b\x0bc\rd\x85e"]
    ran = run("chat", nano, "--max-tokens", 2, "--json", piped="\r\n".join(lines) + "\n \n")
    assert ran.code == 0 and not kept.exists()
    assert ran.err.count("/save from a pipe") == ran.err.count("\n") == 1
    asked = [own["content"] for own in ran.document["messages"] if own["role"] == "user"]
    assert asked == lines


@pytest.mark.parametrize("failure", ["context", "Ctrl-C", "not UTF-8"])
def test_a_failure_loses_no_answers(
    failure: str, nano: Path, run: Run, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One JSON document: the answers until then, and the error."""
    (nano / "chat_template.jinja").write_text(TEMPLATE)
    tail, code = {"context": (b"word " * 99, 2), "Ctrl-C": (b"stop", 130)}.get(
        failure, (b"\xff", 2)
    )
    stream_chat = edgelm.LanguageModel.stream_chat

    def stopped(self: Any, messages: list[dict[str, str]], **options: Any) -> Any:
        if messages[-1]["content"] == "stop":
            raise KeyboardInterrupt
        return stream_chat(self, messages, **options)

    monkeypatch.setattr(edgelm.LanguageModel, "stream_chat", stopped)
    # Long enough for two pieces: what is read ahead fails later.
    piped = b"\xef\xbb\xbfHello\n" + b"\n" * 9000 + tail
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped), encoding="utf-8"))
    options = ("--max-tokens", "2", "--context", "96", "--json")
    assert main(["chat", str(nano), *options]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["exit_code"] == code and len(document["answers"]) == 1
    assert [own["content"] for own in document["messages"]][:1] == ["Hello"]
    assert len(document["messages"]) == 2


def test_a_mistake_on_a_terminal_ends_nothing(
    nano: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (nano / "chat_template.jinja").write_text(TEMPLATE)
    typed = Lines("word " * 99, "Hello")
    typed.on(monkeypatch)
    assert main(["chat", str(nano), "--max-tokens", "2", "--context", "96", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "context" in err and len(json.loads(out)["answers"]) == 1
    assert typed.offered == ["", "word " * 99, ""]


def test_chat_saves_and_loads(
    nano: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A second process goes on where the first stopped and runs only what is new."""
    (nano / "chat_template.jinja").write_text(TEMPLATE)
    chat = ("chat", nano, "--quant", "none", "--max-tokens", 9, "--context", 96, "--json")
    kept = tmp_path / "my talk"
    Lines("Hello", f"/save {kept}", "/save", f"/save {nano / 'config.json'}").on(monkeypatch)
    assert main(list(map(str, chat))) == 0
    out, err = capsys.readouterr()
    first = json.loads(out)
    assert len(first["answers"]) == 1
    for words in (f"saved to {kept}: 2 messages", "/save FILE: name the file", "not overwritten"):
        assert words in err
    second = run(*chat, piped=f"/load {kept}\nAnd you?\n").document
    assert second["messages"][:2] == first["messages"]
    stats = second["answers"][0]["stats"]
    assert stats["kept_tokens"] >= first["answers"][0]["stats"]["prompt_tokens"] > 1
    assert run(*chat, piped=f"/load {tmp_path / 'nothing'}\n").code == 4


def test_guesses_on_the_command_line(nano: Path, run: Run) -> None:
    """Off takes no memory and guesses nothing; a draft model is planned and said to be wrong."""
    options = ("--quant", "none", "--context", 96)
    generate = ("generate", nano, "Once " * 12, "--max-tokens", 24, "--temperature", 0, *options)
    off = run(*generate, "--speculate", "off", "--json").document
    on = run(*generate, "--draft", nano, "--json").document
    assert off["text"] == on["text"]
    assert off["stats"]["drafted_tokens"] == 0 < on["stats"]["drafted_tokens"]
    assert run(*generate, "--speculate", "maybe").code == 2
    parts = run("plan", nano, *options, "--draft", nano, "--json").document["parts"]
    assert {"draft.weights.mlp", "draft.kv cache.full"} <= {part["name"] for part in parts}


def test_bench(nano: Path, run: Run) -> None:
    options = ("--prompt-tokens", 16, "--decode-tokens", 4, "--repeat", 1)
    ran = run("bench", nano, *options, "--json")
    assert ran.code == 0
    assert list(ran.document) == BENCH_KEYS
    assert "tok/s over 4 tokens" in run("bench", nano, *options).out


def test_inspect(nano: Path, run: Run) -> None:
    found = run("inspect", nano, "--json").document
    assert found["format"] == "safetensors"
    assert found["nbytes"] == sum(tensor["nbytes"] for tensor in found["tensors"])
    assert found["config"]["model_type"] == "llama" and found["tokenizer"]["vocab_size"] > 0
    assert found["licence"] is None
    (nano / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nA model.\n")
    (nano / "tokenizer.model").unlink()
    found = run("inspect", nano, "--json").document
    assert found["licence"] == "mit" and "no tokenizer" in found["tokenizer"]["error"]
    assert "model.norm.weight" in run("inspect", nano, "-v").out


def test_doctor(run: Run, tmp_path: Path) -> None:
    found = run("doctor", "--json").document
    chosen = {(choice["scheme"], choice["use"]): choice for choice in found["kernels"]}
    assert set(chosen) == {(s, u) for s in diagnosis.SCHEMES for u in ("multiply", "lookup")}
    own = chosen["int4-g32", "lookup"]
    assert own["kernel"] == ("reference" if native.missing() else "native.int4")
    assert own["declined"]["torch.int4pack"]
    assert found["read_gb_s"] == 20.0 and found["cache_bytes"] > 0
    assert "GB/s" in run("doctor").out


def test_clear_cache_deletes_its_own_files_only(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "cache" / "demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(1000))
    foreign = own.parent / "thesis.txt"
    foreign.write_text("three years")
    kept = [tmp_path / "cache" / name for name in (hardware.PROFILE, kernel_choice.KEPT, TILES)]
    for path in kept:
        path.write_bytes(bytes(500))
    monkeypatch.setattr(kernel_choice, "measure", lambda cache, device: {})
    monkeypatch.setattr(hardware, "record_read_gb_s", lambda cache: 20.0)
    assert run("doctor", "--clear-cache", "--json").document["freed_bytes"] == 2500
    assert not own.exists() and foreign.exists()
    assert not any(path.exists() for path in kept)


def test_ctrl_c_ends_with_130(run: Run, nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgelm.loading.prepare", interrupt)
    ran = run("generate", nano, "Once", "--json")
    assert ran.code == 130 and ran.document["error"]["type"] == "CancelledError"


def test_ctrl_c_while_a_piece_is_written(
    run: Run, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is closed then although its answer is half read: in the same thread, no wait."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgelm.cli.console.print", interrupt, raising=False)
    monkeypatch.setattr("edgelm.cli.main.streams.print_error", lambda *_, **__: None)
    assert run("generate", nano, "Once").code == 130


def test_a_model_closes_over_a_half_read_answer(nano: Path) -> None:
    with edgelm.load(nano, quant="none") as lm:
        stream = lm.stream("Once", max_new_tokens=50)
        assert next(stream).text
    stream.close()
    with pytest.raises(edgelm.EdgeLMError, match="closed"):
        lm.generate("Once")


def test_version_and_help(run: Run) -> None:
    assert run("--version").out.startswith("edgelm 0.")
    assert run("plan", "--help").code == 0
    assert run().code == 2


def test_as_a_process_stdout_is_one_document(nano: Path) -> None:
    """Warnings and progress go to stderr, nothing else to stdout, exit codes reach the shell."""
    command = [sys.executable, "-m", "edgelm", "generate", str(nano), "Once", "--max-tokens", "3"]
    done = subprocess.run([*command, "--json", "-v"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finish_reason"] in ("length", "stop")
    assert "tok/s" in done.stderr
    failed = subprocess.run([*command, "--quant", "x"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("edgelm: ") and "Traceback" not in failed.stderr


def test_demo_names_paris(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--context", "256", "--offline"]) == 0
    out = capsys.readouterr().out
    print(out)
    assert "Paris" in out
    assert "5.74 bits per weight" in out and "tok/s" in out and "planned" in out


def test_generate_reads_prompts_from_a_file(run: Run, assets: Path, tmp_path: Path) -> None:
    """One prompt a line; each answer is what the prompt gets alone."""
    lines = ["The whale", "It is a truth universally acknowledged", "Call me"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    folder = str(assets / "nano" / "llama")
    options = ["--max-tokens", "6", "--quant", "none", "--context", "64", "--json"]
    ran = run("generate", folder, "--file", str(file), *options)
    assert ran.code == 0, ran.err
    results = ran.document["results"]
    alone = [run("generate", folder, line, *options).document for line in lines]
    assert [r["token_ids"] for r in results] == [r["token_ids"] for r in alone]
    (tmp_path / "empty.txt").write_text("\n")
    for wrong in (
        ["--file", str(tmp_path / "missing.txt")],
        ["--file", str(tmp_path / "empty.txt")],
        ["--file", str(file), "and a prompt"],
        [],
    ):
        assert run("generate", folder, *wrong).code == 2


def test_generate_follows_a_schema_and_gives_n_answers(
    nano: Path, run: Run, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer", "minimum": 10, "maximum": 99}', encoding="utf-8")
    words = ["generate", str(nano), "I am", "--schema", str(schema), "--json", "--context", "64"]
    done = run(*words, "-n", "3", "--temperature", "1", "--seed", "4", "--logprobs", "2")
    assert done.code == 0, done.err
    results = done.document["results"]
    assert len(results) == 3 and all(10 <= int(own["text"]) <= 99 for own in results)
    assert all(len(own["logprobs"][0]["top"]) == 2 for own in results)
    done = run("generate", str(nano), "I am", "--beams", "2", "--max-tokens", "3", "--quiet")
    assert done.code == 0 and done.out.startswith("I am")
    assert run(*words[:4], str(tmp_path / "none.json")).code == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_prompts_end_at_line_feeds_alone(end: str, mark: str, tmp_path: Path) -> None:
    """What else parts lines for Python is text; the mark of a UTF-8 file is none."""
    lines = [f"One{separator}two" for separator in "\u2028\u2029\x85\x0b\x0c\x1c\x1e\r"]
    file = tmp_path / "prompts.txt"
    file.write_bytes((mark + end.join([*lines, "", "last"])).encode())
    assert _lines(file) == [*lines, "last"]
