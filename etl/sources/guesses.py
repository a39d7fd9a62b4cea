"""Descriptions that some rows may have, from what their columns are called and from what stands in them.

One function a shape, each of which gives trees of keys as a YAML file has them, the likelier first. The shapes that say
more of a row come first, since a row of theirs is often one of the others', too.
etl/sources/nearest.py tries all of them on the rows, so a guess that is wrong costs a moment and does no harm. The file
is long because all shapes compete for the same columns, and their order matters.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from etl.sources import column_names as names
from etl.sources.column_names import bare
from etl.sources.glance import opened
from etl.sources.leaves import Leaf
from etl.sources.shapes.dialogue import ROLE_NAMES

Tree = dict[str, Any]
_CHOICES: Final = 3
"""So many columns are tried for one part of a description."""
_ROLES: Final = {
    **dict.fromkeys(
        ("用户", "人类", "提问者", "q", "question", "instruction", "student", "customer", "patient"), "user"
    ),
    **dict.fromkeys(
        ("助手", "机器人", "模型", "a", "answer", "response", "teacher", "agent", "doctor", "output"), "assistant"
    ),
    "系统": "system",
}
"""Names of speakers that a description has to explain."""
_MANY_SPEAKERS: Final = 8
_TWO: Final = 2
_MEMBERS: Final = 500
"""So many members of lists are looked at."""
_DOCUMENT_CHARS: Final = 40
"""Mean length from which on a text of any name may be a document."""
_CONTENT_KEYS: Final = ("content", "value", "text")
_ROLE_KEYS: Final = ("role", "from")
_TRANSCRIPTS: Final[tuple[Tree, ...]] = (
    {"between": "\n\n", "marks": {"Human:": "user", "Assistant:": "assistant", "System:": "system"}},
    {"between": "\n\n", "marks": {"User:": "user", "Assistant:": "assistant", "System:": "system"}},
    {"between": "\n", "marks": {"Human:": "user", "Assistant:": "assistant", "AI:": "assistant", "System:": "system"}},
    {"between": "\n", "marks": {"User:": "user", "Assistant:": "assistant", "Bot:": "assistant", "System:": "system"}},
    {"between": "\n", "marks": {"Q:": "user", "A:": "assistant"}},
    {"between": "\n", "marks": {"Question:": "user", "Answer:": "assistant"}},
    {"between": "\n", "marks": {"用户：": "user", "助手：": "assistant", "系统：": "system"}},
    {"between": "\n", "marks": {"用户:": "user", "助手:": "assistant", "系统:": "system"}},
    {"between": "\n", "marks": {"问：": "user", "答：": "assistant"}},
    {"between": "\n", "marks": {"问题：": "user", "回答：": "assistant", "答案：": "assistant"}},
    {"between": "\n", "marks": {"<human>:": "user", "<bot>:": "assistant"}},
    {"between": "", "marks": {"### Human:": "user", "### Assistant:": "assistant", "### System:": "system"}},
    {"between": "", "marks": {"### User:": "user", "### Assistant:": "assistant", "### System:": "system"}},
    {
        "between": "",
        "marks": {
            "Below is an instruction": "nobody", "### Instruction:": "user", "### Input:": "user",
            "### Response:": "assistant", "### Output:": "assistant",
        },
    },
    {
        "between": "",
        "marks": {
            "USER:": "user", "ASSISTANT: <functioncall>": "call", "ASSISTANT:": "assistant",
            "FUNCTION RESPONSE:": "tool", "<|endoftext|>": "nobody",
        },
    },
    {"between": "", "marks": {"USER:": "user", "ASSISTANT:": "assistant", "SYSTEM:": "system", "</s>": "nobody"}},
    {
        "between": "",
        "marks": {"<|user|>": "user", "<|assistant|>": "assistant", "<|system|>": "system", "</s>": "nobody"},
    },
    {"between": "", "marks": {"<|prompter|>": "user", "<|assistant|>": "assistant", "<|endoftext|>": "nobody"}},
    {"between": "", "marks": {"[|Human|]": "user", "[|AI|]": "assistant"}},
    {
        "between": "",
        "marks": {
            "<|im_start|>system": "system", "<|im_start|>user": "user", "<|im_start|>assistant": "assistant",
            "<|im_end|>": "nobody",
        },
    },
    {"between": "", "marks": {"<s>[INST]": "user", "[INST]": "user", "[/INST]": "assistant", "</s>": "nobody"}},
    {
        "between": "",
        "marks": {"<extra_id_0>System": "system", "<extra_id_1>User": "user", "<extra_id_1>Assistant": "assistant"},
    },
)  # fmt: skip
"""How texts show who speaks; the first mark of a text decides which of them is tried."""
_CHECKABLE: Final = re.compile(
    r"\s*(\(?[A-H]\)?|[-+$]*[\d.,/%]+|(yes|no|true|false)|.*(\\frac|\\boxed|\$).*)\s*", re.IGNORECASE
)
"""Answers that a program compares: a choice, a number, a formula."""


_LABELS: Final = (True, False, "true", "false", "True", "False", "1", "0")
_AMBIGUOUS: Final = frozenset({
    "answer", "target", "label", "gold", "goldanswer", "finalanswer", "referenceanswer", "答案", "参考答案",
})  # fmt: skip
"""Names of right answers and of answers alike."""


class Places:
    """The places in some rows, found by what they are called."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = leaves
        self._by_name: dict[str, list[Leaf]] = {}
        self._by_last_word: dict[str, list[Leaf]] = {}
        for leaf in leaves:
            for name in leaf.names:
                self._by_name.setdefault(name, []).append(leaf)
            if leaf.last_word is not None:
                self._by_last_word.setdefault(leaf.last_word, []).append(leaf)

    def called(self, known: Sequence[str], is_fit: Callable[[Leaf], bool]) -> list[Leaf]:
        """Those with one of some names that fit, by order of names: columns, what is inside of them, JSON in a text.

        Behind those whose whole name is known come those whose last word is.
        """
        named = (leaf for name in known for leaf in self._by_name.get(name, []))
        ending = (leaf for name in known for leaf in self._by_last_word.get(name, []))
        found = [leaf for leaf in itertools.chain(named, ending) if is_fit(leaf)]
        return sorted(dict.fromkeys(found), key=lambda leaf: (leaf.is_json, leaf.depth))

    def first(self, known: Sequence[str], is_fit: Callable[[Leaf], bool]) -> str | None:
        """The path of the first of them."""
        return next((leaf.path for leaf in self.called(known, is_fit)), None)

    @property
    def tools(self) -> str | None:
        """The column of definitions of tools."""
        found = self.called(names.TOOLS, lambda leaf: bool(leaf.there))
        return min(found, key=lambda leaf: leaf.depth).path if found else None

    @property
    def system(self) -> Tree:
        """The key of instructions, where there are any."""
        path = self.first(names.SYSTEMS, _may_be_text)
        return {} if path is None else {"system": path}


