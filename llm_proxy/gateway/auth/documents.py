"""The documents of credentials without a long-lived key: JSON objects, stored where an API key would be.

They come from operators only. Still, none of them can send a secret or a file to any address: Google's addresses are
fixed, all others are https, or on this machine for tests; and of a file, only a JWT is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Struct, structs

from llm_proxy.config import kinds
from llm_proxy.config.kinds import Kind
from llm_proxy.gateway.auth.token_source import ExchangeFailed
from llm_proxy.gateway.http.json_members import MALFORMED

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
#: Where virtual machines get their identity at AWS, Azure and Google.
_METADATA: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "metadata.google.internal"})


def _matching(name: str, pattern: str, allowed: str) -> Kind[str]:
    return Kind(name, allowed, kinds.matching(pattern))


def _url(allowed: str, *, hosts: str = r"[a-z0-9.-]+", plain: Iterable[str] = ()) -> Kind[str]:
    """An https URL of one of `hosts`, or an http URL of this machine or of the `plain` ones."""
    unencrypted = _LOOPBACK | frozenset(plain)

    def parse(text: str) -> str:
        parts = urlsplit(text)
        host = parts.hostname or ""
        secure = parts.scheme == "https" and re.fullmatch(hosts, host)
        if not re.fullmatch(r"[!-~]+", text) or "@" in parts.netloc or parts.fragment:
            raise ValueError
        if not secure and not (parts.scheme == "http" and host in unencrypted):
            raise ValueError
        return text

    return Kind("URL", allowed, parse)


_HTTPS: Final = "an https URL without user (http only for this machine)"
_AT_GOOGLE: Final = "an https URL of googleapis.com (http only for this machine)"

_PLAIN: Final = kinds.header_text(4096)

_Id = Annotated[str, _matching("identifier", r"[A-Za-z0-9._:/@-]{1,255}", "1 to 255 letters, digits and . _ : / @ -")]
_Secret = Annotated[str, _PLAIN]
_Text = Annotated[str, kinds.TEXT]
_File = Annotated[str, _matching("path", r"/[^\x00-\x1f]{1,1023}", "the absolute path of a file")]
_Url = Annotated[str, _url(_HTTPS)]
_GoogleUrl = Annotated[str, _url(_AT_GOOGLE, hosts=r"(?:[a-z0-9-]+\.)+googleapis\.com")]
#: Where a token is exchanged. Other hosts of Google keep what they get.
_GoogleTokenUrl = Annotated[
    str,
    _url(
        "an https URL of sts.googleapis.com or iamcredentials.googleapis.com (http only for this machine)",
        hosts=r"(?:sts|iamcredentials)\.(?:[a-z0-9-]+\.)*googleapis\.com",
    ),
]
#: AWS's have `{region}` in the host.
_SourceUrl = Annotated[
    str, _url("an https URL, or an http URL of a metadata server", hosts=r"[a-z0-9.{}-]+", plain=_METADATA)
]
_Scope = Annotated[str, _matching("scope", r"[!-~]{1,255}", "a scope such as https://example.com/.default")]
_Region = Annotated[str, _matching("region", r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}", "a region such as us-east-1")]


class _Document(Struct, frozen=True, kw_only=True):
    """The fields of one kind of document; UNSET if one is not given."""

    def mistakes(self) -> Iterable[str]:
        """Mistakes that no single field shows."""
        return ()


class AzureAd(_Document, frozen=True, kw_only=True):
    """An app registration of Microsoft Entra ID, with a client secret or a federated credential."""

    tenant_id: _Id
    client_id: _Id
    client_secret: _Secret = ""
    federated_token_file: _File = ""
    authority: _Url = "https://login.microsoftonline.com"
    scope: _Scope = "https://cognitiveservices.azure.com/.default"

    def mistakes(self) -> Iterable[str]:
        if bool(self.client_secret) == bool(self.federated_token_file):
            yield "exactly one of 'client_secret' and 'federated_token_file' is needed"


class OpenAI(_Document, frozen=True, kw_only=True):
    """A service account of OpenAI, mapped to an identity of a workload identity provider."""

    identity_provider_id: _Id
    service_account_id: _Id
    token_file: _File
    subject_token_type: Annotated[str, kinds.choice(Literal["jwt", "id_token"])] = "jwt"  # noqa: S105 - no password
    token_url: _Url = "https://auth.openai.com/oauth/token"  # noqa: S105 - no password


class Anthropic(_Document, frozen=True, kw_only=True):
    """A federation rule of Anthropic. The token file belongs to the identity that the rule names."""

    federation_rule_id: _Id
    organization_id: _Id
    service_account_id: _Id = ""
    workspace_id: _Id = ""
    token_file: _File
    token_url: _Url = "https://api.anthropic.com/v1/oauth/token"  # noqa: S105 - no password


class Aws(_Document, frozen=True, kw_only=True):
    """An AWS region; without keys, those of the environment, web identity, container or instance are used."""

    region: _Region
    service: Annotated[str, kinds.choice(Literal["bedrock", "bedrock-mantle"])] = "bedrock"
    access_key_id: _Secret = ""
    secret_access_key: _Secret = ""
    session_token: _Secret = ""

    def mistakes(self) -> Iterable[str]:
        if bool(self.access_key_id) != bool(self.secret_access_key):
            yield "'access_key_id' and 'secret_access_key' are needed together, or neither of them"
        if self.session_token and not self.access_key_id:
            yield "'session_token' needs 'access_key_id' and 'secret_access_key'"


class GoogleServiceAccount(_Document, frozen=True, kw_only=True):
    """The key file of a service account, as Google's console makes it."""

    type: _Text
    project_id: _Text = ""
    private_key_id: _Text = ""
    private_key: Annotated[
        str, _matching("key", r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.{1,16000}", "a private key in PEM form")
    ]
    client_email: _Id
    client_id: _Text = ""
    auth_uri: _Text = ""
    token_uri: _GoogleUrl
    auth_provider_x509_cert_url: _Text = ""
    client_x509_cert_url: _Text = ""
    universe_domain: _Text = ""


class _GoogleFormat(_Document, frozen=True, kw_only=True):
    type: Annotated[str, kinds.choice(Literal["text", "json"])] = "text"
    subject_token_field_name: _Text = ""


class _GoogleSource(_Document, frozen=True, kw_only=True):
    """Where the token of the other cloud is. Google allows a program too, which this proxy never starts."""

    file: _File = ""
    url: _SourceUrl = ""
    headers: dict[str, str] | msgspec.UnsetType = UNSET
    format: _GoogleFormat | msgspec.UnsetType = UNSET
    environment_id: _Text = ""
    region_url: _SourceUrl = ""
    regional_cred_verification_url: _SourceUrl = ""
    imdsv2_session_token_url: _SourceUrl = ""

    def mistakes(self) -> Iterable[str]:
        if [bool(self.file), bool(self.url and not self.environment_id), bool(self.environment_id)].count(True) != 1:
            yield "'credential_source' needs exactly one of 'file', 'url' and 'environment_id'"


class _GoogleImpersonation(_Document, frozen=True, kw_only=True):
    token_lifetime_seconds: Annotated[int, kinds.integer(600, 43200)] = 3600


class GoogleExternalAccount(_Document, frozen=True, kw_only=True):
    """The configuration of workload identity federation, as `gcloud iam workload-identity-pools` makes it."""

    type: _Text
    audience: _Text
    subject_token_type: _Text
    token_url: _GoogleTokenUrl
    token_info_url: _Text = ""
    service_account_impersonation_url: _GoogleTokenUrl = ""
    service_account_impersonation: _GoogleImpersonation | msgspec.UnsetType = UNSET
    credential_source: _GoogleSource
    client_id: _Text = ""
    client_secret: _Text = ""
    quota_project_id: _Text = ""
    workforce_pool_user_project: _Text = ""
    universe_domain: _Text = ""


_GOOGLE: Final[Mapping[str, type[_Document]]] = {
    "service_account": GoogleServiceAccount,
    "external_account": GoogleExternalAccount,
}
_KINDS: Final[Mapping[str, type[_Document]]] = {
    "azure-ad": AzureAd,
    "openai-wif": OpenAI,
    "anthropic-wif": Anthropic,
    "sigv4": Aws,
}


def check(auth: str, secret: str) -> list[str]:
    """What is wrong with the secret of a credential, as clauses without any of its values; empty if it is valid."""
    if auth == "google" or auth in _KINDS:
        return _read(auth, secret)[1]
    try:
        _PLAIN.read(secret)
    except ValueError:
        return [f"the provider needs an API key, which must be {_PLAIN.allowed}"]
    return []


def read(auth: str, secret: str) -> Any:
    """The document of a credential. Raises `ExchangeFailed` if it is not valid."""
    document, mistakes = _read(auth, secret)
    if mistakes:
        raise ExchangeFailed(f"its document is not valid: {'; '.join(mistakes)}")
    return document


def _read(auth: str, secret: str) -> tuple[_Document | None, list[str]]:
    try:
        data = msgspec.json.decode(secret)
    except MALFORMED:
        data = None
    if not isinstance(data, dict):
        return None, [f"the secret of a credential with auth {auth} must be a JSON object"]
    if auth == "google":
        kind = data.get("type")
        if not isinstance(kind, str) or kind not in _GOOGLE:
            return None, [f"'type' must be one of {', '.join(_GOOGLE)}"]
        return _convert(_GOOGLE[kind], data, "")
    return _convert(_KINDS[auth], data, "")


def _convert(struct: type[_Document], data: Mapping[str, Any], prefix: str) -> tuple[_Document | None, list[str]]:
    """Make a document of plain data, or say all that is wrong. Values are never repeated: they may be secrets."""
    hints = get_type_hints(struct, include_extras=True)
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for field in structs.fields(struct):
        name = prefix + field.name
        if field.name not in data:
            if field.required:
                mistakes.append(f"'{name}' is missing")
            continue
        values[field.name], found = _value(hints[field.name], data[field.name], name)
        mistakes += found
    known = ", ".join(field.name for field in structs.fields(struct))
    mistakes += [
        f"{kinds.quoted(prefix + name)} is not a field of this document (fields: {known})"
        for name in data
        if name not in hints
    ]
    if mistakes:
        return None, mistakes
    document = struct(**values)
    return document, list(document.mistakes())


def _value(hint: Any, value: object, name: str) -> tuple[Any, list[str]]:
    if get_origin(hint) is Annotated:
        expected, kind = get_args(hint)
        if type(value) is expected:
            try:
                return kind.read(str(value)), []
            except ValueError:
                pass
        return None, [f"'{name}' must be {kind.allowed}"]
    struct = next((option for option in get_args(hint) or (hint,) if isinstance(option, type)), dict)
    if not isinstance(value, dict):
        return None, [f"'{name}' must be a JSON object"]
    if issubclass(struct, _Document):
        return _convert(struct, value, f"{name}.")
    strings = all(isinstance(item, str) for item in value.values())
    return value, [] if strings else [f"'{name}' must be a JSON object of texts"]
