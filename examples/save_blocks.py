"""Saves the keys that the deployments need as blocks, so that none is in prefect.yaml or on a worker.

    python examples/save_blocks.py s3://BUCKET/PREFIX [postgresql://USER@HOST/DATABASE or redis://HOST]

It reads the environment: the API key (TOGETHER_API_KEY, FAL_KEY ...), the bucket's credentials
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL if it is not AWS) and the job store's password
(IMAGEMILL_STORE_PASSWORD). The blocks can be changed in the UI afterwards. Paste the lines it prints into
prefect.yaml.
"""

import argparse
import os
import sys
import time
from urllib.parse import urlsplit

from prefect.client.orchestration import get_client
from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket
from pydantic import SecretStr

from imagemill.blocks import PostgresServer, RedisServer
from imagemill.blocks.apis import PROVIDERS


def main(output: str, store: str | None = None) -> None:
    """Save a block for everything that is configured, and print the lines for prefect.yaml."""
    bucket = urlsplit(output).netloc
    if not bucket:
        sys.exit(f"{output!r} has no bucket: use s3://BUCKET/PREFIX.")
    apis = [api.from_environment() for api in PROVIDERS.values() if os.environ.get(api.key_variable)]
    if not apis:
        sys.exit(f"No API key is set: export one of {', '.join(a.key_variable for a in PROVIDERS.values())}.")
    credentials = AwsCredentials(
        aws_access_key_id=_set("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=SecretStr(_set("AWS_SECRET_ACCESS_KEY")),
        region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        aws_client_parameters=AwsClientParameters(endpoint_url=os.environ.get("AWS_ENDPOINT_URL")),
    )

    _wait_for_the_server()
    lines = ["catalog: {path: &path catalog.parquet}"]
    S3Bucket(bucket_name=bucket, credentials=credentials).save("images", overwrite=True)
    lines.append(f'output: &output {{uri: "{output}", s3_bucket_block: images}}')
    for n, api in enumerate(apis):
        api.save("main", overwrite=True)
        lines.append(f"{'# or: ' if n else ''}api: &api {{block: {api.get_block_type_slug()}/main}}")
    if store is not None:
        server = RedisServer if store.startswith("redis") else PostgresServer
        password = os.environ.get("IMAGEMILL_STORE_PASSWORD")
        server(url=store, password=password and SecretStr(password)).save("jobs", overwrite=True)
        lines.append(f'execution: {{store: "block:{server.get_block_type_slug()}/jobs"}}')
    print("The blocks are saved. In prefect.yaml, below definitions, write:\n\n  job: &job")
    print("\n".join(f"    {line}" for line in lines))


def _wait_for_the_server(seconds: int = 60) -> None:
    """A server that was just started creates its database first."""
    with get_client(sync_client=True) as client:
        for _ in range(seconds):
            if client.api_healthcheck() is None:
                return
            time.sleep(1)
        sys.exit(f"Prefect's server does not answer at {client.api_url}. Start it with: prefect server start")


def _set(variable: str) -> str:
    return os.environ.get(variable) or sys.exit(f"{variable} is not set. Export it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("output", metavar="s3://BUCKET/PREFIX", help="where the images go")
    parser.add_argument("store", metavar="STORE", nargs="?", help="a job store that all machines can reach")
    given = parser.parse_args()
    main(given.output, given.store)
