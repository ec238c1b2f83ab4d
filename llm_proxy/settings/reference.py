"""The reference of all settings as Markdown, generated from their declaration."""

from __future__ import annotations

from itertools import groupby

from llm_proxy.settings.declaration import Settings
from llm_proxy.settings.fields import declared


def markdown() -> str:
    """One table per section: name, kind, default, what it does."""
    blocks: list[str] = []
    for section, members in groupby(declared(Settings).items(), key=lambda item: item[1].section):
        rows = ["| setting | kind | default | what it does |", "|---|---|---|---|"]
        for name, field in members:
            notes = field.help
            if field.flag:
                notes += f" Flag: `{field.flag}`."
            if field.secret:
                notes += f" Secret: may come from a file, `{name}_FILE`."
            default = f"`{field.default}`" if field.default else "none"
            rows.append(f"| `{name}` | {field.kind.name} | {default} | {notes} |")
        blocks.append("\n".join([f"### {section}", "", *rows]))
    return "\n\n".join(blocks) + "\n"