def _is_text(leaf: Leaf) -> bool:
    return leaf.is_text


def _may_be_text(leaf: Leaf) -> bool:
    return leaf.may_be_text


def _is_question(leaf: Leaf) -> bool:
    return leaf.is_text and (leaf.distinct > 0.3 or len(leaf.there) <= 3)


def _is_filled_text(leaf: Leaf) -> bool:
    return leaf.is_text and leaf.is_filled


def guesses(leaves: Sequence[Leaf]) -> Iterator[Tree]:
    """Trees of descriptions without ids and the like, the likelier first."""
    places = Places(leaves)
    for shape in (preference, verifiable, messages, pairs, columns, transcript, prompts, text):
        for tree in shape(places):
            yield {"shape": shape.__name__, **tree}


def in_order(leaves: Sequence[Leaf]) -> Iterator[Tree]:
    """Where no name is known: of the columns of running text the first is asked, the longest other one answers."""
    texts = [leaf for leaf in leaves if leaf.depth == 0 and leaf.is_filled and leaf.is_prose]
    if len(texts) > 1:
        answer = max(texts[1:], key=lambda leaf: leaf.chars)
        yield {"shape": "columns", "user": texts[0].path, "final": answer.path}
    elif texts:
        yield {"shape": "text", "text": texts[0].path}


