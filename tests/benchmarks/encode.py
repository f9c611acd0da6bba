"""What `flax-vae encode` costs beyond the model's own time, and that being killed leaves no trace in what it writes.

`python -m tests.benchmarks.encode [COUNT]` cuts the shipped photographs into images of eight sizes, JPEG and PNG, and
encodes them with `tiny` of random weights: by the model alone, on arrays in memory, in the same batches, compiling
included; by the command, from its start to its end; by the model alone once more, since a machine is not as fast all
the time; and by the command killed with SIGKILL five times and started again.  It prints seconds of the clock and of
the processors, the latter of which hardly change when the machine has other things to do, and whether the two data sets
are the same to the last byte.

`python -m tests.benchmarks.encode sources [COUNT]` encodes the same images of one size, as JPEG files in a folder, as
tar, Parquet table, ArrayRecord file and as `.npz`, in turns with the model alone, all in one process, and prints what
each costs beyond the model, beside the time for decoding the JPEG files alone.
"""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from flax_vae.convert.console import available_cpus
from flax_vae.convert.latents import LatentDataset
from flax_vae.train.data.shipped import shipped_photographs
from tests.benchmarks.machine import describe

SIZES = [(160, 64), (64, 160), (128, 48), (96, 96), (72, 100), (64, 80), (56, 56), (47, 49)]
KILLS, SHARD, BATCH = 5, 32, 16


def write_images(folder: Path, count: int) -> None:
    """Crops of photographs, each made smaller by a random factor first."""
    rng = np.random.default_rng(0)
    photographs = [Image.open(path).convert("RGB") for path in sorted(shipped_photographs().glob("*.jpg"))]
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        photograph = photographs[rng.integers(len(photographs))]
        factor = rng.uniform(1, min(photograph.width / width, photograph.height / height))
        left = rng.uniform(0, photograph.width - factor * width)
        top = rng.uniform(0, photograph.height - factor * height)
        box = (left, top, left + factor * width, top + factor * height)
        path = folder / f"{number % 10}" / f"{number:05}.{'png' if number % 4 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        photograph.resize((width, height), Image.Resampling.BICUBIC, box).save(path)


def write_model(folder: Path) -> None:
    """`tiny` with random weights."""
    import jax

    from flax_vae import PRESETS, AutoEncoder, init_params, save_pretrained

    model = AutoEncoder(PRESETS["tiny"])
    save_pretrained(folder, model, init_params(model, jax.random.key(0)))


def alone(source: Path, weights: Path) -> list[float]:
    """What the model takes for the batches of the command, when nothing has to be read or written: seconds of the
    clock, and of the processors.
    """
    import jax

    from flax_vae.folders.batches import BatchLimits, ImageEntry, plan_shards
    from flax_vae.images.scan import scan_images
    from flax_vae.images.sizes import pad_to_factor, to_float
    from flax_vae.images.sources.open import open_images
    from flax_vae.inference.model import load_model

    model, params = load_model(str(weights), None, "float32")
    factor, batches = model.params.factor, []
    found = scan_images(open_images(str(source)))
    entries = [ImageEntry(index, found.source.name(index), *size) for index, size in found.sizes.items()]
    for shard in plan_shards(entries, factor, BatchLimits(BATCH, shard_size=SHARD)):
        for batch in shard.batches:
            images = to_float(np.stack([pad_to_factor(found.source[p.number], factor) for p in batch.pictures]))
            batches.append(np.concatenate([images, images[: batch.compiled_size - len(images)]]))
    encode = jax.jit(partial(model.apply, sample=False, method="encode"))
    begun, worked = time.perf_counter(), time.process_time()
    for images in batches:
        jax.block_until_ready(encode({"params": params}, images))
    return [time.perf_counter() - begun, time.process_time() - worked]


def command(source: Path, folder: Path, weights: Path) -> list[str]:
    """The command as a person gives it."""
    words = ["encode", source, folder, "--model", weights, "--batch-size", BATCH, "--shard-size", SHARD]
    words += ["--compilation-cache", "off"]  # the model alone compiles too
    return [sys.executable, "-m", "flax_vae.cli.main", *map(str, words)]


