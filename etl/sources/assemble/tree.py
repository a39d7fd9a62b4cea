"""Trees of messages, as OpenAssistant has them: conversations along their branches.

A row is a whole tree with its replies nested, or one message of a flat table that names the message before it. Of trees
in a state that is ready, the best path takes at each step the reply with the lowest rank; pairs are each prompt with
each of its answers. Deleted messages and what follows them are left out. Some µs a message; a tree is held in memory.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from etl.config import Config
from etl.sources.assemble.made import BadRow, Made, MadeRow, RawRow, Record
from etl.sources.shapes.dialogue import ROLE_NAMES
from etl.sources.shapes.turns import Unfit

Take = Literal["best_path", "pairs", "both"]
MESSAGES = "messages"
"""The column that is made: a list of role and content."""
TAKEN = "taken"
"""The column that says how: `best_path` or `pair`."""


class Tree(Config):
    """Conversations out of trees of messages: rows are messages that name the one before, or whole trees."""

    kind: Literal["tree"]
    take: Take = "best_path"
    """The conversation along the best replies; each prompt with each of its answers; or both, the same row once."""
    id: str = "message_id"
    """Key of a message's name."""
    parent: str = "parent_id"
    """Key of the name of the message before it; null in the first."""
    tree: str = "message_tree_id"
    """Column that names the tree: rows with one value belong together."""
    root: str = "prompt"
    """Column of the first message where a row is a whole tree."""
    replies: str = "replies"
    """Key of the list of answers to a message of such a tree."""
    role: str = "role"
    """Key of who speaks."""
    text: str = "text"
    """Key of what is said."""
    rank: str = "rank"
    """Key of the place of a reply among the replies to one message, the best lowest; null comes last."""
    deleted: str = "deleted"
    """Key that says whether a message was deleted."""
    state: str = "tree_state"
    """Column of the state of the tree."""
    ready: tuple[str, ...] = ("ready_for_export",)
    """States of trees that are used; a row without a state is used, too."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a row."""
        return (
            self.tree, self.state, self.root, self.id, self.parent, self.role, self.text, self.rank, self.deleted,
        )  # fmt: skip

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which nothing can be made."""
        return (self.tree,)

    @property
    def makes(self) -> tuple[str, ...]:
        """The columns of the rows that are made, beside those of the raw rows."""
        return MESSAGES, TAKEN

    def key(self, record: Record) -> str:
        """The tree that a row belongs to.

        Raises:
            Unfit: the row does not say.
        """
        name = record.get(self.tree)
        if not isinstance(name, str | int):
            raise Unfit(f"missing_{self.tree}", "null or absent, so nobody knows which tree the row is of")
        return str(name)

    def make(self, rows: list[RawRow], columns: Collection[str]) -> Made:
        """The conversations of one tree.

        Args:
            rows: of the tree.
            columns: that are read of the rows which are made.
        """
        made = Made()
        ready = [row for row in rows if row.record.get(self.state) in (None, *self.ready)]
        made.dropped["tree_not_ready"] += len(rows) - len(ready)
        nodes = self._nodes(sorted(ready, key=lambda row: row.data), made)
        _link(nodes)
        used = self._converse(nodes, columns, made)
        self._account(nodes, used, made)
        return Made(made.rows, made.num_assembled, +made.dropped, made.bad)

    def _nodes(self, rows: list[RawRow], made: Made) -> dict[str, "_Node"]:
        """The messages of some rows by their names; a name that comes again is that of its first row."""
        nodes: dict[str, _Node] = {}
        for row in rows:
            try:
                found = list(self._messages(row))
            except Unfit as error:
                made.bad.append(BadRow(row, error.reason, error.detail))
                continue
            if any(node.name in nodes for node in found) or len({node.name for node in found}) < len(found):
                made.dropped["repeated_message"] += 1
                continue
            nodes |= {node.name: node for node in found}
        return nodes

    def _messages(self, row: RawRow) -> Iterator["_Node"]:
        """The messages of a row: one, or all those of a tree.

        Raises:
            Unfit: one of them is not what a message is.
        """
        root = row.record.get(self.root)
        if not isinstance(root, dict):
            yield self._node(row, row.record, row.record.get(self.parent))
            return
        above = {name: value for name, value in row.record.items() if name != self.root}
        waiting: list[tuple[Any, str | None]] = [(root, None)]
        while waiting:
            message, parent = waiting.pop()
            if not isinstance(message, dict):
                raise Unfit("wrong_type", f"a message is a {type(message).__name__}, an object is needed")
            node = self._node(row, message, parent)
            node.above = above
            yield node
            waiting += [(reply, node.name) for reply in message.get(self.replies) or []]

    def _node(self, row: RawRow, message: Record, parent: Any) -> "_Node":
        name, text, role = (_text(message, key) for key in (self.id, self.text, self.role))
        speaker = ROLE_NAMES.get(role.lower())
        if speaker not in ("user", "assistant"):
            raise Unfit("unknown_role", f"{role!r:.80} is neither prompter nor assistant")
        rank, deleted = message.get(self.rank), message.get(self.deleted)
        return _Node(name, parent or None, speaker, text, _number(rank), _is_true(deleted), message, row)

    def _converse(self, nodes: dict[str, "_Node"], columns: Collection[str], made: Made) -> set[str]:
        """Add the conversations of all roots; the names of the messages that are in one."""
        used: set[str] = set()
        for root in sorted((node for node in nodes.values() if node.parent is None and node.is_live), key=_by_name):
            path = _best_path(root) if self.take != "pairs" else []
            pairs = list(_pairs(root)) if self.take != "best_path" else []
            steps = {(one.name, other.name) for one, other in itertools.pairwise(path)}
            shared = path[0].name if len(path) > 2 and pairs else None
            of_path = [pair for pair in pairs if (pair[0].name, pair[1].name) in steps and len(path) > 2]
            apart = [pair for pair in pairs if (pair[0].name, pair[1].name) not in steps]
            for pair in of_path:
                made.rows.append(_row(pair, pair[1], "pair", shared, columns))
            if path:
                made.rows.append(_row(path, root, "best_path", shared, columns))
            for pair in apart:
                made.rows.append(_row(pair, pair[1], "pair", None, columns))
            used |= {node.name for node in path} | {node.name for pair in pairs for node in pair}
        return used

    def _account(self, nodes: dict[str, "_Node"], used: set[str], made: Made) -> None:
        """Count the rows that went into a conversation, and the others by the reason of their first message."""
        of_rows: dict[tuple[str, int, bytes], list[_Node]] = defaultdict(list)
        for node in nodes.values():
            of_rows[node.row.file, node.row.position, node.row.data].append(node)
        for held in of_rows.values():
            first = held[0]
            if any(node.name in used for node in held):
                made.num_assembled += 1
            elif first.is_deleted:
                made.dropped["deleted"] += 1
            elif not first.is_reached:
                above = "a message above it" if first.parent in nodes else f"the message {first.parent} above it"
                made.bad.append(BadRow(first.row, "no_parent", f"{above} is not there"))
            elif not first.is_live:
                made.dropped["after_deleted"] += 1
            else:
                on_path = self.take == "best_path" and len(held) == 1 and first.parent is not None
                made.dropped["not_on_best_path" if on_path else "no_answer"] += 1


@dataclass(eq=False)
class _Node:
    """A message among those around it."""

    name: str
    parent: str | None
    speaker: str
    text: str
    rank: float
    is_deleted: bool
    message: Record
    row: RawRow
    above: Record | None = None
    """Of a message of a nested tree the columns beside it."""
    replies: tuple["_Node", ...] = ()
    """Those that are live, the best first."""
    is_live: bool = False
    """Whether neither it nor a message before it was deleted, and all of these are there."""
    is_reached: bool = False
    """Whether the messages before it are there, up to a first one."""


def _by_name(node: _Node) -> str:
    return node.name


def _text(message: Record, key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise Unfit(f"missing_{key}", f"a message has none, or one that is no text: {value!r:.80}")
    return value


def _number(rank: Any) -> float:
    try:
        return math.inf if rank is None or rank == "" else float(rank)
    except (TypeError, ValueError):
        raise Unfit("wrong_type", f"a rank is {rank!r:.80}, a number or null is needed") from None


def _is_true(value: Any) -> bool:
    return value is True or value == 1 or (isinstance(value, str) and value.strip().lower() in ("true", "1"))


def _link(nodes: dict[str, _Node]) -> None:
    """Find the replies to each message, and which messages are live."""
    replies: dict[str, list[_Node]] = defaultdict(list)
    for node in nodes.values():
        if node.parent is not None:
            replies[node.parent].append(node)
    for found in replies.values():
        found.sort(key=lambda node: (node.rank, node.name))
    waiting = [(node, not node.is_deleted) for node in nodes.values() if node.parent is None]
    while waiting:
        node, node.is_live = waiting.pop()
        node.is_reached = True
        node.replies = tuple(reply for reply in replies[node.name] if node.is_live and not reply.is_deleted)
        waiting += [(reply, node.is_live and not reply.is_deleted) for reply in replies[node.name]]


def _answers(node: _Node) -> list[_Node]:
    return [reply for reply in node.replies if reply.speaker == "assistant"]


def _best_path(root: _Node) -> list[_Node]:
    """From a prompt the best answer, from an answer the best prompt that has an answer, as far as there is one."""
    path = [root]
    while True:
        last = path[-1]
        if last.speaker == "user":
            found = _answers(last)
        else:
            found = [reply for reply in last.replies if reply.speaker == "user" and _answers(reply)]
        if not found:
            return path if len(path) > 1 else []
        path.append(found[0])


def _pairs(root: _Node) -> Iterator[tuple[_Node, _Node]]:
    """Every prompt below a root with every answer to it."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.speaker == "user":
            yield from ((node, answer) for answer in _answers(node))
        waiting += reversed(node.replies)


def _row(
    nodes: Iterable[_Node], named: _Node, taken: str, conversation: str | None, columns: Collection[str]
) -> MadeRow:
    """A conversation with the columns of the message that it is named after, and of its tree."""
    own = {name: value for name, value in named.message.items() if name in columns and value is not None}
    record = {name: value for name, value in (named.above or {}).items() if name in columns} | own
    said = [{"role": node.speaker, "content": node.text} for node in nodes]
    return MadeRow(
        {**record, MESSAGES: said, TAKEN: taken}, named.row.file, named.row.position, conversation
    )  # fmt: skip
