"""Tests of image sources: equal images give equal crops, and damaged ones are refused by name."""

import io
import re
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from flax_vae.convert.extras import install_command
from flax_vae.convert.files import write_at
from flax_vae.images.read import StorageError
from flax_vae.images.sources.arrays import ArraySource
from flax_vae.images.sources.open import open_images
from flax_vae.train.config.schema import DataConfig
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 17, 3), np.uint8)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_folder(path):
    path.mkdir()
    for index, image in enumerate(IMAGES):
        Image.fromarray(image).save(path / f"{index}.png")
    return str(path)


def write_npy(path):
    np.save(path.with_suffix(".npy"), IMAGES)
    return str(path.with_suffix(".npy"))


def write_npz(path):
    np.savez(path.with_suffix(".npz"), arr_0=IMAGES, arr_1=np.arange(6))
    return str(path.with_suffix(".npz"))


def make_dataset(records):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [record and {"bytes": record, "path": None} for record in records], "label": [0] * len(records)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(rows, features=features)


def write_saved(path):
    make_dataset([encoded(image) for image in IMAGES]).save_to_disk(path)
    return f"hf:{path}"


def write_splits(path):
    datasets = pytest.importorskip("datasets")
    split = make_dataset([encoded(image) for image in IMAGES]).rename_column("image", "picture")
    datasets.DatasetDict({"other": split}).save_to_disk(path)
    return f"hf:{path},split=other,column=picture"


def write_parquet(path):
    pytest.importorskip("datasets")
    path.mkdir()
    make_dataset([encoded(image) for image in IMAGES]).to_parquet(path / "train.parquet")
    return f"hf:{path}"


def write_records(path, records=None):
    module = pytest.importorskip("array_record.python.array_record_module")
    path.mkdir()
    records = [encoded(image) for image in IMAGES] if records is None else records
    half = len(records) // 2
    for part, some in enumerate([records[:half], records[half:]]):
        writer = module.ArrayRecordWriter(str(path / f"train-{part}.array_record"), "group_size:1")
        for record in some:
            writer.write(record)
        writer.close()
    return str(path / "train-*.array_record")


def write_tar(path):
    write_folder(path)
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for index in range(6):
            archive.add(path / f"{index}.png", f"./{index}.png")
    return str(path.with_suffix(".tar"))


def write_table(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path.mkdir()
    table = parquet.core.pa.table({"picture": [encoded(image) for image in IMAGES], "label": [5, 0, 1, 2, 3, 4]})
    parquet.write_table(table[:4], path / "0.parquet", row_group_size=3)
    parquet.write_table(table[4:], path / "1.parquet", row_group_size=3)
    return str(path / "{0..1}.parquet")


WRITERS = [write_folder, write_npy, write_npz, write_saved, write_splits, write_parquet, write_records]
WRITERS += [write_tar, write_table]


@pytest.fixture(autouse=True)
def no_cache_of_datasets_outside(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))  # read when the package is imported, which may be later
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_equal_images_give_equal_crops_from_any_source(tmp_path, write):
    address = write(tmp_path / "data")
    source = open_images(address)
    assert len(source) == 6
    assert len({source.name(index) for index in range(6)}) == 6
    assert {source.size(index) for index in range(6)} == {(12, 17)}
    with ThreadPoolExecutor(4) as pool:  # threads read at the same time
        np.testing.assert_array_equal(list(pool.map(source.__getitem__, range(6))), IMAGES)
    expected = Photographs(DataConfig(folder=write_folder(tmp_path / "plain"), crop_size=8)).batch(0, 0, 16)
    photographs = Photographs(DataConfig(folder=address, crop_size=8))
    np.testing.assert_array_equal(photographs.batch(0, 0, 16), expected)
    assert photographs.held_out_name == source.name(5)


def test_arrays_are_memory_mapped_and_numbered(tmp_path):
    address = write_npy(tmp_path / "x")
    read = ArraySource(tmp_path / "x.npy")[3]
    assert isinstance(read.base, np.memmap)
    photographs = Photographs(DataConfig(folder=address, crop_size=8, held_out="2"))
    assert photographs.names == ["0", "1", "3", "4", "5"]
    np.testing.assert_array_equal(photographs.held_out(), IMAGES[2])


def test_grey_arrays_become_rgb(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES[..., :1])
    np.testing.assert_array_equal(open_images(str(tmp_path / "x.npy"))[1], IMAGES[1][..., [0, 0, 0]])


