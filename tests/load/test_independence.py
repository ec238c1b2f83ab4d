from __future__ import annotations

import subprocess
import sys


def test_the_load_generator_imports_only_net() -> None:
    program = (
        "import sys, llm_proxy.load; "
        "print(*(m for m in sys.modules if m.split('.')[0] in ('llm_proxy', 'db') and m != 'llm_proxy'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    others = {name for name in done.stdout.split() if not name.startswith("llm_proxy.load")}
    assert others == {f"llm_proxy.net{name}" for name in ("", ".client_socket", ".poller", ".tls")}
    assert "llm_proxy.load.engine" in done.stdout
