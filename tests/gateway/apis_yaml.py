"""Provider files for tests."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from llm_proxy.config import Settings, SettingsError
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Providers


def load(folder: Path, text: str | None, **environ: str) -> Providers:
    if text is not None:
        path = folder / "apis.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        environ["API_CONFIG_PATH"] = str(path)
    return provider_file.load(Settings.load(environ))


def mistakes(folder: Path, text: str | None, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(folder, text, **environ)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.mistakes]
