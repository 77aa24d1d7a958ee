"""The training loop and its data: a store of features against memory, and against the authors' arrangement.

    python tests/bench/bench_training_data.py data                 a FeatureStore, cold and warm, against memory
    python tests/bench/bench_training_data.py authors              tars of .pth, padded, Hugging Face's T5

Rows are random features of the miniature's words, 64 tokens each and bfloat16, or with `--mini` 12 to 24 tokens of
width 128 in float32, as the miniature's answers are, with its recipe and its T5. `--narrow` takes the miniature's T5
with wide features; else the T5 is random, of --width. One thread computes. Arrangements are run in turn, in blocks of
--steps after --warm others; ratios are medians over the rounds with a bootstrap 95 % interval. Nothing is validated.

`authors` needs the package webdataset, which is no dependency: `pip install --target FOLDER webdataset`, PYTHONPATH.
Their tars also hold the input embeddings and the picture of a sample (here 20 kB of random bytes), which a tar's reader
reads past; `--lean` leaves both out. Workers are 0 and 2 where their configuration has 8, for want of processors.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_training import MemorySource, random_t5
from medians import median

from thinkdiff.flows.recipes import recipe
from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.checkpoints import CheckpointWriter
from thinkdiff.storage.feature_store import FeatureRow, FeatureStore, FeatureWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.aligner_training import Job, adamw, tensor, train
from thinkdiff.tasks.feature_batches import FeatureBatches, Held
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.ranks import Ranks
from thinkdiff.tasks.t5_decoder import TYPES, T5Decoder
from thinkdiff.tasks.trackers import EventFile
from thinkdiff.tasks.training_watch import TrainingWatch

SHARD, FIRST_WORD, PICTURE = 256, 9, 20_000
BUFFER, LONGEST_TARGET, MOST_SHOWN = 1000, 128, 128
OUTPUTS, INPUTS = "model.norm.output_embed.pth", "model.norm.input_embed.pth"


@dataclass
class Bench:
    """What all arrangements share."""

    options: argparse.Namespace
    store: FeatureStore
    vlm: Any
    t5: T5Decoder
    home: Path
    jobs: int = 0

    def job(self, source: Any, seed: int) -> Job:
        """A training of a block, new, in a folder of its own."""
        options, self.jobs = self.options, self.jobs + 1
        changes: dict[str, Any] = {"steps": options.warm + options.steps, "validation_rows": 0, "seed": seed}
        spec = AlignerSpec(
            t5=Model(name="random"), batch=options.batch, precision=options.precision
        )  # fmt: skip
        spec = (recipe("mini").aligner if options.mini else spec).but(**changes)
        torch.manual_seed(seed)
        config = AlignerConfig(self.store.shape[2], spec.hidden or self.t5.width, self.t5.width)
        folder = Folder.at(str(self.home / f"job-{self.jobs}"))
        data = FeatureBatches(spec, source, self.vlm, self.t5.tokens)
        return Job(
            spec, Aligner(config, self.t5.norm_D), self.t5, data, CheckpointWriter(folder), Execution(stop_loss=None)
        )


@dataclass
class Block:
    """Seconds of a block's steps after those that warm up: by the clock, of the processor, and waited for data."""

    samples: int
    wall: float
    cpu: float
    waited: float


def written(root: Path, options: argparse.Namespace, vlm: Any) -> FeatureStore:
    """A store of random features with texts of the miniature's words."""
    import ml_dtypes

    folder, rng = Folder.at(str(root / "store")), np.random.default_rng(0)
    width, longest = (128, 48) if options.mini else (options.features, 64)
    kind = "float32" if options.mini else "bfloat16"
    block_NTD = MemorySource(SHARD, width).block.view(ml_dtypes.bfloat16).astype(kind)
    writer = FeatureWriter(folder, rows=options.rows, tokens=longest, width=width, dtype=kind, shard_size=SHARD)
    writer.prepare()
    for shard in range(writer.shards):
        rows = []
        for number in writer.span(shard):
            count = int(rng.integers(12, 25)) if options.mini else longest
            ids = rng.integers(FIRST_WORD, len(vlm), count).tolist()
            states = block_NTD[number % SHARD, :count]
            rows.append(FeatureRow(f"{number:032x}", "p", tuple(ids), -1, vlm.decode(ids), states))
        writer.commit(shard, rows)
    return FeatureStore(FeatureSet.model_construct(uri=folder.uri, files=writer.files(), spec={}))


