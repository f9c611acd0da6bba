"""Image formats that are read, and advice for others.  Imports no Pillow."""

# The allow-list: Pillow's name of each format, and the endings of its files.  Pillow itself opens some forty, and
# starts another program for one of them, PostScript.
READ: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "JPEG2000": (".jp2",),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in READ.values() for suffix in suffixes)
FORMATS = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, PPM and TGA"  # as help, messages and README list them
# Addresses of images as listed in help, messages and README; see `flax_vae.images.open_images` for details.
ADDRESSES = (
    "a folder (searched recursively), an image file, WebDataset tars or Parquet tables (several as {000..099} or *), "
    "an .npy or .npz file, ArrayRecord files, each on disk or in a bucket (gs://, s3://), or hf:NAME for a Hugging "
    "Face data set on the hub or on disk"
)

# Formats that are not read: their kind, and advice.
_PHOTOGRAPH = "save it as JPEG or PNG, for example with pillow-heif or heif-convert"
_RAW = "develop it to JPEG or PNG, for example with rawpy or darktable"
_LAYERS = "export it as PNG"
_DRAWING = "draw it as PNG, for example with Inkscape"
_PAGES = "draw its pages as PNG, for example with pdftoppm"
_FILM = "save the frames as PNG, for example with ffmpeg"
_OTHER = "save it as PNG, for example with ImageMagick"
UNREAD: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".heic", ".heif", ".hif"), ("HEIF", _PHOTOGRAPH)),
    **dict.fromkeys(
        (
            ".3fr",
            ".arw",
            ".cr2",
            ".cr3",
            ".crw",
            ".dng",
            ".nef",
            ".nrw",
            ".orf",
            ".pef",
            ".raf",
            ".raw",
            ".rw2",
            ".srw",
        ),
        ("camera raw", _RAW),
    ),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".clip", ".afphoto"), ("a drawing program's", _LAYERS)),
    **dict.fromkeys((".svg", ".svgz", ".wmf", ".emf"), ("vector drawing", _DRAWING)),
    **dict.fromkeys((".pdf", ".eps", ".ps", ".ai"), ("document", _PAGES)),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"), ("video", _FILM)),
    **dict.fromkeys(
        (".jxl", ".exr", ".hdr", ".ico", ".icns", ".j2k", ".jpf", ".jpx", ".dds", ".pcx", ".qoi", ".tx"),
        ("other image", _OTHER),
    ),
}

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"%!PS", "PostScript", _PAGES),
    (b"\xc5\xd0\xd3\xc6", "PostScript", _PAGES),
    (b"%PDF", "a PDF document", _PAGES),
    (b"8BPS", "a Photoshop file", _LAYERS),
    (b"gimp xcf", "a GIMP file", _LAYERS),
    (b"<svg", "an SVG drawing", _DRAWING),
    (b"<?xml", "an XML document", _DRAWING),
    (b"<!doctype", "a web page", "download the image again"),
    (b"<html", "a web page", "download the image again"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the image with git lfs pull"),
    (b"\x1aE\xdf\xa3", "a video", _FILM),
    (b"\xff\x0a", "a JPEG XL image", _OTHER),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", _OTHER),
    (b"v/1\x01", "an OpenEXR image", _OTHER),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
)


def what_is(head: bytes) -> tuple[str, str] | None:
    """Returns kind and advice for a file that is not read, by its first bytes; None if it is unknown.

    Args:
      head: The first 32 bytes or more.
    """
    if not head:
        return "empty", "replace or remove it"
    if head[4:8] == b"ftyp":
        return ("a HEIF image", _PHOTOGRAPH) if head[8:12] in _HEIF_BRANDS else ("a video", _FILM)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature) or start.startswith(signature.lower()):
            return kind, remedy
    return None
