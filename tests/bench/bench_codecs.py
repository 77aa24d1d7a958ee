"""What the codecs of a feature store cost and what they do to training, in one run: bytes, CPU, error, loss, accuracy.

    python tests/bench/bench_codecs.py --root runs --seeds 5 --per-task 20
    python tests/bench/bench_codecs.py --store s3://bucket/runs/extract_features/3f9a…      (bytes, CPU and error of it)

The miniature's features (float32) are extracted once and written again with each codec; aligners of several seeds are
trained on each store, prompts are encoded the same way, and the pictures are scored. What is there already is kept.
Differences are those of equal seeds, with a t interval of 95 %. "outliers": four of 128 channels of every feature times
30, as the miniature has none and large models do. "4 bits" rounds to 15 numbers a token: a codec that is not built.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prefect import flow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from thinkdiff.flows import recipes
from thinkdiff.schemas.artifact import Execution, content_digest, sha256_json
from thinkdiff.schemas.features import Codec, FeatureSet
from thinkdiff.storage.feature_shards import Layout, StoredType, decode_shard, encode_shard
from thinkdiff.storage.feature_store import FeatureReader, FeatureStore, FeatureWriter
from thinkdiff.storage.records import artifact_folder, read_record, write_record
from thinkdiff.tasks.extract_features import extract_features
from thinkdiff.tasks.fetch_images import fetch_images
from thinkdiff.tasks.generate_media import generate_media
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.sample_captions import sample_captions
from thinkdiff.tasks.score_cobsat import score_cobsat
from thinkdiff.tasks.train_aligner import train_aligner

Numbers = npt.NDArray[Any]
CODECS: tuple[Codec, ...] = ("none", "zstd", "int8", "fp8")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
TOKENS, ROWS, SHARD = 64, 64, 32


def same(x_TD: Numbers) -> Numbers:
    """The features."""
    return x_TD


def outliers(x_TD: Numbers) -> Numbers:
    """Every 32nd channel times 30."""
    gain_D = np.ones(x_TD.shape[-1], np.float32)
    gain_D[::32] = 30
    return x_TD * gain_D


def four_bits(x_TD: Numbers) -> Numbers:
    """The nearest of 15 numbers of a token's own scale."""
    scale_T1 = np.abs(x_TD).max(1, keepdims=True) / 7
    return np.rint(x_TD / scale_T1) * scale_T1


CONDITIONS: dict[str, tuple[Callable[[Numbers], Numbers], StoredType, Codec]] = {
    "bfloat16": (same, "bfloat16", "none"),
    "float32": (same, "float32", "none"),
    "int8": (same, "bfloat16", "int8"),
    "fp8": (same, "bfloat16", "fp8"),
    "4 bits": (four_bits, "bfloat16", "none"),
    "outliers, bfloat16": (outliers, "bfloat16", "none"),
    "outliers, int8": (outliers, "bfloat16", "int8"),
    "outliers, fp8": (outliers, "bfloat16", "fp8"),
}


def full_rows(states: Iterable[Numbers], rows: int = ROWS) -> Numbers:
    """Real tokens one after the other as rows without padding (R, TOKENS, D), float32."""
    found, count = [], 0
    for state in states:
        found.append(state.astype(np.float32))
        count += len(state)
        if count >= rows * TOKENS:
            break
    flat = np.concatenate(found)
    rows = min(rows, len(flat) // TOKENS)
    return flat[: rows * TOKENS].reshape(rows, TOKENS, -1)


def random_weights(width: int) -> Numbers:
    """The final-norm states of a Qwen2 of random weights at that width (ROWS, TOKENS, D)."""
    import torch

    prepare_torchvision()
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=1000,
    )  # fmt: skip
    model = Qwen2Model(config).eval()
    with torch.no_grad():
        ids = torch.randint(0, 1000, (ROWS, TOKENS))
        return torch.cat([model(some).last_hidden_state for some in ids.split(8)]).numpy()


def cost(act: Callable[[], object], size: int) -> float:
    """CPU seconds for 10^9 bytes, the median of five."""
    used = []
    for _ in range(5):
        began = time.process_time()
        act()
        used.append(time.process_time() - began)
    return statistics.median(used) / size * 1e9


def bytes_and_errors(name: str, block_RTD: Numbers) -> None:
    """Prints a line for each codec: bytes, CPU, and what comes back against what went in."""
    for codec in CODECS:
        layout = Layout(len(block_RTD), TOKENS, block_RTD.shape[2], "bfloat16", SHARD, codec=codec)
        blocks = [block_RTD[start : start + SHARD].astype(layout.native) for start in range(0, len(block_RTD), SHARD)]
        shards = [bytes(encode_shard(block, len(block), layout)) for block in blocks]
        size = sum(block.nbytes for block in blocks)

        def encode(layout: Layout = layout, blocks: list[Numbers] = blocks) -> None:
            for block in blocks:
                encode_shard(block, len(block), layout)

        def decode(layout: Layout = layout, shards: list[bytes] = shards) -> list[Numbers]:
            return [row for number, data in enumerate(shards) for row in decode_shard(data, layout, number, "bench")]

        wide = block_RTD.reshape(-1, block_RTD.shape[2])
        lost = np.concatenate(decode()).astype(np.float32) - wide
        tokens = np.sqrt((lost**2).sum(1) / (wide**2).sum(1))
        channels = np.sqrt((lost**2).mean(0) / (wide**2).mean(0))
        print(
            f"| {name} | {codec} | {sum(map(len, shards)) / size:.3f} | {cost(encode, size):.2f} | "
            f"{cost(decode, size):.2f} | {np.median(tokens):.4f} | {np.quantile(tokens, 0.99):.4f} | "
            f"{channels.max():.4f} |",
            flush=True,
        )


