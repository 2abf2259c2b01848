"""A judge of your own: a function that scores product photos by how white their edges are.

cd examples
imagemill run CATALOG --output s3://BUCKET/PREFIX --judge own_judge:white_edges --on-suspect retry
"""

from collections.abc import Sequence

from PIL import Image, ImageStat

from imagemill import Candidate


def white_edges(pictures: Sequence[Candidate]) -> list[tuple[float, str]]:
    """A score from 0 to 1 for each picture, and the reason for it."""
    return [_white_edges(picture.image()) for picture in pictures]


def _white_edges(image: Image.Image) -> tuple[float, str]:
    width, height = image.size
    rows = [(0, 0, width, 8), (0, height - 8, width, height)]
    columns = [(0, 0, 8, height), (width - 8, 0, width, height)]
    grey = image.convert("L")
    darkest = min(ImageStat.Stat(grey.crop(strip)).mean[0] for strip in rows + columns)
    return darkest / 255, f"the darkest edge is {darkest / 255:.0%} white"
