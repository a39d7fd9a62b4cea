"""Packs made by hand, for tests of what is counted over them."""

from dataclasses import fields

import numpy as np

from training.data.collate import Pack


def toy_pack(lengths, pack_tokens, kind_at, **more):
    """Documents of these lengths in a pack; `kind_at` says which rows are supervised, as {row: span kind}."""
    room = pack_tokens - sum(lengths)
    all_lengths = [*lengths, room] if room else list(lengths)
    kinds = np.full(pack_tokens, -1, np.int8)
    kinds[list(kind_at)] = list(kind_at.values())
    values = {
        "input_ids": np.zeros(pack_tokens, np.int64),
        "position_ids": np.concatenate([np.arange(length) for length in all_lengths]),
        "cu_seqlens": np.concatenate([[0], np.cumsum(all_lengths)]).astype(np.int32),
        "targets": np.zeros(pack_tokens, np.int64),
        "target_kind": kinds,
        "document": np.repeat([*range(len(lengths)), -1][: len(all_lengths)], all_lengths).astype(np.int32),
        "id_hash": np.arange(len(lengths), dtype=np.uint64),
        "label": np.zeros(len(lengths), np.int32),
    }
    names = {field.name for field in fields(Pack)}
    return Pack(**{**dict.fromkeys(names), **{k: v for k, v in {**values, **more}.items() if k in names}})
