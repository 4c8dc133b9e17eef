"""``edgelm serve``: a model behind OpenAI's and Anthropic's HTTP interfaces."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import (
    GuessOptions,
    LoadOptions,
    Model,
    OutputOptions,
    RunOptions,
    SourceOptions,
)
from edgelm.errors import EdgeLMError, UsageError

_PANEL = "Server"
Host = Annotated[
    str,
    typer.Option(help="Address to listen on; any but this machine's own needs --key.",
                 rich_help_panel=_PANEL),
]  # fmt: skip
Port = Annotated[int, typer.Option(help="Port to listen on.", rich_help_panel=_PANEL)]
Users = Annotated[
    int | None,
    typer.Option(
        help="Answers side by side, each with memory of its own; others wait (default: up to 8, "
        "as many as cost neither context nor accuracy).",
        rich_help_panel=_PANEL,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        help="Secret that clients must send as 'Authorization: Bearer KEY'.",
        envvar="EDGELM_KEY", show_envvar=True, rich_help_panel=_PANEL,
    ),
]  # fmt: skip


def serve(
    model: Model, source: SourceOptions, load: LoadOptions, guess: GuessOptions, run: RunOptions,
    output: OutputOptions, host: Host = "127.0.0.1", port: Port = 8080, users: Users = None,
    key: Key = None,
) -> None:  # fmt: skip
    """Serve a model over HTTP: chat, completions, embeddings, Anthropic's messages, tokens.

    A request with a field that is not supported is refused. These fields are ignored: user, store,
    metadata, service_tier, safety_identifier, prompt_cache_key, prompt_cache_retention, verbosity.
    """
    from edgelm import loading

    try:
        import uvicorn

        from edgelm.server.app import Server
        from edgelm.server.connection import http_config
        from edgelm.server.guard import require_key
    except ImportError as error:
        raise UsageError(
            f"serve needs {error.name}, which is not installed: pip install 'edgelm[serve]'."
        ) from error
    if not 0 <= port < 1 << 16:
        raise UsageError(f"port is {port}; allowed: 0 to 65535.")
    if users is not None and users < 1:
        raise UsageError(f"users is {users}; allowed: 1 or more.")
    require_key(host, key)
    console.set_verbosity(output)
    files = open_files(model, source, output) if model == "demo" else model
    settings = load.settings() | guess.settings() | {"rows": "auto" if users is None else users}
    prepared = loading.prepare(files, threads=run.threads, **asdict(source), **settings)
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        http.should_exit = True

    with console.progress_bars(output) as bar:
        progress = bar(f"loading {prepared.files.name}")
        served = Server(lambda: prepared.load(progress), host, key, failed)
        http = uvicorn.Server(http_config(served.app, host, port))
        rows = prepared.plan.rows
        console.note(f"http://{host}:{port}, {rows} answers at once", output)
        if output.json:
            console.print_json({"host": host, "port": port, "rows": rows})
            sys.stdout.flush()
        try:
            http.run()
        except SystemExit as error:
            raise EdgeLMError(f"The server could not listen on {host}:{port}.") from error
    if failures:
        raise failures[0]
