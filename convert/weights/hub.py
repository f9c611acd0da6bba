"""Finds and downloads models of the Hugging Face hub, named `hf:org/name[/folder or file][@revision]`.

`huggingface_hub` is an optional dependency, imported only for such names.
"""

import contextlib
import glob
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from flax_vae.convert.errors import ArgumentError, FileError, shorten
from flax_vae.convert.extras import needed
from flax_vae.convert.formats import is_index, read_shard_index
from flax_vae.convert.weights.file_names import choose_models, is_diffusers_file, is_weights_file, pair_of, variant_of
from flax_vae.convert.weights.folder import CONFIG, WEIGHTS, read_any_config

PREFIX = "hf:"
_FORM = "hf:org/name[/folder or file][@revision]"

_PART = r"[\w-][\w.-]*"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_PATH = re.compile(rf"{_PART}(/{_PART})*")
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(/(?P<inside>{_PATH.pattern}))?(@(?P<revision>{_PATH.pattern}))?")

# What to do, by the name of the library's error; its own messages are pages long.
_LOG_IN = "run hf auth login, or set HF_TOKEN"
_REASONS = {
    "GatedRepoError": f"it is gated: accept its terms at https://huggingface.co/{{repository}}, then {_LOG_IN}",
    "RepositoryNotFoundError": f"the repository does not exist or is private: check the name, or {_LOG_IN}",
    "RevisionNotFoundError": "it has no revision {revision!r}; name a branch, a tag or a commit",
    "OfflineModeIsEnabled": "it is not in the local cache; unset HF_HUB_OFFLINE to download it",
    "LocalEntryNotFoundError": "it is not in the local cache, and the hub cannot be reached; check the connection",
    **dict.fromkeys(("ConnectError", "ConnectionError"), "the hub cannot be reached; check the connection"),
    "TimeoutException": "the hub does not answer; try again later",
}


@dataclass(frozen=True)
class HubName:
    """Name of a model on the Hugging Face hub.

    Attributes:
      repository: Repository, `org/name`.
      inside: Folder or file in the repository; empty for its root.
      revision: Branch, tag or commit; None for `main`.
    """

    repository: str
    inside: str = ""
    revision: str | None = None

    @property
    def file(self) -> str | None:
        """Name of the weights file, or None for a folder."""
        return PurePosixPath(self.inside).name if is_weights_file(self.inside) else None

    @property
    def folder(self) -> PurePosixPath:
        """Folder, or that of the file."""
        path = PurePosixPath(self.inside)
        return path if self.file is None else path.parent

    @property
    def configured(self) -> bool:
        """Whether the configuration in the folder belongs to it, and not only to other files there."""
        return self.file is None or self.file == WEIGHTS or is_diffusers_file(self.file)

    def __str__(self) -> str:
        """Returns the name in the form that `find` reads."""
        inside = f"/{self.inside}" if self.inside else ""
        return f"{PREFIX}{self.repository}{inside}" + (f"@{self.revision}" if self.revision else "")


