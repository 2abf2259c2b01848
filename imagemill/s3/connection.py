"""How an S3 bucket is reached: region, address, addressing style, CA and credentials, decided in one place.

boto3's own configuration decides (environment, profile, config file); obstore, which carries images and
catalogs, is told the same. So what one client can reach, the other can.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.loaders import Loader, create_loader
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from imagemill.errors import InputError
from imagemill.secrets import clean_key, keep_secret

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from obstore.store import ClientConfig, S3Config

_AWS = (".amazonaws.com", ".amazonaws.com.cn")
_OF_CREDENTIALS = {
    "access_key": "access key id",
    "secret_key": "secret access key",
    "token": "session token",
}
_CREDENTIALS_LAST = timedelta(minutes=5)
"""How long obstore uses credentials before it asks boto3 again, which renews those that expire."""

RETRIES = 8
"""How often obstore repeats a request that the bucket's server does not answer."""


def own_session() -> boto3.Session:
    """boto3's session by its own search for configuration.

    Raises:
        InputError: AWS_PROFILE names no profile, or the AWS config file cannot be read.
    """
    core = botocore.session.get_session()
    try:
        core.register_component("data_loader", _definitions(core.get_config_variable("data_path")))
        session = boto3.Session(botocore_session=core)
        session.region_name  # noqa: B018 - reads the configuration
    except BotoCoreError as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"The AWS configuration cannot be used ({reason}): check AWS_PROFILE and the AWS config file."
        ) from error
    return session


@cache
def _definitions(search_path: str | None) -> Loader:
    """What botocore knows of S3: read once, since each session would take a tenth of a second for it."""
    return create_loader(search_path)


