"""Prefect the obvious way: one task an image, ``.map``, ``retries=3``, ``S3Bucket.write_path``."""

import httpx
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from prefect_aws import AwsCredentials, S3Bucket
from prefect_aws.client_parameters import AwsClientParameters

from benchmarks.contenders import work

HTTP = httpx.Client(
    timeout=work.TIMEOUT_S, headers=work.HEADERS, limits=httpx.Limits(max_keepalive_connections=work.AT_ONCE)
)
OUTPUT = S3Bucket(
    bucket_name=work.BUCKET,
    credentials=AwsCredentials(aws_client_parameters=AwsClientParameters(endpoint_url=work.S3_URL)),
)


@task(retries=3, retry_delay_seconds=[2, 4, 8], retry_jitter_factor=0.5)
def generate_image(row_id: str, prompt: str, seed: int) -> str:
    """One image into the bucket; its name there."""
    content = work.image_of(HTTP.post(work.endpoint(), json=work.order(prompt, seed)))
    return str(OUTPUT.write_path(work.name_of(row_id), content))


@flow(task_runner=ThreadPoolTaskRunner(max_workers=work.AT_ONCE))
def generate_images() -> int:
    """A task run a row; how many came through."""
    rows = work.rows()
    futures = generate_image.map(*[[row[name] for row in rows] for name in ("id", "prompt", "seed")])
    futures.wait()
    return sum(future.state.is_completed() for future in futures)


if __name__ == "__main__":
    generate_images()
