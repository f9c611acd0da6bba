"""Addresses of buckets and of memory, beside paths."""

import subprocess
import sys
from pathlib import Path

import pytest

from flax_vae.convert.errors import AddressError, ArgumentError, FileError
from flax_vae.convert.files import (
    ListedFile,
    address_below,
    address_of,
    as_path,
    create_at,
    exists_at,
    is_address,
    list_at,
    open_at,
    read_at,
    remove_at,
    size_at,
    write_at,
)


@pytest.fixture(params=["path", "memory", "bucket"])
def place(request, tmp_path):
    """An empty folder of each kind."""
    if request.param == "path":
        return str(tmp_path / "folder")
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_what_is_written_is_read_listed_and_removed(place):
    one, two = address_below(place, "one"), address_below(place, "below", "two")
    assert not exists_at(place) and list_at(place) == [] == list_at(place, recursive=True)
    write_at(one, b"before")
    write_at(one, bytes(range(100)))
    write_at(two, b"")
    assert read_at(one) == bytes(range(100))
    assert read_at(one, 10, 20) == bytes(range(10, 20)) and read_at(one, 95) == bytes(range(95, 100))
    with open_at(one) as file:
        file.seek(50)
        assert file.read(3) == bytes((50, 51, 52))
    assert size_at(one) == 100
    assert list_at(place) == [ListedFile("below", 0, True), ListedFile("one", 100, False)]
    assert list_at(place, recursive=True) == [ListedFile("below/two", 0, False), ListedFile("one", 100, False)]
    assert exists_at(place) and exists_at(two)
    remove_at(one)
    remove_at(one)
    assert not exists_at(one)
    remove_at(place, recursive=True)
    assert not exists_at(two)


def test_an_object_is_created_once(place):
    lock = address_below(place, "lock")
    create_at(lock, b"first")
    with pytest.raises(FileExistsError, match="lock"):
        create_at(lock, b"second")
    assert read_at(lock) == b"first"
    assert [entry.name for entry in list_at(place)] == ["lock"]
    remove_at(lock)
    create_at(lock, b"third")


def test_what_is_missing_or_a_folder_says_so(place):
    write_at(address_below(place, "folder", "file"), b"")
    for read in (read_at, size_at, open_at):
        with pytest.raises(FileNotFoundError, match="missing"):
            read(address_below(place, "missing"))
    with pytest.raises(FileError, match="folder"):
        size_at(address_below(place, "folder"))


def test_what_another_process_writes_is_seen(bucket, tmp_path):
    place = f"{bucket}/{tmp_path.name}"
    write_at(f"{place}/one", b"1")
    assert len(list_at(place)) == len(list(as_path(place).iterdir())) == 1
    code = f"from flax_vae.convert.files import write_at; write_at({place + '/two'!r}, b'2')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list_at(place)) == len(list(as_path(place).iterdir())) == 2
    assert (as_path(place) / "two").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("gs://bucket/run/", "gs://bucket/run"),
        (Path("gs://bucket/run"), "gs://bucket/run"),
        ("s3://b", "s3://b"),
        ("memory://a/b", "memory://a/b"),
    ],
)
def test_addresses(given, address):
    assert is_address(given) and address_of(given) == address


@pytest.mark.parametrize("given", ["run", "./gs:", "/data/run", "hf:org/name", "c:/data", "file:///data/run"])
def test_paths_and_other_names_are_no_addresses(given):
    assert not is_address(given)
    assert as_path(given) == Path(given.removeprefix("file://"))


def test_an_address_that_cannot_be_used_is_refused(monkeypatch):
    with pytest.raises(ArgumentError, match="nothing://.*gs://"):
        read_at("nothing://bucket/file")
    with pytest.raises(ArgumentError, match="memory://run.*gs://"):
        as_path("memory://run")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(AddressError, match=r"s3://bucket/file.*pip install .*\[s3\]"):
        read_at("s3://bucket/file")


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises((AddressError, FileNotFoundError), match="gs://another/file"):
        write_at("gs://another/file", b"")
