"""The zarr data type: numbers against ml_dtypes, and a fresh process that knows nothing of us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr
from small_features import TOKENS, WIDTH, row, write
from zarr.core.dtype import data_type_registry

from thinkdiff.storage.bfloat16 import NATIVE, BFloat16
from thinkdiff.storage.root import Folder

REPOSITORY = Path(__file__).resolve().parent.parent


def test_bfloat16_array_keeps_every_bit_pattern(tmp_path: Path):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(16, -1)
    array = zarr.create_array(str(tmp_path), shape=bits.shape, chunks=(4, 4096), dtype=NATIVE)
    with np.errstate(invalid="ignore"):  # zarr compares the signalling NaNs with the fill value
        array[...] = bits.view(NATIVE)
    read = zarr.open_array(str(tmp_path), mode="r")
    assert read.dtype == NATIVE
    assert np.array_equal(np.asarray(read[...]).view(np.uint16), bits)


@pytest.mark.parametrize(
    ("fill", "in_json"), [(float("nan"), "NaN"), (float("-inf"), "-Infinity"), (1.5, 1.5), (0, 0.0), ("0x7fc1", "NaN")]
)
def test_bfloat16_fill_value_survives_the_metadata(tmp_path: Path, fill: float | str, in_json: float | str):
    kind = BFloat16()
    value = kind.from_json_scalar(fill, zarr_format=3)
    zarr.create_array(str(tmp_path), shape=(4,), chunks=(2,), dtype=NATIVE, fill_value=value)
    assert json.loads((tmp_path / "zarr.json").read_text())["fill_value"] == in_json
    read = zarr.open_array(str(tmp_path), mode="r")
    np.testing.assert_array_equal(np.asarray(read[...]).astype(np.float32), np.full(4, value, np.float32))


def test_bfloat16_is_the_only_type_for_its_dtype_and_takes_no_other():
    assert data_type_registry.match_dtype(NATIVE) == BFloat16()
    assert data_type_registry.match_dtype(np.dtype("float32")) != BFloat16()
    kind = BFloat16()
    assert kind.item_size == 2
    assert kind.default_scalar() == 0
    assert kind.cast_scalar(np.float32(3.14159)) == ml_dtypes.bfloat16(3.14159)
    with pytest.raises(TypeError, match="expected a number"):
        kind.cast_scalar("3")
    with pytest.raises(ValueError, match="fill_value"):
        kind.from_json_scalar("nonsense", zarr_format=3)
    with pytest.raises(ValueError, match="no v2 form"):
        kind.to_json(2)
    with pytest.raises(ValueError, match="float17"):
        data_type_registry.match_json("float17", zarr_format=3)


def test_bfloat16_group_is_read_by_plain_zarr_in_a_fresh_process(tmp_path: Path):
    group = zarr.create_group(str(tmp_path / "store"))
    group.create_array("features", shape=(3,), chunks=(3,), dtype=NATIVE)[...] = np.array([1, 2, 3], NATIVE)
    # The entry points as pyproject.toml declares them, whatever the installed copy says.
    points = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    declared = tmp_path / "site" / "declared-1.dist-info"
    declared.mkdir(parents=True)
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: declared\nVersion: 1\n")
    lines = [f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()) for name, found in points.items()]
    (declared / "entry_points.txt").write_text("\n".join(lines))
    program = (
        "import sys, zarr; assert not any(name.startswith('thinkdiff') for name in sys.modules)\n"
        f"print(zarr.open_group({str(tmp_path / 'store')!r}, mode='r')['features'][...].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": str(declared.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[1.0,", "2.0,", "3.0]"]


def test_readme_reads_the_bits_without_this_package(tmp_path: Path):
    write(Folder(str(tmp_path)), dtype="bfloat16")
    readme = (REPOSITORY / "README.md").read_text()
    (snippet,) = [block for block in readme.split("```python\n") if block.startswith("import zarr\n")]
    code = f"""
import importlib.metadata as metadata
found = (entry for one in metadata.distributions() for entry in one.entry_points)
others = metadata.EntryPoints(entry for entry in found if not entry.value.startswith("thinkdiff"))
metadata.entry_points = lambda **wanted: others.select(**wanted) if wanted else others
import sys, zarr
try:
    zarr.open_group({str(tmp_path)!r}, mode="r")["features"]
except Exception as error:
    assert "bfloat16" in str(error), error
else:
    raise SystemExit("zarr reads bfloat16 by itself: the README need not explain")
{snippet.split("```")[0].replace("FOLDER", str(tmp_path))}
assert not any(name.startswith("thinkdiff") for name in sys.modules)
features.tofile({str(tmp_path / "found")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    found = np.fromfile(tmp_path / "found", np.float32).reshape(TOKENS, WIDTH)
    np.testing.assert_array_equal(found[:1], row(0, dtype="bfloat16").features.astype(np.float32))
    assert np.isnan(found[1:]).all()  # row 0 has one token
