"""HTTP/1.1 on bare sockets: what a `tornado.web.Application` is served with."""
