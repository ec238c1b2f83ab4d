"""The application: the data plane and the control plane behind one ASGI interface."""

from __future__ import annotations
