"""What stages do, as OpenTelemetry metrics: how long they took and how they ended, how much they did and wrote.

In: what a stage tells. Out: figures for the meter `thinkdiff`, sent to OTEL_EXPORTER_OTLP_ENDPOINT over HTTP; without
that setting nothing is measured and nothing leaves the process. A collector that does not answer disturbs no run.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.artifact import Artifact

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
PATIENCE = 5  # seconds that a collector has to answer in
log = logging.getLogger(__name__)


@functools.cache
def provider() -> MeterProvider | None:
    """The process's own provider of meters, None where no endpoint is named or OpenTelemetry's SDK is not there."""
    if not any(map(os.environ.get, ENDPOINTS)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
    except ModuleNotFoundError as error:
        log.warning(
            "metrics: found no package %s, expected it as an endpoint is named. Install thinkdiff with the extra otel.",
            error.name,
        )
        return None
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "thinkdiff")})
    return MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(timeout=PATIENCE))], resource)


@functools.cache
def instrument(kind: str, name: str, unit: str, description: str) -> Any:
    """An instrument of the meter, None where nothing is measured."""
    found = provider()
    return found and getattr(found.get_meter("thinkdiff"), f"create_{kind}")(name, unit, description)


def advanced(stage: str, unit: str, count: int) -> None:
    """So many pictures, requests or steps are done."""
    if made := instrument("counter", "thinkdiff.stage.items", "1", "pictures, requests or steps that are done"):
        made.add(count, {"stage": stage, "unit": unit})


def ended(stage: str, state: str, seconds: float, artifact: Artifact | None = None) -> None:
    """A stage has ended, with an artifact if it was written now. Waits until that is told, PATIENCE at most."""
    found = provider()
    if found is None:
        return
    instrument("histogram", "thinkdiff.stage.duration", "s", "how long a stage took").record(
        seconds, {"stage": stage, "state": state}
    )
    if artifact is not None:
        size = sum(entry.size for entry in artifact.files)
        instrument("counter", "thinkdiff.artifact.size", "By", "bytes of artifacts").add(size, {"stage": stage})
    found.force_flush(PATIENCE * 1000)
