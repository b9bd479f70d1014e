"""One run: models put in place, contexts chosen, and a row for each model, context and batch."""

from __future__ import annotations

import gc
import math
from typing import Any

import torch

from gqkva_convert.errors import EvaluationError, first_line, is_out_of_memory
from gqkva_convert.evaluation.device import find_device
from gqkva_convert.evaluation.speed.contexts import choose_contexts
from gqkva_convert.evaluation.speed.fit import Fit, estimate, fit
from gqkva_convert.evaluation.speed.memory import (
    PeakMemory,
    available_bytes,
    bytes_read,
    storage_bytes,
    weight_bytes,
)
from gqkva_convert.evaluation.speed.settings import BenchSettings
from gqkva_convert.evaluation.speed.timing import Clock, measure_bandwidth, quartiles
from gqkva_convert.evaluation.speed.workloads import DECODER, FORWARD, Work, kind_of, make_work
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.progress import Stages
from gqkva_convert.records.bench import Row
from gqkva_convert.source.model import SourceModel
from gqkva_convert.units import human_bytes

# No more rounds of reading prompts in a row once they have taken so long for each model.
_PREFILL_SECONDS = 20.0
# Rounds whose memory is measured; the models take turns, and the least counts.
_METERED = 2


class Run:
    """Measures models side by side on one device.

    Attributes:
        device: Device of all measurements.
        kind: Kind of the models' work (`workloads.kind_of`).
        bandwidths: Bytes a second that the device moves (`timing.measure_bandwidth`).

    Raises:
        EvaluationError: There is no such device, or the models do not load, or cannot be compared.
    """

    def __init__(self, settings: BenchSettings, sources: dict[str, SourceModel], progress: Stages) -> None:
        self.settings, self.sources, self.progress = settings, sources, progress
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.device = find_device(settings.device)
        self.clock = Clock(self.device)
        self.meter = PeakMemory(self.device)
        self.models = self._load()
        kinds = {name: kind_of(model) for name, model in self.models.items()}
        if len(set(kinds.values())) > 1:
            said = (f"{sources[name].checkpoint.folder}: {kind}" for name, kind in kinds.items())
            raise EvaluationError(f"the two do different things ({', '.join(said)}); name the source model")
        self.kind = next(iter(kinds.values()))
        self.contexts = choose_contexts(list(self.models.values()), settings)
        self.bandwidths = measure_bandwidth(self.clock, self.dtype)

    def rows(self) -> list[Row]:
        """Measure a row for each context, batch and model."""
        units = len(self.models) * sum(self.contexts) * sum(self.settings.batch) * 2 * self.settings.rounds
        self.advance = self.progress(f"measuring on {self.device}", units)
        with torch.inference_mode():
            return [
                row
                for context in self.contexts
                for batch in self.settings.batch
                for row in self._place(context, batch)
            ]

    def _load(self) -> dict[str, Any]:
        """Load the models on the device."""
        shapes = [
            tensor.shape for source in self.sources.values() for tensor in source.checkpoint.tensors.values()
        ]
        wanted, free = sum(map(math.prod, shapes)) * self.dtype.itemsize, available_bytes(self.device)
        if free is not None and wanted > free:
            raise EvaluationError(
                f"the weights take {human_bytes(wanted)} in {self.settings.dtype}, and {human_bytes(free)} "
                f"are free on {self.device}; leave --against out, or choose another --device or --dtype"
            )
        advance, models = self.progress("loading", len(self.sources)), {}
        for name, source in self.sources.items():
            folder, family = source.checkpoint.folder, source.family
            try:
                model = load_model(
                    folder,
                    family.architecture,
                    self.settings.dtype,
                    attn_implementation=self.settings.attn_implementation,
                )
            except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
                raise EvaluationError(f"{folder} does not load: {first_line(error)}") from error
            models[name] = model.requires_grad_(False).to(self.device)
            advance(1)
        return models

    def _place(self, context: int, batch: int) -> list[Row]:
        """Measure each model at one context and batch, or record why it is skipped."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        needs = {
            name: estimate(self.sources[name], model, context, batch, self.settings)
            for name, model in self.models.items()
        }
        placed = fit(needs, context, available_bytes(self.device), self.kind == DECODER)
        rows = {name: _row(name, context, batch, {"skipped": why}) for name, why in placed.skipped.items()}
        self.advance(len(rows) * 2 * self.settings.rounds * context * batch)
        for names in placed.together:
            try:
                rows |= self._measure(names, context, batch, placed)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if not rows.keys() >= set(names):
                gc.collect()  # what the failed work held
                why = "ran out of memory though the estimate fitted"
                rows |= {name: _row(name, context, batch, {"skipped": why}) for name in names}
        return [rows[name] for name in self.models]

    def _measure(self, names: tuple[str, ...], context: int, batch: int, placed: Fit) -> dict[str, Row]:
        """Measure models that are in memory together, their rounds taking turns."""
        works = {name: self._work(name, context, batch) for name in names}
        self._warm_up(names, context)
        measured: dict[str, dict[str, Any]] = {
            name: {"interleaved": len(names) == len(self.models)} for name in names
        }
        peaks = self._read_prompts(works, placed.chunk, measured)
        if self.kind == FORWARD:
            self.advance(self.settings.rounds * context * batch * len(names))
        else:
            for name, peak in self._generate(works, measured).items():
                peaks[name].append(peak)
        for name in names:
            grown = [peak for peak in peaks[name] if peak is not None]
            if len(grown) == len(peaks[name]):
                measured[name]["peak_memory_bytes"] = weight_bytes(self.models[name]) + max(grown)
        return {name: _row(name, context, batch, measured[name]) for name in names}

    def _read_prompts(
        self, works: dict[str, Work], chunk: int, measured: dict[str, dict[str, Any]]
    ) -> dict[str, list[int | None]]:
        """Time prefill, or forward passes; caches stay filled. Return its peak memory."""
        names, rounds = tuple(works), self.settings.rounds
        grown: dict[str, list[int | None]] = {name: [] for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in _turned(names, number):
                work = works[name]
                work.release()
                if number < _METERED:
                    self.meter.begin()
                seconds[name].append(self.clock.seconds(lambda: work.prefill(chunk)))  # noqa: B023
                if number < _METERED:
                    grown[name].append(self.meter.growth())
                self.advance(work.context * work.batch)
            if sum(map(sum, seconds.values())) > _PREFILL_SECONDS * len(names):
                break
        for name, work in works.items():
            self.advance(work.context * work.batch * (rounds - len(seconds[name])))
            first, middle, third = quartiles(seconds[name])
            measured[name] |= {
                "prefill_tokens_per_second": work.context * work.batch / middle,
                "samples_per_second": work.batch / middle,
                "time_to_first_token_seconds": middle,
                "prefill_seconds_spread": [first, third],
                "prefill_rounds": len(seconds[name]),
                "prefill_chunk": chunk,
                "kv_cache_bytes": storage_bytes(work.cache_tensors()) if work.cache is not None else None,
            }
        return {name: [_least(each)] for name, each in grown.items()}

    def _generate(self, works: dict[str, Work], measured: dict[str, dict[str, Any]]) -> dict[str, int | None]:
        """Time decoding from filled caches. Return its peak memory, caches included."""
        names = tuple(works)
        grown: dict[str, list[int | None]] = {name: [] for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(_METERED):  # warms up, too
            for name in _turned(names, number):
                works[name].rewind()
                self.meter.begin()
                works[name].decode()
                grown[name].append(self.meter.growth())
        peaks: dict[str, int | None] = {}
        for name, work in works.items():
            work.rewind()
            least = _least(grown[name])
            peaks[name] = None if least is None else storage_bytes(work.cache_tensors()) + least
        for number in range(self.settings.rounds):
            for name in _turned(names, number):
                works[name].rewind()
                seconds[name].append(self.clock.seconds(works[name].decode) / self.settings.new_tokens)
                self.advance(works[name].context * works[name].batch)
        for name, work in works.items():
            work.rewind()
            first, middle, third = quartiles(seconds[name])
            moved = bytes_read(self.models[name], work.step) + measured[name]["kv_cache_bytes"]
            floor = moved / max(self.bandwidths.values())
            measured[name] |= {
                "decode_tokens_per_second": work.batch / middle,
                "decode_seconds": middle,
                "decode_seconds_spread": [first, third],
                "decode_floor_seconds": floor,
                "of_limit": floor / middle,
                "bytes_per_step": moved,
            }
        return peaks

    def _work(self, name: str, context: int, batch: int) -> Work:
        settings = self.settings
        return make_work(
            self.models[name], context, batch, settings.new_tokens, settings.cache, settings.seed
        )

    def _warm_up(self, names: tuple[str, ...], context: int) -> None:
        """Run once so that libraries choose their kernels and weights are in memory."""
        length = min(context, self.settings.new_tokens + 128) if self.kind == DECODER else context
        for name in names:
            work = self._work(name, length, 1)
            work.prefill(length)
            if work.cache is not None:
                work.rewind()
                work.step()


def _row(name: str, context: int, batch: int, measured: dict[str, Any]) -> Row:
    return Row.model_validate({"model": name, "context": context, "batch": batch, **measured})


def _least(grown: list[int | None]) -> int | None:
    """Return the least memory measured; the first run also pays for what is allocated once."""
    return None if None in grown else min(each for each in grown if each is not None)


def _turned(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Return the names in another order each round, so that none always runs first."""
    place = number % len(names)
    return names[place:] + names[:place]
