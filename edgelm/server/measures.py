"""Measures: counters and gauges of the server in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from edgelm.generation.request import Chunk
from edgelm.machine.hardware import resident_bytes
from edgelm.model import LanguageModel


class Measures:
    """What one server counts; of requests it knows paths and statuses, no contents."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "edgelm_requests", "Requests.", ["path", "status"], registry=self._registry
        )
        self._prompt = Counter(
            "edgelm_prompt_tokens", "Tokens of prompts.", registry=self._registry
        )
        self._kept = Counter(
            "edgelm_kept_tokens",
            "Tokens of prompts that rows held already (the prefix cache).",
            registry=self._registry,
        )
        self._new = Counter("edgelm_new_tokens", "Tokens generated.", registry=self._registry)
        self._first = Histogram(
            "edgelm_prefill_seconds", "Time of a prompt in its row.", registry=self._registry
        )

    def watch(self, lm: LanguageModel) -> None:
        """Tell the memory and the load of a model from now on."""
        self._registry.register(_Gauges(lm))

    def served(self, path: str, status: int) -> None:
        self._requests.labels(path, status).inc()

    def saw(self, chunk: Chunk) -> None:
        """Count the last piece of an answer."""
        if (stats := chunk.stats) is not None:
            self._prompt.inc(stats.prompt_tokens)
            self._kept.inc(stats.kept_tokens)
            self._new.inc(stats.new_tokens)
            self._first.observe(stats.prefill_s)

    def text(self) -> bytes:
        found: bytes = generate_latest(self._registry)
        return found


class _Gauges:
    """Numbers that are asked for when they are told."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def collect(self) -> Iterator[Metric]:
        running, waiting = self._lm.load_of_rows()
        ledger, plan = self._lm.ledger, self._lm.plan
        for name, text, value in (
            ("edgelm_answers_running", "Answers that have a row.", running),
            ("edgelm_answers_waiting", "Answers that wait for a row.", waiting),
            ("edgelm_rows", "Answers that may run at once.", plan.rows),
            ("edgelm_resident_bytes", "Memory of the process.", resident_bytes()),
            ("edgelm_planned_peak_bytes", "The plan's peak.", plan.predicted_peak_bytes),
            ("edgelm_budget_bytes", "The budget.", plan.budget_bytes),
        ):
            yield GaugeMetricFamily(name, text, value)
        for name, text, parts in (
            ("edgelm_part_planned_bytes", "Memory that the plan has for a part.", ledger.planned),
            ("edgelm_part_taken_bytes", "Memory that a part has taken.", ledger.taken),
        ):
            family = GaugeMetricFamily(name, text, labels=["part"])
            for part, value in parts.items():
                family.add_metric([part], value)
            yield family
