"""The reference of all settings, from their declaration."""

from __future__ import annotations

from itertools import groupby

from llm_proxy.config.declaration import Settings
from llm_proxy.config.sources import declared

_INTRODUCTION = """\
# Configuration

Everything is set by environment variables. A command's flag overrides the environment, the environment overrides the
`.env` file (`./.env`, or the file in `--config`), and the file overrides the default. An empty variable counts as not
set. All wrong settings are reported together, each with its value (secrets never) and what is allowed.

- **Durations** are written as in Go: `1h30m`, `90s`, `500ms`, also with `d` for days; or as a number of seconds.
- **Sizes** are `10MB`, `512KiB` or a number of bytes. kB, MB, GB are powers of 1000; KiB, MiB, GiB are powers of 1024.
- **Booleans** are `true` or `false`; also `yes`, `no`, `on`, `off`, `1` and `0`.
- **Secrets** may come from files: `MANAGEMENT_TOKEN_FILE=/run/secrets/management-token`. Such a file, and a `.env` file
  that contains a secret, is refused if other users can read or change it (`chmod o-rwx FILE`), except below
  `/run/secrets`, where container engines mount secrets.

A line of the `.env` file is `NAME=value`, `NAME='value'` (no escapes) or `NAME="value"` (with `\\n`, `\\t`, `\\"`).
`export` before the name, spaces around `=` and a comment after the value (` # …`) are allowed. Variables are not
expanded. Any other line, and a name that is set twice, is an error.
"""


def page() -> str:
    """The whole page, in Markdown: one table per section, with name, kind, default, what it does."""
    blocks = [_INTRODUCTION.rstrip()]
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
        blocks.append("\n".join([f"## {section}", "", *rows]))
    return "\n\n".join(blocks) + "\n"
