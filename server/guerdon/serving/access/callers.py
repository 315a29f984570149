"""Who makes a call: the holder of a token, or where no token is asked for an address.

    callers = read_callers(settings)                   # from a tokens file, or the single tokens
    caller = callers.identify(authorization, peer, Role.SCORE)

A tokens file (`--tokens`) is TOML with one table for each caller:

    [callers.search]
    token_sha256 = "9f86d0…"          # or token = "…", in clear
    roles = ["score"]                 # score, sample, admin, weights
    classes = ["online", "batch"]     # what it may ask for
    share = 2.0                       # its weight among callers of a class
    max_calls = 64                    # calls being served; and so on, see `CallerSettings`
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from guerdon.serving.access.identity import ANONYMOUS, Caller, Role
from guerdon.serving.config import ServerSettings
from guerdon.serving.credentials import ADMIN_TOKEN_VARIABLE, TOKEN_VARIABLE, read_token
from guerdon.serving.errors import PermissionDenied, Unauthenticated
from guerdon.settings import SettingsError, build, read_toml

SHARED = "shared"
"""What metrics call whoever shows the one token that all share."""
ADMIN = "admin"
"""What metrics call whoever shows the single admin token."""

MIN_SHARE, MAX_SHARE = 0.001, 1000.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IPV6_SITE = 64
"""Bits of an IPv6 address that tell callers apart: one machine may use all the rest."""


@dataclass(frozen=True, kw_only=True)
class CallerSettings:
    """One caller of a tokens file."""

    token: str = ""
    """The caller's bearer token, in clear."""
    token_sha256: str = ""
    """Instead of the token, its SHA-256 in hexadecimal digits: `sha256sum` of it."""
    roles: tuple[Role, ...] = ()
    classes: tuple[Literal["online", "batch"], ...] = ("online", "batch")
    share: float = 1.0
    max_calls: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if bool(self.token) == bool(self.token_sha256):
            raise ValueError("give either token or token_sha256")
        if self.token and (not self.token.isascii() or not self.token.isprintable()):
            raise ValueError("token must be printable ASCII")
        if self.token.strip() != self.token:
            raise ValueError("token must not begin or end with a space")
        if self.token_sha256 and not _SHA256.fullmatch(self.token_sha256.lower()):
            raise ValueError("token_sha256 must be 64 hexadecimal digits")
        if not self.roles or not self.classes:
            raise ValueError("roles and classes must name at least one each")
        if not MIN_SHARE <= self.share <= MAX_SHARE:
            raise ValueError(
                f"share is {self.share}, it must be between {MIN_SHARE} and {MAX_SHARE}"
            )
        for name in ("max_calls", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be positive")

    @property
    def digest(self) -> bytes:
        """SHA-256 of its token."""
        return bytes.fromhex(self.token_sha256) if self.token_sha256 else token_digest(self.token)


@dataclass(frozen=True, kw_only=True)
class _TokensFile:
    callers: Mapping[str, CallerSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a token."""

    caller: Caller
    roles: frozenset[Role]
    by_address: bool = False
    """Whether many share the token, so that only their addresses tell them apart."""


@dataclass(frozen=True, slots=True)
class AccessTokens:
    """The tokens that are known, and what is asked for without one."""

    holders: Mapping[bytes, Holder]
    """Holders by the SHA-256 of their token. What the time of a look-up tells is of the digest,
    from which nobody gets to a token."""
    guarded: frozenset[Role | None]
    """The roles that need a token. None stands for what any caller may ask."""
    own_admin: bool
    """Whether administration and weights have tokens that scoring and sampling don't take."""


class Callers:
    """Tells callers apart. `replace` puts other tokens in force for the calls that follow."""

    def __init__(self, tokens: AccessTokens) -> None:
        self._tokens = tokens

    def replace(self, tokens: AccessTokens) -> None:
        """Put other tokens in force."""
        self._tokens = tokens

    def guards(self, role: Role) -> bool:
        """Whether a role needs a token."""
        return role in self._tokens.guarded

    @property
    def own_admin(self) -> bool:
        """Whether administration and weights have tokens of their own."""
        return self._tokens.own_admin

    def identify(self, authorization: str | bytes | None, peer: str, role: Role | None) -> Caller:
        """The caller of a call.

        Args:
            authorization: the header `authorization`.
            peer: the address that the call comes from, as gRPC or HTTP names it. It may be
                empty where only the right to call is asked.
            role: what the call needs; None for what any known caller may do.

        Raises:
            Unauthenticated: no token, or an unknown one, where one is needed.
            PermissionDenied: the token is known and hasn't the role.
        """
        tokens = self._tokens
        if role not in tokens.guarded:
            return Caller(key=peer_address(peer))
        if authorization is None:
            raise Unauthenticated("a bearer token is needed")
        holder = self._holder(authorization)
        if holder is None:
            raise Unauthenticated("the bearer token is wrong")
        if role is not None and role not in holder.roles:
            raise PermissionDenied(
                f"the caller {holder.caller.name!r} has not the role {role.value!r}"
            )
        if holder.by_address:
            return Caller(name=holder.caller.name, key=peer_address(peer))
        return holder.caller

    def _holder(self, authorization: str | bytes) -> Holder | None:
        if isinstance(authorization, str):
            authorization = authorization.encode("utf-8", "replace")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"basic":  # http://:TOKEN@host/, for clients that set no header
            token = _password(token)
        elif scheme.lower() != b"bearer":
            token = b""
        return self._tokens.holders.get(hashlib.sha256(token.strip()).digest())


def _password(credentials: bytes) -> bytes:
    """The password of a Basic credential; empty where there is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def read_callers(settings: ServerSettings) -> Callers:
    """The callers of a server's settings.

    Raises:
        SettingsError: as `read_tokens`.
    """
    return Callers(read_tokens(settings))


def read_tokens(settings: ServerSettings) -> AccessTokens:
    """The tokens of a server's settings: of the tokens file, or the single ones.

    Raises:
        SettingsError: a file cannot be read, something in it cannot be, there are both, or other
            machines could do without a token what the service guards.
    """
    tokens = _read_tokens(settings)
    settings.check_exposure(admin_token=tokens.own_admin)
    return tokens


def _read_tokens(settings: ServerSettings) -> AccessTokens:
    token = read_token(TOKEN_VARIABLE, settings.token_file)
    admin = read_token(ADMIN_TOKEN_VARIABLE, settings.admin_token_file)
    if settings.tokens is None:
        return single_tokens(token, admin)
    for given, file, variable in (
        (token, "token_file", TOKEN_VARIABLE),
        (admin, "admin_token_file", ADMIN_TOKEN_VARIABLE),
    ):
        if given:
            raise SettingsError(
                f"tokens ({settings.tokens}) and {file} (${variable}) cannot both be given: "
                "put all callers into the tokens file"
            )
    return named_tokens(settings.tokens)


def single_tokens(token: str, admin: str) -> AccessTokens:
    """One token that all callers share, and one for administration; empty ones ask for nothing.

    Without an admin token, weights take the shared one, and administration takes none.
    """
    holders: dict[bytes, Holder] = {}
    guarded: set[Role | None] = set()
    rights = (
        (token, SHARED, {Role.SCORE, Role.SAMPLE} | (set() if admin else {Role.WEIGHTS})),
        (admin, ADMIN, {Role.ADMIN, Role.WEIGHTS}),
    )
    for text, name, roles in rights:
        if not text:
            continue
        guarded |= roles
        digest = token_digest(text)
        if digest in holders:  # one token for both
            roles = roles | holders[digest].roles
        holders[digest] = Holder(Caller(name=name), frozenset(roles), by_address=True)
    if token:
        guarded.add(None)
    return AccessTokens(holders, frozenset(guarded), own_admin=bool(admin))


def named_tokens(path: Path) -> AccessTokens:
    """The callers of a tokens file. Whatever they do needs a token then.

    Raises:
        SettingsError: it cannot be read, or something in it cannot be.
    """
    callers = build(_TokensFile, read_toml(path), str(path)).callers
    if not callers:
        raise SettingsError(f"{path} names no caller: it needs a table [callers.NAME]")
    holders: dict[bytes, Holder] = {}
    for name, settings in callers.items():
        if not _NAME.fullmatch(name) or name in (ANONYMOUS, SHARED):
            raise SettingsError(
                f"{path}: {name!r} cannot name a caller: up to 64 letters, digits, '.', '_' and "
                f"'-', and neither {ANONYMOUS!r} nor {SHARED!r}"
            )
        if settings.digest in holders:
            other = holders[settings.digest].caller.name
            raise SettingsError(f"{path}: {name!r} and {other!r} have the same token")
        caller = Caller(
            name=name,
            key=name,
            classes=frozenset(settings.classes),
            share=settings.share,
            max_calls=settings.max_calls,
            max_tokens=settings.max_tokens,
        )
        holders[settings.digest] = Holder(caller, frozenset(settings.roles))
    return AccessTokens(holders, frozenset({*Role, None}), own_admin=True)


def token_digest(token: str) -> bytes:
    """SHA-256 of a token."""
    return hashlib.sha256(token.encode()).digest()


def peer_address(peer: str) -> str:
    """The address of a peer without its port, so that its connections are one caller.

    Args:
        peer: `ipv4:1.2.3.4:567`, `ipv6:%5B::1%5D:567`, `unix:…`, or a bare address.
    """
    text = urllib.parse.unquote(peer)
    family, colon, rest = text.partition(":")
    if colon and family in ("ipv4", "ipv6"):
        text = rest.rpartition(":")[0]
    elif colon and family == "unix":
        return "unix"
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_SITE), strict=False))
    return str(address)
