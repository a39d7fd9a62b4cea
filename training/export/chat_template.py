"""The chat template of an export: a Jinja template that renders messages as in the corpus of the training.

chat_template.jinja beside this file renders a conversation; here the corpus's preamble and the channels are put before
it, each preamble value as the default of an argument of `apply_chat_template`. An assistant's messages stand between
{% generation %} marks from <|start|> to the closing token, so the assistant mask of transformers (and of TRL) is the
corpus's supervised spans. Bodies that hold a control token's letters are refused, since a tokenizer of transformers
would make the token of them; the corpus keeps them as letters.
"""

import json
from importlib import resources
from typing import Final

from etl.harmony.render import CHANNELS, Preamble

_BODY: Final = "chat_template.jinja"


def chat_template(preamble: Preamble) -> str:
    """The text of chat_template.jinja in an export.

    Its own arguments, each with the preamble's value where it is not given: model_identity, developer_instructions,
    reasoning_effort, conversation_start_date, knowledge_cutoff. It ends in <|start|>assistant with
    `add_generation_prompt`, otherwise in <|return|> after an assistant's final message.
    """
    given = {
        "model_identity": preamble.identity,
        "developer_instructions": preamble.developer,
        "reasoning_effort": preamble.effort,
        "conversation_start_date": preamble.start_date,
        "knowledge_cutoff": preamble.knowledge_cutoff,
    }
    defaults = (
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in given.items()
    )
    channels = f"{{%- set channels = {_literal(CHANNELS)} %}}\n"
    return "".join(defaults) + channels + (resources.files(__package__) / _BODY).read_text("utf-8")


def _literal(value: str | tuple[str, ...] | None) -> str:
    """A Jinja expression."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