# --- one function a shape ---------------------------------------------------------------------------------------------


def preference(places: Places) -> Iterator[Tree]:
    """Chosen and rejected, answers with rewards, an answer with a label."""
    asked = [leaf.path for leaf in _questions(places, names.QUESTIONS)]
    for better, worse in names.CHOSEN:
        chosen, rejected = (places.first((name,), lambda leaf: leaf.is_filled) for name in (better, worse))
        if chosen is not None and rejected is not None:
            for path in (*_without(asked, chosen, rejected)[:_CHOICES], None):
                prompt = {} if path is None else {"prompt": path}
                yield {**prompt, "chosen": chosen, "rejected": rejected, **places.system}
    for path, (responses, rewards) in itertools.product(asked[:_CHOICES], _rewarded(places)):
        yield {"prompt": path, "responses": responses, "rewards": rewards, **places.system}
    label = places.first(names.LABELS, _is_label)
    if label is not None:
        answers = [
            leaf
            for leaf in places.called(names.ANSWERS, _is_text)
            if leaf.depth == 0 or not leaf.path.endswith(".content")
        ]
        for path, answer in itertools.product(asked[:_CHOICES], answers[:_CHOICES]):
            if path != answer.path:
                yield {"prompt": path, "completion": answer.path, "label": label, **places.system}
        for leaf in places.leaves:
            if _message_keys(leaf) is not None:
                prompted = asked[:_CHOICES] if _speaks(leaf, 0) else []
                for prompt in [{"prompt": path} for path in prompted if path != leaf.path] or [{}]:
                    yield {**prompt, "completion": leaf.path, "label": label, **_speakers(leaf)}


def verifiable(places: Places) -> Iterator[Tree]:
    """A question with a right answer or tests, and perhaps a worked solution."""
    questions = _questions(places, (*names.CHECKED_QUESTIONS, *names.QUESTIONS))[: _CHOICES + 1]
    tests = places.first(names.TESTS, lambda leaf: bool(leaf.there))
    solutions = [leaf.path for leaf in places.called(names.SOLUTIONS, _is_text)]
    for question in questions:
        checked = [leaf for leaf in places.called(names.CHECKED, lambda leaf: leaf.is_filled) if leaf != question]
        answers = [leaf.path for leaf in checked if _is_checked(leaf, question, solutions)]
        choices: list[str | None] = [*answers[:_CHOICES]] or [None] * (tests is not None)
        for answer in choices:
            given = {"answer": answer, "tests": tests, **places.system}
            known = {"user": question.path, **{key: path for key, path in given.items() if path is not None}}
            for solution in _without(solutions, question.path, answer)[:_CHOICES]:
                yield {**known, "final": solution}
            yield known


def messages(places: Places) -> Iterator[Tree]:
    """A list of messages under any name, or of texts that alternate."""
    tools = places.tools
    for leaf in _spoken(places):
        if leaf.names[0] in names.HISTORIES and _exchanges(places, leaf):
            continue
        tree = {"messages": leaf.path, **_speakers(leaf)}
        if tools not in (None, "tools"):
            tree["tools"] = tools
        yield {**tree, **places.system}
        if results := {name: "user" for name in _speakers_of(leaf) if ROLE_NAMES.get(name.lower()) == "tool"}:
            # Results of calls that are written in a way of their own: what a tool says is said to the assistant.
            yield {**tree, "roles": {**tree.get("roles", {}), **results}, **places.system}
    for leaf in places.leaves:
        if leaf.names[0] in names.TALKS and _is_list_of_texts(leaf):
            yield {"messages": leaf.path, **places.system}


