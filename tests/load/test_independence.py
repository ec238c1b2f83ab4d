from __future__ import annotations

import subprocess
import sys


def test_the_engine_brings_nothing_else_of_ours() -> None:
    program = (
        "import sys, llm_proxy.load; "
        "print(*(m for m in sys.modules if m.split('.')[0] in ('llm_proxy', 'db') and m != 'llm_proxy'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if not name.startswith("llm_proxy.load")] == []
    assert "llm_proxy.load.engine" in done.stdout
