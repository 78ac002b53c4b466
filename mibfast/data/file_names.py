"""Names that may become files: all those that come from data, files or options are checked here."""

from __future__ import annotations

# The name of a file until it is whole.
TEMPORARY = ".{}.partial"
_LONGEST_BYTES = 255


def why_no_file_name(name: str, becomes: str = TEMPORARY) -> str | None:
    """Return why a file with this name would lie elsewhere, be hidden or could not be made; None where it can.

    Parameters
    ----------
    name : str
        As it comes from a file or an option.
    becomes : str
        The longest file name made from it, with `{}` in its place.

    Examples
    --------
    >>> from mibfast.data.file_names import why_no_file_name
    >>> why_no_file_name("../image"), why_no_file_name("image") is None
    ("it holds '/'", True)
    """
    if not name:
        return "it is empty"
    if not name.isprintable():
        # NUL, line breaks, escapes, and the bytes of a name that is no UTF-8.
        return "it holds characters that cannot be printed"
    for separator in "/\\":
        if separator in name:
            return f"it holds {separator!r}"
    if name.startswith("."):
        return "it begins with a dot"
    size = len(becomes.replace("{}", name).encode())
    if size > _LONGEST_BYTES:
        return f"a file's name is at most {_LONGEST_BYTES} bytes, and {becomes.replace('{}', 'NAME')} has {size}"
    return None
