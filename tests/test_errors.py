from __future__ import annotations

import pytest

from llm_proxy.errors import DATA_PLANE, MANAGEMENT, ProxyError, management_body


@pytest.mark.parametrize("rows", [DATA_PLANE, MANAGEMENT])
def test_a_code_has_one_row_in_each_plane(rows: tuple[type[ProxyError], ...]) -> None:
    codes = [kind.code for kind in rows]
    assert len(set(codes)) == len(codes) >= 15


def test_a_message_replaces_the_text_of_the_row_in_every_shape() -> None:
    for kind in DATA_PLANE:
        assert kind().message == kind.message
        assert kind("Other.").message == "Other."
    for kind in MANAGEMENT:
        expected = {"error": kind.error, "code": kind.code}
        assert management_body(kind()) == expected | {"description": kind.description}
        assert management_body(kind("Other.")) == expected | {"description": "Other."}
