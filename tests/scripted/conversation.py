"""What the tests of the scripted provider say to it."""

from __future__ import annotations

KEY = "sk-the-real-key"
MODEL = "gpt-scripted"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "How do tokens expire?"}]}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["celsius", "kelvin"]},
        "hourly": {"type": ["boolean", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}


def bearer(**directions: str) -> dict[str, str]:
    given = {f"x-scripted-{name}": value for name, value in directions.items()}
    return {"authorization": f"Bearer {KEY}", **given}
