"""Running one case: everybody's fastest settings are found, then all take turns in rounds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from edgelm.checkpoint.shapes import shape_config
from edgelm.machine import hardware
from edgelm.quantization.quantize import quantize
from edgelm.reports.benchmark import random_model

from .cases import PREFILL, Case, Entrant, Told, entrants
from .gguf_models import gguf_file, gguf_sizes
from .machine import Machine
from .missing import Missing
from .process import Worker
from .turns import is_hopeless, order, summary

TRIALS = 2  # turns of every setting, the first of which warms up
REST_S = 1.0  # before every turn: threads of some engines spin for a while after their work


@dataclass
class Runner:
    """Args:
    files: folder for models, kept between cases. rounds: turns of everybody.
    limit_s: no round of a case begins later than this after its start.
    say: told what is being done.
    """

    files: Path
    rounds: int
    threads: int
    limit_s: float
    say: Callable[[str], None]
    machine: Machine = field(init=False)

    def __post_init__(self) -> None:
        self.machine = Machine(self.threads)

    def run(self, case: Case) -> list[Told]:
        """A row for everybody who should take part; those who could not say why."""
        start = time.monotonic()
        specs: dict[str, Told] = {}
        rows: dict[str, Told] = {}
        names: dict[str, Entrant] = {}
        for entrant in entrants(case):
            rows[entrant.name] = {"case": case.name, "engine": entrant.name}
            names[entrant.name] = entrant
            try:
                specs[entrant.name], tried = self._chosen(case, entrant)
            except Missing as why:
                rows[entrant.name]["missing"] = str(why)
                self.say(f"{case.name}: {entrant.name}: {why}")
                continue
            spec = specs[entrant.name]
            shown = spec | {"model": Path(spec["model"]).name}
            rows[entrant.name] |= {"settings": shown, "tried": tried}
        rounds = _Rounds(self, case, {name: names[name] for name in specs}, specs)
        with closing(rounds):
            rounds.run(start + self.limit_s)
        return self._told(case, rows, rounds)

    def _chosen(self, case: Case, entrant: Entrant) -> tuple[Told, list[Told]]:
        """The arguments that ran fastest, model included, and what every one of them reached."""
        tried: list[tuple[float, Told, Told]] = []
        reasons = []
        for settings, kind in zip(entrant.candidates, self._kinds(entrant), strict=True):
            shown = settings | ({"type": kind} if kind else {})
            try:
                spec = {"engine": entrant.engine, "threads": self.threads, **settings}
                spec["model"] = self._model(case, entrant, kind)
                if len(entrant.candidates) == 1:
                    return spec, []
                value = self._trial(case, entrant, spec)
            except Missing as why:
                reasons.append(f"{kind or ''}: {why}")
                tried.append((0.0, spec, shown | {"missing": str(why)}))
                continue
            self.say(f"{case.name}: {entrant.name} {shown}: {value:.4g} {case.metric.unit}")
            rank = value if case.metric.higher_is_better else 1 / max(value, 1e-9)
            tried.append((rank, spec, shown | {"value": float(f"{value:.4g}")}))
        best = max(tried, key=lambda one: one[0])
        if not best[0]:
            raise Missing("; ".join(reasons))
        return best[1], [shown for _, _, shown in tried]

    def _kinds(self, entrant: Entrant) -> tuple[str | None, ...]:
        return entrant.kinds if any(entrant.kinds) else (None,) * len(entrant.candidates)

    def _trial(self, case: Case, entrant: Entrant, spec: Told) -> float:
        with closing(started(spec, entrant)) as worker:
            for _ in range(1 if case.metric.fresh else TRIALS):
                answers = one_turn(worker, case)
            return case.metric.value(answers, worker.about)

    def _model(self, case: Case, entrant: Entrant, kind: str | None) -> str:
        if kind is not None:
            self.say(f"{case.name}: {case.shape} as {kind}")
            return str(gguf_file(self.files, case.shape, kind, self.threads))
        if entrant.engine == "edgelm" and case.stored:
            return str(packed_folder(self.files, case.shape, case.bits))
        return case.shape

    def _told(self, case: Case, rows: dict[str, Told], rounds: _Rounds) -> list[Told]:
        measured = summary(rounds.values, rounds.beside, case.metric.higher_is_better)
        macs = None if case.metric is not PREFILL else products_per_token(case.shape)
        for name, row in rows.items():
            if name in rounds.missing:
                row["missing"] = rounds.missing[name]
            if name not in measured:
                continue
            about = rounds.about[name]
            row |= measured[name] | {"metric": case.metric.name, "unit": case.metric.unit} | about
            row |= rounds.limits
            if case.metric.unit == "tok/s" and not case.copy:
                if macs:
                    row["gf"] = round(2 * macs * row["value"] / 1e9, 1)
                elif "bytes_per_token" in about:
                    row["gb_s"] = round(about["bytes_per_token"] * row["value"] / 1e9, 2)
        return list(rows.values())


class _Rounds:
    """The rounds of one case, and what came of them."""

    def __init__(
        self, runner: Runner, case: Case, entrants: dict[str, Entrant], specs: dict[str, Told]
    ) -> None:
        self.runner, self.case, self.entrants, self.specs = runner, case, entrants, specs
        self.values: dict[str, dict[int, float]] = {name: {} for name in entrants}
        self.beside: dict[str, dict[int, float]] = {name: {} for name in entrants}
        self.about: dict[str, Told] = {}
        self.missing: dict[str, str] = {}
        self.limits: Told = {}
        self._workers: dict[str, Worker] = {}

    def run(self, deadline: float) -> None:
        case, say = self.case, self.runner.say
        if not case.metric.fresh:
            for name in list(self.entrants):
                say(f"{case.name}: loading {name}")
                self._attempt(name)
        limits: dict[str, list[float]] = defaultdict(list)
        for round_ in range(self.runner.rounds):
            present = [name for name in self.entrants if self._takes_part(name)]
            if not present or (round_ and time.monotonic() > deadline):
                break
            self._measure_machine(limits)
            self._round(present, round_)
            told = {
                name: f"{own[round_]:.4g}" for name, own in self.values.items() if round_ in own
            }
            say(f"{case.name}: round {round_ + 1}: {told}")
        self.limits = {name: round(median(values), 2) for name, values in limits.items() if values}

    def _takes_part(self, name: str) -> bool:
        if name in self.missing:
            return False
        return not is_hopeless(name, self.values, self.case.metric.higher_is_better)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def _measure_machine(self, limits: dict[str, list[float]]) -> None:
        machine = self.runner.machine
        limits["read_gb_s"].append(machine.read_gb_s())
        vnni = machine.vnni_gops()
        if vnni is not None:
            limits["vnni_gops"].append(vnni)

    def _round(self, present: list[str], round_: int) -> None:
        """One turn of everybody, the first of ours beside each other one: a machine's speed changes
        within seconds, and what is compared must not be far apart."""
        reference, *others = present
        ours = []
        for name in order(others, round_) if others else [reference]:
            pair = dict.fromkeys((reference, name) if round_ % 2 == 0 else (name, reference))
            found = {own: self._attempt(own) for own in pair if own not in self.missing}
            theirs, beside = found.get(name), found.get(reference)
            if beside is not None:
                ours.append(beside)
            if theirs is not None and name != reference:
                self.values[name][round_] = theirs
                if beside is not None:
                    self.beside[name][round_] = beside
        if ours:
            self.values[reference][round_] = median(ours)

    def _attempt(self, name: str) -> float | None:
        """The value of one turn. Who fails takes no further part."""
        try:
            answers = self._turn(name)
        except Missing as why:
            self.missing[name] = str(why)
            self._workers.pop(name, None)
            self.runner.say(f"{self.case.name}: {name} is out: {why}")
            return None
        return self.case.metric.value(answers, self.about[name])

    def _turn(self, name: str) -> list[Told]:
        if self.case.metric.fresh and name in self._workers:
            self._workers.pop(name).close()
        if name not in self._workers:
            self._workers[name] = started(self.specs[name], self.entrants[name])
            self.about[name] = self._workers[name].about
        if not self.case.metric.fresh:
            time.sleep(REST_S)
        return one_turn(self._workers[name], self.case)


def started(spec: Told, entrant: Entrant) -> Worker:
    """The engine in its process. What its GGUF file holds is read here, and before: its own start
    is what some cases measure."""
    sizes = gguf_sizes(Path(spec["model"])) if spec["model"].endswith(".gguf") else {}
    worker = Worker(spec, entrant.environment)
    worker.about |= {key: value for key, value in sizes.items() if key not in worker.about}
    return worker


def one_turn(worker: Worker, case: Case) -> list[Told]:
    """The answers to a turn's requests, each with the request and seconds since the start."""
    answers = []
    for prompt, steps in case.turns:
        answer = worker.turn(prompt, steps)
        own = {"prompt": prompt, "steps": steps, "alive_s": worker.seconds_alive()}
        answers.append(answer | own)
    return answers


def packed_folder(files: Path, shape: str, bits: str) -> Path:
    """Our own folder of a shape's random weights, written once."""
    folder = files / f"{shape}-{bits}"
    if not folder.exists():
        model = random_model(shape, bits)
        config_file = files / f"{shape}-{bits}.json"
        config_file.write_text("{}", encoding="utf-8")
        model.checkpoint.path = config_file
        quantize(model, folder, quant=bits)
    return folder


def products_per_token(shape: str) -> int | None:
    """Multiplications that the matrices of all layers take for one token of a prompt."""
    if shape == "demo":
        from edgelm.models.model_files import ModelFiles

        decoder = ModelFiles.open("demo").assemble("causal-lm").decoder
    else:
        decoder = random_model(shape_config(shape), "none").assemble("causal-lm").decoder
    return sum(n * k for name, (n, k) in decoder.matrices() if name not in ("embed", "head"))


def machine_name() -> str:
    return f"{hardware.processor_name()}, {hardware.cores()} cores"
