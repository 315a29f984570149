"""The settings of a judge, from a TOML file of its own.

url = "http://localhost:8000/v1"   # the keys of JudgeSettings
model = "Qwen/Qwen3-32B"
[verdict]                          # the keys of JudgeVerdictSettings
lowest = 1
highest = 10
[limits]                           # the keys of JudgeLimits
timeout = 30
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from guerdon.addresses import is_loopback
from guerdon.data.json_values import json_copy, parsed
from guerdon.reward.judge.schema import ReplySchema
from guerdon.settings import SettingsError, build, not_negative, positive, read_toml

OWN_FIELDS = frozenset(
    {
        *("model", "messages", "response_format", "n", "stream"),
        *("temperature", "max_tokens", "max_completion_tokens", "seed"),
    }
)
"""Fields of a request that `extra` may not hold: they are made of other settings, or would make
another reply than the one that is read."""
PREFERENCES = {"A": 1.0, "B": -1.0, "tie": 0.0}
"""Words for the first answer, the second, and neither."""
CONTROL_TOKENS = (
    r"<[|｜][^|｜<>\n]{1,48}[|｜]>",
    r"<\|[a-z_]{1,48}>",
    r"<[a-z_]{1,48}\|>",
    r"</?(?:start|end)_of_turn>",
    r"</?s>",
    r"<(?:bos|eos)>",
    r"</?seed:\w{1,48}>",
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_CONTENT|TOOL_RESULTS|THINK)\]",
    r"\[\|(?:system|user|assistant|tool|endofturn)\|\]",
    r"<</?SYS>>",
)
"""What opens and closes turns in the templates of published chat models: those that are known
here, and no guarantee that a model reads no other text so."""


@dataclass(frozen=True, kw_only=True)
class JudgeVerdictSettings:
    """Settings of a verdict: where a reply has it, and what it may be."""

    form: Literal["text", "json"] = "text"
    """`text`: the last line; `json`: a field of the reply, which is a JSON object."""
    pattern: str = ""
    """`text`: a regular expression with one group that is all of the last line.
    (default: `Score: ` and a number, or `Verdict: ` and one of `values`)"""
    field: str = "verdict"
    """`json`: the field."""
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """`json`: the JSON schema of the reply; or `schema_file`. (default: `reason` and the field)"""
    schema_file: Path | None = None
    """The schema's file."""
    reason: bool = True
    """`json`: the object begins with a text, `reason`; not with a schema of one's own."""
    send_schema: bool = True
    """`json`: the endpoint is given the schema as `response_format`."""
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The number that each word stands for, where verdicts are words. A judge that compares:
    1 for the first answer, -1 for the second, 0 for neither. (default for it: A, B and tie)"""
    lowest: float = 1.0
    """The least number that is a verdict."""
    highest: float = 10.0
    """The largest."""

    def __post_init__(self) -> None:
        for name, number in self.values.items():
            if not math.isfinite(number):
                raise SettingsError(f"values.{name} is {number}, it must be finite")
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise SettingsError(
                f"lowest is {self.lowest:g} and highest {self.highest:g}: they must be finite, and "
                "lowest the less"
            )
        if self.form == "json" and self.field in ("", "reason"):
            raise SettingsError(f"field is {self.field!r}, it must be another name")
        self._check_pattern()
        self._check_schema()

    def _check_schema(self) -> None:
        """Refuse a schema that replies can't be checked by, or that has no place for a verdict."""
        if self.schema and self.schema_file:
            raise SettingsError("schema and schema_file are both given")
        if (self.schema or self.schema_file) and (self.form != "json" or not self.reason):
            raise SettingsError("a schema of your own needs form json, and takes no reason = false")
        if not self.schema:
            return
        schema = json_copy(self.schema, "schema", _wrong)
        ReplySchema(schema, "schema", _wrong)
        verdict = schema.get("properties", {}).get(self.field)
        if schema.get("type") != "object" or self.field not in schema.get("required", ()):
            raise SettingsError(f"schema must be of an object that requires {self.field!r}")
        if not isinstance(verdict, dict):
            raise SettingsError(f"schema.properties must say what {self.field!r} is")
        for name, own in (("minimum", self.lowest), ("maximum", self.highest)):
            if verdict.get(name, own) != own:
                path = f"schema.properties.{self.field}.{name}"
                raise SettingsError(f"{path} is not {own:g}, as the setting is")

    def _check_pattern(self) -> None:
        if self.form == "json" and self.pattern:
            raise SettingsError("pattern does nothing where form is json")
        try:
            groups = re.compile(self.pattern, re.ASCII).groups
        except re.error as error:
            raise SettingsError(f"pattern is no regular expression: {error}") from error
        if self.pattern and groups != 1:
            raise SettingsError(f"pattern has {groups} groups, it must have one: the verdict")


