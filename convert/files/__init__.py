"""Files and folders on disk and in buckets: written whole or not at all, read only where regular, JSON of one meaning.

Imports `flax_vae.convert.errors` and `extras`; used by everything that reads or writes.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.files.address import Place, address_below, address_errors, address_of, as_path, is_address
    from flax_vae.convert.files.archive import check_members
    from flax_vae.convert.files.atomic import beside, partial_of, restore, scratch_folder, shortened
    from flax_vae.convert.files.bucket_lock import BucketLock, is_lock
    from flax_vae.convert.files.cache import cache_folder, local_copy
    from flax_vae.convert.files.json import finite_json, loads_object, read_object
    from flax_vae.convert.files.lock import open_locked, release
    from flax_vae.convert.files.manifest import (
        FORMAT,
        MANIFEST,
        UNVERIFIED,
        digest_file,
        digest_of,
        find_damage,
        is_number,
        note_on_number,
        read_manifest,
        read_verified,
    )
    from flax_vae.convert.files.objects import (
        ListedFile,
        copy_at,
        create_at,
        exists_at,
        fetch_folder,
        list_at,
        open_at,
        put_folder,
        read_at,
        remove_at,
        size_at,
        stamp_at,
        write_at,
    )
    from flax_vae.convert.files.regular import read_bytes, require_regular
    from flax_vae.convert.files.whole_file import atomic_file
    from flax_vae.convert.files.whole_folder import (
        PICKLES,
        atomic_folder,
        refuse_file_name,
        remove_content,
        replace_folder,
        write_json,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BucketLock",
    "ListedFile",
    "Place",
    "address_below",
    "address_errors",
    "address_of",
    "as_path",
    "copy_at",
    "create_at",
    "exists_at",
    "fetch_folder",
    "is_address",
    "list_at",
    "open_at",
    "put_folder",
    "read_at",
    "remove_at",
    "size_at",
    "stamp_at",
    "write_at",
    "FORMAT",
    "MANIFEST",
    "PICKLES",
    "UNVERIFIED",
    "beside",
    "cache_folder",
    "check_members",
    "digest_file",
    "digest_of",
    "find_damage",
    "finite_json",
    "is_lock",
    "is_number",
    "loads_object",
    "local_copy",
    "atomic_file",
    "atomic_folder",
    "note_on_number",
    "open_locked",
    "partial_of",
    "read_bytes",
    "read_manifest",
    "read_object",
    "read_verified",
    "refuse_file_name",
    "release",
    "remove_content",
    "replace_folder",
    "require_regular",
    "restore",
    "scratch_folder",
    "shortened",
    "write_json",
]
