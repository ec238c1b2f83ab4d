"""What a request says about itself: headers, paths, parameters and the members of its body."""

from __future__ import annotations
