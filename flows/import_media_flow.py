"""The flow `import-media`: pictures of another system become a MediaSet; what is in the store ends in `Cached`."""

from __future__ import annotations

from typing import Any

from prefect import flow

from thinkdiff.flows.recipes import rooted
from thinkdiff.flows.thinkdiff_flow import Ledger
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.media import GivenMedia
from thinkdiff.tasks.import_media import import_media


@flow(name="import-media", flow_run_name="{spec.name}", persist_result=False, validate_parameters=True)
def import_given(spec: GivenMedia, run: Execution) -> dict[str, Any]:
    """Imports the pictures that `run.given` holds; returns what `thinkdiff import-media --json` prints."""
    ledger = Ledger()
    artifact = ledger.add(import_media(rooted(run), spec), role=spec.name)
    return ledger.result().model_dump(mode="json") | {"counts": artifact.counts}
