"""A record batch as one object: what a task has done so far, for the attempt after it. Never part of a dataset."""

import pyarrow as pa

from etl.storage.location import Location


def load_batch(place: Location) -> pa.RecordBatch | None:
    """What `store_batch` put there; None where nothing is."""
    try:
        data = place.read()
    except FileNotFoundError:
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def store_batch(place: Location, batch: pa.RecordBatch) -> None:
    """Put a batch where nothing is yet, in one visible step; what is there already stays."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    place.create(sink.getvalue().to_pybytes())
