"""tiktoken over the vocabulary of etl/harmony/vocabulary.py, without a control token."""

import functools

import pytest
import tiktoken

from etl.harmony.vocabulary import load_merges


@functools.cache
def load_tiktoken() -> tiktoken.Encoding:
    """tiktoken's own encoder; its pattern is taken from its constructor without the download."""
    from tiktoken_ext import openai_public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: {})
        pattern = openai_public.o200k_base()["pat_str"]
    return tiktoken.Encoding(
        "o200k", pat_str=pattern, mergeable_ranks=load_merges()._mergeable_ranks, special_tokens={}
    )
