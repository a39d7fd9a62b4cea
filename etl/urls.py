"""Checks every URL that a user gives: none may contain credentials, as URLs are printed, stored and compared.

It refuses `user:password@` in any scheme, a single word before `@` if the scheme takes it for a token, and parameters
with the name of a secret, in any URL of a chain (`zip://a::https://…`). The error never repeats what was found. Every
field of a `Config` and every `Location` is checked here.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from etl.errors import ConfigError

_NEXT_OF_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::|$))")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)\S*")
_PARAMETER = re.compile(r"[?&;#]([^=?&;#/]*)=")
_SECRET_NAME = re.compile(
    r"(^|[-_.])(sig|signature|key|apikey|accesskey|accesskeyid|awsaccesskeyid|token|password|passwd|passphrase|pwd|pass|"
    r"secret|credentials?|auth|authorization|sas|jwt|bearer|googleaccessid)$"
    r"|^x-(amz|goog)-|token|secret|passw|api[-_.]?key",
    re.IGNORECASE,
)
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_NAMES_A_USER = frozenset({"hdfs", "webhdfs", "ssh", "sftp", "scp", "ftp", "smb", "az", "abfs", "abfss"})
"""Schemes in which a single word before `@` is the name of a user or container."""


def check_url(url: str) -> None:
    """Refuse URLs that must not be stored.

    Raises:
        ConfigError: the URL holds credentials; they are not repeated.
    """
    for piece in _NEXT_OF_CHAIN.split(url):
        for scheme, rest in _urls(piece):
            if _names_somebody(scheme.lower(), rest) or _has_secret(rest):
                name = scheme if len(scheme) <= 20 else "…"
                raise ConfigError(
                    f"a {name}:// URL contains credentials; remove them, and give them under `storage: "
                    f"{{{name}: …}}`, in the environment or in the store's own files"
                )


def is_url(text: str) -> bool:
    """Whether a whole text is a URL or a chain of URLs."""
    return _URL.fullmatch(text) is not None


def _urls(text: str) -> Iterator[tuple[str, str]]:
    """Scheme and remainder of each URL in a text; one may be a parameter of another."""
    for found in _SCHEME.finditer(text):
        yield found.group(1), text[found.end() :]


def _names_somebody(scheme: str, rest: str) -> bool:
    place = rest.partition("/")[0]
    if place.startswith(("arn:", "[")):
        return False
    user, at, host = unquote(place).rpartition("@")
    named = bool(at) and (":" in user or scheme not in _NAMES_A_USER)
    # A secret may contain a slash; then the part before it has no @, but a port that is not a number.
    port = host.partition(":")[2]
    return named or (":" in host and (scheme in _BUCKETS or not re.match(r"\d+([?#]|$)", port)))


def _has_secret(rest: str) -> bool:
    return any(_SECRET_NAME.search(name) for name in _PARAMETER.findall(unquote(rest)))