BAD_ARRAYS = {
    "floats": (lambda path: np.save(path, IMAGES / 255.0), r"has dtype float64; expected uint8 in \[0, 255\]"),
    "channels first": (lambda path: np.save(path, IMAGES.transpose(0, 3, 1, 2)), "move the channels last"),
    "one image": (lambda path: np.save(path, IMAGES[0]), r"shape \(12, 17, 3\); expected \(n, h, w, 3\)"),
    "pickles": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot be read as an array"),
    "text": (lambda path: path.write_text("hello"), "cannot be read as an array"),
    "nothing": (lambda path: path.touch(), "cannot be read as an array"),
    "missing": (lambda path: None, "cannot be read as an array"),
    "truncated": (
        lambda path: (np.save(path, IMAGES), path.write_bytes(path.read_bytes()[:-9])),
        "cannot be read as an array",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_of_other_shapes_or_dtypes_are_refused(tmp_path, write, message):
    write(tmp_path / "x.npy")
    with pytest.raises(DataError, match=f"x.npy {message}|x.npy .*{message}"):
        open_images(str(tmp_path / "x.npy"))


def test_an_archive_may_hold_labels_and_captions(tmp_path):
    captions = list("abcdef")
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.array([3, -1, 0, 9, 9, 1]), captions=captions)
    source = open_images(str(tmp_path / "x.npz"))
    assert [source.label(index) for index in range(6)] == [3, None, 0, 9, 9, 1]
    assert [source.caption(index) for index in range(6)] == captions
    np.savez(tmp_path / "x.npz", IMAGES, np.arange(6))  # as ADM's batches of samples
    assert open_images(str(tmp_path / "x.npz")).label(4) == 4
    np.savez(tmp_path / "x.npz", IMAGES, np.zeros((6, 2)))
    assert open_images(str(tmp_path / "x.npz")).label(4) is None
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.arange(5))
    with pytest.raises(
        DataError, match=r"has labels of shape \(5,\) and dtype int64; expected an integer for each of 6"
    ):
        open_images(str(tmp_path / "x.npz"))


def test_an_archive_of_several_arrays_needs_a_name(tmp_path):
    np.savez(tmp_path / "x.npz", a=IMAGES, b=IMAGES)
    with pytest.raises(DataError, match="of its 2 arrays none is called images"):
        open_images(str(tmp_path / "x.npz"))
    np.savez_compressed(tmp_path / "x.npz", only=IMAGES)
    np.testing.assert_array_equal(open_images(str(tmp_path / "x.npz"))[4], IMAGES[4])


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [("hf:some/where", "datasets", "datasets"), ("x.array_record", "array_record", "arrayrecord")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, address, package, extra):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=f"needs the package {package} .*: {re.escape(install_command(extra))}$"):
        open_images(address)


@pytest.mark.parametrize("option", ["spilt=train", "split", "column="])
def test_unknown_options_of_a_data_set_are_refused(option):
    with pytest.raises(DataError, match=f"has the option '{option}'; (.* 'split'.*one of split, column|give .*=VALUE)"):
        open_images(f"hf:some/where,{option}")


def test_missing_splits_and_columns_are_refused(tmp_path):
    address = write_saved(tmp_path / "data")
    with pytest.raises(DataError, match="no column 'label' of images; its columns of images: image"):
        open_images(f"{address},column=label")
    with pytest.raises(DataError, match="could not be loaded"):
        open_images(f"hf:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="could not be loaded .KeyError"):
        open_images(write_splits(tmp_path / "splits").replace("other", "test"))


def test_damaged_rows_of_a_data_set_are_named(tmp_path):
    good = encoded(IMAGES[0])
    make_dataset([good, None, b"hello", good]).save_to_disk(tmp_path / "data")
    source = open_images(f"hf:{tmp_path / 'data'}")
    for index, message in {1: r"data\[1\] is empty", 2: r"data\[2\] is not an image that Pillow can read"}.items():
        for function in (source.size, source.__getitem__):
            with pytest.raises(DataError, match=message):
                function(index)


def test_a_data_set_with_paths_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_folder(tmp_path / "images")
    paths = [str(tmp_path / "images" / f"{index}.png") for index in range(6)]
    data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "data")
    np.testing.assert_array_equal(open_images(f"hf:{tmp_path / 'data'}")[4], IMAGES[4])


def test_damaged_records_are_named_and_damaged_files_refused(tmp_path):
    good = encoded(IMAGES[0])
    address = write_records(tmp_path / "data", [good, b"hello", good, good])
    with pytest.raises(DataError, match=r"array_record\[1\] is not an image that Pillow can read"):
        open_images(address)[1]
    with pytest.raises(DataError, match="is not a file and matches none"):
        open_images(str(tmp_path / "none.array_record"))

    source = open_images(address)
    file = tmp_path / "data" / "train-0.array_record"
    file.write_bytes(file.read_bytes()[:20] + bytes(file.stat().st_size - 20))
    with pytest.raises(StorageError, match=r"array_record\[0\] cannot be read"):
        source[0]
    file.write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot be read as ArrayRecord"):
        open_images(address)


