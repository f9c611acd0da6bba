"""What is measured: one row of the table per piece of work, and who takes part in it."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flax_vae.convert.architecture.autoencoder import AutoEncoderParams
from flax_vae.convert.architecture.presets import preset
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.weights.diffusers_config import write_diffusers_config

OURS = "ours"
REF, SDPA, COMPILE, AUTOTUNE = "torch_ref", "torch SDPA", "torch compile", "torch max-autotune"
DIFFUSERS = "diffusers"
PEERS = (REF, SDPA, COMPILE, DIFFUSERS)
COMPILED = (COMPILE, AUTOTUNE)
ALL_PEERS = (*PEERS, AUTOTUNE)
NEEDS = {peer: "diffusers" if peer == DIFFUSERS else "torch" for peer in ALL_PEERS}

# The shipped reference makes whole attention matrices; beyond this it is left out instead of filling the machine.
LARGEST_MATRIX = 2e9

EXTRAS = ("ceilings", "attention-memory")  # printed beside the table, chosen like its rows


@dataclass(frozen=True)
class Row:
    """One piece of work, the same for all who take part.

    Attributes:
      work: `"forward"` (posterior mean and decode), `"encode"` (posterior mean), `"decode"`, `"bands"` (decode in
        bounded memory) or `"training"`.
      preset: the architecture, always without time.
      px: side of the square image.
      batch: images.
      rounds: turns that each takes unless the command line says otherwise.
      calls: timed calls in each turn, one right after the other as in a real loop; long rows make one.
      warm: whether an untimed call comes first in each turn; long rows do without.
      peers: who may take part beside ours; see `peers_of`.
      half: bfloat16 arithmetic; our parameters and those that are trained are float32.
      listed: whether a run without `--rows` includes it.
    """

    work: str
    preset: str
    px: int
    batch: int = 1
    rounds: int = 3
    calls: int = 1
    warm: bool = True
    peers: tuple[str, ...] = PEERS
    half: bool = False
    listed: bool = True

    @property
    def name(self) -> str:
        """What `--rows` matches."""
        return f"{self.work}-{self.preset}-{self.px}" + (f"-b{self.batch}" if self.batch > 1 else "")

    @property
    def record(self) -> AutoEncoderParams:
        """The architecture."""
        return dataclasses.replace(preset(self.preset), time_emb_dim=None)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Of the scaled latent, `b h w c`."""
        record = self.record
        side = self.px // record.factor
        return self.batch, side, side, record.latent_channels


CPU_ROWS = (
    Row("forward", "seed", 64, rounds=5, calls=3),
    Row("forward", "seed", 128, rounds=5),
    Row("forward", "seed", 256, rounds=1, warm=False, peers=(REF, SDPA)),
    Row("forward", "flux1", 256, calls=3),
    Row("forward", "flux1", 512, rounds=1, warm=False),
    Row("decode", "flux1", 256, calls=3),
    Row("training", "seed", 128, warm=False, peers=(SDPA, COMPILE)),  # torch_ref takes 9 GB and more than a minute
    Row("training", "flux1", 128, rounds=5, calls=3),
    Row("training", "seed", 256, rounds=1, warm=False, peers=()),
    Row("bands", "flux1", 1024, rounds=1, peers=(SDPA,), warm=False),
    Row("bands", "flux1", 2048, rounds=1, peers=(), warm=False),
    Row("forward", "tiny", 32, rounds=1, peers=(REF, SDPA), listed=False),
    Row("encode", "tiny", 32, batch=2, rounds=1, peers=(SDPA,), half=True, listed=False),
    Row("training", "tiny", 64, rounds=3, listed=False),
    Row("bands", "tiny", 64, rounds=1, peers=(), warm=False, listed=False),
)


def _on_gpu(work: str, preset: str, px: int, batch: int, *, also: tuple[str, ...] = ()) -> Row:
    return Row(work, preset, px, batch, rounds=10, peers=(REF, SDPA, COMPILE, *also), half=True)


# Choosing among kernels takes PyTorch minutes, so it takes part where the peer that it may beat is a published model's.
GPU_ROWS = (
    _on_gpu("encode", "flux1", 256, 64),
    _on_gpu("encode", "flux1", 512, 8),
    _on_gpu("decode", "flux1", 512, 8, also=(AUTOTUNE, DIFFUSERS)),
    _on_gpu("decode", "flux1", 1024, 1, also=(AUTOTUNE,)),
    _on_gpu("decode", "flux1", 1024, 4),
    _on_gpu("decode", "flux1", 2048, 1),
    _on_gpu("decode", "flux2", 1024, 1),
    _on_gpu("decode", "flux2-small-decoder", 1024, 1),
    _on_gpu("forward", "flux1", 256, 32, also=(AUTOTUNE,)),
    _on_gpu("forward", "seed", 128, 8),
    _on_gpu("training", "flux1", 256, 16),
    _on_gpu("training", "seed", 128, 4),
)


def chosen(rows: Sequence[Row], patterns: Sequence[str], elsewhere: Sequence[Row] = ()) -> tuple[list[Row], list[str]]:
    """Returns the rows and the extras that any of the patterns matches, as a glob or a piece of the name.

    Args:
      rows: the rows of this machine.
      patterns: what `--rows` says.
      elsewhere: rows of machines with a GPU, or without one if this has one.

    Raises:
      ValueError: if a pattern matches nothing that can be measured here.
    """
    if not patterns:
        return [row for row in rows if row.listed], list(EXTRAS)

    def matches(name: str, pattern: str) -> bool:
        return pattern in name or fnmatchcase(name, pattern)

    names = [row.name for row in rows]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in (*names, *EXTRAS)):
            if there := [row for row in elsewhere if matches(row.name, pattern)]:
                needs, has = ("GPU", "a CPU") if there[0].half else ("CPU", "another device")
                raise ValueError(f"--rows {pattern!r} is for a {needs}, and JAX computes on {has} here")
            raise ValueError(f"--rows {pattern!r} matches none of {', '.join((*names, *EXTRAS))}")

    def wanted(name: str) -> bool:
        return any(matches(name, pattern) for pattern in patterns)

    return [row for row in rows if wanted(row.name)], [name for name in EXTRAS if wanted(name)]


def peers_of(row: Row) -> tuple[list[str], list[str]]:
    """Returns the peers that take part, and a sentence for each that does not."""
    found, notes = [], []
    for peer in row.peers:
        reason = _why_not(peer, row)
        if reason is None:
            found.append(peer)
        else:
            notes.append(f"{row.name}: {peer} left out: {reason}")
    return found, notes


def _why_not(peer: str, row: Row) -> str | None:
    if importlib.util.find_spec(NEEDS[peer]) is None:
        return f"{NEEDS[peer]} is not installed"
    if peer == REF and matrix_bytes(row) > LARGEST_MATRIX:
        return f"each of its attention matrices takes {matrix_bytes(row) / 1e9:.0f} GB"
    if peer == DIFFUSERS:
        try:
            write_diffusers_config(row.record)
        except ConversionError as error:
            return str(error)
    return None


def matrix_bytes(row: Row) -> int:
    """Bytes of the largest float32 attention matrix of one image, were it made."""
    record = row.record
    finest = min((level for level in range(record.num_levels) if record.attends(level)), default=record.num_levels - 1)
    positions = (row.px // 2**finest) ** 2
    return 4 * positions**2
