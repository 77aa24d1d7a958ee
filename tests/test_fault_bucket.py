"""A feature store in a bucket whose server, or the way to it, fails: what is survived, what is refused, what stays.

A proxy before the real server does each request a wrong. A fault that passes is survived with the same bytes; one that
stays is refused in one sentence, and a later run ends in the digest of an undisturbed one.
"""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_proxy import FaultyProxy, How, When, always, once_each
from s3_server import KEY, RENEWED, SECRET, s3  # noqa: F401
from small_features import ROWS, row, write, writer_of
from store_artifacts import artifact_of

from thinkdiff.schemas.errors import RootError, ThinkDiffError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.bucket import CLIENT, PATIENCE
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.storage.parts import Part, PartLog
from thinkdiff.storage.records import read_record, write_record
from thinkdiff.storage.root import Folder

SHARD = r"/features/c/1/0/0"


@pytest.fixture(scope="module")
def server(s3: str) -> Iterator[FaultyProxy]:
    """The proxy before the tests' server."""
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def whole(s3: str) -> FeatureSet:
    """An undisturbed store."""
    artifact = write(Folder(f"{s3}/{uuid.uuid4().hex}/extract_features/{'0' * 32}"), inputs=True)
    write_record(artifact)
    return artifact


@pytest.fixture(params=["obstore", "s3fs"])
def proxy(request: pytest.FixtureRequest, server: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    """The proxy, asked by either client, with little patience."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv(CLIENT, request.param)
    monkeypatch.setenv(PATIENCE, "1")
    return server


@pytest.fixture
def folder(s3: str) -> Folder:
    """An empty folder in the bucket."""
    return Folder(f"{s3}/{uuid.uuid4().hex}")


def look(artifact: FeatureSet) -> None:
    """Reads a store in every way; each row must be the one that was written."""
    store = FeatureStore(artifact)
    expected = [row(index, inputs=True) for index in range(ROWS)]
    for found, wanted in [*zip(store.rows(range(ROWS)), expected, strict=True),
                          *zip(store.iterate(), expected, strict=True)]:  # fmt: skip
        np.testing.assert_array_equal(found.features, wanted.features)
        np.testing.assert_array_equal(np.asarray(found.input_features), np.asarray(wanted.input_features))
        assert (found.key, found.text, found.token_ids) == (wanted.key, wanted.text, wanted.token_ids)
    loaded = store.load()
    for features, wanted in zip(loaded.features, expected, strict=True):
        np.testing.assert_array_equal(features[: wanted.length], wanted.features)
    for batch in store.iter_batches(3, shuffle="runs", run=2, buffer=6):
        for features, index in zip(batch.features, batch.rows.tolist(), strict=True):
            np.testing.assert_array_equal(features[: expected[index].length], expected[index].features)


def finish(folder: Folder) -> FeatureSet:
    """What the next run does: keeps what is committed and makes the rest."""
    writer = writer_of(folder, inputs=True)
    for shard in set(range(writer.shards)) - set(writer.committed()):
        writer.commit(shard, [row(index, inputs=True) for index in writer.span(shard)])
    return artifact_of(FeatureSet, folder, writer.files())


def refused(act: Callable[[], object]) -> str:
    """The one sentence with which something is refused."""
    with pytest.raises(ThinkDiffError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    assert ": found " in said
    assert "expected" in said
    return said


def every(step: int) -> When:
    """Each so manieth request."""
    return lambda number, repeat: number % step == step - 1


def test_a_store_is_written_and_read_though_every_fifth_request_fails(
    proxy: FaultyProxy, folder: Folder, whole: FeatureSet
):
    with proxy.fault("500", "reset", "cut", "503", "short", "lost", when=every(5)) as fault:
        made = write(folder, inputs=True)
        look(made)
    assert fault.struck >= 12
    assert made.digest == whole.digest
    assert set(folder.sizes()) == set(made.names(""))


@pytest.mark.parametrize("how", ["reset", "lost", "flip sent"])
def test_uploads_that_fail_once_each_end_in_the_same_bytes(
    proxy: FaultyProxy, folder: Folder, whole: FeatureSet, how: How
):
    writer = writer_of(folder, inputs=True)
    with proxy.fault(how, method="PUT") as fault:
        writer.commit(0, [row(index, inputs=True) for index in writer.span(0)])
    assert fault.struck == 5  # rows, input features twice, features, record
    made = finish(folder)
    assert made.digest == whole.digest
    look(made)


def test_a_server_that_once_says_nothing_is_asked_again(proxy: FaultyProxy, folder: Folder, whole: FeatureSet):
    def first(number: int, repeat: int) -> bool:
        return number == 0

    with proxy.fault("hang", method="PUT", path=SHARD, when=first) as put:
        made = write(folder, inputs=True)
    with proxy.fault("hang", method="GET", path=SHARD, when=first) as get:
        look(made)
    assert (put.struck, get.struck) == (1, 1)
    assert made.digest == whole.digest


@pytest.mark.parametrize("how", ["shorter", "flip"])
def test_bytes_altered_on_their_way_once_are_read_again(
    proxy: FaultyProxy, folder: Folder, whole: FeatureSet, how: How
):
    with proxy.fault(how, method="GET", path="/(rows|attempts|commits)/") as fault:
        made = write(folder, inputs=True)
    assert fault.struck >= 9
    assert made.digest == whole.digest
    with proxy.fault(how, method="GET", path="/(rows|features|zarr.json)", when=once_each) as fault:
        reader = FeatureStore(made)
        assert len(list(reader.iterate())) == ROWS
    assert fault.struck >= 6


@pytest.mark.parametrize("how", ["500", "expired", "shorter", "flip"])
def test_reads_that_fail_for_good_are_refused_in_a_sentence(proxy: FaultyProxy, whole: FeatureSet, how: How):
    store = FeatureStore(whole)
    reads: list[Callable[[], object]] = [
        lambda: store.rows([4]), lambda: list(store.iter_batches(4)), store.load, lambda: list(store.iterate())
    ]  # fmt: skip
    with proxy.fault(how, method="GET", path=SHARD, when=always) as fault:
        assert [found.key for found in store.rows([0, 9])] == ["key 000", "key 009"]  # the other shards
        for read in reads if how in ("shorter", "flip") else reads[:1]:
            assert SHARD in refused(read)
    assert fault.struck >= 1
    look(whole)


@pytest.mark.parametrize("how", ["500", "expired"])
def test_a_folder_that_cannot_be_listed_is_refused_and_never_taken_for_empty(
    proxy: FaultyProxy, whole: FeatureSet, how: How
):
    folder = Folder(whole.uri)
    log = PartLog(folder, "commits", Part)
    with proxy.fault(how, method="GET|HEAD", path=r"list-type|/commits/000000\.json", when=always):
        for ask in (folder.sizes, lambda: FeatureStore.open(whole.uri), lambda: log.must_be_free(0)):
            refused(ask)
    assert read_record(folder, FeatureSet) == whole


def test_credentials_expire_at_any_request_and_a_later_run_ends_the_same(
    proxy: FaultyProxy, s3: str, whole: FeatureSet
):
    with proxy.fault("expired", when=lambda number, repeat: False) as quiet:
        write(Folder(f"{s3}/{uuid.uuid4().hex}"), inputs=True)
    for last in range(0, quiet.seen.total(), 16):
        folder = Folder(f"{s3}/{uuid.uuid4().hex}")
        with proxy.fault("expired", when=lambda number, repeat, last=last: number >= last):
            refused(lambda folder=folder: write(folder, inputs=True))
        made = finish(folder)
        assert made.digest == whole.digest
        assert set(folder.sizes()) == set(made.names(""))


@pytest.mark.parametrize("moment", [0, 13, 27])
def test_credentials_that_were_renewed_meanwhile_are_taken(
    proxy: FaultyProxy, folder: Folder, whole: FeatureSet, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "credentials"
    form = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    file.write_text(form.format(KEY, SECRET))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def expired(number: int, repeat: int) -> bool:
        if number == moment:
            file.write_text(form.format(RENEWED, SECRET))
        return number >= moment

    with proxy.fault("expired", path=f"Credential={KEY}/", when=expired) as fault:
        made = write(folder, inputs=True)
        look(made)
    assert fault.struck >= 1
    assert made.digest == whole.digest


@pytest.mark.parametrize("how", ["500", "flip sent"])
def test_an_upload_that_fails_for_good_is_refused_and_what_was_committed_stays(
    proxy: FaultyProxy, folder: Folder, whole: FeatureSet, how: How
):
    writer = writer_of(folder, inputs=True)
    kept = writer.commit(2, [row(index, inputs=True) for index in writer.span(2)])
    with proxy.fault(how, method="PUT", path=SHARD, when=always) as fault:
        said = refused(lambda: writer.commit(1, [row(index, inputs=True) for index in writer.span(1)]))
    assert "not writable" in said
    assert fault.struck >= 1
    assert writer.committed(deep=True) == {2: kept}
    assert finish(folder).digest == whole.digest


@pytest.mark.parametrize(("how", "code"), [("skewed", "RequestTimeTooSkewed"), ("unsigned", "SignatureDoesNotMatch")])
def test_a_wrong_clock_or_key_is_named_and_not_tried_again(proxy: FaultyProxy, folder: Folder, how: How, code: str):
    for ask in (lambda: folder.write("x", b""), folder.sizes):  # to a HEAD, with which s3fs reads, no server says why
        with proxy.fault(how, when=always) as fault:
            assert code in refused(ask)
        assert fault.struck == 1


def test_a_create_whose_answer_was_lost_is_no_other_writers(proxy: FaultyProxy, folder: Folder):
    with proxy.fault("lost", method="PUT") as fault:
        folder.create("file", b"ours")
        assert not folder.create("file", b"theirs")
    assert fault.struck == 1
    assert folder.read("file") == b"ours"


def test_no_answer_at_all_is_refused(whole: FeatureSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(PATIENCE, "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    folder = Folder(whole.uri)
    for ask in (folder.sizes, lambda: folder.write("x", b"")):
        with pytest.raises(RootError, match=r"127\.0\.0\.1:9"):
            ask()
