"""A Prefect flow that does nothing but say when it began: what a run of any flow costs."""

import time

from prefect import flow

from benchmarks.contenders import work


@flow
def nothing() -> None:
    """Note the time, in Unix seconds."""
    (work.HOME / "began").write_text(str(time.time()))


if __name__ == "__main__":
    nothing()
