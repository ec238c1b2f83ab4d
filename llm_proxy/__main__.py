"""`python -m llm_proxy` is `llm-proxy`."""

from __future__ import annotations

from llm_proxy.cli import main

if __name__ == "__main__":
    main()
