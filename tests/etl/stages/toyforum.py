"""Hand-written trees of messages, as nested exports and as flat tables, and what they come to."""

import json


def message(name, parent, role, text, rank=None, **more):
    own = {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank}
    return {**own, "deleted": False, "lang": "en", **more}


BAKE = [
    message("t1", None, "prompter", "How do I bake bread?"),
    message("t1a", "t1", "assistant", "Knead, wait, bake.", 1),
    message("t1b", "t1", "assistant", "Mix flour and water, wait a night, bake it hot.", 0),
    message("t1c", "t1", "assistant", "Buy it.", 2, deleted=True),
    message("t1ca", "t1c", "prompter", "Where?"),
    message("t1b1", "t1b", "prompter", "How hot?", None),
    message("t1b2", "t1b", "prompter", "Nobody has answered me.", None),
    message("t1b1a", "t1b1", "assistant", "250 degrees.", 1),
    message("t1b1b", "t1b1", "assistant", "As hot as your oven gets.", 0),
    message("t1b1b1", "t1b1b", "prompter", "Thanks!"),
]
SHORT = [
    message("t2", None, "prompter", "What is a lane?", lang="de"),
    message("t2a", "t2", "assistant", "A miniature of the corpus.", 0),
]
WAITING = [message("t3", None, "prompter", "Is anybody there?"), message("t3a", "t3", "assistant", "Yes.", 0)]
SILENT = [message("t4", None, "prompter", "Why?")]
STATES = {"t1": "ready_for_export", "t2": "ready_for_export", "t3": "growing", "t4": "ready_for_export"}
TREES = {"t1": BAKE, "t2": SHORT, "t3": WAITING, "t4": SILENT}

BAKE_PATH = [
    ("user", "How do I bake bread?"),
    ("assistant", "Mix flour and water, wait a night, bake it hot."),
    ("user", "How hot?"),
    ("assistant", "As hot as your oven gets."),
]
SHORT_PATH = [("user", "What is a lane?"), ("assistant", "A miniature of the corpus.")]
BAKE_PAIRS = [
    [("user", "How do I bake bread?"), ("assistant", "Knead, wait, bake.")],
    [("user", "How do I bake bread?"), ("assistant", "Mix flour and water, wait a night, bake it hot.")],
    [("user", "How hot?"), ("assistant", "250 degrees.")],
    [("user", "How hot?"), ("assistant", "As hot as your oven gets.")],
]


def flat_rows():
    """Every message as a row."""
    return [
        {**one, "message_tree_id": tree, "tree_state": STATES[tree]} for tree, held in TREES.items() for one in held
    ]


def nested_rows():
    """Every tree as a row."""
    return [
        {"message_tree_id": tree, "tree_state": STATES[tree], "prompt": _nested(held, held[0])}
        for tree, held in TREES.items()
    ]


def _nested(held, root):
    replies = [_nested(held, one) for one in held if one["parent_id"] == root["message_id"]]
    return {**{key: value for key, value in root.items() if key != "parent_id"}, "replies": replies}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(rows):
    """What is said in some PROMPT rows, sorted."""
    return sorted([(one["role"], one["content"]) for one in row["messages"]] for row in rows)
