"""The ASGI application: gateway and management API behind one interface; CORS and forwarded addresses for both."""
