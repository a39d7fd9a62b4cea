"""Near duplicates: MinHash candidates, checked by the exact Jaccard similarity of their shingle sets.

Bands and row keys cross the shuffles; a document's shingle set crosses only if it is a candidate, and once for each of
its blocks of pairs, mostly one. Datasets, each committed and resumable:

    candidates  MET   pairs that share a band and whose sketches agree  shuffle by band   bands.py
    edges       EDGE  the same pairs with their block                   task or shuffles  components.py, blocks.py
    sets        SET   the compared form of the rows in those pairs      shuffle by split  verify.py
    pairs       PAIR  pairs with Jaccard >= threshold                   shuffle by block  verify.py

If one task holds all sets, it verifies the pairs without a shuffle, and finds the clusters in the same job with the
same sets: the same rows in the same order. clusters.py does the rest. With `verify: estimate` a row's set is a sketch
of its signature, 128 bytes. Canaries (etl.dedup.canaries) take the same path; `pairs` counts those that were found and
leaves them out.

A worker holds one batch of the rows sent to it and BLOCK_BYTES of shingle sets, however many rows share a band.
"""

from dataclasses import dataclass
from typing import Any

from etl.dedup.canaries import CANARIES_VERSION
from etl.dedup.minhash import MINHASH_VERSION, candidate_probability
from etl.dedup.near import NearDedup
from etl.dedup.shingles import SHINGLES_VERSION
from etl.dedup.signs import SIGNS_VERSION
from etl.dedup.survivor import Survivor
from etl.engine import Exchange
from etl.fold import FOLD_VERSION
from etl.laws import CandidatePairs, Growth, MoreRows, PairRows, Pieces, SameAs, VerifiedPairs
from etl.rows import Rows
from etl.stages.context import Context
from etl.stages.dedup.bands import (
    CANDIDATE,
    CANDIDATE_VERSION,
    PAIR_BLOCK,
    EmitBands,
    MakeCanaries,
    PairUp,
    band_bytes,
    band_schema,
)
from etl.stages.dedup.components import cut_blocks, fits_one_task
from etl.stages.dedup.verify import (
    BLOCK_MEMBER,
    NEAR_PAIR,
    PAIR_VERSION,
    SET,
    SET_VERSION,
    WANTED_SET,
    EmitWantedSets,
    SetsAtHand,
    Verify,
    VerifyAll,
    WriteSets,
    edge_lines,
    set_lines,
)
from etl.stages.keyed import EmitInputs, Input
from etl.storage.dataset import Dataset, DatasetLike
from etl.text import TEXT_VERSION

BLOCK_BYTES = 32 << 20
"""Shingle sets that verification holds at once. It decides how candidate components are cut, but never which pairs are
found."""


@dataclass(frozen=True)
class NearPairs:
    """The datasets that near dedup leaves for the clusters."""

    candidates: Dataset
    sets: Dataset
    pairs: DatasetLike
    at_hand: SetsAtHand | None
    """The sets of all rows in candidate pairs, if one task holds these and the graph."""


def find_pairs(context: Context, rows: Rows, near: NearDedup, survivor: Survivor) -> NearPairs:
    """Write DIR/candidates, DIR/edges, DIR/sets and DIR/pairs."""
    making = MakeCanaries(near, near.num_canaries / max(1, rows.num_rows))
    shingling = {
        "text": TEXT_VERSION, "unit": near.unit, "ngram": near.ngram, "canaries": near.num_canaries,
        "shingles": SHINGLES_VERSION, "fold": FOLD_VERSION, "edits": CANARIES_VERSION,
    }  # fmt: skip
    candidates = _find_candidates(context, rows, near, making, shingling)
    edges = cut_blocks(context, rows, candidates, BLOCK_BYTES)
    write = WriteSets(rows.ref, near, making, survivor, context.sources)
    sets = _write_sets(context, rows, write, shingling, candidates, edges)
    fit_one_task = fits_one_task(context, candidates) and set_tasks(context, sets).count() == 1
    at_hand = SetsAtHand(sets.ref) if fit_one_task else None
    pairs = _verify(context, rows, near, candidates, sets, edges, at_hand)
    return NearPairs(candidates, sets, pairs, at_hand)


