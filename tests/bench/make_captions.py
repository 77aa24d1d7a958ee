"""Writes the three collections at their real sizes and with their kind of dirt, for `bench_sampling.py`.

    python tests/bench/make_captions.py FOLDER [--scale 1.0]

At scale 1: cc3m.tsv with 3.3 million rows, cc12m.tsv with 12.4, sbu-captions-all.json with 1.0; about 2.1 GB. One row
in a hundred has the URL of an earlier one, one in fifty a host in capitals, a port or a fragment, one in twelve is not
ASCII, one in two thousand is malformed. Deterministic.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

ROWS = {"cc3m": 3_318_333, "cc12m": 12_423_374, "sbu": 1_000_000}
WORDS = (
    "a the of in on with and at to for photo view image stock vector illustration woman man dog cat house garden city "
    "street beach mountain sunset river bridge table kitchen wedding dress red blue white black vintage modern wooden "
    "large small old new beautiful young portrait background close up during festival football player during match"
).split()
ODD_WORDS = ("café", "“quoted”", "naïve", "schön", "東京", "–", "5 €", "it’s")
HOSTS = ("i.pinimg.com", "cdn.shopify.com", "static.example.org", "images.example.com", "farm4.static.example.net")
BROKEN = ("no tab at all", "three\tfields\there", "\thttp://x.example/1", "caption\tftp://x.example/1", "")


def rows(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(url, caption) pairs."""
    rng = random.Random(seed)
    draw, bits, choice = rng.random, rng.getrandbits, rng.choice
    phrases = [" ".join(rng.choices(WORDS, k=rng.randint(2, 7))) for _ in range(4096)]
    earlier = "https://static.example.org/first.jpg"
    for i in range(count):
        number = bits(64)
        caption = f"{phrases[number & 4095]} {phrases[number >> 12 & 4095]}"
        url = f"https://{HOSTS[i % 5]}/media/{number:016x}/{i:08d}-{number >> 40 & 0xFFFF:x}.jpg"
        kind = draw()
        if kind < 0.08:
            caption = f"{caption} {choice(ODD_WORDS)}"
        elif kind < 0.09:
            url = earlier
        elif kind < 0.10:
            url = url.replace("example", "Example").replace("pinimg", "PinImg") + "#top"
        elif kind < 0.11:
            url = url.replace("/media/", ":443/media/")
        elif kind < 0.1105:
            caption = f"{caption}\ufffd"
        elif kind < 0.12:
            earlier = url
        yield url, caption


def write_tsv(path: Path, count: int, seed: int, url_first: bool) -> None:
    """A collection of lines."""
    with path.open("w", encoding="utf-8") as file:
        lines = []
        for i, (url, caption) in enumerate(rows(count, seed)):
            lines.append(f"{url}\t{caption}\n" if url_first else f"{caption}\t{url}\n")
            if i % 2000 == 1999:
                lines.append(BROKEN[i // 2000 % len(BROKEN)] + "\n")
            if len(lines) > 10_000:
                file.write("".join(lines))
                lines = []
        file.write("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    count = {name: int(number * arguments.scale) for name, number in ROWS.items()}
    write_tsv(arguments.folder / "cc3m.tsv", count["cc3m"], 1, url_first=False)
    write_tsv(arguments.folder / "cc12m.tsv", count["cc12m"], 2, url_first=True)
    pairs = list(rows(count["sbu"], 3))
    lists = {"image_urls": [p[0] for p in pairs], "user_ids": ["u"] * len(pairs), "captions": [p[1] for p in pairs]}
    (arguments.folder / "sbu-captions-all.json").write_text(json.dumps(lists))


if __name__ == "__main__":
    main()
