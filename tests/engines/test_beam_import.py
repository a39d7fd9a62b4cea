"""Beam without the clients of clouds, in a process of its own since modules are not unloaded."""

import subprocess
import sys

CODE = """
import sys
from etl.engines.beam_import import CLOUDS, import_beam_without_clouds, import_clouds
import_beam_without_clouds()
from apache_beam.runners.dataflow import dataflow_runner
from apache_beam.utils import retry
print(sorted(set(CLOUDS) & set(sys.modules)), dataflow_runner.dataflow_api, retry.HttpError)
import_clouds()
print(dataflow_runner.dataflow_api.__name__, retry.HttpError.__name__)
import apache_beam.io.gcp.gcsfilesystem
from apache_beam.io.filesystems import FileSystems
print(type(FileSystems.get_filesystem("gs://bucket/object")).__name__)
"""


def test_the_clients_of_clouds_are_not_loaded_and_can_be_loaded_later():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[] None None", "google.cloud.dataflow HttpError", "GCSFileSystem"], done.stderr
