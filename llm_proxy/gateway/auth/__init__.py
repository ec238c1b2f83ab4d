"""Credentials without a long-lived key: from a credential's document to what is sent with one request.

The secret of such a credential is a small JSON document (`documents`). A `TokenSource` exchanges it for a short-lived
token and keeps that until shortly before it ends. The token then takes the place of the API key.

- `documents`: the documents of all kinds, and what is wrong with one
- `token_source`: the cache, with one exchange at a time per credential
- `oauth`: the exchanges of Microsoft Entra ID, OpenAI and Anthropic
- `google`: Google's, through google-auth
- `aws`: AWS credentials and SigV4 signatures, through botocore

Static kinds of `auth` (a key in a header or in the query) have no token source; `Provider` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_proxy.gateway.auth import aws, google, oauth
from llm_proxy.gateway.auth.token_source import TokenSource


def token_sources() -> Mapping[str, TokenSource]:
    """A source for each kind of `auth` that needs one, with an empty cache."""
    return {
        "sigv4": TokenSource("sigv4", aws.credentials),
        "google": TokenSource("google", google.exchange),
        "azure-ad": TokenSource("azure-ad", oauth.azure_ad),
        "openai-wif": TokenSource("openai-wif", oauth.openai),
        "anthropic-wif": TokenSource("anthropic-wif", oauth.anthropic),
    }
