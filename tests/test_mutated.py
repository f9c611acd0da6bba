"""Mutated files through every reader: only our own errors, none after more than a second or 300 MB.

Each kind begins with a sound file.  Hypothesis changes its bytes or, of JSON, its values; the counts are printed at the
end of the run.
"""

import copy
import io
import json
import resource
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from flax_vae.convert import expand
from flax_vae.convert.cli.inspect import inspect
from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.files.manifest import find_damage
from flax_vae.convert.latents.dataset import LatentDataset
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.table.rows import unflatten
from flax_vae.convert.weights.folder import save_folder
from flax_vae.convert.weights.load import resolve_architecture
from flax_vae.convert.weights.open import open_weights
from flax_vae.convert.weights.save import save_weights
from flax_vae.errors import UserError
from flax_vae.images.read import image_size, read_image
from tests.convert.latents.test_dataset import write as write_latents
from tests.convert.test_bit_rot import SMALL

EXAMPLES = 1250  # of each kind; 16 kinds: 20,000
SECONDS, MEGABYTES = 1.0, 300
OURS = (ConversionError, FileError, UserError, FileNotFoundError, OSError)

WEIRD = st.sampled_from(
    [
        *(None, True, 0, -1, 2**31, 2**64, 10**30, 1e308, 1e-320, 0.5, "", "a", "\x00", "../x", "/etc/passwd"),
        *("nan", "1e5", "\ud800", "\x1b[31m", [], {}, [[]], [1], {"a": 1}, [None]),
    ]
)
PLACES = st.lists(st.integers(0, 2**16), min_size=1, max_size=6)
JSON_CHANGES = st.lists(
    st.tuples(PLACES, st.sampled_from(["set", "drop", "add", "copy"]), WEIRD), min_size=1, max_size=3
)
BYTE_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "drop", "insert", "repeat", "length 4", "length 8", "cut"]),
        st.integers(0, 2**24),
        st.integers(0, 2**24),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def changed_bytes(content: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    result = bytearray(content)
    for kind, place, other, some in changes:
        if not result:
            break
        i, j = place % len(result), other % len(result)
        if kind == "flip":
            result[i] ^= 1 << other % 8
        elif kind == "set":
            result[i] = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x30)[other % 8]
        elif kind == "drop":
            del result[i : i + (1, 2, 4, 8, 100)[other % 5]]
        elif kind == "insert":
            result[i:i] = some
        elif kind == "repeat":
            result[i:i] = result[j : j + (1, 8, 64, 512)[other % 4]]
        elif kind.startswith("length"):
            code, values = ("I", [0, 2**32 - 1, 2**31, 1 << 30]) if kind[-1] == "4" else ("Q", [0, 2**64 - 1, 1 << 40])
            packed = struct.pack("<>"[place % 2] + code, values[other % len(values)])
            result[i : i + len(packed)] = packed
        else:
            del result[i:]
    return bytes(result)


