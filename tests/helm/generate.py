"""Writes anew what is made from the chart and from the settings: `python -m tests.helm.generate`.

- `tests/helm/golden`: what the examples render to; look at the difference before you commit it
- `values.schema.json`, its part about `config`: the settings of llm_proxy/config/declaration.py
- `docs/deployment/helm-values.md`: the reference of the values
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from llm_proxy.config.declaration import Settings
from llm_proxy.config.sources import declared
from tests.helm import reference
from tests.helm.chart import CHART, EXAMPLES, GOLDEN, rendered

SCHEMA: Final = CHART / "values.schema.json"
REFERENCE: Final = Path(__file__).parents[2] / "docs" / "deployment" / "helm-values.md"

#: Kinds of settings that people write without quotes in YAML.
_TYPES: Final = {"integer": "integer", "boolean": "boolean", "size": "integer", "duration": "integer"}


def config_schema() -> dict[str, Any]:
    """What `config` takes: every setting by its name; which of them belong elsewhere, the templates say."""
    return {
        name: {"description": field.help, "type": [*filter(None, [_TYPES.get(field.kind.name)]), "string"]}
        for name, field in declared(Settings).items()
    }


def schema() -> str:
    """The schema of the values, with the part about the settings made anew."""
    whole = json.loads(SCHEMA.read_text())
    whole["properties"]["config"]["properties"] = config_schema()
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all three."""
    SCHEMA.write_text(schema())
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE.write_text(reference.page())
    golden = {example.name: rendered(example) for example in EXAMPLES}
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name, text in golden.items():
        (GOLDEN / name).write_text(text)


if __name__ == "__main__":
    main()
