"""The offline tour of `llm-proxy demo`.

- `provider.py`: the provider, which answers from a script
- `stage.py`: the provider and a proxy in front of it, in this process
- `tour.py`: what is done and shown, step by step
- `screen.py`: how it is shown
"""
