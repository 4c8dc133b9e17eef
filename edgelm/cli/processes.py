"""``edgelm ps``: the processes of this user that hold a model."""

from __future__ import annotations

import time

from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.options import OutputOptions


def ps(output: OutputOptions) -> None:
    """List running edgelm processes: model, plan, memory now and as planned; notebooks too."""
    from rich.table import Table

    from edgelm.budget.running import running
    from edgelm.hub.references import cache_dir

    console.set_verbosity(output)
    found = running(cache_dir())
    if output.json:
        console.print_json({"processes": [own.to_dict() for own in found]})
        return
    table = Table("process", "model", "plan", box=None)
    for column in ("memory", "planned peak"):
        table.add_column(column, justify="right")
    table.add_column("since")
    if output.verbose:
        table.add_column("command")
    for own in found:
        held = own.held
        plan = f"{held.scheme}, context {held.context}, kv {held.kv}"
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(held.started))
        now, peak = human(own.resident_bytes), human(held.predicted_peak_bytes)
        more = [own.command] if output.verbose else []
        table.add_row(str(held.pid), held.model, plan, now, peak, since, *more)
    console.stdout().print(table if found else "No edgelm process holds a model.")
