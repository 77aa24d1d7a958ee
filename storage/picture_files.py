"""Pictures as files: below a folder, on disk or in a bucket, or in a zip there, read where they are.

In: a path. Out: names and bytes; which names are wanted is the caller's. Nothing is decoded or kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.bucket import at_once
from thinkdiff.storage.root import Folder, locate
from thinkdiff.storage.zip_stream import ZipReader


@dataclass(frozen=True)
class PictureFiles:
    """A folder, or with `zip` the zip of that name in it. `below` is where in it the names begin, "" or with a `/`."""

    folder: Folder
    zip: str | None = None
    below: str = ""

    @staticmethod
    def at(base: str, url: str) -> PictureFiles:
        """The files of a folder or a zip, a relative one below `base`. Raises InputError when there is neither."""
        parent, name = locate(base, url.rstrip("/"))
        if name.lower().endswith(".zip") and parent.exists(name):
            return PictureFiles(parent, name)
        found = PictureFiles(parent / name)
        if not found.folder.children():
            raise InputError(
                f"{found.uri}: found no folder or zip with files, expected the benchmark's data set there. Unpack the "
                "data set below the data root, or point the recipe's `images` at it."
            )
        return found

    @property
    def uri(self) -> str:
        """Where they are, for a person."""
        place = f"{self.folder.uri}/{self.zip}" if self.zip else self.folder.uri
        return f"{place}/{self.below}".rstrip("/")

    def names(self, *folders: str) -> list[str]:
        """The names of the files directly in these folders below `below`; "" is `below` itself. Sorted."""
        if self.zip:
            with self.folder.open(self.zip) as file:
                every = ZipReader(file, self.uri).names
            inside = [name.removeprefix(self.below) for name in every if name.startswith(self.below)]
            return sorted(name for name in inside if name.rpartition("/")[0] in folders)
        found = [f"{folder}/{name}".lstrip("/") for folder in folders for name in self._place(folder).children()]
        return sorted(found)

    def folders(self) -> list[str]:
        """The names of the folders, and on disk or in a bucket also of the files, directly below `below`. Sorted."""
        if not self.zip:
            return self._place("").children()
        with self.folder.open(self.zip) as file:
            every = ZipReader(file, self.uri).names
        inside = [name.removeprefix(self.below) for name in every if name.startswith(self.below)]
        return sorted({name.split("/", 1)[0] for name in inside if "/" in name})

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those of these files that there are. Raises InputError for a damaged zip."""
        wanted = list(dict.fromkeys(names))
        if self.zip and wanted:
            with self.folder.open(self.zip) as file:
                reader = ZipReader(file, self.uri)
                inside = set(reader.names)
                return {name: reader.read(self.below + name) for name in wanted if self.below + name in inside}
        found = zip(wanted, at_once(self._file, wanted), strict=True)
        return {name: data for name, data in found if data is not None}

    def _file(self, name: str) -> bytes | None:
        try:
            return self.folder.read(self.below + name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _place(self, folder: str) -> Folder:
        path = f"{self.below}{folder}".rstrip("/")
        return self.folder / path if path else self.folder
