"""Network code that the server and the clients share. It imports nothing else of this project.

- `client_socket`: a connection to a server, plain or TLS
- `disconnect`: notices that a peer has closed its side of a connection
- `timeouts`: timeouts that cost almost nothing
- `tls`: TLS contexts of clients, and TLS inside of TLS
"""
