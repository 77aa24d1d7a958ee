"""The zarr v3 data type "bfloat16", which zarr-python lacks.

Out: a `ZDType` over `ml_dtypes.bfloat16` under the name of zarr-extensions, so that tensorstore reads the
same arrays natively. Where thinkdiff is installed, plain `zarr.open_group(folder)["features"]` reads it; to open
an array by its own path, import this module first. There is no zarr v2 form. See zarr-python#711 and #2656.

zarr-python 3.1 collects the entry points of `zarr.data_type` and never loads them (3.4 does). It loads those of
`zarr.buffer` before it reads the members of a group, so pyproject.toml names `Buffer` of this module there: zarr's
own class, re-registered under its own name, whose import registers the type on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
from zarr.core.buffer.cpu import Buffer
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.common import DataTypeValidationError, HasEndianness, HasItemSize
from zarr.core.dtype.wrapper import ZDType

NATIVE = np.dtype(ml_dtypes.bfloat16)
NOT_FINITE: Mapping[str, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """Eight bits of exponent and seven of mantissa, stored as 2 little-endian bytes."""

    dtype_cls = type(NATIVE)
    _zarr_v3_name: ClassVar[str] = "bfloat16"

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        """The type for numpy's `bfloat16`. Raises DataTypeValidationError for any other."""
        if dtype != NATIVE:
            raise DataTypeValidationError(f"data type: found {dtype}, expected bfloat16.")
        return cls()

    def to_native_dtype(self) -> np.dtype[Any]:
        """numpy's `bfloat16` of ml_dtypes."""
        return NATIVE

    @classmethod
    def _from_json_v2(cls, data: object) -> Self:
        raise DataTypeValidationError("data type: found zarr format 2, expected 3. bfloat16 has no v2 form.")

    @classmethod
    def _from_json_v3(cls, data: object) -> Self:
        if data != cls._zarr_v3_name:
            raise DataTypeValidationError(f"data type: found {data!r}, expected {cls._zarr_v3_name!r}.")
        return cls()

    def to_json(self, zarr_format: int) -> Any:
        """The name in zarr.json. Raises ValueError for zarr format 2."""
        if zarr_format != 3:
            raise ValueError(f"bfloat16: found zarr format {zarr_format}, expected 3. It has no v2 form.")
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, int | float | np.floating | np.integer | ml_dtypes.bfloat16)

    def cast_scalar(self, data: object) -> Any:
        """A number as bfloat16, rounded to nearest even. Raises TypeError for what is no number."""
        if not self._check_scalar(data):
            raise TypeError(f"bfloat16: found {data!r}, expected a number.")
        return ml_dtypes.bfloat16(data)

    def default_scalar(self) -> Any:
        """Zero."""
        return ml_dtypes.bfloat16(0)

    def from_json_scalar(self, data: Any, *, zarr_format: int) -> Any:
        """A fill value: a number, "NaN", "Infinity", "-Infinity", or the bits as "0x7fc0".

        Raises TypeError or ValueError for anything else.
        """
        if isinstance(data, str):
            if data.startswith("0x") and len(data) == 6:
                return np.array(int(data, 16), np.uint16).view(NATIVE)[()]
            if data not in NOT_FINITE:
                raise ValueError(f"fill_value: found {data!r}, expected a number, NaN, Infinity or 0x7fc0.")
            data = NOT_FINITE[data]
        return self.cast_scalar(data)

    def to_json_scalar(self, data: object, *, zarr_format: int) -> Any:
        """A fill value as JSON; every NaN becomes "NaN"."""
        value = float(self.cast_scalar(data))
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return 2


def register() -> None:
    """Makes zarr know the type; importing this module has done it."""
    data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)


register()
__all__ = ["NATIVE", "BFloat16", "Buffer", "register"]
