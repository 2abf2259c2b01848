"""A first run from Python: a catalog in, images and a typed summary out.

    python examples/first_run.py CATALOG s3://BUCKET/PREFIX

The API key comes from TOGETHER_API_KEY, S3 credentials from boto3's usual places. No server is needed.
"""

import sys

from imagemill import InputError, RunStoppedError, generate_catalog


def main(catalog: str, output: str, base_url: str | None = None) -> None:
    """Run the catalog for at most five dollars, and print the result."""
    try:
        summary = generate_catalog(
            catalog=catalog,
            output=output,
            api={"provider": "together", "base_url": base_url},
            picture={"width": 512, "height": 512},
            limits={"max_cost_usd": 5},
        )
    except InputError as error:  # nothing was sent to the API
        sys.exit(str(error))
    except RunStoppedError as stop:  # key refused, budget spent …: finished images are kept
        sys.exit(f"{stop} Resume it with execution={{'run_id': {stop.summary.run_id!r}}}.")
    print(f"{summary.done} of {summary.unique} images for ${summary.cost_usd:.4f}: {summary.report}")


if __name__ == "__main__":
    main(*sys.argv[1:])