def find(path: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None) -> Path | HubName:
    """Returns what a path or name means: a local path, or a model on the hub.

    A string that begins with `hf:` is a name on the hub.  So is a string `org/name`, unless it can be a local path: it
    exists, a folder `org` exists, or it ends like a weights file.  A `Path` is a name on the hub only with `hf:`;
    commands pass a `Path`, so that a mistyped path does not download an unknown model.  Anything else is a local path.

    Args:
      path: Path, or name on the hub.
      revision: Branch, tag or commit on the hub, if the name has none.
      subfolder: Folder inside `path`.

    Raises:
      FileNotFoundError: If a name with `hf:` has another form, or if a path that does not exist has the form of a name
        on the hub but may be a mistyped path.
      ArgumentError: If `revision` is given for a local path, `revision` or `subfolder` twice, or one of them has no
        valid form.
    """
    for field, value in (("revision", revision), ("subfolder", subfolder)):
        if value and not _PATH.fullmatch(value):
            raise ArgumentError(
                f"{field}={value!r} is not valid; expected names separated by /, without . and ..", field=field
            )
    text = path.as_posix() if isinstance(path, PurePath) else os.fspath(path)
    if text.startswith(PREFIX):
        name = _NAME.fullmatch(text.removeprefix(PREFIX))
        if name is None:
            raise FileNotFoundError(f"{text} is not a name on the Hugging Face hub; expected {_FORM}")
        for field, given, value in (("revision", name["revision"], revision), ("subfolder", name["inside"], subfolder)):
            if given and value:
                raise ArgumentError(f"{text} names {given!r}, and {field}={value!r}; give one of them", field=field)
        return HubName(name["repository"], name["inside"] or subfolder or "", name["revision"] or revision or None)
    if Path(path).exists() or not _REPOSITORY.fullmatch(text):
        if revision:
            raise ArgumentError(
                f"revision={revision!r} is of a model on the Hugging Face hub, and {path} is a local path; leave it "
                f"out, or name the model as {_FORM}",
                field="revision",
            )
        return Path(path, subfolder or "")
    if not isinstance(path, str) or is_weights_file(text) or Path(text).parent.is_dir():
        raise FileNotFoundError(f"{path} does not exist; for a model on the Hugging Face hub, write {PREFIX}{text}")
    return HubName(text, subfolder or "", revision or None)


def download(name: HubName, variant: str | None = None) -> Path:
    """Returns the weights file of a model on the hub in the library's cache, downloading what is missing.

    Of a folder, only the files that `open_weights` would read are downloaded: the configuration, and of several copies
    of the same weights the preferred one.  A configuration of another family of models is refused before that.

    Args:
      name: Name on the hub.
      variant: Variant to take from a diffusers folder; see `flax_vae.convert.weights.open_weights`.

    Raises:
      FileNotFoundError: If the hub does not provide the model, or `huggingface_hub` is not installed.
      FileError: If there is no such variant, or several models; the message lists what was found.
      ConversionError: If our architecture cannot express the configuration.
    """
    _need_library(name)
    if name.file is not None and variant is not None:
        raise FileError(f"variant={variant!r} chooses in a folder, and {name} is a file; leave it out")
    config = str(name.folder / CONFIG)
    snapshot = _fetch(name, [config if name.configured else name.inside])
    files, complete = _list_files(name, snapshot)
    weights = snapshot / name.folder / _choose(name, variant, snapshot, files, complete)
    if name.configured and config in files:
        read_any_config(snapshot / config)
    commit = snapshot.name  # so that all files are of one commit
    _fetch(name, [str(name.folder / weights.name)], commit)
    if is_index(weights.name):
        shards = {str(name.folder / shard) for shard in read_shard_index(weights).values()}
        _fetch(name, [file for file in files if file in shards], commit)
    if other := {str(name.folder / half) for half in pair_of(weights.name) or ()} - {str(name.folder / weights.name)}:
        _fetch(name, [file for file in files if file in other], commit)
    return weights


def find_config(path: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None) -> Path:
    """Returns the `config.json` of a folder, or of a model on the hub, from which nothing else is downloaded.

    Args:
      path: Folder, or name on the hub.
      revision: Branch, tag or commit on the hub, if the name has none.
      subfolder: Folder inside `path`.

    Raises:
      FileNotFoundError: If there is none, or the hub does not provide it.
      ArgumentError: As for `find`.
    """
    place = find(path, revision, subfolder)
    if isinstance(place, HubName):
        _need_library(place)
        config = str(place.folder / CONFIG)
        found = _fetch(place, [config]) / config
    else:
        found = place / CONFIG
    if not found.is_file():
        raise FileNotFoundError(f"{place} has no {CONFIG}; give the folder that holds it")
    return found


def _need_library(name: HubName) -> None:
    with needed(f"{name} is on the Hugging Face hub, which needs huggingface_hub", "hub", raises=FileNotFoundError):
        import huggingface_hub  # noqa: F401


