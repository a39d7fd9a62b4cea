"""tiktoken over the vocabulary of etl/harmony/vocabulary.py, without a control token."""

import functools

import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from etl.harmony.vocabulary import vocabulary_file


@functools.cache
def load_tiktoken() -> tiktoken.Encoding:
    """tiktoken's own encoder; its pattern is taken from its constructor without the download."""
    from tiktoken_ext import openai_public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: {})
        pattern = openai_public.o200k_base()["pat_str"]
    ranks = load_tiktoken_bpe(str(vocabulary_file()))
    return tiktoken.Encoding("o200k", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
