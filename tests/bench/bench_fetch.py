"""Pictures by URL: images per second of fetch_images against a bare aiohttp loop at the same concurrency.

    python tests/bench/bench_fetch.py --folder /tmp/fetch --pairs 5
    python tests/bench/bench_fetch.py --folder /tmp/fetch --kills 5

A server process of `tests/picture_server.py` with latency answers both, in interleaved pairs; the ratio is a median
with a bootstrap 95 % interval. The bare loop reads the bodies and keeps nothing; ours also checks addresses, decodes
every picture in its own processes, hashes and writes. With `--kills` a share of the pictures has faults (errors,
stalls, resets, slow bodies, redirects to a private address), runs are killed soon after a random shard, and the index
of the last one is compared with that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
from medians import median

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from small_images import captions_of, execution, fetch  # noqa: E402

from thinkdiff.schemas.artifact import Fetching  # noqa: E402
from thinkdiff.schemas.captions import CaptionSet  # noqa: E402
from thinkdiff.schemas.images import ImageSet, ImageSpec  # noqa: E402
from thinkdiff.storage.root import Folder  # noqa: E402

SPEC = ImageSpec(by_url=True, shard_size=250)


def settings(concurrency: int) -> Fetching:
    """One host gets all requests here; faults are given up soon."""
    return Fetching(
        concurrency=concurrency, per_host=concurrency, read_seconds=2, total_seconds=3, retries=1,
        backoff_seconds=0.1, host_patience=1_000_000,
    )  # fmt: skip


async def bare(urls: list[str], concurrency: int) -> int:
    """Reads all bodies with so many requests under way; the bytes read."""
    queue, total = iter(urls), 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal total
        for url in queue:
            async with session.get(url) as response:
                total += len(await response.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
    return total


def ours(folder: Path, captions: CaptionSet, concurrency: int) -> ImageSet:
    """The stage, from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    return fetch(Folder(str(folder)), captions, SPEC, execution(folder.parent, settings(concurrency)))


def compare(arguments: argparse.Namespace, urls: list[str], captions: CaptionSet) -> None:
    """Pairs of the bare loop and the stage."""
    ratios = []
    for pair in range(arguments.pairs):
        rates: dict[str, float] = {}
        for name in ("bare", "ours") if pair % 2 else ("ours", "bare"):
            began = time.monotonic()
            if name == "bare":
                asyncio.run(bare(urls, arguments.concurrency))
            else:
                images = ours(arguments.folder / "images", captions, arguments.concurrency)
                assert images.counts["captions"] == images.counts["images"] == len(urls), images.counts
            rates[name] = len(urls) / (time.monotonic() - began)
        ratios.append(rates["ours"] / rates["bare"])
        print(
            f"pair {pair}: bare {rates['bare']:.0f}/s, ours {rates['ours']:.0f}/s, ratio {ratios[-1]:.3f}", flush=True
        )
    print(f"ratio: median {median(ratios, 3)}; load {os.getloadavg()[0]:.1f}")


def child(arguments: argparse.Namespace) -> None:
    """The run that is killed."""
    captions = CaptionSet.model_validate_json((arguments.folder / "captions.json").read_text())
    run = execution(arguments.folder, settings(arguments.concurrency))
    fetch(Folder(str(arguments.folder / "rough")), captions, SPEC, run)


def kill(arguments: argparse.Namespace, captions: CaptionSet) -> None:
    """An undisturbed run, killed ones, and the comparison."""
    began = time.monotonic()
    calm, rng = ours(arguments.folder / "calm", captions, arguments.concurrency), random.Random(0)
    seconds = time.monotonic() - began
    print(f"undisturbed: {calm.counts} in {seconds:.0f} s, {calm.stats['reasons']}", flush=True)
    assert calm.counts["images"] + calm.counts["failed"] == arguments.count
    (arguments.folder / "captions.json").write_text(captions.model_dump_json())
    rough = arguments.folder / "rough"
    shutil.rmtree(rough, ignore_errors=True)
    command = [sys.executable, __file__, "--child", "--folder", str(arguments.folder)]
    command += ["--concurrency", str(arguments.concurrency)]
    for number, target in enumerate(sorted(rng.sample(range(1, calm.counts["shards"]), arguments.kills))):
        process = subprocess.Popen(command, start_new_session=True)
        while len(list(rough.glob("commits/*.json"))) < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"kill {number}: {len(list(rough.glob('commits/*.json')))} shards committed", flush=True)
    again = fetch(Folder(str(rough)), captions, SPEC, execution(arguments.folder, settings(arguments.concurrency)))
    print(f"after {arguments.kills} kills: {again.counts}")
    index = [next(f.sha256 for f in found.files if f.path == "index.parquet") for found in (calm, again)]
    print(f"same index: {index[0] == index[1]}; same artifact: {calm.digest == again.digest}")
    assert index[0] == index[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--child", action="store_true", help="for this program's own use")
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    faults = 0.05 if arguments.kills else 0.0
    command = [sys.executable, str(TESTS / "picture_server.py"), f"--latency={arguments.latency}", f"--faults={faults}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            base = server.stdout.readline().strip()
            urls = [f"{base}/{number}.jpg" for number in range(arguments.count)]
            captions = captions_of(Folder(str(arguments.folder / "captions")), urls)
            if arguments.kills:
                kill(arguments, captions)
            else:
                compare(arguments, urls, captions)
        finally:
            server.kill()
    return None


if __name__ == "__main__":
    main()