@dataclass(frozen=True, kw_only=True)
class JudgeLimits:
    """How much is asked of the endpoint, and how long it may take."""

    timeout: float = 60.0
    """Seconds for each request."""
    tries: int = 3
    """Times that a verdict is asked for before the call fails."""
    at_once: int = 8
    """Most requests at a time."""
    max_waiting: int = 4096
    """Most verdicts that calls wait for; beyond, calls are shed."""
    max_characters: int = 100_000
    """Most characters of prompt and answers in one question."""
    cached: int = 100_000
    """Verdicts that are kept, the latest used ones; 0 keeps none."""
    budget_requests: int | None = None
    """Most requests in `budget_seconds`."""
    budget_tokens: int | None = None
    """Tokens, as the endpoint counts them, after which it is asked no more in `budget_seconds`."""
    budget_seconds: float = 60.0
    """How long a budget lasts until it begins anew."""

    def __post_init__(self) -> None:
        positive(
            self, "timeout", "tries", "at_once", "max_waiting", "max_characters", "budget_seconds"
        )
        not_negative(self, "cached")
        for name in ("budget_requests", "budget_tokens"):
            if getattr(self, name) is not None:
                positive(self, name)


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Whom to ask, what, and how the answer is read."""

    url: str = ""
    """The base URL of the endpoint, up to `/v1`."""
    model: str = ""
    """The model's name at the endpoint."""
    api_key_variable: str = ""
    """The environment variable that holds the endpoint's key."""
    api_key_file: Path | None = None
    """The file that holds it."""
    ask: Literal["score", "compare"] = "score"
    """`score`: a number for each answer; `compare`: which of two answers is better."""
    system: str = ""
    """The system turn. (default: what a judge is to do)"""
    template: str = ""
    """The user turn, a Jinja template; or `template_file`. (default: one for each `ask`)"""
    template_file: Path | None = None
    """The template's file."""
    temperature: float = 0.0
    """The sampling temperature."""
    send_temperature: bool = True
    """The endpoint is given it; else it samples at its own."""
    max_tokens: int = 1024
    """Most tokens of a reply."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The request's field for it."""
    seed: int | None = None
    """The seed of the first vote; those of the others follow."""
    votes: int = 1
    """Verdicts on each question, of which the mean counts."""
    control_tokens: tuple[str, ...] = CONTROL_TOKENS
    """Regular expressions of what no prompt or answer may hold, since the endpoint's model may
    read it as the end of its turn. (default: marks of published chat models, not all of them)"""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More fields for each request, such as `reasoning_effort`."""
    verdict: JudgeVerdictSettings = dataclasses.field(default_factory=JudgeVerdictSettings)
    limits: JudgeLimits = dataclasses.field(default_factory=JudgeLimits)

    def __post_init__(self) -> None:
        for name in ("url", "model"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is missing")
        positive(self, "max_tokens", "votes")
        not_negative(self, "temperature")
        self._check_url()
        self._check_together()
        if wrong := sorted(self.extra.keys() & OWN_FIELDS):
            raise SettingsError(f"extra.{wrong[0]} is made of other settings")
        json_copy(self.extra, "extra", _wrong)
        for place, pattern in enumerate(self.control_tokens):
            try:
                re.compile(pattern)
            except re.error as error:
                raise SettingsError(f"control_tokens[{place}]: {error}") from error

    @property
    def has_key(self) -> bool:
        """Whether the endpoint wants a key."""
        return bool(self.api_key_variable or self.api_key_file)

    @property
    def revision(self) -> str:
        """A SHA-256 over all of it but where the key is, in hexadecimal."""
        values = dataclasses.asdict(self)
        for name in ("api_key_variable", "api_key_file", "template_file"):
            del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _check_together(self) -> None:
        """Refuse settings that contradict each other."""
        if self.temperature and not self.send_temperature:
            raise SettingsError("temperature is given, and send_temperature = false leaves it out")
        if self.votes > 1 and self.send_temperature and not self.temperature:
            raise SettingsError(f"votes is {self.votes}, and temperature 0 makes all of them alike")
        for one, other in (("template", "template_file"), ("api_key_variable", "api_key_file")):
            if getattr(self, one) and getattr(self, other):
                raise SettingsError(f"{one} and {other} are both given")
        if self.verdict.pattern and not (self.template or self.template_file):
            raise SettingsError("verdict.pattern needs a template that asks for such a line")
        words = self.verdict.values or (PREFERENCES if self.ask == "compare" else {})
        self._check_field(words)
        numbers = set(self.verdict.values.values())
        if self.ask == "compare" and numbers and not {1, -1} <= numbers <= {1, 0, -1}:
            raise SettingsError(
                "verdict.values of a judge that compares must be 1, -1 and perhaps 0"
            )

    def _check_field(self, words: Mapping[str, float]) -> None:
        """Refuse a schema of one's own whose field can hold what is no verdict."""
        if not self.verdict.schema:
            return
        field = self.verdict.schema["properties"][self.verdict.field]
        path = f"verdict.schema.properties.{self.verdict.field}"
        if field.get("type") not in (("string",) if words else ("number", "integer")):
            kind = "string: verdicts are words" if words else "number or integer"
            raise SettingsError(f"{path}.type must be {kind}")
        if words and (unknown := [each for each in field.get("enum", ()) if each not in [*words]]):
            raise SettingsError(f"{path}.enum has {unknown[0]!r}, which is none of the words")

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        # Unquoted: it may hold a password.
        if not known or "@" in parts.netloc or parts.query or parts.fragment:
            raise SettingsError(
                "url must be http(s)://HOST[:PORT]/PATH, without a name, a password or a query"
            )
        if any(not 32 < ord(character) < 127 for character in self.url):
            raise SettingsError("url has a character that no URL has")
        if self.has_key and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SettingsError("url is http, which would show the key to the network: use https")