def pairs(places: Places) -> Iterator[Tree]:
    """A list of exchanges under any name, or a history with a last exchange."""
    for leaf in places.leaves:
        is_history = leaf.names[0] in names.HISTORIES
        keys = _pair_keys(leaf)
        if keys is None and is_history and (_message_keys(leaf) is not None or _is_list_of_texts(leaf)):
            keys = {}
        if keys is None:
            continue
        last = _exchanges(places, leaf) if is_history else []
        for exchange in last:
            yield {"pairs": leaf.path, **keys, "last": exchange, **places.system}
        yield {"pairs": leaf.path, **keys, **places.system}


def transcript(places: Places) -> Iterator[Tree]:
    """A text in which marks say who speaks."""
    for leaf in places.leaves:
        if leaf.is_text:
            for style in _TRANSCRIPTS:
                begun = sum(value.lstrip().startswith(tuple(style["marks"])) for value in leaf.there)
                if 2 * begun > len(leaf.there):
                    yield {"text": leaf.path, **style, **places.system}


def columns(places: Places) -> Iterator[Tree]:
    """Question and answer, each in a column; several of them where the names have numbers."""
    turns = _numbered_turns(places)
    if len(turns) > 1:
        yield {**turns[0], "then": turns[1:], **places.system}
    tools = places.tools
    for exchange in _exchanges(places, None):
        if tools is not None and tools not in exchange.values():
            yield {**exchange, **places.system, "tools": tools}
        yield {**exchange, **places.system}


def prompts(places: Places) -> Iterator[Tree]:
    """A question without an answer."""
    tools = places.tools
    more = {**({"tools": tools} if tools not in (None, "tools") else {}), **places.system}
    strong = [name for name in (*names.QUESTIONS, "conversations") if name not in names.WEAK_QUESTIONS]
    turns = places.called(("turns",), lambda leaf: leaf.is_filled)
    for leaf in sorted((*turns, *_questions(places, strong)), key=lambda leaf: leaf.depth):
        if _message_keys(leaf) is not None:
            yield {"user": leaf.path, **_speakers(leaf), **more}
        else:
            yield {**(_asked(leaf, places, ()) if leaf.is_text else {"user": leaf.path}), **more}
    for leaf in places.called(names.TEXTS, _is_question):
        if sum(value.rstrip().endswith(("?", "？")) for value in leaf.there) * 2 > len(leaf.there):
            yield {"user": leaf.path, **more}


def text(places: Places) -> Iterator[Tree]:
    """Raw documents: the column of that name, else the longest text."""
    long = (leaf for leaf in places.leaves if _is_filled_text(leaf) and leaf.chars >= _DOCUMENT_CHARS)
    longest = sorted(long, key=lambda leaf: -leaf.chars)
    for leaf in (*places.called(names.TEXTS, _is_filled_text), *longest[:_CHOICES]):
        yield {"text": leaf.path}


# --- what stands in a place -------------------------------------------------------------------------------------------


def _exchanges(places: Places, history: Leaf | None) -> list[Tree]:
    """Question, reasoning and answer in columns of their own."""
    inside = () if history is None else (history.path,)
    questions = [
        leaf for leaf in places.called(names.QUESTIONS, _is_question) if not leaf.path.startswith(inside or "\0")
    ]
    answers = [leaf for leaf in places.called(names.ANSWERS, _is_text) if not leaf.path.startswith(inside or "\0")]
    reasoning = [leaf.path for leaf in places.called(names.REASONING, _may_be_text)]
    found = []
    for question, answer in itertools.product(questions[:_CHOICES], answers[: _CHOICES + 1]):
        if question.path == answer.path or (answer.names[0] in names.CHECKED and _is_checked(answer, question, ())):
            continue
        asked = _asked(question, places, (answer.path,))
        thoughts = _without(reasoning, question.path, answer.path)[:_CHOICES]
        found += [{**asked, "analysis": thought, "final": answer.path} for thought in thoughts]
        found.append({**asked, "final": answer.path})
    return found


def _numbered_turns(places: Places) -> list[Tree]:
    """The exchanges of columns such as `question_1`, `answer_1`, `question_2`, `answer_2`."""
    known = {"user": names.QUESTIONS, "final": names.ANSWERS}
    turns: dict[int, Tree] = {}
    for leaf in places.leaves:
        found = names.numbered(leaf.path)
        if found is not None and leaf.depth == 0 and leaf.may_be_text:
            for key in known:
                if found[0] in known[key]:
                    turns.setdefault(found[1], {}).setdefault(key, leaf.path)
    return [turn for _, turn in sorted(turns.items()) if turn.keys() == known.keys()]


