"""API keys: only their hashes are kept, and comparing them takes as long for a wrong one as for a right one.

    python -m serve.keys chat-team >> keys.txt        makes a key, shows it once, and writes its line: name and SHA-256

    api_keys=keys.txt                                   the endpoint asks for one of them
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sys
import time
from pathlib import Path


class KeysError(ValueError):
    """A file of keys that cannot be used."""


def read_keys(path: str | Path) -> dict[str, str]:
    """Name by hash. Raises: KeysError with the line that is none."""
    found = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KeysError(f"api_keys={path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            name, _, digest = line.strip().rpartition(" ")
            if not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise KeysError(f"{path}, line {number} is no name with a SHA-256 behind it: make one with `python -m serve.keys <name>`")
            found[digest] = name
    if not found:
        raise KeysError(f"{path} holds no key: make one with `python -m serve.keys <name> >> {path}`")
    return found


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def owner(keys: dict[str, str], header: str | None) -> str | None:
    """Whose key an Authorization header holds. Every key is compared, whichever is right."""
    scheme, _, key = (header or "").partition(" ")
    given, found = digest(key.strip()), None
    for known, name in keys.items():
        if hmac.compare_digest(known, given) and scheme.lower() == "bearer":
            found = name
    return found


class Rate:
    """So many requests a minute for each owner, a minute's worth at once (a token bucket). 0: no limit."""

    def __init__(self, per_minute: int):
        self.per_minute, self.left = per_minute, {}

    def wait(self, name: str) -> float:
        """Seconds until the owner may ask again; 0 where it may now, and then this request is counted."""
        if not self.per_minute:
            return 0.0
        now = time.monotonic()
        tokens, then = self.left.get(name, (float(self.per_minute), now))
        tokens = min(float(self.per_minute), tokens + (now - then) * self.per_minute / 60)
        allowed = tokens >= 1
        self.left[name] = (tokens - allowed, now)
        return 0.0 if allowed else (1 - tokens) * 60 / self.per_minute


if __name__ == "__main__":
    if len(sys.argv) != 2 or " " in sys.argv[1]:
        sys.exit("usage: python -m serve.keys <name without blanks> >> keys.txt")
    made = f"sl-{secrets.token_urlsafe(32)}"
    print(f"the key of {sys.argv[1]}, shown this once: {made}", file=sys.stderr)
    print(sys.argv[1], digest(made))
