"""The HTTP/1.1 server, which serves a `tornado.web.Application` on bare sockets.

`server` accepts connections, `open_connections` limits them; `connection` reads requests from one; `exchange` is one
request and its response, as a handler sees it; `request_head` and `chunked_body` parse, with llhttp.
"""
