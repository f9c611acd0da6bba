"""Formats the table of `flax-vae-train plan`."""

from collections.abc import Iterator, Sequence

from flax_vae.train.config import TrainConfig
from flax_vae.train.plan.compile import Plan

HEAD = (
    "devices", "model", "how", "hosts", "px", "batch",
    "state", "work", "GiB of", "TFLOP", "GB", "s >=", "img/s <=", "$/M >=",
)  # fmt: skip
_TEXT_COLUMNS = 3  # number of text columns, which come first

LEGEND = """\
state, work: GiB on each device of the state, batch and constants, and of all temporaries of a step.  GiB of: both and
the program, of the memory of the device.  TFLOP: convolutions and products of one step on one device.  GB: what
its operations read and write, as the compiler counts it (the body of a loop once; also what stays on a TPU's chip).
s: lower bound per step, by the published bfloat16 peak or the published bandwidth, whichever takes longer (by bandwidth
it is too high by what stays on the chip); without communication between devices.
img/s and $/M (price of training on a million images) follow from that, and from published prices on demand."""


def rows(plans: Sequence[Plan], *, markdown: bool = False) -> Iterator[str]:
    """Yields the lines of the table.

    Args:
      plans: Plans, one per line.
      markdown: Whether to format for GitHub instead of a terminal.
    """
    table = [HEAD, *(_cells(plan) for plan in plans)]
    if markdown:
        yield "| " + " | ".join(table[0]) + " |"
        yield "|" + "|".join("---" if column < _TEXT_COLUMNS else "--:" for column in range(len(HEAD))) + "|"
        yield from ("| " + " | ".join(cells) + " |" for cells in table[1:])
        return
    widths = [max(len(cells[column]) for cells in table) for column in range(len(HEAD))]
    for cells in table:
        padded = (
            cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def _cells(plan: Plan) -> tuple[str, ...]:
    config, memory = plan.config, plan.memory
    has = "?" if plan.target.memory is None else f"{plan.target.memory / 2**30:.0f}"
    fits = "" if plan.fits is not False else " NO"
    return (
        plan.target.name,
        plan.name,
        _how(config),
        str(plan.target.hosts),
        str(config.data.crop_size),
        str(config.batch_size),
        _gib(memory.arguments),
        _gib(memory.temporaries),
        f"{_gib(memory.total)} / {has}{fits}",
        f"{plan.operations / 1e12:.2f}",
        "" if plan.traffic is None else f"{plan.traffic / 1e9:.0f}",
        "" if plan.seconds is None else f"{plan.seconds:.3f}",
        "" if plan.images_per_second is None else f"{plan.images_per_second:.0f}",
        "" if plan.dollars_per_million is None else f"{plan.dollars_per_million:.2f}",
    )


def _how(config: TrainConfig) -> str:
    """Returns the settings that determine memory and work, besides the model and the batch."""
    parts = [config.parallel, config.dtype]
    parts += [f"{config.devices_per_image} per image"] if config.devices_per_image > 1 else []
    parts += ["zero"] if config.zero else []
    parts += [f"in {config.optim.accumulate} parts"] if config.optim.accumulate > 1 else []
    parts += [] if config.remat == "none" else [f"remat {config.remat}"]
    parts += ["GAN"] if config.gan.weight else []
    parts += ["LPIPS"] if config.loss.lpips_weight else []
    return " ".join(parts)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f}"
