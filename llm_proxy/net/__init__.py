"""Network code that the server and the clients share. It imports nothing else of this project.

- `client_socket`: a connection to a server, plain or TLS
- `disconnect`: how an application is notified that its client disconnects
- `poller`: waits for data on sockets, and notices that peers close their side
- `timeouts`: timeouts that cost almost nothing
- `tls`: TLS contexts of clients, and TLS inside of TLS
"""