def changed_json(value: Any, changes: list[tuple[list[int], str, Any]]) -> bytes:
    value = copy.deepcopy(value)
    for places, kind, weird in changes:
        node = value
        for depth, place in enumerate(places):
            if not isinstance(node, (dict, list)) or not node:
                break
            key = sorted(node, key=str)[place % len(node)] if isinstance(node, dict) else place % len(node)
            inner = node[key]
            if depth + 1 < len(places) and isinstance(inner, (dict, list)) and inner:
                node = inner
                continue
            if kind == "set":
                node[key] = copy.deepcopy(weird)
            elif kind == "drop":
                del node[key]
            elif kind == "copy":
                node[key] = copy.deepcopy(node)
            elif isinstance(node, dict):
                node[str(weird)] = copy.deepcopy(weird)
            break
    return json.dumps(value).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
      target: The file or folder that the reader is given.
      files: The files in it that are changed, with their sound content.
      read: The reader.
      raises: Its errors, beside ours.
    """

    target: Path
    files: dict[Path, bytes]
    read: Callable[[Path], Any]
    raises: tuple[type[Exception], ...] = field(default=())


def weights(layout: str = "flux") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {row.theirs: rng.standard_normal(row.torch_shape).astype(np.float32) for row in expand(SMALL, layout)}


def read_weights(path: Path) -> None:
    source = open_weights(path)
    inspect(source)
    found = resolve_architecture(source, source.config or SMALL)
    for array in found.to("flux").values():
        np.asarray(array)


def one_file(path: Path, read: Callable[[Path], Any] = read_weights, **more: Any) -> Kind:
    return Kind(path, {path: path.read_bytes()}, read, **more)


def in_folder(folder: Path, read: Callable[[Path], Any], pattern: str = "**/*", **more: Any) -> Kind:
    files = {path: path.read_bytes() for path in sorted(folder.glob(pattern)) if path.is_file()}
    return Kind(folder, files, read, **more)


def safetensors(folder: Path) -> Kind:
    save_weights(folder / "a.safetensors", Weights(weights(), "flux", SMALL))
    return one_file(folder / "a.safetensors")


def sharded(folder: Path) -> Kind:
    from flax_vae.convert.formats.safetensors import write_tensors

    names = sorted(weights())
    for number in (0, 1):
        write_tensors(folder / f"m-{number}.safetensors", {name: weights()[name] for name in names[number::2]})
    places = {name: f"m-{i % 2}.safetensors" for i, name in enumerate(names)}
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return one_file(index)


def msgpack(folder: Path) -> Kind:
    import flax.serialization

    tree = unflatten({row.theirs: np.zeros(row.torch_shape, np.float32) for row in expand(SMALL, "diffusers-flax")})
    (folder / "a.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    return one_file(folder / "a.msgpack")


def pickled(folder: Path, zipped: bool = True) -> Kind:
    import torch

    content = {"state_dict": {name: torch.from_numpy(array) for name, array in weights().items()}, "epoch": 3}
    torch.save(content, folder / "a.ckpt", _use_new_zipfile_serialization=zipped)
    if zipped:  # only what describes the tensors: their numbers may be anything
        with zipfile.ZipFile(folder / "a.ckpt") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        (name,) = [name for name in members if name.endswith("data.pkl")]
        pkl = folder / "data.pkl"
        pkl.write_bytes(members[name])

        def read(path: Path) -> None:
            with zipfile.ZipFile(folder / "b.ckpt", "w") as archive:
                for member, data in members.items():
                    archive.writestr(member, pkl.read_bytes() if member == name else data)
            read_weights(folder / "b.ckpt")

        return one_file(pkl, read)
    return one_file(folder / "a.ckpt")


def pickled_before_1_6(folder: Path) -> Kind:
    return pickled(folder, zipped=False)


def model_folder(folder: Path) -> Kind:
    save_folder(folder / "model", SMALL, weights())
    return in_folder(folder / "model", read_weights, "config.json")


def diffusers_folder(folder: Path) -> Kind:
    save_weights(folder / "model", Weights(weights(), "flux", SMALL), "diffusers")
    return in_folder(folder / "model", read_weights, "config.json")


def checkpoint(folder: Path) -> Kind:
    import jax
    import jax.numpy as jnp

    from flax_vae.train.config.schema import TrainConfig
    from flax_vae.train.run.checkpoints import Checkpoints

    params = jax.tree.map(jnp.asarray, unflatten(weights("flax")))
    with Checkpoints(folder / "checkpoints") as manager:
        manager.save(4, {"params": params}, TrainConfig(SMALL), wait=True)
    return in_folder(folder / "checkpoints" / "4", read_weights)


def manifest(folder: Path) -> Kind:
    from flax_vae.train.run.manifest import write_manifest

    step = folder / "5"
    step.mkdir()
    (step / "a").write_text("a")
    write_manifest(step)

    def read(path: Path) -> None:
        if find_damage(path) is None:
            raise FileNotFoundError("taken for whole")

    return in_folder(step, read, "manifest.json")


def latents(folder: Path) -> Kind:
    write_latents(folder / "latents")

    def read(path: Path) -> None:
        data = LatentDataset(path)
        for position in range(min(len(data), 20)):
            data[position]
        list(data.batches(2, seed=0))

    return in_folder(folder / "latents", read)


def read_run_settings(path: Path) -> None:
    from flax_vae.train.cli.settings_file import merge, read_settings
    from flax_vae.train.config.recipes import recipe
    from flax_vae.train.config.schema import TrainConfig

    found = {name: value for name, value in read_settings(path).items() if name != "preset"}
    TrainConfig.from_dict(merge(recipe("tiny").to_dict(), found))


def settings_json(folder: Path) -> Kind:
    from flax_vae.train.config.recipes import recipe

    (folder / "a.json").write_text(json.dumps({"preset": "tiny", **recipe("tiny").to_dict()}))
    return one_file(folder / "a.json", read_run_settings, raises=(ValueError, TypeError))  # as the command treats them


def settings_yaml(folder: Path) -> Kind:
    from flax_vae.train.config.recipes import recipe
    from flax_vae.train.config.yaml_text import format_yaml

    (folder / "a.yaml").write_text(format_yaml(recipe("tiny").to_dict()))
    return one_file(folder / "a.yaml", read_run_settings, raises=(ValueError, TypeError))


def run_config(folder: Path) -> Kind:
    from flax_vae.train.config.recipes import recipe
    from flax_vae.train.run.directory import RunDirectory

    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(recipe("tiny").to_dict()))
    return in_folder(folder / "run", lambda path: RunDirectory(path).check(recipe("tiny")))


def metrics(folder: Path) -> Kind:
    from flax_vae.train.report.metrics_log import Metrics, read_metrics

    path = folder / "metrics.jsonl"
    writer = Metrics(path, 0)
    for step in range(1, 7):
        writer.write(step, {"loss": 0.1 * step, "psnr": 20.0})

    def read(path: Path) -> None:
        copied = path.with_name("copy.jsonl")
        shutil.copy(path, copied)
        Metrics(copied, 100)
        read_metrics(copied)
        copied.with_name("copy.jsonl.damaged").unlink(missing_ok=True)

    return one_file(path, read)


def images(folder: Path) -> Kind:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    folder = folder / "images"
    folder.mkdir()
    for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "ICO", "TGA", "EPS", "JPEG2000", "AVIF"):
        Image.fromarray(pixels).save(folder / f"{name}.png", name)
    Image.fromarray(pixels).save(folder / "lzw.tif", compression="tiff_lzw")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(pixels).convert("P").save(folder / "palette.png", transparency=3)

    def read(path: Path) -> None:
        for file in sorted(path.iterdir()):
            if file.read_bytes() != sound[file]:
                image_size(file)
                read_image(file)

    kind = in_folder(folder, read)
    sound = kind.files
    return kind


def arrays(folder: Path) -> Kind:
    from flax_vae.images.sources.arrays import ArraySource

    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    folder = folder / "arrays"
    folder.mkdir()
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed), ("c.npy", None)):
        buffer = io.BytesIO()
        save(buffer, images=pixels) if save else np.save(buffer, pixels)
        (folder / name).write_bytes(buffer.getvalue())

    def read(path: Path) -> None:
        for file in sorted(path.iterdir()):
            if file.read_bytes() != sound[file]:
                source = ArraySource(file)
                for index in range(min(len(source), 3)):
                    source[index]

    kind = in_folder(folder, read)
    sound = kind.files
    return kind


def packed(folder: Path) -> Kind:
    """A tar and a table of small images with labels and captions."""
    from flax_vae.images import open_images
    from tests.packed import pack

    source = folder / "source" / "a"
    source.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8 + number)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"number {number}")
    folder = folder / "packed"
    folder.mkdir()
    for kind in ("tar", "parquet"):
        pack(source.parent, kind, folder)

    def read(path: Path) -> None:
        for file in sorted(path.iterdir()):
            if file.read_bytes() != sound[file]:
                images = open_images(str(file))
                for index in range(min(len(images), 3)):
                    images.label(index), images.caption(index), images[index]

    kind = in_folder(folder, read)
    sound = kind.files
    return kind


KINDS = [
    *(safetensors, sharded, msgpack, pickled, pickled_before_1_6, model_folder, diffusers_folder, checkpoint, manifest),
    *(latents, settings_json, settings_yaml, run_config, metrics, images, arrays, packed),
]
NEED_TORCH = (pickled, pickled_before_1_6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [pytest.param(kind, id=kind.__name__, marks=pytest.mark.torch if kind in NEED_TORCH else ()) for kind in KINDS],
)
def test_only_our_errors(make, tmp_path, record_property):
    kind = make(tmp_path)
    names = sorted(kind.files)
    count = {"inputs": 0, "refused": 0}
    kind.read(kind.target) if make is not manifest else None  # imports, and the sound file is read

    def timed() -> float:
        start = time.thread_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(kind.target)
        except (*OURS, *kind.raises) as error:
            count["refused"] += 1
            assert str(error)
        return time.thread_time() - start

    @settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**16), BYTE_CHANGES, JSON_CHANGES, st.booleans())
    def mutate(which, byte_changes, json_changes, as_bytes):
        path = names[which % len(names)]
        sound = kind.files[path]
        try:
            content = changed_bytes(sound, byte_changes) if as_bytes else changed_json(json.loads(sound), json_changes)
        except ValueError:  # no JSON
            content = changed_bytes(sound, byte_changes)
        path.write_bytes(content)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            # Once more if it took too long: a library may have been imported, or another process in the way.
            if timed() > SECONDS:
                assert timed() < SECONDS
        finally:
            path.write_bytes(sound)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES * 1024
        count["inputs"] += 1

    mutate()
    assert count["inputs"] >= EXAMPLES
    record_property("mutated", (make.__name__, count["inputs"], count["refused"]))