class S3Connection:
    """The way to one bucket.

    Args:
        bucket: its name.
        endpoint_url: the S3 server, where it is not AWS; else the one that boto3's configuration names.
        session: boto3's session; its own search for configuration and credentials by default.

    Raises:
        InputError: the endpoint is no address, or there are no credentials.
    """

    def __init__(
        self, bucket: str, *, endpoint_url: str | None = None, session: boto3.Session | None = None
    ) -> None:
        if endpoint_url and urlsplit(endpoint_url).scheme not in {"http", "https"}:
            raise InputError(f"The S3 endpoint {endpoint_url!r} is not an http or https address.")
        self.bucket = bucket
        self._session = session or own_session()
        self._given_endpoint = endpoint_url
        self.region: str = self._session.region_name or "us-east-1"
        self._find_credentials()
        core = self._session._session  # noqa: SLF001 - boto3 has no other way to ask for its configuration
        # S3 demands a checksum where objects get a retention period; boto3 sends one unless told not to.
        sends_checksum = core.get_config_variable("request_checksum_calculation") != "when_required"
        self._checksum: S3Config = {"checksum_algorithm": "SHA256"} if sends_checksum else {}
        self._ca_bundle: str | None = core.get_config_variable("ca_bundle")
        self._s3: dict[str, Any] = {"us_east_1_regional_endpoint": "regional"}
        self._s3 |= core.get_scoped_config().get("s3") or {}
        if endpoint_url:
            self._s3.setdefault("addressing_style", "path")
        self._address = ""

    def _find_credentials(self) -> None:
        try:
            credentials = self._session.get_credentials()
            known = credentials and credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise InputError(f"S3 credentials cannot be read: {error}") from error
        if known is None:
            raise InputError(
                "There are no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a"
                " profile in AWS_PROFILE, or give the name of an S3Bucket block."
            )
        keep_secret(known.secret_key or "")
        keep_secret(known.token or "")
        for name, what in _OF_CREDENTIALS.items():
            value = getattr(known, name) or ""
            try:
                cleaned = clean_key(value)
            except ValueError as error:
                raise InputError(f"The S3 credentials cannot be used, in the {what}: {error}.") from error
            if cleaned != value and not isinstance(credentials, RefreshableCredentials):
                setattr(credentials, name, cleaned)

    @property
    def endpoint_url(self) -> str | None:
        """The S3 server, where it is not AWS."""
        host = urlsplit(self._address).hostname or ""
        return None if not host or host.endswith(_AWS) else self._address

    @property
    def place(self) -> str:
        """The bucket for a person, with the server where it is not AWS."""
        return f"{self.bucket!r} at {self.endpoint_url}" if self.endpoint_url else repr(self.bucket)

    def client(self, *, attempts: int = 6, read_timeout_s: float = 30.0) -> BaseClient:
        """A boto3 client of the bucket's region."""
        config = Config(
            retries={"max_attempts": attempts, "mode": "standard"},
            connect_timeout=5,
            read_timeout=read_timeout_s,
            max_pool_connections=32,
            signature_version="s3v4",  # links that last a week
            s3=self._s3,
        )
        try:
            client = self._session.client(
                "s3", endpoint_url=self._given_endpoint, region_name=self.region, config=config
            )
        except (BotoCoreError, ValueError) as error:  # what AWS_ENDPOINT_URL or the configuration says
            raise InputError(
                f"boto3 cannot reach S3 as it is configured ({error}): check AWS_ENDPOINT_URL, AWS_REGION and"
                " the AWS config file."
            ) from error
        self._address = client.meta.endpoint_url
        return client

    def store(self, *, retries: int | None = None) -> S3Store:
        """An obstore of the bucket, set up as boto3 is.

        Raises:
            InputError: the file of AWS_CA_BUNDLE cannot be read.
        """
        if not self._address:
            self.client().close()
        address = urlsplit(self._address)
        style = self._s3.get("addressing_style", "auto")
        # With TLS, a bucket whose name has dots is no host that a wildcard certificate covers.
        virtual = style == "virtual" or (
            style == "auto" and self.endpoint_url is None and "." not in self.bucket
        )
        host = f"{self.bucket}.{address.netloc}" if virtual else address.netloc
        client: ClientConfig = {
            "allow_http": address.scheme == "http",
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=30),
        }
        if self._ca_bundle:
            client["root_certificate"] = self._certificates(self._ca_bundle)
        return S3Store(
            self.bucket,
            endpoint=f"{address.scheme}://{host}{address.path.rstrip('/')}",
            region=self.region,
            virtual_hosted_style_request=virtual,
            credential_provider=Boto3CredentialProvider(self._session, ttl=_CREDENTIALS_LAST),
            client_options=client,
            retry_config={
                "max_retries": RETRIES if retries is None else retries,
                "retry_timeout": timedelta(seconds=60),
            },
            config=self._checksum,
        )

    @staticmethod
    def _certificates(path: str) -> bytes:
        try:
            return Path(path).expanduser().read_bytes()
        except OSError as error:
            raise InputError(
                f"The certificates {path} (AWS_CA_BUNDLE, or ca_bundle in boto3's configuration) cannot be"
                f" read: {error.strerror}."
            ) from error

    def locate(self, client: BaseClient, prefix: str) -> None:
        """See that the bucket is there and lets us in, and take its region from its own answer.

        Raises:
            InputError: it is not, or does not; says which.
        """
        try:
            self._locate(client, prefix)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 404:
                reason = "does not exist: create it, or correct the name"
            elif status in {301, 307, 400, 401, 403}:
                reason = "refused these credentials: check the access key, its rights and the region"
            else:
                reason = f"answered with HTTP {status}: try again later"
            raise InputError(f"The bucket {self.place} {reason}.") from error
        except NoCredentialsError as error:
            raise InputError("There are no S3 credentials.") from error
        except BotoCoreError as error:
            raise InputError(
                f"The bucket {self.place} cannot be reached ({type(error).__name__}): check the"
                " endpoint, the network and, where a private CA signs, AWS_CA_BUNDLE."
            ) from error

    def _locate(self, client: BaseClient, prefix: str) -> None:
        try:
            answer = client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            metadata = error.response.get("ResponseMetadata", {})
            region = metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
            if region and region != self.region:
                self.region = region
                moved = self.client(attempts=2)
                try:
                    self._locate(moved, prefix)
                finally:
                    moved.close()
            elif metadata.get("HTTPStatusCode") == 403:
                # Rights to one prefix of a bucket are enough, though not for HeadBucket.
                client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)
            else:
                raise
        else:
            self.region = answer.get("BucketRegion") or self.region