def message(*fields):
    """Encodes fields of bytes and integers as protocol buffers do."""

    def varint(value):
        value &= (1 << 64) - 1
        parts = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
        return bytes([part | 128 for part in parts[:-1]] + parts[-1:])

    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )


def example(packed=True, **features):
    """A `tf.train.Example` after its definition, in `example.proto`."""

    def feature(value):
        if isinstance(value, bytes):
            return message((1, message((1, value))))
        number = message((1, value))
        return message((3, message((1, number[1:])) if packed else number))

    return message((1, b"".join(message((1, message((1, n.encode()), (2, feature(v))))) for n, v in features.items())))


def test_examples_of_tensorflow_have_labels_and_captions(tmp_path):
    records = [
        example(image=encoded(IMAGES[0]), label=300, text="été".encode()),
        example(image=encoded(IMAGES[1]), label=-1, packed=False),
        example(file_name=b"x", label=1 << 20, packed=False, picture=encoded(IMAGES[2])),
        encoded(IMAGES[3]),
    ]
    address = write_records(tmp_path / "data", records)
    source = open_images(address)
    for index in (0, 1, 3):
        np.testing.assert_array_equal(source[index], IMAGES[index])
    assert [source.label(index) for index in range(4)] == [300, None, 1 << 20, None]
    assert [source.caption(index) for index in range(4)] == ["été", None, None, None]
    with pytest.raises(
        DataError, match=r"\[2\] has no encoded image; its features: file_name, label, picture; name one"
    ):
        source[2]
    np.testing.assert_array_equal(open_images(f"{address},column=picture")[2], IMAGES[2])


@pytest.mark.parametrize("write", [write_folder, write_npy, write_saved, write_records])
def test_grain_accepts_a_source(tmp_path, write):
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.source(open_images(write(tmp_path / "data"))).shuffle(seed=0)
    assert sorted(image.tobytes() for image in data) == sorted(image.tobytes() for image in IMAGES)


def test_a_source_is_indexed_as_a_sequence(tmp_path):
    source = open_images(write_folder(tmp_path / "data"))
    np.testing.assert_array_equal(list(source), IMAGES)
    np.testing.assert_array_equal(source[-1], IMAGES[5])
    with pytest.raises(IndexError):
        source[6]


def test_one_image_file_is_a_source(tmp_path):
    write_folder(tmp_path / "data")
    source = open_images(str(tmp_path / "data" / "3.png"))
    assert (len(source), source.name(0), source.size(0)) == (1, "3.png", (12, 17))
    assert source.printable_name(0) == str(tmp_path / "data" / "3.png")
    np.testing.assert_array_equal(source[0], IMAGES[3])


IN_A_BUCKET = [write_folder, write_npy, write_npz, write_records, write_tar, write_table]


@pytest.mark.parametrize("write", IN_A_BUCKET, ids=lambda write: write.__name__.removeprefix("write_"))
def test_a_bucket_holds_the_same_images(bucket, tmp_path, write):
    local = write(tmp_path / "data")
    remote = f"{bucket}/sources/{write.__name__}"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            write_at(f"{remote}/{path.relative_to(tmp_path)}", path.read_bytes())
    source, expected = open_images(local.replace(str(tmp_path), remote)), open_images(local)
    assert len(source) == 6
    for index in range(6):
        np.testing.assert_array_equal(source[index], IMAGES[index])
        for ask in (source.__class__.name, source.__class__.size, source.__class__.label, source.__class__.digest):
            assert ask(source, index) == ask(expected, index)


def test_class_folders_and_texts_in_a_bucket(bucket, tmp_path):
    files = {
        "b/1.png": encoded(IMAGES[1]),
        "a/x/2.png": encoded(IMAGES[2]),
        "a/x/2.txt": b"two",
        "a/.hidden/3.png": b"",
    }
    for name, content in files.items():
        write_at(f"{bucket}/classes/{name}", content)
    source = open_images(f"{bucket}/classes")
    assert [source.name(0), source.label(0), source.caption(0)] == ["a/x/2.png", 0, "two"]
    assert [source.name(1), source.label(1), source.caption(1)] == ["b/1.png", 1, None]
    assert source.classes == ("a", "b") and source.notes == ["besides: 1 other file (a/.hidden/3.png)"]
    np.testing.assert_array_equal(open_images(f"{bucket}/classes/b/1.png")[0], IMAGES[1])
    with pytest.raises(DataError, match="none holds no image file"):
        open_images(f"{bucket}/none")
    with pytest.raises(DataError, match="none.tar cannot be read .*does not exist"):
        open_images(f"{bucket}/none.tar")
