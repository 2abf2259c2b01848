"""An s3:// address in its two parts, and what a prefix may not hold."""

from __future__ import annotations

import re

_BUCKET = re.compile(r"s3://([^/]+)(?:/(.*))?", re.DOTALL)


def split_s3_uri(uri: str) -> tuple[str, str]:
    """The bucket and the prefix of ``s3://BUCKET/PREFIX``; the prefix without slashes around it.

    Raises:
        ValueError: it has another form, or a prefix that clients and tools read in different ways.
    """
    found = _BUCKET.fullmatch(uri)
    if found is None:
        raise ValueError(f"{uri!r} is not of the form s3://BUCKET/PREFIX")
    bucket, prefix = found[1], (found[2] or "").strip("/")
    for sign, name in (("?", "question mark"), ("#", "number sign")):
        if sign in uri:
            raise ValueError(f"{uri!r} holds a {name}, where most tools cut an address: leave it out")
    if not prefix.isprintable():
        raise ValueError(f"{uri!r} holds a character that cannot be seen: leave it out")
    if "//" in prefix:
        raise ValueError(f"{uri!r} holds an empty part: write a single slash for each double one")
    if any(part in {".", ".."} for part in prefix.split("/")):
        raise ValueError(f"{uri!r} holds a part that is only dots: S3 has no folders to go up to")
    return bucket, prefix