def read_settings(file: Path) -> JudgeSettings:
    """The settings of a judge, its template and schema read; relative paths start from the
    file's folder.

    Raises:
        SettingsError: a file can't be read, or a key or a value is wrong.
    """
    settings = build(JudgeSettings, read_toml(file))
    if settings.api_key_file is not None:
        key_file = file.parent / settings.api_key_file
        settings = dataclasses.replace(settings, api_key_file=key_file)
    if settings.verdict.schema_file is not None:
        text = _read_text(file.parent / settings.verdict.schema_file, "verdict.schema_file")
        schema = parsed(text, "verdict.schema_file", _wrong)
        if not isinstance(schema, dict) or not schema:
            raise SettingsError("verdict.schema_file holds no JSON schema")
        try:
            verdict = dataclasses.replace(settings.verdict, schema=schema, schema_file=None)
        except SettingsError as error:
            raise SettingsError(f"verdict: {error}") from error
        settings = dataclasses.replace(settings, verdict=verdict)
    if settings.template_file is not None:
        template = _read_text(file.parent / settings.template_file, "template_file")
        settings = dataclasses.replace(settings, template=template, template_file=None)
    return settings


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"{name} {path} cannot be read: {reason}") from error


def _wrong(path: str, why: str) -> SettingsError:
    return SettingsError(f"{path} {why}")


def read_key(settings: JudgeSettings) -> str:
    """The endpoint's key; empty where it wants none. Errors don't hold it.

    Raises:
        SettingsError: it is not there, or can't be one.
    """
    if settings.api_key_variable:
        where = f"api_key_variable: ${settings.api_key_variable}"
        key = os.environ.get(settings.api_key_variable, "")
    elif settings.api_key_file:
        where = f"api_key_file: {settings.api_key_file}"
        try:
            key = settings.api_key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{where} cannot be read") from error
    else:
        return ""
    key = key.strip()
    if not key or any(not 32 < ord(character) < 127 for character in key):
        raise SettingsError(f"{where} holds no key")
    return key
