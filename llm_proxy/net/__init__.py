"""What a server and a client share on the network; it imports nothing else of ours.

- `hang_up`: the news that a peer has ended its side of a connection
- `tls`: which certificates a client trusts
- `watch`: deadlines that cost next to nothing
"""
