"""Columns that stand in the names of folders: `key=value` below a source's root, as Hive and Spark write them."""

from urllib.parse import unquote

from etl.errors import SourceError

NULL = "__HIVE_DEFAULT_PARTITION__"


def is_partition(folder: str) -> bool:
    """Whether the name of a folder is a column and its value."""
    return folder.find("=") > 0


def partition_folders(relative: str) -> list[str]:
    """The names of the `key=value` folders above a file, in order."""
    return [folder for folder in relative.split("/")[:-1] if is_partition(folder)]


def partitions_of(relative: str) -> dict[str, str | None]:
    """Column -> value, both percent-decoded, for the folders above a file; null for Hive's word for it.

    Args:
        relative: path of the file below its source's root.

    Raises:
        SourceError: a column is named twice, or a name is not UTF-8 once it is decoded.
    """
    found: dict[str, str | None] = {}
    for folder in partition_folders(relative):
        try:
            key, value = (unquote(text, errors="strict") for text in folder.split("=", 1))
        except UnicodeDecodeError as error:
            raise SourceError(f"{relative}: the folder '{folder}' is not UTF-8 ({error}); rename it") from error
        if key in found:
            raise SourceError(f"{relative}: two folders name the column '{key}'; rename one of them")
        found[key] = None if value == NULL else value
    return found