def set_tasks(context: Context, sets: Dataset) -> Pieces:
    """The tasks among which the sets of the rows in candidate pairs are divided."""
    return context.buckets(2 * sum(part.bytes for part in sets.manifest.parts), SameAs(sets.ref.stage))


def _find_candidates(
    context: Context, rows: Rows, near: NearDedup, making: MakeCanaries, shingling: dict[str, Any]
) -> Dataset:
    num_bands, num_rows = near.banding
    found = candidate_probability(near.threshold, num_bands, num_rows)
    chance = f"a pair at similarity {near.threshold} is found with {found:.2%}"
    context.detail("near", f"{num_bands} bands × {num_rows} rows: {chance}")
    banding = {
        "minhash": MINHASH_VERSION, "bands": num_bands, "rows": num_rows,
        **near.model_dump(include={"num_perm", "seed", "max_partners", "threshold"}), **shingling,
    }  # fmt: skip
    tasks = context.buckets(rows.num_rows * band_bytes(near))
    buckets = tasks.count()
    emit = EmitBands(rows.ref, near, making, buckets)
    order = ("band", "key", "row")
    exchange = Exchange(tuple(rows.splits), emit, band_schema(near.num_words), order, buckets, may_drop_lone=True)
    inputs = rows.tables(["id", "messages", "skill_bucket", "verdict"])
    grows = Growth(CandidatePairs(near.max_partners, PAIR_BLOCK), tasks=tasks)
    job = context.job("candidates", "MET", CANDIDATE, banding, inputs, rows, version=CANDIDATE_VERSION, grows=grows)
    return context.shuffle(job, exchange, PairUp(near))


def _write_sets(
    context: Context, rows: Rows, write: WriteSets, shingling: dict[str, Any], candidates: Dataset, edges: DatasetLike
) -> Dataset:
    near = write.near
    compared = {**shingling, "verify": near.verify, "signs": SIGNS_VERSION, "survivor": write.survivor.fingerprinted()}
    if near.verify == "estimate":
        compared |= {"minhash": MINHASH_VERSION, "num_perm": near.num_perm, "seed": near.seed}
    of_pairs = PairRows(candidates.ref.stage)
    grows = Growth(of_pairs, crosses=of_pairs, work=MoreRows(like=candidates.ref.stage))
    of = (edges, *rows.tables(write.columns))
    job = context.job("sets", "SET", SET, compared, of, rows, version=SET_VERSION, grows=grows)
    splits = tuple(range(edges.ref.num_splits))
    exchange = Exchange(splits, EmitWantedSets(edges.ref), WANTED_SET, ("row", "node", "block"), len(rows.splits))
    return context.shuffle(job, exchange, write)


def _verify(
    context: Context,
    rows: Rows,
    near: NearDedup,
    candidates: Dataset,
    sets: Dataset,
    edges: DatasetLike,
    at_hand: SetsAtHand | None,
) -> DatasetLike:
    as_sets, tasks = SameAs(sets.ref.stage), set_tasks(context, sets)
    grows = Growth(VerifiedPairs(candidates.ref.stage), crosses=as_sets, work=as_sets, tasks=tasks)
    semantic = {"threshold": near.threshold}
    job = context.job("pairs", "PAIR", NEAR_PAIR, semantic, (sets, edges), rows, version=PAIR_VERSION, grows=grows)
    verify = Verify(near, context.sources)
    if at_hand is not None:
        return context.map(job.with_buckets(1), [0], VerifyAll(verify, at_hand, edges.ref))
    buckets = tasks.count()
    inputs = {
        "sets": Input(sets.ref, SET.names, set_lines),
        "edges": Input(edges.ref, ["block", "a", "b"], edge_lines),
    }
    emit = EmitInputs(inputs, buckets)
    exchange = Exchange(emit.splits, emit, BLOCK_MEMBER, ("block", "is_edge", "a", "b"), buckets)
    return context.shuffle(job, exchange, verify)
