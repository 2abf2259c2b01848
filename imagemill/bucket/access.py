"""Opens the bucket that the settings name, with the credentials they name."""

from __future__ import annotations

from imagemill.blocks.loading import aws_session
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.settings import OutputSettings


def open_bucket(output: OutputSettings) -> ImageBucket:
    """The bucket of the settings, checked to exist and to be reachable.

    Raises:
        InputError: it is not.
    """
    session, endpoint_url = aws_session(output)
    bucket = ImageBucket(output.uri, endpoint_url=endpoint_url, session=session)
    bucket.check()
    return bucket
