"""Sampling 1.7 of 16.7 million captions: ours against DuckDB doing the same job, and against bare parsing, in one run.

    python tests/bench/make_captions.py FOLDER && pip install duckdb
    python tests/bench/bench_sampling.py FOLDER [--n 1700000] [--pairs 3] [--only ours|duckdb|parsing]

Every measurement is a process of its own, interleaved; ratios are medians over pairs with a bootstrap 95 % interval.
DuckDB has the same filters, normalisation, de-duplication and keys, its own native hash and the same early limit on it;
it counts nothing by reason and lists no malformed row. Parsing: one thread splits the same bytes into rows and checks
them, nothing else. Memory is the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medians import median

from thinkdiff.schemas.captions import BOILERPLATE, CaptionFilters, CaptionSpec, Collection

FILTERS = CaptionFilters(
    min_words=3, max_words=50, control_characters=True, replacement_characters=True, boilerplate=BOILERPLATE
)


def spec(n: int) -> CaptionSpec:
    """The three collections of a folder that is the data root."""
    return CaptionSpec(
        collections=(
            Collection(name="cc3m", format="cc3m-tsv", url="cc3m.tsv"),
            Collection(name="cc12m", format="cc12m-tsv", url="cc12m.tsv"),
            Collection(name="sbu", format="sbu-json", url="sbu-captions-all.json"),
        ),
        n=n,
        filters=FILTERS,
    )


def ours(folder: Path, n: int) -> dict[str, float]:
    """The stage as a flow runs it, without the start of Prefect's server."""
    from prefect import flow

    from thinkdiff.schemas.artifact import Execution
    from thinkdiff.tasks.sample_captions import sample_captions

    seconds = 0.0

    @flow(name="bench", persist_result=False)
    def sampling(root: str) -> dict[str, int]:
        nonlocal seconds
        began = time.perf_counter()
        outcome = sample_captions(Execution(root=root, data=str(folder)), spec(n))
        seconds = time.perf_counter() - began
        return outcome.artifact.counts

    with tempfile.TemporaryDirectory() as root:
        counts = sampling(root)
    return {"seconds": seconds, "captions": counts["captions"]}


def parsing(folder: Path, n: int) -> dict[str, float]:
    """One thread over all blocks."""
    from thinkdiff.storage.caption_shards import collection_splits, read_blocks

    began = time.perf_counter()
    rows = 0
    for collection in spec(n).collections:
        for split in collection_splits(collection, str(folder), 1 << 40):
            rows += sum(block.rows for block in read_blocks(split))
    return {"seconds": time.perf_counter() - began, "captions": rows}


def duckdb(folder: Path, n: int) -> dict[str, float]:
    """The same job in SQL."""
    import duckdb as duck  # pyright: ignore[reportMissingImports]  # pip install duckdb

    phrases = "|".join(BOILERPLATE)
    limit = int(1.1 * n / 16_700_000 * 2**64)
    tsv = "delim='\\t', header=false, quote='', escape='', ignore_errors=true, auto_detect=false, strict_mode=false"
    size = (folder / "sbu-captions-all.json").stat().st_size + 1
    query = f"""
    SET preserve_insertion_order = false;
    CREATE TEMP TABLE candidates AS
    WITH raw AS (
        SELECT 'cc3m' AS collection, caption, url FROM
            read_csv('{folder}/cc3m.tsv', {tsv}, columns={{'caption': 'VARCHAR', 'url': 'VARCHAR'}})
        UNION ALL SELECT 'cc12m', caption, url FROM
            read_csv('{folder}/cc12m.tsv', {tsv}, columns={{'url': 'VARCHAR', 'caption': 'VARCHAR'}})
        UNION ALL SELECT 'sbu', unnest(captions), unnest(image_urls) FROM
            read_json('{folder}/sbu-captions-all.json', maximum_object_size={size},
                      columns={{'image_urls': 'VARCHAR[]', 'captions': 'VARCHAR[]'}})
    ), kept AS (
        SELECT collection, caption, url, CASE
            WHEN regexp_full_match(url, 'https?://[a-z0-9._-]+/[^#]*') THEN url
            ELSE lower(regexp_extract(url, '^[^:]+://[^/?#]*')).regexp_replace(
                '^(http://.*):80$|^(https://.*):443$', '\\1\\2') || regexp_extract(url, '^[^:]+://[^/?#]*([^#]*)', 1)
            END AS normal
        FROM raw
        WHERE regexp_full_match(url, '(?i)https?://[!-~]+') AND length(trim(caption)) > 0
            AND NOT regexp_matches(caption, '[\\x00-\\x1f\\x7f]') AND NOT contains(caption, '\ufffd')
            AND length(caption) - length(replace(caption, ' ', '')) BETWEEN 2 AND 49
            AND NOT regexp_matches(caption, '(?i){phrases}')
    )
    SELECT collection, caption, url, hash(normal) AS h FROM kept WHERE h < {limit}::UBIGINT;
    CREATE TEMP TABLE keyed AS
    SELECT h, collection, caption, url, substr(sha256(concat(length(collection), collection, length(url), url,
        length(caption), caption)), 1, 32) AS key FROM candidates;
    COPY (
        SELECT key, collection, url, caption FROM (
            SELECT * FROM keyed QUALIFY row_number() OVER (PARTITION BY h ORDER BY key) = 1 ORDER BY h LIMIT {n}
        ) ORDER BY key
    ) TO '{{target}}' (FORMAT parquet, COMPRESSION zstd);
    """
    with tempfile.TemporaryDirectory() as root:
        connection = duck.connect(config={"temp_directory": root})
        target = f"{root}/captions.parquet"
        began = time.perf_counter()
        connection.execute(query.replace("{target}", target))
        seconds = time.perf_counter() - began
        count = connection.execute(f"SELECT count(*) FROM '{target}'").fetchall()[0][0]
    return {"seconds": seconds, "captions": count}


JOBS = {"ours": ours, "duckdb": duckdb, "parsing": parsing}


def measured(job: str, folder: Path, n: int) -> dict[str, float]:
    """One job in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--n", str(n), "--only", job]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1_700_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=JOBS)
    arguments = parser.parse_args()
    if arguments.only:
        found = JOBS[arguments.only](arguments.folder.resolve(), arguments.n)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = round(usage.ru_utime + usage.ru_stime, 1)
        print(json.dumps(found | {"cpu": cpu, "gib": round(usage.ru_maxrss / 2**20, 2)}))
        return
    seconds: dict[str, list[float]] = {job: [] for job in JOBS}
    for pair in range(arguments.pairs):
        for job in JOBS:
            found = measured(job, arguments.folder, arguments.n)
            seconds[job].append(found["seconds"])
            print(f"{pair} {job}: {found}, load {os.getloadavg()[0]:.1f}", flush=True)
    for other in ("duckdb", "parsing"):
        ratios = [mine / theirs for mine, theirs in zip(seconds["ours"], seconds[other], strict=True)]
        print(f"ours / {other}: {median(ratios)}")


if __name__ == "__main__":
    main()
