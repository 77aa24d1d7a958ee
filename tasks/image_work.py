"""The work on some shards of pictures: from the tars or by URL, decoded, written as parts. One process, one event loop.

In: the artifact's folder, spec, captions and numbers of shards. Out: a committed part for each. It knows no Prefect and
takes plain values only, so that any task runner can call it in a thread, a process or on another machine; which shards
it is given changes no byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any, TypeVar

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.errors import InputError, ThinkDiffError
from thinkdiff.schemas.images import ImageSpec
from thinkdiff.storage.caption_sample import SampledCaption, iterate_captions
from thinkdiff.storage.image_parts import ImageParts, Spool
from thinkdiff.storage.image_places import KeyTable, Place, PlaceLog, Places, tars_of
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.image_addresses import Unfetched
from thinkdiff.tasks.image_client import UNREACHED, ImageClient
from thinkdiff.tasks.image_pool import ImagePool
from thinkdiff.tasks.pictures import Demands, Picture, PictureRefused

OPEN_SHARDS, FILE_THREADS = 3, 32
OPEN_ROWS = 100  # for each request under way: a row may take a hundred times as long as most
TELLING = 50
T = TypeVar("T")


def index_tars(folder: Folder, spec: ImageSpec, captions: CaptionSet, run: Execution, tars: Sequence[int]) -> None:
    """Goes through some of the tars and commits where the sampled pictures lie."""
    places = PlaceLog(folder, tars_of(run.data_root, spec.tars))
    keys = KeyTable(caption.key for caption in iterate_captions(captions))
    for number in tars:
        places.index(number, keys, spec.max_bytes)


def fetch_shards(folder: Folder, spec: ImageSpec, captions: CaptionSet, run: Execution, shards: Sequence[int]) -> None:
    """Makes some shards; of one that is committed only the failed rows are tried again."""
    parts = ImageParts(folder, captions.counts["captions"], spec.shard_size)
    tars = PlaceLog(folder, tars_of(run.data_root, spec.tars))
    work = ShardWork(parts, tars, tars.places(shards, spec.shard_size), spec, run)
    asyncio.run(work.run(captions_of(captions, parts, shards)))


def captions_of(
    captions: CaptionSet, parts: ImageParts, shards: Sequence[int]
) -> Iterator[tuple[int, list[SampledCaption]]]:
    """The captions of some shards, shard by shard."""
    rows, wanted = iterate_captions(captions), set(shards)
    for shard in range(max(shards) + 1):
        batch = islice(rows, len(parts.span(shard)))
        if shard in wanted:
            yield shard, list(batch)
        else:
            for _ in batch:
                pass


class ShardWork:
    """Makes shards, several of them at a time, since a slow host may hold one up."""

    def __init__(self, parts: ImageParts, tars: PlaceLog, places: Places, spec: ImageSpec, run: Execution) -> None:
        self.parts, self.tars, self.places, self.spec, self.run_ = parts, tars, places, spec, run
        self.pool = ImagePool(Demands.of(spec), run.fetching)
        self.client = ImageClient(run, spec.max_bytes, spec.honour_opt_out) if spec.by_url else None

    async def run(self, shards: Iterator[tuple[int, list[SampledCaption]]]) -> None:
        """Makes all shards. Raises what stopped the first one that was stopped."""
        concurrency = self.run_.fetching.concurrency
        # for names: getaddrinfo may take many seconds, and goes on when nobody waits for it any more
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * concurrency, "thinkdiff-names"))
        self._files = ThreadPoolExecutor(FILE_THREADS, "thinkdiff-images")
        self._reads = asyncio.Semaphore(concurrency)
        rows = OPEN_ROWS * concurrency if self.client else 0
        room = asyncio.Semaphore(max(OPEN_SHARDS, rows // self.spec.shard_size))

        async def make(shard: int, captions: list[SampledCaption]) -> None:
            try:
                await self._shard(shard, captions)
            finally:
                room.release()

        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._files)
                await stack.enter_async_context(self.pool)
                if self.client:
                    await stack.enter_async_context(self.client)
                group = await stack.enter_async_context(asyncio.TaskGroup())
                for shard, captions in shards:
                    await room.acquire()
                    group.create_task(make(shard, captions))
        except ExceptionGroup as errors:
            raise first_of(errors) from None

    async def _shard(self, shard: int, captions: list[SampledCaption]) -> None:
        part, spool = await self._in_thread(self.parts.find, shard), Spool()
        rows = self.parts.rows(part) if part else None
        reasons = {place: row.reason or "" for place, row in enumerate(rows or ())}
        wanted = [place for place in range(len(captions)) if rows is None or reasons[place]]
        try:
            async with asyncio.TaskGroup() as group:
                for place in wanted:
                    group.create_task(self._row(shard, place, captions[place], spool, reasons))
            if part is None:
                self._must_be_reached(shard, reasons, len(captions))
                await self._in_thread(self.parts.commit, shard, captions, spool, reasons)
            elif rows is not None and spool.held:
                await self._in_thread(self.parts.amend, part, rows, spool, reasons)
        finally:
            spool.close()

    def _must_be_reached(self, shard: int, reasons: dict[int, str], captions: int) -> None:
        """Raises InputError for a shard that got no answer at all: that is our network and not so many dead hosts."""
        if self.client and len(reasons) == captions >= TELLING and UNREACHED.issuperset(reasons.values()):
            raise InputError(
                f"fetch_images: found no answer to any of {captions} requests (shard {shard}), expected some. The "
                "network or its name server is out of reach; set it right and run the stage again, it goes on where it "
                "stood."
            )

    async def _row(
        self, shard: int, place: int, caption: SampledCaption, spool: Spool, reasons: dict[int, str]
    ) -> None:
        """Finds one picture: in the first tar that has a good one, else behind its URL."""
        places, reason = self.places.of(self.parts.span(shard)[place])
        reasons[place], picture = reason or "not in the tars", None
        try:
            for found in places:
                picture = picture or await self._from_tar(found, place, reasons)
            if picture is None and self.client:
                picture = await self.client.get(caption.url, self.pool.prepare, shard)
        except (Unfetched, PictureRefused) as error:
            reasons[place] = str(error)
        if picture:
            spool.hold(place, picture.data, picture.width, picture.height, picture.kind)
            del reasons[place]

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, call, *arguments)

    async def _from_tar(self, found: Place, place: int, reasons: dict[int, str]) -> Picture | None:
        tar = self.tars.tars[found.tar]
        async with self._reads:
            data = await self._in_thread(tar.folder.read_range, tar.name, found.offset, found.offset + found.size)
            try:
                return await self.pool.prepare(data)
            except PictureRefused as error:
                reasons[place] = str(error)
                return None


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person can act on, out of those that a group of tasks ended with."""
    known, _ = errors.split(ThinkDiffError)
    error: BaseException = known or errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