def _asked(question: Leaf, places: Places, taken: tuple[str, ...]) -> Tree:
    """The keys of a question, with what it is about behind it."""
    about = places.called(names.CONTEXTS, _may_be_text)
    paths = [leaf.path for leaf in about if leaf.path not in (question.path, *taken)]
    if not paths or any(sign in path for sign in "{}[]!:" for path in (question.path, paths[0])):
        return {"user": question.path}
    return {"prompt": f"{{{question.path}}}\n\n{{{paths[0]}}}"}


def _spoken(places: Places) -> list[Leaf]:
    """The places of lists of messages that no assistant begins, the outer ones first."""
    return [leaf for leaf in places.leaves if _message_keys(leaf) is not None and not _speaks(leaf, 0)]


def _questions(places: Places, known: Sequence[str]) -> list[Leaf]:
    """What may be asked, texts and lists of messages, columns first."""
    found = dict.fromkeys((*places.called(known, _is_question), *_open_talks(places)))
    return sorted(found, key=lambda leaf: leaf.depth)


def _open_talks(places: Places) -> list[Leaf]:
    """Of these, those that no assistant ends."""
    return [leaf for leaf in _spoken(places) if not _speaks(leaf, -1)]


def _speaks(leaf: Leaf, place: int) -> bool:
    """Whether it is an assistant who speaks first, or last, in most of some lists of messages."""
    found = _message_keys(leaf)
    assert found is not None
    role_key, _, roles = found
    talks = [talk for value in leaf.there if (talk := _listed(value))]
    speakers = [talk[place][role_key] for talk in talks]
    who = [roles.get(name) or ROLE_NAMES.get(name.strip().lower()) for name in speakers]
    return 2 * who.count("assistant") > len(who)


def _speakers(leaf: Leaf) -> Tree:
    """The keys that say how a list of messages is written, where that is not the usual way."""
    found = _message_keys(leaf)
    assert found is not None
    role_key, content_key, roles = found
    tree: Tree = {"roles": roles} if roles else {}
    if role_key not in _ROLE_KEYS:
        tree["role_keys"] = [role_key]
    if content_key not in _CONTENT_KEYS:
        tree["content_keys"] = [content_key]
    return tree


def _speakers_of(leaf: Leaf) -> list[str]:
    found = _message_keys(leaf)
    assert found is not None
    return list(dict.fromkeys(message[found[0]] for value in leaf.there for message in _listed(value)))


@functools.lru_cache(256)
def _message_keys(leaf: Leaf) -> tuple[str, str, dict[str, str]] | None:
    """The key that says who speaks, the one that says what, and the names that are not the usual ones."""
    said = list(itertools.islice((message for value in leaf.there for message in _listed(value)), _MEMBERS))
    if not said or not all(isinstance(message, dict) for message in said):
        return None
    for role_key in dict.fromkeys((*_ROLE_KEYS, *said[0])):
        if not all(isinstance(message.get(role_key), str) for message in said):
            continue
        speakers = dict.fromkeys(message[role_key] for message in said)
        if len(speakers) > _MANY_SPEAKERS:
            continue
        roles = _roles_of(list(speakers))
        content_key = _content_key(said, role_key)
        if roles is not None and content_key is not None:
            return role_key, content_key, roles
    return None


def _listed(value: Any) -> list[Any]:
    found = opened(value)
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return found if isinstance(found, list) else []


def _roles_of(speakers: Sequence[Any]) -> dict[str, str] | None:
    """Who the unusual speakers are; None where that is not known. Of two unknown ones the first is the user."""
    unusual = [name for name in speakers if name.strip().lower() not in ROLE_NAMES]
    if len(unusual) == len(speakers) == _TWO:
        return {unusual[0]: "user", unusual[1]: "assistant"}
    known = {name: _ROLES[name.strip().lower()] for name in unusual if name.strip().lower() in _ROLES}
    return known if len(known) == len(unusual) else None