def _choose(name: HubName, variant: str | None, snapshot: Path, files: list[str], complete: bool) -> str:
    """Returns the name of the weights file in the folder; see `download` and `_list_files`."""
    inside = [path.name for path in map(PurePosixPath, files) if path.parent == name.folder]
    if name.file is None:
        chosen = choose_models(snapshot / name.folder, inside, variant, str(name))
    else:
        chosen = [file for file in inside if file == name.file]
    if len(chosen) > 1:
        raise FileError(f"{name} holds several models; give one of them: {', '.join(chosen)}")
    if not chosen:
        what = "weights of a known name" if name.file is None else f"file {name.file}"
        where = f"folder {name.folder}" if name.folder.name else "root"
        raise FileNotFoundError(f"{name}: the repository has no {what} in its {where}; {_offer(name, files)}")
    only = variant_of(chosen[0])
    if not complete and name.file is None and variant is None and only is not None:
        raise FileNotFoundError(
            f"{name}: the local cache holds only the variant {only!r}, but the hub may hold the default one; choose it "
            "with variant=, or unset HF_HUB_OFFLINE"
        )
    return chosen[0]


def _fetch(name: HubName, files: list[str], commit: str | None = None) -> Path:
    """Returns the folder of a revision in the cache, after downloading those of the files that are in it."""
    from huggingface_hub import snapshot_download

    try:
        with _quiet(bars=commit is None or not sys.stderr.isatty()):
            patterns = [glob.escape(file) for file in files]
            return Path(snapshot_download(name.repository, revision=commit or name.revision, allow_patterns=patterns))
    except Exception as error:  # errors of the network, of the hub and of its cache have no common base
        raise FileNotFoundError(f"{name}: download from the Hugging Face hub failed: {_reason(error, name)}") from error


def _list_files(name: HubName, snapshot: Path) -> tuple[list[str], bool]:
    """Returns the files of a revision, and whether these are all: the cache may lack the list."""
    import huggingface_hub

    try:
        return [
            file.path for file in huggingface_hub.get_cached_repo_tree(name.repository, revision=snapshot.name)
        ], True
    except Exception:  # the cache, or the library itself, is of an earlier release, without such lists
        pass
    try:
        return list(huggingface_hub.HfApi().list_repo_files(name.repository, revision=snapshot.name)), True
    except Exception:  # the hub cannot be reached
        return [path.relative_to(snapshot).as_posix() for path in sorted(snapshot.rglob("*")) if path.is_file()], False


def _offer(name: HubName, files: list[str]) -> str:
    """Returns the end of a message: the folders and files of the repository that could be meant."""
    paths = [PurePosixPath(path) for path in files if is_weights_file(path)]
    known = {path.parent if is_diffusers_file(path.name) or path.name == WEIGHTS else path for path in paths}
    if not known:
        return "it has no weights files at all"
    vae_first = sorted(map(str, known), key=lambda path: ("vae" not in path and not path.startswith("ae."), path))
    names = [str(replace(name, inside="" if path == "." else path)) for path in vae_first]
    return f"choose one of: {shorten(names, 5)}"


@contextlib.contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Silences the library's warnings, about patterns that match no file for example, and its progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log = logging.getLogger("huggingface_hub")
    level, bars = log.level, bars and not are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            enable_progress_bars()


def _reason(error: BaseException, name: HubName) -> str:
    """Returns why a download failed and what to do, in one line."""
    cause = error.__cause__
    if type(cause).__name__ == "OfflineModeIsEnabled" and cause is not None:
        error = cause
    kinds = [kind.__name__ for kind in type(error).__mro__]
    known = next((kind for kind in kinds if kind in _REASONS), None)
    status = getattr(
        getattr(cause if known == "LocalEntryNotFoundError" else error, "response", None), "status_code", 0
    )
    if known == "LocalEntryNotFoundError" and status:
        return f"the hub answers with status {status}, and it is not in the local cache; try again later"
    if known is not None:
        return _REASONS[known].format(repository=name.repository, revision=name.revision)
    if status == 401:
        return f"the hub does not accept the token; {_LOG_IN}"
    return next(filter(None, (line.strip() for line in str(error).splitlines())), type(error).__name__)