def whole(words: list[str]) -> tuple[list[float], str]:
    """The same seconds from the start of a command to its end, and what it printed."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return [seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime], done.stdout


def killed(words: list[str], folder: Path, count: int) -> list[str]:
    """Starts and kills the command at random moments, then lets it end; returns what was there at each kill."""
    moments, shards, found = random.Random(0), -(-count // SHARD), []
    for kill in range(KILLS):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        wanted = max(1, shards * (kill + 1) // (KILLS + 1))
        while len(list(folder.glob("latents-*"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"the command ended by itself with status {process.returncode}, before it was killed")
        found.append(f"{len(list(folder.glob('latents-*')))}")
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sources(count: int, side: int = 56) -> None:
    """Prints the table of encoding each kind of source, in turns with the model alone."""
    import jax

    from flax_vae import PRESETS, AutoEncoder, init_params
    from flax_vae.folders import BatchLimits, encode_folder, encoding_of
    from flax_vae.images import open_images, to_float
    from flax_vae.images.read import read_image
    from tests.packed import KINDS, pack

    jax.config.update("jax_enable_compilation_cache", False)
    model = AutoEncoder(PRESETS["tiny"], dtype=np.float32)
    params = init_params(model, jax.random.key(0))
    encoding = encoding_of(model, params, store="mean", dtype="float32")
    encode = jax.jit(partial(model.apply, sample=False, method="encode"))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(available_cpus()) as pool:
        folder, latents = Path(name) / "images", {}
        photographs = [Image.open(path).convert("RGB") for path in sorted(shipped_photographs().glob("*.jpg"))]
        rng = np.random.default_rng(0)
        for number in range(count):
            photograph, path = photographs[number % len(photographs)], folder / f"{number % 10}" / f"{number:05}.jpg"
            left, top = rng.integers(photograph.width - 2 * side), rng.integers(photograph.height - 2 * side)
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph.resize((side, side), box=(left, top, left + 2 * side, top + 2 * side)).save(path)
        addresses = {kind: pack(folder, kind, Path(name)) for kind in KINDS}
        contents = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
        begun = time.perf_counter()
        decoded = list(pool.map(read_image, contents))
        decoding = time.perf_counter() - begun
        batches = [to_float(np.stack(decoded[first : first + BATCH])) for first in range(0, count, BATCH)]

        def by_the_model() -> float:
            encode.clear_cache()
            begun = time.perf_counter()
            for images in batches:
                jax.block_until_ready(encode({"params": params}, images))
            return time.perf_counter() - begun

        def by_the_command(kind: str) -> tuple[float, float]:
            os.environ["FLAX_VAE_CACHE"] = str(Path(name) / "cache" / kind)
            begun = time.perf_counter()
            open_images(addresses[kind])  # the index of a tar is built here, once
            opened = time.perf_counter()
            target, limits = Path(name) / "latents" / kind, BatchLimits(BATCH)
            encode_folder(addresses[kind], target, model, params, encoding, limits)
            ended = time.perf_counter()
            values = hashlib.sha256()
            for entry in LatentDataset(target):
                values.update(entry["latent"].tobytes())
            latents[kind] = values.hexdigest()
            return opened - begun, ended - opened

        alone, rows = [by_the_model()], []
        for number, kind in enumerate(KINDS):
            rows.append((kind, *by_the_command(kind), len(alone)))
            if number % 2 or kind == KINDS[-1]:
                alone.append(by_the_model())
        print(describe("cpu"))
        print(f"tiny, {count:,} JPEG images of {side} x {side}, batches of {BATCH}; compiling included:")
        print(f"  decoding the JPEG files alone   {decoding:6.1f} s in {available_cpus()} threads")
        print(f"  the model alone                 {min(alone):6.1f} to {max(alone):.1f} s")
        print("  source         opening    encoding    beyond the model, before and after")
        for kind, opening, seconds, after in rows:
            beyond = seconds / ((alone[after - 1] + alone[after]) / 2) - 1
            print(f"  {kind:<12} {opening:7.2f} s {seconds:9.1f} s {beyond:9.1%}")
        print(f"  equal latents: {'yes' if len(set(latents.values())) == 1 else 'NO'}, of {len(latents)} sources")


def main(count: int) -> None:
    """Prints the table of one measurement."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, weights = folder / "images", folder / "model"
        source.mkdir()
        write_images(source, count)
        write_model(weights)
        measured = [sys.executable, "-m", "tests.benchmarks.encode", "alone", str(source), str(weights)]
        first = json.loads(whole(measured)[1])
        seconds, said = whole(command(source, folder / "straight", weights))
        model = [(a + b) / 2 for a, b in zip(first, json.loads(whole(measured)[1]), strict=True)]
        shards = killed(command(source, folder / "killed", weights), folder / "killed", count)
        expected = digests(folder / "straight")
        same = digests(folder / "killed") == expected
    print(describe("cpu"))
    print(f"tiny, {count:,} images of {len(SIZES)} sizes from 47 to 160 pixels, batches of {BATCH}:")
    print("                              clock  processors")
    print(f"  the model alone      {model[0]:10.1f} s {model[1]:9.1f} s   compiling included")
    print(f"  flax-vae encode      {seconds[0]:10.1f} s {seconds[1]:9.1f} s   from start to end")
    print(f"  the one by the other {seconds[0] / model[0]:10.3f}   {seconds[1] / model[1]:9.3f}")
    print(f"  it said: {said.splitlines()[0]}")
    print(f"  killed with SIGKILL {KILLS} times, with {', '.join(shards)} of {-(-count // SHARD)} shards written")
    print(f"  identical: {'yes' if same else 'NO'}, {len(expected)} files by SHA-256")


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        print(json.dumps(alone(Path(sys.argv[2]), Path(sys.argv[3]))))
    elif sys.argv[1:2] == ["sources"]:
        sources(int(sys.argv[2]) if sys.argv[2:] else 2_000)
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 2_000)
