"""Bounds on a zip archive, checked from its directory alone."""

import zipfile

MAX_MEMBERS = 50_000  # one for each tensor of a checkpoint
_MAX_RATIO = 100  # of a compressed member; weights and photographs compress by less than 2


def check_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the members of an archive that can be read without surprises.

    Args:
      archive: Opened archive.

    Raises:
      ValueError: If there are too many, or one is encrypted or compressed so well that a small file would fill the
        memory.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"it has {len(members):,} members; expected at most {MAX_MEMBERS:,}")
    for member in members:
        if member.flag_bits & 1:
            raise ValueError(f"its member {member.filename!r} is encrypted")
        if member.file_size > (1 << 20) + _MAX_RATIO * member.compress_size:
            raise ValueError(
                f"its member {member.filename!r} grows from {member.compress_size:,} to {member.file_size:,} bytes; "
                f"expected at most {_MAX_RATIO} times its size"
            )
    return members
