"""The data that a run reads: are the collections, the tars and the benchmark's pictures there, and what may be done
with them?

In: the stages that are to be made, and the data root. Out: findings. Files are listed, not read; those of a web server
or another hub are left to the stage, which asks for them with patience.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.captions import CaptionSpec, Collection
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import ThinkDiffError
from thinkdiff.schemas.features import FeatureSpec
from thinkdiff.schemas.images import ImageSpec, TarSource
from thinkdiff.schemas.plan import Finding, Job
from thinkdiff.storage.root import locate, matching
from thinkdiff.tasks.plan_known import licence_of_data

LISTED = ("", "file", "s3", "memory")  # schemes whose files are listed in a moment
CHECK = "Relative urls start at the data root; check the path and --data."


def data_findings(jobs: Sequence[Job], run: Execution, written: str | None = None) -> Iterator[Finding]:
    """One finding for each collection, set of tars and data set.

    written: a folder below the data root that the run writes itself before it begins.
    """
    seen = set[str]()
    for job in jobs:
        for finding in of_job(job, run, written):
            if finding.what not in seen:
                seen.add(finding.what)
                yield finding


def of_job(job: Job, run: Execution, written: str | None) -> Iterator[Finding]:
    """What a stage reads beside its parents."""
    spec = job.spec
    ours = f"{written}/" if written else "\0"
    if isinstance(spec, CaptionSpec):
        for collection in spec.collections:
            if not collection.url.startswith(ours):
                yield from collection_findings(collection, run)
    elif isinstance(spec, ImageSpec):
        yield from (tar_finding(source, run) for source in spec.tars if not source.glob.startswith(ours))
        if spec.by_url:
            yield Finding(
                stage=spec.stage, what="network", level="tells", found="pictures that are asked for by URL",
                todo="Say who you are in run.fetching.user_agent.",
            )  # fmt: skip
    elif isinstance(spec, FeatureSpec) and isinstance(spec.prompts, CobsatPrompts):
        if not spec.prompts.images.startswith(ours):
            yield benchmark_finding(spec.prompts, run)


def collection_findings(collection: Collection, run: Execution) -> Iterator[Finding]:
    """A collection's files, and its licence."""
    for url in filter(None, (collection.url, collection.captions_url)):
        expected = f"collection {collection.name} of format {collection.format}"
        yield listed(f"collection {url}", url, expected, "sample_captions", run)
    yield Finding(
        stage="sample_captions", what=f"licence of {collection.name}", level="tells",
        found=f"{licence_of_data(collection.name)}; a picture's rights are its owner's",
    )  # fmt: skip


def tar_finding(source: TarSource, run: Execution) -> Finding:
    """The tars of a collection's pictures."""
    return listed(
        f"tars {source.glob}", source.glob, f"the tars of img2dataset of {source.collection}", "fetch_images", run
    )


def listed(what: str, url: str, expected: str, stage: str, run: Execution) -> Finding:
    """Whether files of that pattern are there and none of them is empty."""
    if urlsplit(url).scheme not in LISTED:
        return Finding(stage=stage, what=what, level="tells", found=f"a place on {urlsplit(url).scheme}, not looked at")
    try:
        files = matching(run.data_root, url)
        sizes = {folder.full(name): folder.size(name) for folder, name in files}
    except (ThinkDiffError, OSError) as error:
        return Finding(stage=stage, what=what, level="blocks", found=str(error), expected=expected, todo=CHECK)
    empty = [name for name, size in sizes.items() if not size]
    if not files:
        folder, name = locate(run.data_root, url)
        place = f"{folder.uri}/{name}"
        return Finding(stage=stage, what=place, level="blocks", found="no such file", expected=expected, todo=CHECK)
    if empty:
        return Finding(
            stage=stage, what=empty[0], level="blocks", found="an empty file", expected=expected, todo="Copy it again."
        )
    size = sum(sizes.values()) / 1e9
    return Finding(stage=stage, what=what, level="tells", found=f"{len(files)} files of {size:.3g} GB")


def benchmark_finding(spec: CobsatPrompts, run: Execution) -> Finding:
    """The benchmark's pictures by their names; whether they decode is looked at when they are asked about."""
    from thinkdiff.tasks.cobsat import pictures
    from thinkdiff.tasks.cobsat_data import find_data, some

    what, expected = f"benchmark {spec.images}", f"{len(pictures(spec))} pictures"
    todo = "Put the benchmark's datasets.zip below the data root, and name it as queries.prompts.images."
    try:
        files = find_data(run.data_root, spec.images, spec)
        wanted = [picture.path for picture in pictures(spec)]
        there = set(files.names(*dict.fromkeys(path.split("/")[0] for path in wanted)))
    except (ThinkDiffError, OSError) as error:
        found = str(error).partition(": found ")[2].partition(", expected ")[0] or str(error)
        return Finding(
            stage="extract_features", what=what, level="blocks", found=f"{found} in {run.data_root}",
            expected=expected, todo=todo,
        )  # fmt: skip
    missing = [path for path in wanted if path not in there]
    if missing:
        return Finding(
            stage="extract_features", what=what, level="blocks", expected=expected, todo=todo,
            found=f"{len(missing)} pictures missing in {files.uri} ({some(missing)})",
        )  # fmt: skip
    return Finding(stage="extract_features", what=what, level="tells", found=f"{expected} in {files.uri}")
