"""What requests cost.

- `table.py`: the price of each model, and the cost of a request
- `rates.py`: the classes of a bill, and integer arithmetic on their rates
- `price_file.py`: the operator's prices (`PRICES_PATH`)
- `builtin.py`: all others, from the table of `genai-prices`
"""

from __future__ import annotations

from llm_proxy.prices.table import Cost, Prices

__all__ = ["Cost", "Prices"]
