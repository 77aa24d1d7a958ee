"""How the numbers of one row become bytes and numbers again: as they are, compressed, or a byte each and a scale.

    none, zstd   the row's own numbers, little-endian; zstd compresses the bytes and loses nothing
    int8, fp8    for each token D codes of one byte, then its scale, a little-endian float32: number = code * scale

A code is a whole number of -127 … 127, or a float8_e4m3fn. A token that is not there is all ones, bits whose scale is
NaN, and so all of it. int8 is the closer one where no channel stands out: a step is 1/127 of the token's largest
number, for small and large channels alike. fp8 is off by some 3 % of each number, however large its neighbours are.

Shapes: T tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.features import Codec

Bytes = npt.NDArray[np.uint8]
LEVEL = 1  # 3 saves no more
SCALE = np.dtype("<f4")
FLOAT = np.finfo(np.float32)


@dataclass(frozen=True)
class Quantiser:
    """One byte for a number. code: the numpy type of a code; top: the largest one; zarr: data type, all ones in it."""

    code: np.dtype[Any]
    top: float
    zarr: tuple[str, int]

    def quantised(self, row_TD: npt.NDArray[Any]) -> Bytes:
        """(T, D) finite numbers, or NaN for a token that is not there, as bytes (T, D + 4)."""
        wide_TD = row_TD.astype(np.float32)
        largest_T1 = np.abs(wide_TD).max(1, keepdims=True)
        # not below a normal number, nor so that top * scale overflows
        scale_T1 = np.clip(
            largest_T1 / np.float32(self.top), FLOAT.tiny, np.nextafter(FLOAT.max / self.top, 0, dtype="f4")
        )
        there_T = np.isfinite(largest_T1[:, 0])
        codes_TD = wide_TD[there_T] / scale_T1[there_T]
        if self.code.kind == "i":
            np.rint(codes_TD, out=codes_TD)
        out = np.full((len(row_TD), row_TD.shape[1] + SCALE.itemsize), 0xFF, np.uint8)
        out[there_T, : -SCALE.itemsize] = codes_TD.astype(self.code).view(np.uint8)
        out[there_T, -SCALE.itemsize :] = scale_T1[there_T].astype(SCALE).view(np.uint8)
        return out

    def restored(self, codes: Bytes, native: np.dtype[Any]) -> npt.NDArray[Any]:
        """The numbers (T, D) of bytes (T, D + 4); NaN where a scale is none that `quantised` gives."""
        scale_T1 = codes[:, -SCALE.itemsize :].view(SCALE)
        scale_T1 = np.where(scale_T1 > 0, scale_T1, np.float32(np.nan))
        codes = codes[:, : -SCALE.itemsize]
        # a cast from float8 takes five times as long as looking it up
        wide_TD = codes.view(self.code) if self.code.kind == "i" else FLOAT8.take(codes)
        with np.errstate(over="ignore", invalid="ignore"):  # a foreign scale: readers refuse what is not finite
            return (wide_TD * scale_T1).astype(native, copy=False)


QUANTISERS: dict[Codec, Quantiser] = {
    "int8": Quantiser(np.dtype(np.int8), 127, ("int8", -1)),
    "fp8": Quantiser(np.dtype(ml_dtypes.float8_e4m3fn), 448, ("uint8", 255)),
}
FLOAT8 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def pack(row_TD: npt.NDArray[Any], codec: Codec) -> Bytes:
    """A row as the bytes that its checksum follows."""
    numbers = QUANTISERS[codec].quantised(row_TD) if codec in QUANTISERS else np.ascontiguousarray(row_TD)
    body = numbers.reshape(-1).view(np.uint8)
    return np.frombuffer(pa.Codec("zstd", LEVEL).compress(body), np.uint8) if codec == "zstd" else body


def unpack(body: Bytes, codec: Codec, shape: tuple[int, int], native: np.dtype[Any]) -> npt.NDArray[Any]:
    """The row (T, D) of these bytes. Raises ValueError when they decompress to another size or not at all."""
    if codec == "zstd":
        size = shape[0] * shape[1] * native.itemsize
        try:
            body = np.frombuffer(pa.decompress(body, size, "zstd"), np.uint8)
        except OSError as error:
            raise ValueError(str(error)) from None
    if codec in QUANTISERS:
        return QUANTISERS[codec].restored(body.reshape(shape[0], -1), native)
    return body.view(native).reshape(shape)
