"""Saves what the deployments need as blocks, so that no key lies in prefect.yaml or on a worker.

    python examples/save_blocks.py s3://BUCKET [postgresql://USER@HOST/DATABASE or redis://HOST]

From the environment come the API's key (TOGETHER_API_KEY, FAL_KEY ...), the bucket's (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL where it is not AWS) and the job store's password
(IMAGEMILL_STORE_PASSWORD). Each block can be changed in the UI afterwards.
"""

import os
import sys

from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket
from pydantic import SecretStr

from blocks import PostgresServer, RedisServer
from blocks.apis import PROVIDERS


def main(bucket: str, store: str | None = None) -> None:
    """Save a block for each thing that is configured; say how prefect.yaml names it."""
    for api in PROVIDERS.values():
        if os.environ.get(api.key_variable):
            api.from_environment().save("main", overwrite=True)
            print(f"api: {{block: {api.get_block_type_slug()}/main}}")

    credentials = AwsCredentials(
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SecretStr(os.environ["AWS_SECRET_ACCESS_KEY"]),
        region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        aws_client_parameters=AwsClientParameters(endpoint_url=os.environ.get("AWS_ENDPOINT_URL")),
    )
    name = bucket.removeprefix("s3://").partition("/")[0]
    S3Bucket(bucket_name=name, credentials=credentials).save("images", overwrite=True)
    print(f"output: {{uri: s3://{name}/catalog, s3_bucket_block: images}}")

    if store is not None:
        server = RedisServer if store.startswith("redis") else PostgresServer
        password = os.environ.get("IMAGEMILL_STORE_PASSWORD")
        server(url=store, password=password and SecretStr(password)).save("jobs", overwrite=True)
        print(f"execution: {{store: block:{server.get_block_type_slug()}/jobs}}")


if __name__ == "__main__":
    main(*sys.argv[1:])
