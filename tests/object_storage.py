"""An S3 server on this machine, over HTTP, and a way to fill it.

It is moto's. It proves the requests and their answers: listing, reading by range, missing keys. It does not prove what
only the real S3 has: it checks no signature, never throttles and never fails, so that nothing is retried, and is not
spread over machines, so that nothing is late to be seen.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from pyarrow import fs

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """A running server's endpoint, such as http://127.0.0.1:40123; dummy credentials are in the environment meanwhile.

    What is to use the server without naming it finds it by AWS_ENDPOINT_URL, which is left to the caller.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with mock.patch.dict(os.environ, CREDENTIALS):
            yield f"http://{host}:{port}"
    finally:
        server.stop()


def upload(endpoint: str, bucket: str, folder: Path | None = None) -> None:
    """Make a bucket, unless it is there, and copy a folder's files into it under their paths from the folder."""
    storage = fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True)
    storage.create_dir(bucket)
    if folder is not None:
        fs.copy_files(str(folder), bucket, destination_filesystem=storage)


def url_query(endpoint: str) -> str:
    """What a URL must end with to reach the server: s3://bucket/key + url_query(endpoint)."""
    scheme, _, address = endpoint.partition("://")
    return f"?endpoint_override={address}&scheme={scheme}"
