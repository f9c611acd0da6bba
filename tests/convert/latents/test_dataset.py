"""Latent data sets: what was written is read, in any order, by anybody, and nothing else is believed."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import flax_vae.convert.latents.dataset
from flax_vae.convert import PRESETS, FileError
from flax_vae.convert.formats.header import read_header
from flax_vae.convert.formats.safetensors import read_metadata, read_tensors, write_tensors
from flax_vae.convert.latents.dataset import LatentDataset
from flax_vae.convert.latents.index import (
    INDEX,
    PLAN,
    STATISTICS,
    Encoding,
    LatentIndex,
    dump_index,
    read_latent_index,
    shard_file,
)
from flax_vae.convert.latents.shard import LatentEntry, ShardContent, read_notes, write_shard
from flax_vae.convert.latents.statistics import ChannelStats, LatentStatistics

MEAN = Encoding("0" * 64, PRESETS["tiny"], "mean", "float32", "float32", multiple=4)
SIZES = [[(3, 2, 4), (2, 2, 1)], [(2, 2, 3), (1, 5, 2)], [(1, 5, 1)]]  # height, width, count: runs of three shards
NAME = "sub/b\udcffß.jpg"  # a file name that is no UTF-8


def write(folder, encoding=MEAN, sizes=SIZES):
    """A data set of random numbers, and its entries as they should be read."""
    rng, expected, records, moments = np.random.default_rng(0), [], [], []
    for number, runs in enumerate(sizes):
        content = ShardContent(ChannelStats.nothing(encoding.channels))
        for height, width, count in runs:
            entries = [
                LatentEntry(
                    *(len(expected) + i, NAME if i else f"{len(expected)}.png", 4 * height - 1, 4 * width, bool(i % 2)),
                    bytes([number]) * 32,
                )
                for i in range(count)
            ]
            parts = {part: rng.normal(0.5, 2, (count, height, width, encoding.channels)) for part in encoding.parts}
            parts = {part: values.astype(encoding.dtype) for part, values in parts.items()}
            content.add(entries, parts)
            expected += [
                {part: values[i] for part, values in parts.items()} | entry._asdict() for i, entry in enumerate(entries)
            ]
            for entry in expected:
                for key in ("source_sha256", "label", "caption"):  # the first is not for readers; the others are None
                    entry.pop(key, None)
        write_shard(folder, number, content, "plan")
        notes = read_notes(folder / shard_file(number))
        records.append(notes.record)
        moments.append(notes.moments)
    statistics = LatentStatistics.of(moments, encoding.channels, scaled=encoding.scaled, factors=(1.0, 0.0))
    index = LatentIndex(encoding, len(expected), len(expected), 0, tuple(records), statistics)
    (folder / INDEX).write_text(dump_index(index), encoding="utf-8")
    return expected


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    return folder, write(folder)


def same(found, expected, layout="hwc"):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[key], value if layout == "hwc" else value.transpose(2, 0, 1))
        else:
            assert found[key] == value and type(found[key]) is type(value)


def test_every_entry_is_read_as_it_was_written(written):
    folder, expected = written
    latents = LatentDataset(folder)
    assert len(latents) == len(expected) == 11
    for position in (*np.random.default_rng(0).permutation(len(expected)), -1, -len(expected)):
        same(latents[position], expected[position])
    assert sum(1 for _ in latents) == len(expected)
    with pytest.raises(IndexError, match="position 11 is out of range"):
        latents[11]


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_the_layout_is_chosen_and_arrays_are_the_callers_own(written, layout):
    folder, expected = written
    latents = LatentDataset(folder, layout=layout)
    entry = latents[2]
    same(entry, expected[2], layout)
    entry["latent"] += 1
    same(latents[2], expected[2], layout)
    with pytest.raises(ValueError, match="layout='nchw'"):
        LatentDataset(folder, layout="nchw")  # pyright: ignore[reportArgumentType]


def test_without_a_dtype_entries_are_views_of_the_file(tmp_path):
    expected = write(tmp_path, replace(MEAN, store="moments", dtype="bfloat16"))
    latents = LatentDataset(tmp_path, dtype=None, verify=True)
    entry = latents[3]
    same(entry, expected[3])
    assert entry["mean"].dtype == ml_dtypes.bfloat16
    assert not entry["mean"].flags.writeable and not entry["mean"].flags.owndata
    assert LatentDataset(tmp_path)[3]["logvar"].dtype == np.float32


def test_batches_hold_every_entry_once_and_one_size_each(written):
    latents = LatentDataset(written[0])
    for seed in (None, 0):
        batches = latents.batches(2, seed=seed)
        assert sorted(position for batch in batches for position in batch) == list(range(11))
        for batch in batches:
            assert len({latents[position]["latent"].shape for position in batch}) == 1
    shuffled = latents.batches(2, seed=0)
    assert latents.batches(2, seed=0) == shuffled != latents.batches(2, seed=0, epoch=1)
    assert {len(batch) for batch in latents.batches(2, seed=0, drop_last=True)} == {2}
    with pytest.raises(ValueError, match="batch_size=0"):
        latents.batches(0)


def test_threads_and_other_processes_may_read(written, monkeypatch):
    folder, expected = written
    monkeypatch.setattr(flax_vae.convert.latents.dataset, "_MAPPED", 1)  # every other shard is mapped anew
    latents = LatentDataset(folder)
    latents[0]
    copy = pickle.loads(pickle.dumps(latents))
    positions = np.random.default_rng(0).integers(0, len(expected), 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        for position, entry in zip(positions, pool.map(copy.__getitem__, positions), strict=True):
            same(entry, expected[position])
    assert copy.statistics == latents.statistics


def test_statistics_are_those_of_all_numbers(written):
    folder, expected = written
    everything = np.concatenate([entry["latent"].reshape(-1, 16) for entry in expected]).astype(np.float64)
    statistics = LatentDataset(folder).statistics
    np.testing.assert_allclose(statistics.channel_mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.channel_std, everything.std(0), rtol=1e-12)
    assert statistics.positions == len(everything)
    # With these two, scaled latents have mean 0 and deviation 1.
    scaled = statistics.scale_factor * (everything - statistics.shift_factor)
    assert abs(scaled.mean()) < 1e-12 and abs(scaled.std() - 1) < 1e-12


def test_suggested_factors_undo_those_that_the_latents_have():
    raw = np.random.default_rng(0).normal(3, 5, (50, 2))
    of = LatentStatistics.of
    from_raw = of([ChannelStats.of(raw)], 2, scaled=False, factors=(1.0, 0.0))
    from_scaled = of([ChannelStats.of(0.25 * (raw - 7))], 2, scaled=True, factors=(0.25, 7.0))
    assert from_scaled.scale_factor == pytest.approx(from_raw.scale_factor, rel=1e-12)
    assert from_scaled.shift_factor == pytest.approx(from_raw.shift_factor, rel=1e-12)
    assert of([ChannelStats.of(raw)], 2, scaled=True, factors=None).scale_factor is None
    with pytest.raises(ValueError, match="standard deviation of 0.0"):
        of([ChannelStats.of(np.ones((3, 2)))], 2, scaled=True, factors=None)


def test_moments_of_posteriors_are_those_of_what_is_drawn_from_them():
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(1, 2, (4, 3, 3, 2)), rng.normal(0, 1, (4, 3, 3, 2))
    parts = [ChannelStats.of(mean[:1], logvar[:1]), ChannelStats.of(mean[1:], logvar[1:])]
    parts = [ChannelStats.loads(part.dumps()) for part in parts]
    found = LatentStatistics.of(parts, 2, scaled=False, factors=(1.0, 0.0))
    variance = mean.var((0, 1, 2)) + np.exp(logvar).mean((0, 1, 2))
    np.testing.assert_allclose(np.square(found.channel_std), variance, rtol=1e-12)


def test_an_index_is_read_back(written):
    index = read_latent_index(written[0])
    assert index.encoding == MEAN and index.entries == 11
    assert [shard.runs for shard in index.shards] == [tuple(map(tuple, runs)) for runs in SIZES]


def damaged(folder, change):
    values = json.loads((folder / INDEX).read_text())
    change(values)
    (folder / INDEX).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["shards"][0].update(file="../secret.safetensors"), "names the shard '../secret"),
        (lambda values: values.update(format=3), "its format is 3; expected 1 or 2"),
        (lambda values: values.update(format=1), "its SHA-256 differs"),
        (lambda values: values.update(entries=12), "do not hold 12 entries"),
        (lambda values: values["shards"][0].update(entries=7), "not those of 7 entries"),
        (
            lambda values: values["encoding"].update(store="mode"),
            "store='mode' must be one of mean, moments, mean-std, sample",
        ),
        (lambda values: values.pop("encoding"), "encoding"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, change, message):
    write(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(FileError, match=message):
        LatentDataset(tmp_path)


def test_a_folder_that_is_no_data_set_or_not_complete_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index.json"):
        LatentDataset(tmp_path)
    (tmp_path / PLAN).touch()
    with pytest.raises(FileNotFoundError, match="is not complete"):
        LatentDataset(tmp_path)


def older(folder):
    """Turns a data set into one of format 1, as it was written before shards were bound to the index."""
    values = json.loads((folder / INDEX).read_text())
    (folder / STATISTICS).write_text(json.dumps(values.pop("statistics")))
    values |= {"format": 1, "statistics": STATISTICS}
    for shard in values["shards"]:
        path = folder / shard["file"]
        tensors, metadata = read_tensors(path), read_metadata(path)
        for name in ("source_sha256", "crc32"):
            del tensors[name]
        kept = {name: value for name, value in metadata.items() if name in ("plan", "runs", "moments", "skipped")}
        write_tensors(path, tensors, metadata=kept, force=True)
        del shard["size"], shard["header_sha256"]
        shard["data_sha256"] = read_metadata(path)["data_sha256"]
    del values["sha256"]
    (folder / INDEX).write_text(json.dumps(values))


@pytest.mark.parametrize("format_", [1, 2])
def test_a_shard_that_is_not_that_of_the_index_is_found_when_the_data_set_is_opened(format_, tmp_path):
    expected = write(tmp_path)
    if format_ == 1:
        older(tmp_path)
    for entry, wanted in zip(LatentDataset(tmp_path, verify=True), expected, strict=True):
        same(entry, wanted)
    first, second = tmp_path / shard_file(0), tmp_path / shard_file(1)
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(FileError, match=r"latents-0000\d.safetensors is not the shard that the index describes"):
        LatentDataset(tmp_path)
    second.write_bytes(contents[1])
    first.write_bytes(contents[0][:-1])
    with pytest.raises(FileError, match="latents-00000.safetensors is not a complete safetensors file"):
        LatentDataset(tmp_path)
    first.unlink()
    with pytest.raises(FileError, match="latents-00000.safetensors is missing"):
        LatentDataset(tmp_path)


def test_a_shard_of_another_run_with_the_same_shapes_is_found(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", replace(MEAN, store="sample", seed=1))
    content = ShardContent(ChannelStats.nothing(16))
    entries = [LatentEntry(i, f"{i}.png", 4, 4, False, bytes(32)) for i in range(7)]
    content.add(entries[:4], {"latent": np.ones((4, 3, 2, 16), np.float32)})
    content.add(entries[4:6], {"latent": np.ones((2, 2, 2, 16), np.float32)})
    write_shard(tmp_path / "one", 0, content, "another plan")
    with pytest.raises(FileError, match="is not the shard that the index describes"):
        LatentDataset(tmp_path / "one")


def test_a_bit_of_a_latent_or_a_name_that_changed_is_found_when_it_is_read(tmp_path):
    write(tmp_path)
    path = tmp_path / shard_file(0)
    content = path.read_bytes()
    header = read_header(path)
    for tensor, message in (
        ("latent/3x2", "the latent of '0.png'"),
        ("name", "names or numbers of its images changed"),
    ):
        damaged = bytearray(content)
        damaged[header.tensors[tensor].start] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=message):
            LatentDataset(tmp_path)[0]
        with pytest.raises(FileError, match="SHA-256"):
            LatentDataset(tmp_path, verify=True)[0]
        LatentDataset(tmp_path, verify=False)[0]


def test_flipped_bits_of_a_shard_are_found_or_change_nothing(tmp_path):
    expected, rng = write(tmp_path), np.random.default_rng(0)
    path = tmp_path / shard_file(0)
    content = path.read_bytes()
    found = 0
    for bit in rng.choice(8 * len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            for entry, wanted in zip(LatentDataset(tmp_path), expected, strict=True):
                same(entry, wanted)
        except FileError:
            found += 1
    assert found == 300


def test_flipped_bits_of_an_index_are_found_or_change_nothing(tmp_path):
    write(tmp_path)
    path, rng = tmp_path / INDEX, np.random.default_rng(0)
    content, before = path.read_bytes(), read_latent_index(tmp_path)
    found = 0
    for bit in rng.choice(8 * len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_latent_index(tmp_path) == before
        except FileError:
            found += 1
    assert found > 200


@pytest.mark.torch
def test_torch_takes_it_as_a_data_set(written):
    from torch.utils.data import DataLoader

    folder, expected = written
    latents = LatentDataset(folder, layout="chw")
    seen = 0
    for batch in DataLoader(latents, batch_sampler=latents.batches(2, seed=0)):
        for row, number in enumerate(batch["number"].tolist()):
            np.testing.assert_array_equal(batch["latent"][row].numpy(), expected[number]["latent"].transpose(2, 0, 1))
            seen += 1
    assert seen == len(expected)


def test_grain_takes_it_as_a_source(tmp_path):
    grain = pytest.importorskip("grain")
    expected = write(tmp_path, sizes=[[(2, 2, 3)], [(2, 2, 3)]])
    batches = list(grain.MapDataset.source(LatentDataset(tmp_path)).shuffle(seed=0).batch(2).to_iter_dataset())
    assert len(batches) == 3
    for batch in batches:
        for latent, number in zip(batch["latent"], batch["number"], strict=True):
            np.testing.assert_array_equal(latent, expected[number]["latent"])
