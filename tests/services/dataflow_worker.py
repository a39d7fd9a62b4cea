"""What a Dataflow worker does with a job, in small: import the staged package, run the staged pipeline.

    python dataflow_worker.py PIPELINE_PB PACKAGE_FOLDER

Containers become this process: an environment of the pipeline that names an image is replaced by the embedded one.
"""

import sys
from pathlib import Path

import apache_beam.runners.portability.fn_api_runner.fn_runner as fn_runner
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2

import etl


def main(pipeline: str, package: str) -> None:
    """Run it; an exception is a failed job."""
    if not Path(etl.__file__).is_relative_to(package):
        raise SystemExit(f"etl comes from {etl.__file__}, not from the staged package in {package}")
    proto = beam_runner_api_pb2.Pipeline.FromString(Path(pipeline).read_bytes())
    for environment in proto.components.environments.values():
        environment.urn = python_urns.EMBEDDED_PYTHON
        environment.payload = b""
        del environment.dependencies[:]
    fn_runner.FnApiRunner().run_via_runner_api(proto, PipelineOptions([])).wait_until_finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
