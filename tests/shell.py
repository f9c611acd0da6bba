"""Runs the commands of shell blocks in this process, shortened where they would take long."""

import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

# Programs that are not run: none is ours, and the reason why.
NOT_RUN = {
    **dict.fromkeys(("git", "cd", "source"), "the clone and its environment are there when tests run"),
    **dict.fromkeys(("python3", "pip", "uv", "pre-commit"), "installs; .ci/run installs as the README says"),
    **dict.fromkeys(("curl", "sh"), "installs uv"),
    **dict.fromkeys(("gcloud", "gcsfuse"), "rents machines or mounts buckets of Google Cloud"),
    "mkdir": "makes the place of a mounted bucket, outside this folder",
    "export": "sets what TPUs' compiler reads",
    "pytest": "would run this test",
}

# The modules with the `main` of our commands.
PROGRAMS = {
    "flax-vae": "flax_vae.cli.main",
    "flax-vae-convert": "flax_vae.convert.cli.main",
    "flax-vae-train": "flax_vae.train.cli.main",
}

# Beginnings of words that are left out: places outside this folder.
OUTSIDE = re.compile("gs://BUCKET/|/mnt/bucket/")

_NARROW = "--model.ch 32 --model.ch-mult 1 1 --model.num-res-blocks 1"
# What is added to a command, of which the last flag of a name counts: every pattern that is found in it adds its flags.
SHORTER = [
    (r"^flax-vae-train( --|$)", "--steps 2 --batch-size 2 --optim.accumulate 1"),  # minutes, or days
    (r"^flax-vae-train(?! eval)", _NARROW),  # up to 84 million parameters
    (r"^flax-vae-train .*--preset (sd-|flux|kl-)", "--crop-size 32"),
    (r"^flax-vae-train(?!.*--data)( --|$)", "--data train/photographs"),  # small ones, for large evaluations
    (r"--preset flux2-small-decoder", "--model.decoder-widths 32 32"),
    (r"^flax-vae-train plan .*--preset (sd-|flux1-f|kl-)", "--gan.weight 0 --loss.lpips-weight 0"),  # compiles them
    (r"--devices-per-image 4", "--devices-per-image 2"),  # as many as there are
    (r"--distributed", "--dry-run"),  # of a pod, whose processes tests/train/devices starts
    (r"^flax-vae-train eval .*--data", "--equivariance 2"),
    (r"^flax-vae encode .*--resize 256", "--resize 32"),  # by FLUX.1's encoder
    (r"^python -m tests.benchmarks", "--help"),  # they train for long; their options are compared with the help
]
# Flags that are left out with their value: their compiler is in the extra tpu, and `pytest -m tpu` plans with it.
LEFT_OUT = ("--topology",)


def commands(text: str) -> Iterator[list[str]]:
    """Returns the commands of a shell block, as words; those that gcloud sends elsewhere come behind it."""
    text = re.sub(r"(^|\s)#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if set(word) - set(";&|()<>\n"):
            words.append(word)
        elif words:
            yield words
            for flag, value in zip(words, words[1:], strict=False):
                if words[0] == "gcloud" and flag == "--command":
                    yield from commands(value)
            words = []


def run(words: list[str]) -> None:
    """Runs a command in this process, unless it is one of `NOT_RUN`.

    Raises:
      AssertionError: If it fails, or if nothing says how to run it.
    """
    program = PurePosixPath(words[0]).name
    if program in NOT_RUN:
        return
    if program == "python" and words[1] == "-m":
        module, arguments = words[2], words[3:]
    else:
        assert program in PROGRAMS, f"{words}: tests/shell.py does not say how to run {program!r}, or why not"
        module, arguments = PROGRAMS[program], words[1:]
    arguments = [OUTSIDE.sub("", word) for word in arguments]
    line = shlex.join([program, *words[1:]])
    kept = [
        word
        for before, word in zip([program, *arguments], arguments, strict=False)
        if word not in LEFT_OUT and before not in LEFT_OUT
    ]
    more = [word for pattern, flags in SHORTER if re.search(pattern, line) for word in flags.split()]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed) if more == ["--help"] else contextlib.nullcontext():
            status = importlib.import_module(module).main(more if more == ["--help"] else [*kept, *more])
    except SystemExit as end:  # after --help
        status = end.code
    assert status in (0, None), f"{words} ended with {status}"
    unknown = [word for word in kept if more == ["--help"] and word.startswith("--") and word not in printed.getvalue()]
    assert not unknown, unknown