def _content_key(said: Sequence[dict[str, Any]], role_key: str) -> str | None:
    keys = dict.fromkeys((*_CONTENT_KEYS, *(key for message in said for key in message)))
    sizes = {
        key: sum(len(message[key]) for message in said if isinstance(message.get(key), str | list)) for key in keys
    }
    del sizes[role_key]
    usual = next((key for key in _CONTENT_KEYS if sizes.get(key)), None)
    return usual or max((key for key in sizes if sizes[key]), key=lambda key: sizes[key], default=None)


def _is_list_of_texts(leaf: Leaf) -> bool:
    values = [opened(value) for value in leaf.there]
    are_texts = all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in values)
    return are_texts and any(len(value) > 1 for value in values if value is not None)


def _pair_keys(leaf: Leaf) -> Tree | None:
    """The keys of the exchanges in a list; None where it is no list of exchanges."""
    lists = (found for value in leaf.there if isinstance(found := opened(value), list))
    members = list(itertools.islice(itertools.chain.from_iterable(lists), _MEMBERS))
    if members and all(isinstance(pair, list) and len(pair) == 2 for pair in members):
        return {}
    if not members or not all(isinstance(pair, dict) for pair in members):
        return None
    keys = dict.fromkeys(key for pair in members for key in pair if isinstance(pair[key], str))
    by_name = {bare(key): key for key in keys}
    user = next((by_name[name] for name in ("human", "user", *names.QUESTIONS) if name in by_name), None)
    answers = ("assistant", "gpt", "bot", *names.ANSWERS)
    answer = next((by_name[name] for name in answers if name in by_name and by_name[name] != user), None)
    if user is None or answer is None:
        return None
    given = {"user_key": user, "assistant_key": answer}
    return {key: name for key, name in given.items() if name not in ("human", "assistant")}


def _rewarded(places: Places) -> Iterator[tuple[str, str]]:
    """Paths to lists of answers and of their rewards."""
    for leaf in places.called(names.RESPONSES, lambda leaf: leaf.is_filled):
        members = [member for value in leaf.there[:20] for member in _listed(value)]
        if members and all(isinstance(member, dict) for member in members):
            by_name = {bare(key): key for key in members[0]}
            answer = next((by_name[name] for name in (*names.ANSWERS, *names.TEXTS) if name in by_name), None)
            reward = next((by_name[name] for name in names.REWARDS if name in by_name), None)
            if answer is not None and reward is not None:
                yield f"{leaf.path}.*.{answer}", f"{leaf.path}.*.{reward}"
        elif members and all(isinstance(member, str) for member in members):
            for rewards in places.called(names.REWARDS, lambda leaf: leaf.is_filled):
                first = next(iter(_listed(rewards.there[0])), None)
                if isinstance(first, int | float):
                    yield leaf.path, rewards.path
                elif isinstance(first, dict):
                    key = next((key for key in first if bare(key) in names.REWARDS), None)
                    if key is not None:
                        yield leaf.path, f"{rewards.path}.*.{key}"


def _is_label(leaf: Leaf) -> bool:
    return leaf.is_filled and all(isinstance(value, bool | int | str) and value in _LABELS for value in leaf.there)


def _is_checked(leaf: Leaf, question: Leaf, solutions: Sequence[str]) -> bool:
    """Whether an answer is one that can be compared."""
    if leaf.names[0] not in _AMBIGUOUS:
        return leaf.path not in solutions
    if any(isinstance(value, list | dict) for value in leaf.there):
        return False
    if _without(solutions, leaf.path, question.path) or question.names[0] in names.CHECKED_QUESTIONS:
        return True
    values = [value for value in leaf.there if isinstance(value, str)]
    if question.names[0] in names.MATHS and leaf.chars < 100:
        return True
    return all(len(value) < 100 and _CHECKABLE.fullmatch(value) for value in values)


def _without(paths: Sequence[str], *taken: str | None) -> list[str]:
    return [path for path in paths if path not in taken]