def rewritten(root: str, whole: FeatureSet, condition: str) -> FeatureSet:
    """A store of the same rows with features and codec of a condition."""
    change, dtype, codec = CONDITIONS[condition]
    fingerprint = sha256_json([whole.digest, condition, dtype, codec])[:32]
    folder = artifact_folder(root, "extract_features", fingerprint)
    if (found := read_record(folder, FeatureSet)) is not None:
        return found
    reader = FeatureReader(whole)
    rows, tokens, width = reader.shape
    writer = FeatureWriter(folder, rows=rows, tokens=tokens, width=width, dtype=dtype, codec=codec)
    writer.prepare()
    for shard in range(writer.shards):
        some = reader.rows(writer.span(shard))
        writer.commit(shard, [replace(row, features=change(row.features)) for row in some])
    files = tuple(sorted(writer.files(), key=lambda entry: entry.path))
    made = whole.model_copy(
        update={
            "fingerprint": fingerprint, "uri": folder.uri, "files": files, "digest": content_digest(files),
            "spec": whole.spec | {"dtype": dtype, "codec": codec},
        }
    )  # fmt: skip
    write_record(made)
    return made


@flow(name="codecs", persist_result=False)
def study(run: Execution, seeds: int, per_task: int, conditions: list[str]) -> dict[str, Any]:
    """Condition -> bytes of its store, validation losses and accuracies by seed."""
    spec = recipes.miniature(name="codecs", per_task=per_task)
    assert spec.scores
    assert spec.queries
    assert spec.media
    recipes.prepare(spec, run)
    images = fetch_images(run, spec.images, sample_captions(run, spec.captions).artifact).artifact
    whole = extract_features(run, spec.features, images).artifact
    asked = extract_features(run, spec.queries, None).artifact
    bytes_and_errors("the miniature", full_rows(row.features for row in FeatureReader(whole).iterate()))
    media = spec.media.but(methods=("aligned",))
    found: dict[str, Any] = {name: {"loss": [], "accuracy": []} for name in conditions}
    for seed in range(seeds):
        for name, results in found.items():
            features, queries = (rewritten(run.root, one, name) for one in (whole, asked))
            aligner = train_aligner(run, spec.aligner.but(seed=seed), features).artifact
            pictures = generate_media(run, media, queries, aligner).artifact
            scores = score_cobsat(run, spec.scores, pictures).artifact.stats["scores"]["aligned"]
            results["bytes"] = sum(entry.size for entry in features.files if entry.path.startswith("features/c/"))
            results["loss"].append(aligner.stats["final_validation_loss"])
            results["accuracy"].append(statistics.mean(scores.values()))
    return found


def interval(numbers: list[float]) -> str:
    """A mean with its t interval."""
    mean = statistics.mean(numbers)
    half = T95[len(numbers)] * statistics.stdev(numbers) / len(numbers) ** 0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="runs")
    parser.add_argument("--store", help="a feature store to measure instead")
    parser.add_argument("--seeds", type=int, default=5, choices=T95)
    parser.add_argument("--per-task", type=int, default=20)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS, metavar="NAME")
    options = parser.parse_args()
    print("| features | codec | bytes over bfloat16 | encode, CPU s/GB | decode | token error | 99 % | worst channel |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    if options.store:
        store = FeatureStore.open(options.store)
        bytes_and_errors("the store", full_rows(row.features for row in store.iterate()))
        return
    random = random_weights(3584)
    bytes_and_errors("random weights, D = 3584", random)
    bytes_and_errors("the same with outliers", outliers(random))
    spec = recipes.recipe("mini")
    run = recipes.execution(Execution(root=options.root), spec)
    found = study(run, options.seeds, options.per_task, options.conditions)
    print("\n| store | bytes | validation loss | less that of bfloat16 | accuracy | less that of bfloat16 |")
    print("|---|---|---|---|---|---|")
    for name, results in found.items():
        base = found["outliers, bfloat16" if name.startswith("outliers") else "bfloat16"]
        cells = [name, f"{results['bytes'] / base['bytes']:.3f}"]
        for kind in ("loss", "accuracy"):
            less = [one - other for one, other in zip(results[kind], base[kind], strict=True)]
            cells += [f"{statistics.mean(results[kind]):.4f}", interval(less) if results is not base else ""]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
