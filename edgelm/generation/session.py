"""Session: what answers run on. An engine, its cache, and what each row of it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgelm.engine.engine import Engine
from edgelm.engine.restore_points import RestorePoints
from edgelm.generation.speculation import Speculation
from edgelm.ops.cache import KVCache


@dataclass
class Session:
    """A loaded model as answers see it.

    Attributes:
        points: where rows can go back to.
        speculation: guesses for an answer that runs alone; None where the plan guesses nothing.
        held: the ids that each row of the cache holds, kept up to date token by token.
        last_row: that of the answer that began last.
    """

    engine: Engine
    cache: KVCache
    points: RestorePoints
    speculation: Speculation | None = None
    held: list[list[int]] = field(init=False)
    last_row: int = 0

    def __post_init__(self) -> None:
        self.held = [[] for _ in range(self.cache.rows)]

    def copy_row(self, source: int, target: int) -> None:
        """Let row ``target`` hold what ``source`` holds, and go back as far."""
        self.cache.copy_row(source, target)
        self.points.copy(source, target)
        self.held[target][:] = self.held[source]

    def forget_rows(self) -> None:
        """Count every row as empty, after a step that broke off and left some half written."""
        for ids in self.held:
            ids.clear()
