"""From a corpus manifest to packs of tokens: plan (pure), lanes, reader, packing, collate."""
