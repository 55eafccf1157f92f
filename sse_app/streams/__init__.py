"""The open streams, from the request that opens one to its end.

`admission` decides whether a stream opens and where it begins or resumes, and enforces the limits on streams. `pump` is
its flush loop: replay, then live. `hub` and `fanout` send each event to all streams of a channel. `keepalive` pings,
and ends streams whose token has expired; `enforcement` ends those whose token is revoked. `publisher` checks events.
"""