def forget(root: Path) -> None:
    """Drops the store's shards from the page cache."""
    for path in (root / "store" / "features").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def trained(bench: Bench, job: Job, heard: Callable[[int], None] = lambda step: None) -> Block:
    """A block of the whole loop, with its curves drawn. heard: is told each step."""
    spec, warm = job.spec, bench.options.warm
    curves = Folder.at(str(bench.home / f"curves-{bench.jobs}"))
    watch = TrainingWatch(spec.steps, lambda begin: EventFile(curves, begin))
    times, waits = [(0.0, 0.0)], list[float]()

    def report(event: dict[str, Any]) -> None:
        watch.hear(event)
        if event["event"] == "step":
            times.append((time.perf_counter(), time.process_time()))
            waits.append(event["waited"])
            heard(event["step"])

    train(job, Ranks("cpu"), report, lambda: False)
    (wall, cpu), (wall_end, cpu_end) = times[warm], times[-1]
    return Block(spec.batch * (spec.steps - warm), wall_end - wall, cpu_end - cpu, sum(waits[warm:]))


def in_turn(rounds: int, arms: dict[str, Callable[[int], Block]]) -> dict[str, list[Block]]:
    """Each arrangement's blocks; every other round goes the other way about."""
    found: dict[str, list[Block]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            found[name].append(arms[name](number))
    for name, blocks in found.items():
        wall, cpu, waited, samples = (
            sum(getattr(block, what) for block in blocks) for what in ("wall", "cpu", "waited", "samples")
        )
        print(
            f"{name:22} {samples / wall:7.1f} samples/s, {cpu / samples * 1e3:6.2f} ms of processor a sample, "
            f"{len(blocks)} blocks of {blocks[0].wall:.1f} s, waiting for data {waited / wall:.2%}"
        )
    return found


def told(found: dict[str, list[Block]], one: str, other: str) -> None:
    """The median ratios of two arrangements: what the first takes less."""
    pairs = list(zip(found[one], found[other], strict=True))
    wall, cpu = median([b.wall / a.wall for a, b in pairs], 3), median([b.cpu / a.cpu for a, b in pairs], 3)
    print(f"{other} over {one}: {wall} of its seconds, {cpu} of its processor seconds")


def data(bench: Bench) -> None:
    """The store against memory."""
    memory, read = Held(bench.store, "generated"), list[float]()

    def cold(seed: int) -> Block:
        forget(bench.home)
        before = disk_bytes()
        block = trained(bench, bench.job(bench.store, seed))
        read.append((disk_bytes() - before) / 1e6)
        return block

    found = in_turn(bench.options.pairs, {
        "memory": lambda seed: trained(bench, bench.job(memory, seed)),
        "store, in page cache": lambda seed: trained(bench, bench.job(bench.store, seed)),
        "store, not in it": cold,
    })  # fmt: skip
    for name in list(found)[1:]:
        told(found, "memory", name)
    print(f"read from disk in a block that is not in the page cache: {statistics.median(read):.0f} MB")


def authors(bench: Bench) -> None:
    """The whole loop over the store against tars, a padded collation and Hugging Face's model."""
    try:
        wds = importlib.import_module("webdataset")
    except ImportError:
        sys.exit("webdataset: found no such package, expected it for the authors' arrangement. See the docstring.")
    urls = tars(wds, bench)
    ways = {f"authors, {workers} workers": Authors(bench, loader(wds, urls, bench, workers)) for workers in (0, 2)}
    found = in_turn(bench.options.pairs, {
        "whole loop, store": lambda seed: trained(bench, bench.job(bench.store, seed)), **ways,
    })  # fmt: skip
    for name in ways:
        told(found, "whole loop, store", name)


def tars(wds: Any, bench: Bench) -> list[str]:
    """The store's rows as the authors keep them."""
    folder = bench.home / "tars"
    folder.mkdir()
    with wds.ShardWriter(f"{folder}/%06d.tar", maxsize=5e8, verbose=0) as writer:
        for row in bench.store.iterate():
            said = json.dumps({"output_token_ids": list(row.token_ids), "output_text": row.text}).encode()
            file = io.BytesIO()
            torch.save(tensor(row.features).clone(), file)
            sample = {"__key__": row.key, "json": said, OUTPUTS: file.getvalue()}
            if not bench.options.lean:
                sample |= {"jpg": random.randbytes(PICTURE), INPUTS: file.getvalue()}
            writer.write(sample)
    return sorted(map(str, folder.iterdir()))


def loader(wds: Any, urls: list[str], bench: Bench, workers: int) -> Iterator[Any]:
    """Batches without end. The buffer is full before the first, so that no block pays for filling it."""
    stages = (wds.ResampledShards(urls), wds.tarfile_to_samples(), wds.shuffle(BUFFER, initial=BUFFER))
    pipeline = wds.DataPipeline(*stages, wds.map(decoded))
    size = bench.options.batch
    return iter(torch.utils.data.DataLoader(pipeline, batch_size=size, num_workers=workers, collate_fn=collated))


def decoded(sample: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
    """Token ids and features of a sample."""
    return json.loads(sample["json"])["output_token_ids"], torch.load(io.BytesIO(sample[OUTPUTS]), weights_only=True)


def collated(samples: list[tuple[list[int], torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Prefixes padded with zeros (B, L, Q), their mask, and the ids that follow."""
    counts = [random.randint(1, min(len(ids) - 1, MOST_SHOWN)) for ids, _ in samples]
    x_BLQ = samples[0][1].new_zeros(len(samples), max(counts), samples[0][1].shape[1])
    mask_BL = torch.zeros(x_BLQ.shape[:2], dtype=torch.long)
    for at, (count, (_, states)) in enumerate(zip(counts, samples, strict=True)):
        x_BLQ[at, :count], mask_BL[at, :count] = states[:count], 1
    return x_BLQ, mask_BL, [ids[count:] for count, (ids, _) in zip(counts, samples, strict=True)]


class Authors:
    """Blocks of their arrangement; one loader for all of them."""

    def __init__(self, bench: Bench, batches: Iterator[Any]) -> None:
        next(batches)
        self.bench, self.batches = bench, batches

    def __call__(self, seed: int) -> Block:
        bench, job = self.bench, self.bench.job(self.bench.store, seed)
        optimizer, wall, cpu, waited = adamw(job.spec, job.aligner), 0.0, 0.0, 0.0
        for number in range(job.spec.steps):
            if number == bench.options.warm:
                wall, cpu, waited = time.perf_counter(), self.processor(), 0.0
            asked = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - asked
            optimizer.zero_grad(set_to_none=True)
            loss = self.loss(job, *batch)
            loss.backward()
            optimizer.step()
            loss.item()
        samples = job.spec.batch * bench.options.steps
        return Block(samples, time.perf_counter() - wall, self.processor() - cpu, waited)

    def processor(self) -> float:
        """Processor seconds of this process and the loader's."""
        workers = [worker.pid for worker in getattr(self.batches, "_workers", [])]
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in workers]
        ticks = sum(int(field[11]) + int(field[12]) for field in fields)  # its user and system time
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")

    def loss(self, job: Job, x_BLQ: torch.Tensor, mask_BL: torch.Tensor, rest: list[list[int]]) -> torch.Tensor:
        """By Hugging Face's model, padded."""
        from transformers.modeling_outputs import BaseModelOutput

        mixed = job.spec.precision == "bfloat16"
        texts = self.bench.vlm.batch_decode(rest, skip_special_tokens=True)
        told = job.t5.tokenizer(
            texts, padding="longest", truncation=True, max_length=LONGEST_TARGET, return_tensors="pt"
        )
        ids = told["input_ids"]
        labels = ids.masked_fill(ids == job.t5.tokenizer.pad_token_id, -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            states = job.aligner(x_BLQ if mixed else x_BLQ.float())
            return job.t5.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask_BL,
                decoder_attention_mask=told["attention_mask"], labels=labels,
            ).loss  # fmt: skip


def main() -> int:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "authors"))
    parser.add_argument("--lean", action="store_true")
    options = settings(parser)
    with prepared(options) as bench:
        {"data": data, "authors": authors}[options.what](bench)
    return 0


def settings(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What all benchmarks of the training's data can be told."""
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--features", type=int, default=3584, help="width of the VLM")
    parser.add_argument("--width", type=int, default=256, help="of the random T5")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="of a block, after --warm others")
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--narrow", action="store_true")
    return parser.parse_args(namespace=argparse.Namespace(device="cpu"))


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Bench]:
    """Models and a store, in a temporary folder."""
    torch.set_num_threads(1)
    prepare_torchvision()
    from transformers import AutoTokenizer

    vlm = AutoTokenizer.from_pretrained(weights_folder() / "mini-qwen2-vl")
    t5 = T5Decoder(str(weights_folder() / "mini-t5"), "cpu", TYPES[options.precision])
    if not (options.mini or options.narrow):
        tokenizer, t5 = t5.tokenizer, random_t5(options)
        t5.tokenizer = tokenizer
    with tempfile.TemporaryDirectory() as home:
        yield Bench(options, written(Path(home), options, vlm), vlm, t5, Path(home))


if __name__ == "__main__":
    sys.exit(main())
